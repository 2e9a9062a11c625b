// What happens to a page that is kept open while the daemon, the network or the tab go away and come back.

import assert from 'node:assert/strict';

import { fromBinary } from '@bufbuild/protobuf';
import type { Page } from 'playwright-core';

import { RunState } from '../../src/gen/ringfence/v1/run_pb.js';
import { AttachRunRequestSchema } from '../../src/gen/ringfence/v1/run_service_pb.js';
import {
  browserTest,
  type Fixture,
  printer,
  setVisibility,
  type TestDaemon,
  type TestProxy,
  until,
} from './harness.js';

const proxied = { proxy: true } as const;

/** Writes numbered lines, fewer than the daemon keeps for those who come back. */
const COUNTING = ['printer', 'tick:4000:10:line {} ends here\\n'];

async function startCounting(daemon: TestDaemon): Promise<string> {
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, COUNTING, { labels: { kind: 'counting' }, timeout: { seconds: 240n } });
  await daemon.untilRun(id, (run) => run.state === RunState.RUNNING);
  return id;
}

/** The rows of the table of runs, by the text of their cells. */
const rows = (page: Page) => page.getByRole('row').filter({ has: page.getByRole('checkbox') });

/** Whether the stream of the page is live. */
const live = (page: Page) => page.getByRole('main').getByRole('status').getByText('Live', { exact: true }).first();

/** All lines of the log, as the reader copies them. */
async function copiedLines(page: Page): Promise<string[]> {
  await page.locator('rf-log-view .cm-content').focus();
  await page.keyboard.press('Control+a');
  await page.keyboard.press('Control+c');
  const text = await page.evaluate(() => navigator.clipboard.readText());
  return text.split('\n').filter((it) => it !== '');
}

/** Asserts that each line is there once, in its order, and returns how many there are. */
async function assertWhole(page: Page): Promise<number> {
  const lines = await copiedLines(page);
  // The last one may be on its way.
  const whole = lines.filter((it) => it.endsWith('ends here'));
  assert.deepEqual(
    whole,
    whole.map((_, i) => `line ${i} ends here`),
  );
  return whole.length;
}

/** Waits until the log has more lines than it had, none twice and none missing. */
async function untilMore(page: Page, than: number): Promise<number> {
  return until('the log goes on', async () => {
    const lines = await assertWhole(page);
    return lines > than && lines;
  });
}

/** Asserts that the run was read on from where it was each time, not from its start. */
function assertReadOn(proxy: TestProxy): void {
  const from = proxy.requests('AttachRun').map((it) => fromBinary(AttachRunRequestSchema, it).fromSeq);
  assert.ok(from.length > 3, `it was read from ${from}`);
  assert.deepEqual(
    from,
    [...from].sort((a, b) => Number(a - b)),
  );
  assert.deepEqual(
    from.filter((it) => it === 0n),
    [0n],
  );
}

/** Waits until no stream is open. */
async function untilNoStream(proxy: TestProxy): Promise<void> {
  await until('all streams are closed', async () => proxy.streams === 0);
}

browserTest('the table of runs goes on with a daemon that was started again', proxied, async ({ daemon, open }) => {
  const old = await startCounting(daemon);
  const page = await open('#/runs');
  await live(page).waitFor();
  await rows(page).filter({ hasText: 'kind=counting' }).waitFor();
  await daemon.kill();
  await page.getByText('The daemon does not answer.').waitFor();
  await page.getByText(/Not live/).waitFor();
  // What is known is still there to be read.
  assert.equal(await rows(page).count(), 1);
  await daemon.restart();
  await live(page).waitFor({ timeout: 10_000 });
  const digest = await daemon.load(printer(), 'printer');
  await daemon.untilEnded(await daemon.start(digest, ['printer'], { labels: { kind: 'new' } }));
  await rows(page).filter({ hasText: 'kind=new' }).waitFor();
  await assert.rejects(daemon.client.runs.getRun({ runId: old }));
  assert.equal(await rows(page).count(), 1, 'the daemon knows nothing of the runs before');
});

browserTest('the table of runs goes on after a drain', proxied, async ({ daemon, open }) => {
  const page = await open('#/runs');
  await live(page).waitFor();
  daemon.drain();
  await page.getByText('The daemon does not answer.').waitFor();
  await daemon.restart();
  await live(page).waitFor({ timeout: 10_000 });
});

browserTest('the table of runs goes on after a break of the network', proxied, async ({ daemon, open, proxy }) => {
  await startCounting(daemon);
  const page = await open('#/runs');
  await live(page).waitFor();
  for (const kind of ['first', 'second']) {
    proxy.cut();
    await page.getByText(/Not live/).waitFor();
    const digest = await daemon.load(printer(), 'printer');
    await daemon.untilEnded(await daemon.start(digest, ['printer'], { labels: { kind } }));
    assert.equal(
      await rows(page)
        .filter({ hasText: `kind=${kind}` })
        .count(),
      0,
    );
    proxy.mend();
    await rows(page)
      .filter({ hasText: `kind=${kind}` })
      .waitFor({ timeout: 10_000 });
    assert.equal(await rows(page).filter({ hasText: 'kind=counting' }).count(), 1);
  }
  assert.equal(await rows(page).count(), 3);
});

