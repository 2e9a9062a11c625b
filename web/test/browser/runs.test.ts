// The table of runs.

import assert from 'node:assert/strict';

import { assertAccessible } from './accessible.js';
import { browserTest, kit, setSize, until, wat } from './harness.js';
import { cell, counts, rowOf, rows, short } from './run_rows.js';

const WIDE = { width: 1_600, height: 900 };
const EXITS = wat('(module (func (export "_start")))');

browserTest('the table fills with runs as they come, and says how they ended', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const done = await daemon.start(digest, ['kit', 'hello'], { labels: { job: 'nightly' } });
  await daemon.untilEnded(done);
  const page = await open('#/runs');
  const first = rowOf(page, short(done));
  await first.waitFor();
  await page.getByText('Live', { exact: true }).waitFor();
  await first.getByText('kit', { exact: true }).waitFor();
  assert.equal(await cell(first, 'state'), '● ended');
  assert.equal(await cell(first, 'labels'), 'job=nightly');
  assert.equal(await cell(first, 'output'), '6 B');
  assert.equal(await cell(first, 'end'), 'Exited with 0');
  assert.match(await cell(first, 'elapsed'), /^[\d.]+ ms$/);
  assert.match(await cell(first, 'memory'), /^[\d.]+ MiB$/);

  const live = await daemon.start(digest, ['kit', 'spin', 'x'], { resources: { fuelLimit: 1_000_000_000_000_000n } });
  const second = rowOf(page, short(live));
  await second.waitFor();
  assert.equal(await rows(page).first().locator('.run').textContent(), short(live), 'the newest comes first');
  assert.equal(await cell(second, 'state'), '● running');
  const elapsed = await cell(second, 'elapsed');
  await until('its clock goes on', async () => (await cell(second, 'elapsed')) !== elapsed);
  await until('its fuel is told while it runs', async () => / (m|b|tr)illion$/.test(await cell(second, 'fuel')));
  assert.equal(await counts(page), '2 runs, 1 of them live.');

  const ends: ReadonlyArray<readonly [readonly string[], Parameters<typeof daemon.start>[2], string]> = [
    [['exit', '3'], {}, 'Exited with 3'],
    [['panic'], {}, 'Trapped: wasm `unreachable` instruction executed'],
    [['sleep', '60000'], { timeout: { seconds: 0n, nanos: 100_000_000 } }, 'Timed out after'],
    [['hog', '100'], { resources: { memoryPages: 64 } }, 'Over the memory limit of 4 MiB'],
    [['spin'], { resources: { fuelLimit: 1_000n } }, 'Out of fuel, of which it had 1,000'],
    [['flood', '100000'], { resources: { outputLimit: 65_536n } }, 'Over the output limit of 64 KiB'],
  ];
  for (const [args, more, end] of ends) {
    const id = await daemon.start(digest, ['kit', ...args], more);
    await rowOf(page, short(id)).filter({ hasText: end }).waitFor();
  }
  await assert.rejects(daemon.start(digest, ['kit'], { entryPoint: 'nothing' }));
  await rows(page).filter({ hasText: 'Refused: ENTRY_POINT_NOT_FOUND' }).waitFor();
  await assertAccessible(page);
});

browserTest('filters select runs, stand in the address, and survive a reload', WIDE, async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const other = await daemon.load(EXITS, 'other');
  const a = await daemon.start(digest, ['kit', 'sleep', '600000'], { labels: { job: 'nightly', user: 'ada' } });
  const b = await daemon.start(digest, ['kit', 'hello'], { labels: { job: 'nightly' } });
  const c = await daemon.start(other, [], {});
  await daemon.untilEnded(c);
  const page = await open('#/runs');
  await rowOf(page, short(c)).getByText('other').waitFor();
  assert.equal(await rows(page).count(), 3);
  const search = page.getByRole('searchbox', { name: 'Filter by words' });
  const shown = async (...ids: string[]) =>
    until(`exactly ${ids.join(' and ')} are shown`, async () => {
      const texts = await rows(page).locator('.run').allTextContents();
      return texts.toSorted().join() === ids.map(short).toSorted().join();
    });

  await page.keyboard.press('/');
  await page.keyboard.type('OTHER');
  await shown(c);
  assert.match(page.url(), /#\/runs\?text=OTHER$/);
  await search.fill(b.slice(0, 32));
  await shown(b);
  await search.fill('exited with 0');
  await shown(b, c);
  await search.fill('');
  await page.getByRole('button', { name: 'running' }).click();
  await shown(a);
  await page.getByRole('button', { name: 'running' }).click();
  await page.getByRole('textbox', { name: 'Filter by a label' }).fill('job');
  await page.keyboard.press('Enter');
  await page.getByRole('alert').getByText('A label is KEY=VALUE.').waitFor();
  await page.getByRole('textbox', { name: 'Filter by a label' }).fill('job=nightly');
  await page.keyboard.press('Enter');
  await shown(a, b);
  await page.getByRole('button', { name: 'ended' }).click();
  await shown(b);

  await page.reload();
  await shown(b);
  assert.equal(await page.getByRole('button', { name: 'ended' }).getAttribute('aria-pressed'), 'true');
  await page.getByRole('button', { name: 'ended' }).click();
  await shown(a, b);
  // A run that comes later is selected in the same way.
  const d = await daemon.start(digest, ['kit', 'hello'], { labels: { job: 'nightly' } });
  await daemon.start(digest, ['kit', 'hello'], { labels: { job: 'weekly' } });
  await shown(a, b, d);
  await rowOf(page, short(a)).getByRole('button', { name: 'Show only user=ada' }).click();
  await shown(a);
  await page.getByRole('button', { name: 'Filter no longer by label user=ada' }).click();
  await shown(a, b, d);
  await search.fill('no such run');
  await page.getByText('No run matches the filter.').waitFor();
});

