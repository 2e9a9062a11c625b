// Several runs at once.

import assert from 'node:assert/strict';

import { RunState } from '../../src/gen/ringfence/v1/run_pb.js';
import { browserTest, printer, until } from './harness.js';
import { LogPage } from './log_helpers.js';

browserTest('five live runs are merged in time, by two streams', { proxy: true }, async ({ daemon, open, proxy }) => {
  const digest = await daemon.load(printer(), 'printer');
  const ids: string[] = [];
  for (let i = 0; i < 5; i++) {
    const steps = [`out:${i} begins\\n`, `tick:40:150:${i} ticks {}\\n`, `err:${i} ends\\n`];
    ids.push(await daemon.start(digest, ['printer', ...steps], { labels: { job: 'five' } }));
  }
  const other = await daemon.start(digest, ['printer', 'out:of another\\n']);
  const page = await open('#/together?label=job%3Dfive');
  const log = new LogPage(page, 'rf-together-page');
  for (let i = 0; i < 5; i++) await log.untilLine(new RegExp(`^${i} ticks \\d\\d`));
  // The proxy may hear of the end of one after the beginning of the next.
  assert.ok(proxy.mostStreams <= 3, `${proxy.mostStreams} streams were open at once`);
  for (const id of ids) await daemon.untilEnded(id);
  await log.log.getByText('5 runs, 210 lines').waitFor();
  await log.log.getByText('Ended.').waitFor();
  // All of it is there, in the order of its times, and with the name of its run.
  await log.button('Times').click();
  await log.button('First').click();
  await log.untilLine('0 begins');
  const lines = await log.lines();
  const times = await log.log.locator('.cm-times .cm-gutterElement:visible').allTextContents();
  assert.deepEqual(times.toSorted(), times);
  const tags = await log.log.locator('.cm-tags .cm-gutterElement:visible').allTextContents();
  assert.equal(new Set(tags.filter((it) => it !== '')).size, 5);
  lines.forEach((line, i) => assert.equal(tags[i], `…${ids[Number(line[0])]!.slice(24, 32)}`));
  assert.ok(!lines.includes('of another'));
  // A search and a filter are those of all.
  await log.search.fill('ends');
  await log.log.getByText('5 matches').waitFor();
  await log.button('Filter').click();
  await until('those lines are shown', async () => (await log.lines()).length === 5);
  await log.button('Filter').click();
  // A line leads to its run.
  await log.search.fill('');
  await log.button('First').click();
  await log.untilLine('0 begins');
  await log.log.locator('.cm-tags .cm-gutterElement:visible').first().click();
  await until('the run is shown', async () => page.url().includes(`#/runs/${ids[0]}?at=1.0`));
  assert.equal(await new LogPage(page).log.locator('.cm-line.cm-marked').textContent(), '0 begins');
  await daemon.untilEnded(other);
});

browserTest('side by side, each run has a column, and one goes from match to match', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const ids: string[] = [];
  for (let i = 0; i < 3; i++) ids.push(await daemon.start(digest, ['printer', `repeat:3:${i} says {}\\n`]));
  for (const id of ids) await daemon.untilEnded(id);
  const page = await open(`#/together?${ids.map((it) => `run=${encodeURIComponent(it)}`).join('&')}&layout=columns`);
  const log = new LogPage(page, 'rf-together-page');
  await log.log.getByText('3 runs, 9 lines').waitFor();
  const column = (i: number) => new LogPage(page, `section:nth-of-type(${i + 1})`);
  for (let i = 0; i < 3; i++) await column(i).untilLines([`${i} says 0`, `${i} says 1`, `${i} says 2`]);
  await log.search.fill('says 1');
  await log.log.getByText('3 matches').waitFor();
  for (const [i, says] of ['1 of 3', '2 of 3', '3 of 3', '1 of 3'].entries()) {
    await log.search.press('Enter');
    await log.log.getByText(says).waitFor();
    assert.equal(await column(i % 3).log.locator('.cm-current').count(), 1);
    assert.equal(await log.log.locator('.cm-current').count(), 1);
  }
  // The other layout has the same lines.
  await log.button('Merged').click();
  await until('all lines are there', async () => (await log.lines()).length === 9);
  await log.button('Side by side').click();
  for (let i = 0; i < 3; i++) await column(i).untilLines([`${i} says 0`, `${i} says 1`, `${i} says 2`]);
});

browserTest('twenty runs are shown, and how many more there are', { minutes: 4 }, async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const labels = { job: 'many' };
  for (let i = 0; i < 23; i++) await daemon.run(digest, ['printer', `out:${i} says\\n`], { labels });
  const page = await open('#/together?label=job%3Dmany');
  const log = new LogPage(page, 'rf-together-page');
  await log.log.getByText('3 more match.').waitFor();
  await log.log.getByText('20 runs, 20 lines').waitFor();
  assert.deepEqual(await log.lines(), Array.from({ length: 20 }, (_, i) => `${i + 3} says`));
  // A run that is not known is said to be so, and the others are shown.
  const unknown = 'f'.repeat(32);
  const { runs } = await daemon.client.runs.listRuns({ labels, states: [RunState.ENDED], pageSize: 1 });
  const named = new LogPage(await open(`#/together?run=${unknown}.test&run=${runs[0]!.runId}`), 'rf-together-page');
  await named.untilLines(['22 says']);
  await named.log.getByText(/no run|not found|not known|remember/i).first().waitFor();
});
