// The last hour, and what stands in the daemon's walls.

import assert from 'node:assert/strict';

import type { Page } from 'playwright-core';

import { assertAccessible } from './accessible.js';
import { browserTest, kit, setVisibility, type TestDaemon, until } from './harness.js';

/** Longer than the daemon takes for a sample. */
const SAMPLE_MS = 25_000;

/** Reads the table of a chart: its heads, and the sum of each column of numbers. */
async function sums(page: Page, title: string): Promise<Record<string, number>> {
  const table = page.getByRole('region', { name: `${title}, as a table` });
  return table.evaluate((region) => {
    const cells = (row: Element | null) => [...(row?.children ?? [])].map((it) => it.textContent?.trim() ?? '');
    const [, ...heads] = cells(region.querySelector('thead tr'));
    const rows = [...region.querySelectorAll('tbody tr')].map(cells);
    const sum = (at: number) => rows.reduce((total, row) => total + Number((row[at + 1] ?? '').replaceAll(',', '')), 0);
    return Object.fromEntries(heads.map((head, at) => [head, sum(at)]));
  });
}

async function openTable(page: Page, title: string): Promise<void> {
  await page.getByRole('figure', { name: title }).getByText('All figures as a table').click();
}

/** Runs something of each kind: three that exit, two that trap, one that times out, two that are refused. */
async function work(daemon: TestDaemon, digest: string): Promise<void> {
  for (let count = 0; count < 3; count += 1) await daemon.run(digest, ['kit', 'hello']);
  for (let count = 0; count < 2; count += 1) await daemon.run(digest, ['kit', 'panic']);
  await daemon.run(digest, ['kit', 'spin'], { timeout: { seconds: 0n, nanos: 100_000_000 } });
  for (let count = 0; count < 2; count += 1) {
    await daemon.run(digest, ['kit'], { entryPoint: 'gone' }).catch(() => undefined);
  }
}

browserTest(
  'runs are in the charts, and in the figures beside them',
  { proxy: true },
  async ({ daemon, proxy, open, allow }) => {
    const digest = await daemon.load(kit(), 'kit');
    await work(daemon, digest);
    const page = await open('#/overview');
    await page.getByRole('row', { name: 'exited 3' }).waitFor();
    await page.getByRole('row', { name: 'ENTRY_POINT_NOT_FOUND 2' }).waitFor();
    await page
      .getByText('It gave up', { exact: false })
      .or(page.getByText('The daemon gave up nothing'))
      .first()
      .waitFor();
    await openTable(page, 'Runs that ended');
    await openTable(page, 'Runs that were refused');
    const exited = async () => (await sums(page, 'Runs that ended'))['exited'];
    await until('a sample has the runs', async () => (await exited()) === 3);
    assert.deepEqual(await sums(page, 'Runs that ended'), { exited: 3, trapped: 2, 'timed out': 1 });
    assert.deepEqual(await sums(page, 'Runs that were refused'), { refused: 2 });
    await openTable(page, 'Duration of runs');
    await page.getByRole('region', { name: 'Duration of runs, as a table' }).getByText(/\d ms/).first().waitFor();

    // What happens while the tab is hidden, or the connection is broken, is there afterwards.
    await setVisibility(page, 'hidden');
    await until('the stream is closed', async () => proxy.streams === 0);
    for (let count = 0; count < 4; count += 1) await daemon.run(digest, ['kit', 'hello']);
    await new Promise((resolve) => setTimeout(resolve, SAMPLE_MS / 2));
    await setVisibility(page, 'visible');
    await until('what was missed is there', async () => (await exited()) === 7);
    allow(/.*/);
    proxy.cut();
    await daemon.run(digest, ['kit', 'hello']);
    await page.getByText('Not live').waitFor();
    proxy.mend();
    await until('what was missed is there', async () => (await exited()) === 8);

    // A daemon that starts anew knows nothing of the past, and this page still does.
    await daemon.kill();
    await daemon.restart();
    await page.getByText('No run has ended.').waitFor();
    assert.equal(await exited(), 8);
  },
);

browserTest('charts show figures at a time, all at the same one, by mouse and by keys', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const page = await open('#/overview');
  await work(daemon, digest);
  await openTable(page, 'Runs that ended');
  const rows = page.getByRole('region', { name: 'Runs that ended, as a table' }).getByRole('row');
  // One is taken every ten seconds.
  await until('there are three samples', async () => (await rows.count()) > 3, 60_000);
  const plot = page.getByRole('slider', { name: 'Time in “Runs that ended”' });
  const cursors = page.locator('path.cursor');
  assert.equal(await cursors.count(), 0);
  const box = await plot.boundingBox();
  assert.ok(box !== null);
  await page.mouse.move(box.x + box.width - 10, box.y + 20);
  await until('each chart has its cursor', async () => (await cursors.count()) === 6);
  await page.mouse.move(0, 0);
  await until('the cursors are gone', async () => (await cursors.count()) === 0);

  await plot.focus();
  const valueOf = async (name: string) => page.getByRole('slider', { name }).getAttribute('aria-valuetext');
  const says = new Set<string>();
  await page.keyboard.press('End');
  for (let count = 0; count < 8; count += 1) {
    says.add((await valueOf('Time in “Runs that ended”')) ?? '');
    await page.keyboard.press('ArrowLeft');
  }
  assert.ok(
    [...says].some((it) => it.includes('exited: 3. trapped: 2. timed out: 1')),
    [...says].join('\n'),
  );
  const times = await page.getByRole('figure').locator('li:first-child').allTextContents();
  assert.equal(new Set(times).size, 1);
});

for (const theme of ['light', 'dark'] as const) {
  browserTest(`the overview is accessible in the ${theme} theme`, { theme, width: 360 }, async ({ daemon, open }) => {
    const digest = await daemon.load(kit(), 'kit');
    await work(daemon, digest);
    const page = await open('#/overview');
    await openTable(page, 'Runs that ended');
    await page.getByRole('region', { name: 'Runs that ended, as a table' }).getByRole('cell').first().waitFor();
    await page.getByText('What confines the daemon').waitFor();
    await assertAccessible(page);
    const overflow = await page.evaluate(
      () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
    );
    assert.equal(overflow, 0);
  });
}