browserTest('the table of runs is not followed while the tab is hidden', proxied, async ({ daemon, open, proxy }) => {
  await startCounting(daemon);
  const page = await open('#/runs');
  await live(page).waitFor();
  assert.equal(proxy.streams, 1);
  await setVisibility(page, 'hidden');
  await untilNoStream(proxy);
  const calls = () => [...proxy.seen].filter(([name]) => /^[A-Z]/.test(name));
  const before = calls();
  const digest = await daemon.load(printer(), 'printer');
  await daemon.untilEnded(await daemon.start(digest, ['printer'], { labels: { kind: 'meanwhile' } }));
  await page.waitForTimeout(2_500);
  assert.deepEqual(calls(), before, 'a hidden tab asks for nothing');
  await setVisibility(page, 'visible');
  await rows(page).filter({ hasText: 'kind=meanwhile' }).waitFor({ timeout: 10_000 });
  assert.equal(await rows(page).count(), 2);
});

browserTest('a run goes on where it was after a break of the network', proxied, async ({ daemon, open, proxy }) => {
  const id = await startCounting(daemon);
  const page = await open(`#/runs/${id}`);
  let lines = await untilMore(page, 20);
  for (let i = 0; i < 3; i += 1) {
    proxy.cut();
    await page.getByText(/Not live/).waitFor();
    await page.waitForTimeout(300);
    proxy.mend();
    await live(page).waitFor({ timeout: 10_000 });
    lines = await untilMore(page, lines);
  }
  assertReadOn(proxy);
});

browserTest('a run goes on where it was once the tab is shown again', proxied, async ({ daemon, open, proxy }) => {
  const id = await startCounting(daemon);
  const page = await open(`#/runs/${id}`);
  let lines = await untilMore(page, 20);
  for (let i = 0; i < 3; i += 1) {
    await setVisibility(page, 'hidden');
    await untilNoStream(proxy);
    const before = await daemon.client.runs.getRun({ runId: id });
    await daemon.untilRun(id, (run) => run.usage!.stdoutBytes > before.run!.usage!.stdoutBytes + 1_000n);
    await setVisibility(page, 'visible');
    lines = await untilMore(page, lines + 20);
  }
  assertReadOn(proxy);
});

browserTest('a run of a daemon that was started again is kept as it was', proxied, async ({ daemon, open }) => {
  const id = await startCounting(daemon);
  const page = await open(`#/runs/${id}`);
  const lines = await untilMore(page, 20);
  await daemon.kill();
  await page.getByText('The daemon does not answer.').waitFor();
  await daemon.restart();
  await page
    .getByText(/does not know this run any more/)
    .first()
    .waitFor({ timeout: 10_000 });
  assert.ok((await assertWhole(page)) >= lines);
});

browserTest('a tab has never more than two streams, and none for a page that it has left', proxied, async (fixture) => {
  const { daemon, open, proxy } = fixture;
  const ids = [];
  for (let i = 0; i < 5; i += 1) ids.push(await startCounting(daemon));
  const page = await open('#/runs');
  await live(page).waitFor();
  for (const hash of [
    `#/runs/${ids[0]}`,
    '#/overview',
    '#/together?label=kind=counting',
    '#/modules',
    '#/runs',
    `#/runs/${ids[1]}`,
  ]) {
    await page.evaluate((it) => (location.hash = it), hash);
    await page.waitForTimeout(700);
    assert.ok(proxy.streams <= (hash.includes('together') ? 2 : 1), `${hash} has ${proxy.streams} streams`);
  }
  // As fast as somebody can press keys.
  for (let i = 0; i < 10; i += 1) {
    for (const key of ['g', 'o', 'g', 'r', 'g', 'm']) await page.keyboard.press(key);
  }
  await untilNoStream(proxy);
  assert.ok(proxy.mostStreams <= 2, `${proxy.mostStreams} streams at once`);
});

browserTest('several runs at once are read to their end by two streams', proxied, async (fixture: Fixture) => {
  const { daemon, open, proxy } = fixture;
  const digest = await daemon.load(printer(), 'printer');
  for (let i = 0; i < 5; i += 1) {
    await daemon.start(digest, ['printer', `tick:20:50:run ${i} line {}\\n`], { labels: { kind: 'five' } });
  }
  const page = await open('#/together?label=kind=five');
  await until('the last line of each is there', async () => {
    const lines = await copiedLines(page);
    return [0, 1, 2, 3, 4].every((i) => lines.some((it) => it.includes(`run ${i} line 19`)));
  });
  assert.ok(proxy.mostStreams <= 2, `${proxy.mostStreams} streams at once`);
});