browserTest('a table that is paused holds, and counts what changes meanwhile', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const live = await daemon.start(digest, ['kit', 'sleep', '600000']);
  const page = await open('#/runs');
  const row = rowOf(page, short(live));
  await row.waitFor();
  await page.keyboard.press('p');
  await page.getByText('Paused: 0 runs changed meanwhile.').waitFor();
  const elapsed = await cell(row, 'elapsed');
  await daemon.client.runs.cancelRun({ runId: live });
  await page.getByText('Paused: 1 run changed meanwhile.').waitFor();
  const next = await daemon.start(digest, ['kit', 'sleep', '600000']);
  await page.getByText('Paused: 2 runs changed meanwhile.').waitFor();
  assert.equal(await cell(row, 'state'), '● running');
  assert.equal(await cell(row, 'elapsed'), elapsed);
  assert.equal(await rows(page).count(), 1);
  await page.getByRole('button', { name: 'Pause' }).click();
  await rowOf(page, short(next)).waitFor();
  assert.equal(await cell(row, 'state'), '● ended');
});

browserTest('one run is ended, those chosen, and all that match, with their number first', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const start = (job: string) => daemon.start(digest, ['kit', 'sleep', '600000'], { labels: { job } });
  const nightly = [];
  for (let at = 0; at < 7; at += 1) nightly.push(await start('nightly'));
  const weekly = [await start('weekly'), await start('weekly'), await start('weekly')];
  const page = await open('#/runs');
  const state = async (id: string) => cell(rowOf(page, short(id)), 'state');
  const dialog = page.getByRole('alertdialog');
  await rowOf(page, short(weekly[2]!)).waitFor();

  // One, by its button; the answer is no at first.
  await rowOf(page, short(weekly[0]!)).getByRole('button', { name: 'Kill' }).click();
  await dialog.getByRole('heading', { name: 'End this run?' }).waitFor();
  await dialog.getByText(`kit ${short(weekly[0]!)}`).waitFor();
  await page.keyboard.press('Enter');
  await dialog.waitFor({ state: 'detached' });
  assert.equal(await state(weekly[0]!), '● running');
  await rowOf(page, short(weekly[0]!)).getByRole('button', { name: 'Kill' }).click();
  await dialog.getByRole('button', { name: 'Kill' }).click();
  await page.getByText('1 run ended.').waitFor();
  await rowOf(page, short(weekly[0]!)).getByText('Cancelled by a call that asked for it').waitFor();

  // One, by the key k; the newest is first.
  await page.keyboard.press('t');
  await page.keyboard.press('Home');
  await page.keyboard.press('k');
  await dialog.getByText(`kit ${short(weekly[2]!)}`).waitFor();
  await dialog.getByRole('button', { name: 'Kill' }).click();
  await daemon.untilEnded(weekly[2]!);

  // Those that are chosen.
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press(' ');
  await page.getByRole('button', { name: 'Kill 1 chosen' }).click();
  await dialog.getByText(`kit ${short(weekly[1]!)}`).waitFor();
  await dialog.getByRole('button', { name: 'Kill' }).click();
  await daemon.untilEnded(weekly[1]!);
  await page.getByRole('button', { name: 'Choose none' }).click();

  // All of a label, which the daemon counts.
  const last = await start('weekly');
  await page.getByRole('textbox', { name: 'Filter by a label' }).fill('job=nightly');
  await page.keyboard.press('Enter');
  await page.getByText('7 runs, 7 of them live.').waitFor();
  await page.getByRole('button', { name: 'Kill all that match' }).click();
  await dialog.getByRole('heading', { name: 'End 7 runs?' }).waitFor();
  await dialog.getByText('and 2 more').waitFor();
  await dialog.getByRole('button', { name: 'Kill 7 runs' }).click();
  await page.getByText('7 runs ended.').waitFor();
  for (const id of nightly) await daemon.untilEnded(id);
  assert.equal((await daemon.untilRun(last, () => true)).end.case, undefined);

  // All that have a word, each by a call.
  await page.getByRole('button', { name: 'Filter no longer by label job=nightly' }).click();
  await page.getByRole('searchbox').fill('weekly');
  await page.getByText('4 runs, 1 of them live.').waitFor();
  await page.getByRole('button', { name: 'Kill all that match' }).click();
  await dialog.getByText(`kit ${short(last)}`).waitFor();
  await dialog.getByRole('button', { name: 'Kill' }).click();
  await daemon.untilEnded(last);
});

