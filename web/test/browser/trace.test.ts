// The trace that a run belongs to, in its details.

import assert from 'node:assert/strict';

import type { Page } from 'playwright-core';

import { assertAccessible } from './accessible.js';
import { browserTest, type TestDaemon, wat } from './harness.js';

const EXITS = wat('(module (func (export "_start")))');
const TRACE = '0af7651916cd43dd8448eb211c80319c';

/** Executes a run whose caller has a trace, and opens its details. */
async function traced(daemon: TestDaemon, open: (hash: string) => Promise<Page>): Promise<Page> {
  const digest = await daemon.load(EXITS, 'exits');
  const headers = { traceparent: `00-${TRACE}-b7ad6b7169203331-01` };
  const spec = { module: { case: 'digest' as const, value: digest } };
  const { result } = await daemon.client.sandbox.run({ spec }, { headers });
  const page = await open(`#/runs/${result!.runId}`);
  await page.getByText('What it was').click();
  return page;
}

browserTest(
  'the trace of a run is a link where the operator says so, and its id is copied',
  { set: { 'admin.trace_url': '"https://traces.example.com/t/{trace_id}?tab=spans"' } },
  async ({ daemon, open }) => {
    const page = await traced(daemon, open);
    const link = page.getByRole('link', { name: TRACE });
    await link.waitFor();
    assert.equal(await link.getAttribute('href'), `https://traces.example.com/t/${TRACE}?tab=spans`);
    assert.equal(await link.getAttribute('rel'), 'noopener noreferrer');
    assert.equal(await link.getAttribute('target'), '_blank');
    await page.getByRole('button', { name: 'Copy the id of the trace' }).click();
    await page.getByText('The id of the trace is copied.').waitFor();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), TRACE);
    await assertAccessible(page);
  },
);

browserTest('the trace of a run is text where the operator says nothing', async ({ daemon, open }) => {
  const page = await traced(daemon, open);
  await page.getByRole('button', { name: 'Copy the id of the trace' }).waitFor();
  await page.getByText(TRACE).waitFor();
  assert.equal(await page.getByRole('link', { name: TRACE }).count(), 0);
});

browserTest('a list of a time says that there is no archive', async ({ open }) => {
  const page = await open('#/runs?last=day');
  await page.getByText('This daemon has no archive (runs.archive): these are the runs that it remembers.').waitFor();
});
