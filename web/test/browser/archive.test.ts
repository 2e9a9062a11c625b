// Ended runs that outlive the daemon: listed by time, read again, and deleted.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';

import type { Page } from 'playwright-core';

import { ArchiveState, type RunInfo } from '../../src/gen/ringfence/v1/run_pb.js';
import { assertAccessible } from './accessible.js';
import { TestDaemon } from './daemon.js';
import { browserTest, kit, printer, until, wat } from './harness.js';
import { cell, counts, rowOf, rows, short } from './run_rows.js';

const EXITS = wat('(module (func (export "_start")))');
/** Ended runs are known to the archive alone soon. */
const FORGETS = { 'runs.history': '2' };
/** Longer than a test takes. */
const LONG = { seconds: 300n };

/** Waits until a run is in the archive. */
const untilArchived = async (daemon: TestDaemon, id: string) =>
  daemon.untilRun(id, (run) => run.archive === ArchiveState.WRITTEN);

const untilCounts = async (page: Page, says: string) =>
  until(`the page says: ${says}`, async () => {
    const shown = page.getByText(/^\d[\d,]* runs?, /);
    return (await shown.count()) > 0 && (await counts(page)) === says;
  }).catch(async (error: unknown) => {
    const there = await page.getByRole('main').ariaSnapshot();
    throw new Error(`${String(error)}, but:\n${there}`);
  });

const choose = async (page: Page, range: string) =>
  page.getByRole('combobox', { name: 'When runs were requested' }).selectOption({ label: range });

/** The text of a fact of a run, below what it was. */
const fact = (page: Page, name: string) => page.locator('rf-run-head').locator(`dt:text-is("${name}") + dd`);

/** Executes runs, a few at a time, and returns their ids. */
async function execute(daemon: TestDaemon, digest: string, count: number, labels: Record<string, string> = {}) {
  const ids: string[] = [];
  const work = async () => {
    while (ids.length < count) {
      const at = ids.push('') - 1;
      const { result } = await daemon.run(digest, [], { labels });
      ids[at] = result!.runId;
    }
  };
  await Promise.all(Array.from({ length: 8 }, work));
  return ids;
}

/** Returns the files of an archive that have runs. */
function segments(daemon: TestDaemon): string[] {
  const names = fs.readdirSync(daemon.archive, { recursive: true }) as string[];
  return names.filter((it) => it.endsWith('.ndjson.zst')).map((it) => path.join(daemon.archive, it));
}