browserTest(
  'nothing can be ended where the daemon is read-only',
  { set: { 'admin.read_only': 'true' } },
  async ({ open }) => {
    const page = await open('#/runs');
    await page.getByText('There are no runs.').waitFor();
    await page.getByText('read-only', { exact: false }).waitFor();
    await page.getByRole('button', { name: 'Kill all that match' }).waitFor({ state: 'detached' });
  },
);

browserTest('by keys alone from the table to a run and back', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const ids = [];
  for (let at = 0; at < 3; at += 1) ids.push(await daemon.start(digest, ['kit', 'exit', String(at)]));
  const page = await open('#/runs');
  await rowOf(page, short(ids[0]!)).waitFor();
  await page.keyboard.press('t');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  await page.getByText('It exited with code 1').waitFor();
  assert.ok(page.url().endsWith(`#/runs/${ids[1]}`));
  await page.keyboard.press('g');
  await page.keyboard.press('r');
  const row = rowOf(page, short(ids[1]!));
  await row.waitFor();
  await until('the row is active again', async () => (await row.getAttribute('class'))?.includes('active'));
  await until('keys go to the table', async () => {
    const before = await page.getByRole('grid').getAttribute('aria-activedescendant');
    if (before === 'row-2') return true;
    await page.keyboard.press('ArrowDown');
    return false;
  });
  await page.keyboard.press('Enter');
  await page.getByText('It exited with code 0').waitFor();
});

browserTest('several runs are opened together, and all of a label', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const ids = [];
  for (let at = 0; at < 3; at += 1) ids.push(await daemon.start(digest, ['kit', 'hello'], { labels: { job: 'a b' } }));
  const page = await open('#/runs');
  for (const id of ids.slice(0, 2)) await rowOf(page, short(id)).getByRole('checkbox').check();
  await page.getByRole('button', { name: 'Open 2 together' }).click();
  await page.waitForURL(new RegExp(`#/together\\?run=${ids[0]}&run=${ids[1]}$`));
  await page.goBack();
  await page.getByRole('textbox', { name: 'Filter by a label' }).fill('job=a b');
  await page.keyboard.press('Enter');
  await page.getByRole('button', { name: 'Open these labels together' }).click();
  await page.waitForURL(/#\/together\?label=job%3Da\+b$/);
});

browserTest(
  'hostile labels and names of modules are text, on a phone too',
  { width: 360, height: 740 },
  async ({ daemon, open }) => {
    const hostile = '<img src=x onerror=alert(1)>';
    const digest = await daemon.load(wat('(module $m (func (export "_start") (loop (br 0))))'), `${hostile}\u202e`);
    await daemon.start(digest, [], { labels: { '<script>alert(1)</script>': `javascript:alert(1)\u200b${hostile}` } });
    const page = await open('#/runs');
    await page.getByText(`${hostile}⟨U+202E⟩`).waitFor();
    const label = page.getByText('<script>alert(1)</script>=javascript:alert(1)⟨U+200B⟩');
    await label.waitFor();
    await label.click();
    await page.getByRole('button', { name: 'Filter no longer by label' }).waitFor();
    await page.reload();
    await page.getByText(`${hostile}⟨U+202E⟩`).waitFor();
    assert.equal(await page.locator('img').count(), 0);
    await assertAccessible(page);
    await setSize(page, 1_600, 900);
    await page.getByText(`${hostile}⟨U+202E⟩`).waitFor();
  },
);

browserTest(
  'the table says when it is not live, and goes on once it is',
  { proxy: true },
  async ({ daemon, open, proxy }) => {
    const digest = await daemon.load(kit(), 'kit');
    const first = await daemon.start(digest, ['kit', 'hello']);
    const page = await open('#/runs');
    await rowOf(page, short(first)).waitFor();
    proxy.cut();
    await page.getByText('Not live').waitFor();
    await rowOf(page, short(first)).waitFor();
    const second = await daemon.start(digest, ['kit', 'hello']);
    proxy.mend();
    await rowOf(page, short(second)).waitFor();
    await page.getByText('Live', { exact: true }).waitFor();
    await daemon.kill();
    await page.getByText('Not live').waitFor();
    await daemon.restart();
    await page.getByText('There are no runs.').waitFor();
  },
);