browserTest(
  'runs of a daemon that is no more are listed by time, a page after the other, beside those that go on',
  { hasArchive: true },
  async ({ daemon, open }) => {
    const digest = await daemon.load(EXITS, 'exits');
    const older = await execute(daemon, digest, 90, { job: 'nightly' });
    await execute(daemon, digest, 1_010, { job: 'weekly' });
    await until('all of them are in the archive', async () => {
      const { runs } = await daemon.client.runs.listRuns({ pageSize: 1_000 });
      return runs.every((it) => it.archive === ArchiveState.WRITTEN);
    });
    for (const id of older) await untilArchived(daemon, id);
    await daemon.kill();
    await daemon.restart();
    const page = await open('#/runs');
    await page.getByText('There are no runs.').waitFor();

    // By keys: the filter of words, then the states, then the time.
    await page.keyboard.press('/');
    for (let at = 0; at < 5; at += 1) await page.keyboard.press('Tab');
    await page.keyboard.press('T');
    await page.keyboard.press('T');
    await untilCounts(page, '1,000 runs, 0 of them live.');
    assert.match(page.url(), /#\/runs\?last=day$/);
    await assertAccessible(page);
    await page.getByRole('button', { name: 'Load more' }).click();
    await page.getByRole('status').getByText('All runs of this time are loaded.').waitFor();
    await untilCounts(page, '1,100 runs, 0 of them live.');
    assert.equal(await page.getByRole('button', { name: 'Load more' }).count(), 0);
    const row = rows(page).first();
    assert.equal(await cell(row, 'end'), 'Exited with 0');
    assert.match(await cell(row, 'elapsed'), /^[\d.]+ (µs|ms)$/);

    // The daemon selects by labels, from the archive too, and the table goes on with what comes.
    await page.getByRole('textbox', { name: 'Filter by a label' }).fill('job=nightly');
    await page.keyboard.press('Enter');
    await untilCounts(page, '90 runs, 0 of them live.');
    const again = await daemon.load(kit(), 'kit');
    const live = await daemon.start(again, ['kit', 'sleep', '600000'], { labels: { job: 'nightly' }, timeout: LONG });
    await untilCounts(page, '91 runs, 1 of them live.');
    assert.equal(await cell(rows(page).first(), 'run'), short(live));
    await daemon.client.runs.cancelRun({ runId: live });
    await untilCounts(page, '91 runs, 0 of them live.');
    await page.reload();
    await untilCounts(page, '91 runs, 0 of them live.');
    await choose(page, 'All that is remembered');
    await untilCounts(page, '1 run, 0 of them live.');
    assert.match(page.url(), /#\/runs\?label=job%3Dnightly$/);
  },
);

browserTest(
  'a range between two times has what was asked for in it, and is told where it is none',
  { hasArchive: true, set: FORGETS },
  async ({ daemon, open }) => {
    const digest = await daemon.load(EXITS, 'exits');
    const ids = [];
    const infos: RunInfo[] = [];
    for (let at = 0; at < 4; at += 1) {
      const { result } = await daemon.run(digest, []);
      ids.push(result!.runId);
      infos.push(await untilArchived(daemon, result!.runId));
    }
    const at = (index: number) => {
      const { seconds, nanos } = infos[index]!.asked!;
      return new Date(Number(seconds) * 1_000 + Math.floor(nanos / 1e6));
    };
    const shown = async (page: Page, ...expected: string[]) =>
      until(`exactly ${expected.join(' and ')} are shown`, async () => {
        const texts = await rows(page).locator('.run').allTextContents();
        return texts.toSorted().join() === expected.map(short).toSorted().join();
      });
    const page = await open(`#/runs?since=${at(1).toISOString()}&until=${at(3).toISOString()}`);
    await shown(page, ids[1]!, ids[2]!);
    await page.evaluate((hash) => (location.hash = hash), '#/runs?since=');
    await shown(page, ...ids);

    // By the fields, which have minutes.
    const from = page.getByLabel('From', { exact: true });
    const before = page.getByLabel('Before', { exact: true });
    const field = (time: number) => {
      const two = (value: number) => String(value).padStart(2, '0');
      const date = new Date(time);
      const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
      return `${day}T${two(date.getHours())}:${two(date.getMinutes())}`;
    };
    const now = Date.now();
    await before.fill(field(now - 3_600_000));
    await page.getByText('No run matches the filter.').waitFor();
    await from.fill(field(now));
    await page.getByRole('alert').getByText('The second time is not after the first.').waitFor();
    assert.equal(await from.getAttribute('aria-invalid'), 'true');
    await assertAccessible(page);
    await before.fill('');
    await from.fill(field(now - 3_600_000));
    await shown(page, ...ids);
    assert.match(page.url(), /#\/runs\?since=2\d{3}-\d\d-\d\dT\d\d%3A\d\d%3A00\.000Z$/);
    await page.goBack();
    await page.goForward();
    await shown(page, ...ids);
  },
);

browserTest(
  'a run of another daemon is shown with its output once it has ended, and one may come back to it',
  { hasArchive: true },
  async ({ daemon, open }) => {
    const archive = JSON.stringify(`file://${daemon.archive}`);
    const other = await TestDaemon.start({ set: { 'runs.archive': archive, 'server.instance': 'other' } });
    try {
      const digest = await other.load(printer(), 'printer');
      const args = ['printer', 'out:from afar\\n', 'err:and \\e[31mred\\e[0m\\n', 'cat'];
      const id = await other.start(digest, args, { openStdin: true, timeout: LONG });
      const page = await open(`#/runs/${id}`);
      await page.getByRole('heading', { name: 'This run is on another daemon, other' }).waitFor();
      await other.client.runs.cancelRun({ runId: id });
      await untilArchived(other, id);
      await other.kill();
      await page.reload();
      await page.getByText('It was cancelled by a call that asked for it.').waitFor();
      const log = page.locator('ringfence-log');
      await log.getByText('from afar').waitFor();
      await log.getByText('and red').waitFor();
      await page.getByText('What it was').click();
      assert.equal(await fact(page, 'Archive').textContent(), 'written, so that the run outlives the daemon');
      await assertAccessible(page);

      // From the table to the run and back, which is where keys act then.
      await page.evaluate(() => (location.hash = '#/runs?last=hour'));
      await rowOf(page, short(id)).waitFor();
      await page.keyboard.press('t');
      await page.keyboard.press('Home');
      await page.keyboard.press('Enter');
      await log.getByText('from afar').waitFor();
      await page.goBack();
      const row = rowOf(page, short(id));
      await row.waitFor();
      await until('the row is active again', async () => (await row.getAttribute('class'))?.includes('active'));

      // Several of them together.
      const second = (await daemon.run(await daemon.load(printer(), 'printer'), ['printer', 'out:from here\\n'])).result!;
      await rowOf(page, short(second.runId)).getByRole('checkbox').check();
      await row.getByRole('checkbox').check();
      await page.getByRole('button', { name: 'Open 2 together' }).click();
      await page.getByText('from afar').waitFor();
      await page.getByText('from here').waitFor();
    } finally {
      await other.end();
    }
  },
);

browserTest(
  'a run says how it stands with the archive, and the list what is missing of it',
  { hasArchive: true },
  async ({ daemon, open, allow }) => {
    const digest = await daemon.load(EXITS, 'exits');
    const first = (await daemon.run(digest, [])).result!.runId;
    await untilArchived(daemon, first);
    // The archive is away: what is in its place is no folder.
    const aside = `${daemon.archive}.aside`;
    fs.renameSync(daemon.archive, aside);
    fs.writeFileSync(daemon.archive, '');
    const second = (await daemon.run(digest, [])).result!.runId;
    const page = await open(`#/runs/${second}`);
    await page.getByText('What it was').click();
    await fact(page, 'Archive').getByText('waits to be written').waitFor();
    await page.evaluate(() => (location.hash = '#/runs?last=hour'));
    const alert = page.getByRole('alert');
    await alert.getByText('Ended runs could not be listed: The archive of runs').waitFor();
    await alert.getByText('(ARCHIVE_UNAVAILABLE) Runs that the daemon remembers are shown.').waitFor();
    await untilCounts(page, '2 runs, 0 of them live.');
    await assertAccessible(page);
    await page.evaluate((id) => (location.hash = `#/runs/${id}`), `${'0'.repeat(32)}.elsewhere`);
    await page.getByRole('heading', { name: 'The archive does not answer' }).waitFor();
    allow(/./);

    fs.rmSync(daemon.archive);
    fs.renameSync(aside, daemon.archive);
    await page.evaluate((id) => (location.hash = `#/runs/${id}`), second);
    await page.getByText('What it was').click();
    await fact(page, 'Archive').getByText('written').waitFor();
    await page.evaluate(() => (location.hash = '#/runs?last=hour'));
    await page.getByRole('status').getByText('All runs of this time are loaded.').waitFor();
    assert.equal(await alert.getByText('could not be listed').count(), 0);

    // A part of it is not what was written.
    await daemon.kill();
    for (const file of segments(daemon)) {
      const bytes = fs.readFileSync(file);
      fs.writeFileSync(
        file,
        bytes.map((it) => it ^ 0x20),
      );
    }
    await daemon.restart();
    await page.reload();
    const damaged = page.getByText(/^\d+ parts? of the archive (is|are) damaged, whose runs are missing\.$/);
    await damaged.click();
    await page.getByText(/^runs\/.*\.ndjson\.zst/).first().waitFor();
    await page.getByText('No run matches the filter.').waitFor();
  },
);

browserTest(
  'what finds no room on its way to the archive is told to be dropped',
  { hasArchive: true, set: { 'runs.archive_queue': '2MiB' } },
  async ({ daemon, open }) => {
    const digest = await daemon.load(kit(), 'kit');
    fs.renameSync(daemon.archive, `${daemon.archive}.aside`);
    fs.writeFileSync(daemon.archive, '');
    const dropped = await until('a run is dropped', async () => {
      const { result } = await daemon.run(digest, ['kit', 'echo'], { stdin: new Uint8Array(500_000) });
      const { run } = await daemon.client.runs.getRun({ runId: result!.runId });
      return run?.archive === ArchiveState.DROPPED && run.runId;
    });
    const page = await open(`#/runs/${dropped}`);
    await page.getByText('What it was').click();
    await fact(page, 'Archive').getByText(/^dropped, since it could not be written/).waitFor();
  },
);

browserTest('runs are deleted: one, those chosen, and all of a label and a time', { hasArchive: true, set: FORGETS }, async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const ids: string[] = [];
  for (const job of ['nightly', 'nightly', 'nightly', 'weekly', 'weekly', 'other', 'other', 'other']) {
    const { result } = await daemon.run(digest, ['kit', 'hello'], { labels: { job } });
    ids.push(result!.runId);
    await untilArchived(daemon, result!.runId);
  }
  const live = await daemon.start(digest, ['kit', 'sleep', '600000'], { labels: { job: 'nightly' }, timeout: LONG });
  const page = await open('#/runs?last=hour');
  const dialog = page.getByRole('alertdialog');
  const isThere = async (id: string) =>
    daemon.client.runs.getRun({ runId: id }).then(
      () => true,
      () => false,
    );
  await untilCounts(page, '9 runs, 1 of them live.');

  // One, by the key d; the answer is no at first. What is chosen meanwhile stays so.
  await rowOf(page, short(ids[3]!)).getByRole('checkbox').check();
  await page.keyboard.press('t');
  await page.keyboard.press('End');
  await page.keyboard.press('d');
  await dialog.getByRole('heading', { name: 'Delete this run?' }).waitFor();
  await dialog.getByText(`kit ${short(ids[0]!)}`).waitFor();
  await assertAccessible(page);
  await page.keyboard.press('Enter');
  await dialog.waitFor({ state: 'detached' });
  assert.equal(await isThere(ids[0]!), true);
  await page.keyboard.press('d');
  await dialog.getByRole('button', { name: 'Delete' }).click();
  await page.getByText('1 run deleted.').waitFor();
  await untilCounts(page, '8 runs, 1 of them live.');
  assert.equal(await isThere(ids[0]!), false);
  await page.getByRole('button', { name: 'Delete 1 chosen' }).waitFor();

  // Those that are chosen, of which one goes on and stays chosen.
  for (const id of [ids[4]!, live]) await rowOf(page, short(id)).getByRole('checkbox').check();
  await page.getByRole('button', { name: 'Delete 3 chosen' }).click();
  await dialog.getByRole('heading', { name: 'Delete 2 runs?' }).waitFor();
  await dialog.getByRole('button', { name: 'Delete 2 runs' }).click();
  await page.getByText('2 runs deleted.').waitFor();
  await untilCounts(page, '6 runs, 1 of them live.');
  await page.getByRole('button', { name: 'Delete 1 chosen' }).waitFor();
  await page.getByRole('button', { name: 'Choose none' }).click();
  await page.getByRole('button', { name: 'Delete all that match' }).waitFor();

  // All of a label and a time, which the daemon counts: also those that the table does not show.
  await page.getByRole('textbox', { name: 'Filter by a label' }).fill('job=nightly');
  await page.keyboard.press('Enter');
  await untilCounts(page, '3 runs, 1 of them live.');
  const unseen = (await daemon.run(digest, ['kit', 'hello'], { labels: { job: 'nightly' } })).result!.runId;
  await untilCounts(page, '4 runs, 1 of them live.');
  await page.getByRole('button', { name: 'Delete all that match' }).click();
  await dialog.getByRole('heading', { name: 'Delete 3 runs?' }).waitFor();
  await dialog.getByText('also those that the table does not show').waitFor();
  await dialog.getByRole('button', { name: 'Delete 3 runs' }).click();
  await page.getByText('3 runs deleted.').waitFor();
  await untilCounts(page, '1 run, 1 of them live.');
  for (const id of [ids[1]!, ids[2]!, unseen]) assert.equal(await isThere(id), false);
  assert.equal(await isThere(live), true);

  // Those that have a word, by their ids; a filter that only words have does not take the others.
  await page.getByRole('button', { name: 'Filter no longer by label job=nightly' }).click();
  await page.getByRole('searchbox').fill(ids[5]!);
  await untilCounts(page, '1 run, 0 of them live.');
  await page.getByRole('button', { name: 'Delete all that match' }).click();
  await dialog.getByText(`kit ${short(ids[5]!)}`).waitFor();
  await dialog.getByRole('button', { name: 'Delete' }).click();
  await until('it is gone', async () => !(await isThere(ids[5]!)));
  assert.equal(await isThere(ids[6]!), true);

  // From its own page.
  await page.evaluate((id) => (location.hash = `#/runs/${id}`), ids[6]!);
  await page.getByText('It exited with code 0.').waitFor();
  await page.keyboard.press('D');
  await dialog.getByRole('heading', { name: 'Delete this run?' }).waitFor();
  await dialog.getByRole('button', { name: 'Cancel' }).click();
  // Where that fails, the run is still shown.
  await page.getByRole('button', { name: 'Delete' }).click();
  await dialog.getByRole('heading', { name: 'Delete this run?' }).waitFor();
  await page.route('**/DeleteRuns', (route) => route.abort());
  await dialog.getByRole('button', { name: 'Delete' }).click();
  await page.getByText('Not all of the runs could be deleted').waitFor();
  await page.unroute('**/DeleteRuns');
  await page.getByText('It exited with code 0.').waitFor();
  assert.match(page.url(), new RegExp(`#/runs/${ids[6]!}$`));
  await page.getByRole('button', { name: 'Delete' }).click();
  await dialog.getByRole('button', { name: 'Delete' }).click();
  await page.waitForURL(/#\/runs$/);
  assert.deepEqual([await isThere(ids[6]!), await isThere(ids[7]!)], [false, true]);
  // A run that goes on can be killed, and not deleted.
  await page.evaluate((id) => (location.hash = `#/runs/${id}`), live);
  await page.getByRole('button', { name: 'Kill' }).waitFor();
  assert.equal(await page.getByRole('button', { name: 'Delete' }).count(), 0);
});

browserTest(
  'nothing can be deleted where the daemon is read-only',
  { set: { 'admin.read_only': 'true' } },
  async ({ daemon, open }) => {
    const page = await open('#/runs?last=week');
    await page.getByText('No run matches the filter.').waitFor();
    await page.getByText("the daemon's listener is read-only").waitFor();
    await page.getByRole('button', { name: 'Delete all that match' }).waitFor({ state: 'detached' });
    await assert.rejects(daemon.client.runs.deleteRuns({ labels: { a: 'b' } }), /read_only/);
  },
);
