// The page of one run, above its output.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';

import type { Page } from 'playwright-core';

import { RunState } from '../../src/gen/ringfence/v1/run_pb.js';
import { assertAccessible } from './accessible.js';
import { binary, browserTest, kit, until, wat } from './harness.js';
import { short } from './run_rows.js';

const RECURSES = wat('(module (func $f (export "_start") (call $f)))');
const READ_ONLY = { 'admin.read_only': 'true' };

const meter = async (page: Page, name: string): Promise<string | null> =>
  page.getByRole('meter', { name }).getAttribute('aria-valuetext');
const copied = async (page: Page): Promise<string> => page.evaluate(() => navigator.clipboard.readText());

browserTest('a trap is told with its message and the calls that led there', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'panic']);
  await daemon.untilEnded(id);
  const page = await open(`#/runs/${id}`);
  await page.getByRole('heading', { name: `kit ${short(id)}` }).waitFor();
  await page.getByText('It trapped: wasm `unreachable` instruction executed.').waitFor();
  const trap = page.getByRole('region', { name: 'Trap' });
  await trap.getByText('Trap unreachable, and the calls that led there, the innermost first:').waitFor();
  const calls = trap.getByRole('listitem');
  assert.match((await calls.first().textContent()) ?? '', /abort \(function \d+, at 0x[0-9a-f]+\)$/);
  const main = calls.filter({ hasText: 'kit::main' });
  assert.equal(await main.isVisible(), false);
  await trap.getByText(/^\d+ more calls$/).click();
  await main.waitFor();
  assert.match((await meter(page, 'Memory')) ?? '', /^[\d.]+ MiB of [\d.]+ MiB$/);
  await assertAccessible(page);
});

browserTest('each limit is told with what was used and what was allowed', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const recurses = await daemon.load(RECURSES, 'recurses');
  const timeout = { seconds: 0n, nanos: 200_000_000 };
  const cases: ReadonlyArray<readonly [string, readonly string[], Parameters<typeof daemon.start>[2], RegExp]> = [
    [
      digest,
      ['sleep', '60000'],
      { timeout },
      /^It reached its time limit, and was stopped after (2\d\d|[3-9]\d\d) ms\.$/,
    ],
    [
      digest,
      ['hog', '100'],
      { resources: { memoryPages: 64 } },
      /^It went over its memory: it held [\d.]+ MiB of the 4 MiB \(64 pages\) that it had, wanted more/,
    ],
    [
      digest,
      ['spin'],
      { resources: { fuelLimit: 1_000_000n } },
      /^It ran out of fuel: it used 1,000,000 of the 1,000,000 that it had\.$/,
    ],
    [
      recurses,
      [],
      { resources: { stackSize: 262_144 } },
      /^Its calls went too deep: it needed more than the 256 KiB of stack that it had\.$/,
    ],
    [
      digest,
      ['flood', '100000'],
      { resources: { outputLimit: 65_536n } },
      /^It wrote more to standard output than it may: 64 KiB of the 64 KiB for each stream, and then more\.$/,
    ],
  ];
  const page = await open('#/runs');
  for (const [module, args, more, says] of cases) {
    const id = await daemon.start(module, args.length === 0 ? [] : ['kit', ...args], more);
    await daemon.untilEnded(id);
    await page.evaluate((hash) => (location.hash = hash), `#/runs/${id}`);
    await page.getByRole('heading', { name: short(id) }).waitFor();
    await page.getByText(says).waitFor();
  }
  assert.equal(await meter(page, 'Standard output'), '64 KiB of 64 KiB');
});

browserTest('a time-out says what was written by then', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const timeout = { seconds: 0n, nanos: 300_000_000 };
  const id = await daemon.start(digest, ['kit', 'sleep', '60000'], { timeout });
  const page = await open(`#/runs/${id}`);
  await page.getByText(/What it wrote by then is partial output: 7 B of standard output and 0 B of/).waitFor();
  await page.getByText('before').waitFor();
});

browserTest('a refusal is told with its reason, and with what it tells besides', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  await assert.rejects(daemon.start(digest, ['kit'], { resources: { memoryPages: 99_999_999 } }));
  const { runs } = await daemon.client.runs.listRuns({});
  const page = await open(`#/runs/${runs[0]!.runId}`);
  await page.getByText('It was refused before its first instruction.').waitFor();
  await page.getByText('(LIMIT_ABOVE_MAXIMUM)').waitFor();
  const told = page.getByRole('definition').filter({ hasText: 'policy.max_memory_pages' });
  assert.equal(await told.textContent(), 'policy.max_memory_pages');
  await assertAccessible(page);
});

browserTest('a run that is not there is explained', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'hello']);
  const page = await open(`#/runs/${'0'.repeat(32)}.test`);
  await page.getByRole('heading', { name: 'This run is not known here' }).waitFor();
  await page.evaluate((hash) => (location.hash = hash), `#/runs/${id.slice(0, 32)}.elsewhere`);
  await page.getByRole('heading', { name: 'This run is on another daemon, elsewhere' }).waitFor();
  await page.evaluate((hash) => (location.hash = hash), '#/runs/<b>nonsense\u202e');
  await page.getByRole('heading', { name: 'This is not the id of a run' }).waitFor();
  await page.getByRole('link', { name: 'All runs' }).click();
  await page.getByText('1 run, 0 of them live.').waitFor();
});

browserTest('a live run is shown as it goes on, and ended from its page', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'sleep', '600000'], { labels: { job: 'nightly', user: 'ada' } });
  const page = await open(`#/runs/${id}`);
  await page.getByText(/^It runs\. For \d+ s\.$/).waitFor();
  await page
    .getByText(/^It (waited [\d.]+ m?s for its module and a slot|had its module and a slot at once)\.$/)
    .waitFor();
  await page.keyboard.press('K');
  const dialog = page.getByRole('alertdialog');
  await dialog.getByRole('heading', { name: 'End this run?' }).waitFor();
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  await page.getByText('It was cancelled by a call that asked for it.').waitFor();
  await page.getByText('1 run ended.').waitFor();
  assert.equal(await page.getByRole('button', { name: 'Kill' }).count(), 0);
  await page.getByText('What it was').click();
  await page.getByRole('definition').filter({ hasText: 'without its caller (detached)' }).waitFor();
  await page.getByRole('button', { name: 'Show runs with the label user=ada' }).click();
  await page.getByText('1 run, 0 of them live.').waitFor();
  assert.match(page.url(), /#\/runs\?label=user%3Dada$/);
});

browserTest('a run that waits for a slot says so', { set: { 'admission.slots': '1' } }, async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const first = await daemon.start(digest, ['kit', 'sleep', '600000']);
  const left = new AbortController();
  const spec = { module: { case: 'digest', value: digest } as const, args: ['kit', 'hello'], detach: true };
  const second = daemon.client.sandbox.run({ spec }, { signal: left.signal });
  second.catch(() => {});
  const queued = await until('the second run waits', async () => {
    const { runs } = await daemon.client.runs.listRuns({ states: [RunState.QUEUED] });
    return runs[0]?.runId;
  });
  const page = await open(`#/runs/${queued}`);
  await page.getByText(/^It waits for a slot\. For \d+ s\.$/).waitFor();
  await daemon.client.runs.cancelRun({ runId: first });
  await page.getByText('It exited with code 0.').waitFor();
  left.abort();
});

browserTest('what is known of a run remains when its daemon is started again', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'sleep', '600000']);
  const page = await open(`#/runs/${id}`);
  await page.getByText(/^It runs\./).waitFor();
  await daemon.kill();
  await page.getByText('This is what was known of the run.').waitFor();
  await daemon.restart();
  await page.getByText('The daemon does not know this run any more').waitFor();
  await page.getByText(/^It runs\./).waitFor();
});

browserTest('a run starts once more, as far as it is known, and edited', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'hello'], { labels: { job: 'nightly' } });
  await daemon.untilEnded(id);
  const page = await open(`#/runs/${id}`);
  await page.getByText('It exited with code 0.').waitFor();
  await page.keyboard.press('R');
  await page.getByText('It does not keep its entry point, arguments').waitFor();
  await page.getByRole('alertdialog').getByRole('button', { name: 'Run again' }).click();
  await page.getByText('It exited with code 64').waitFor();
  const next = new URL(page.url()).hash.slice('#/runs/'.length);
  assert.notEqual(next, id);
  assert.deepEqual((await daemon.untilEnded(next)).labels, { job: 'nightly' });
  // Of that run this page knows all, since it asked for it.
  await page.keyboard.press('R');
  await page.waitForURL((url) => !url.hash.includes(next) && url.hash.startsWith('#/runs/'));
  await page.getByText('It exited with code 64').waitFor();
  await page.getByText('What it was').click();
  assert.equal(await page.getByText('The daemon does not keep entry point').count(), 0);
  await page.keyboard.press('E');
  await page.waitForURL(new RegExp(`#/start\\?module=sha256%3A\\w+&from=`));
});

browserTest('a run of a label leads to the others', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'hello'], { labels: { job: 'a', user: '<b>' } });
  const page = await open(`#/runs/${id}`);
  await page.getByText('Together').click();
  await page.getByRole('button', { name: 'user=<b>', exact: true }).click();
  await page.waitForURL(/#\/together\?label=user%3D%3Cb%3E$/);
});

browserTest('a run is copied as commands and as a report', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const labels = { job: "it's; $(id) \u202e", '<b>': '`x`' };
  const id = await daemon.start(digest, ['kit', 'both', '30'], { labels });
  await daemon.untilEnded(id);
  const page = await open(`#/runs/${id}`);
  await page.getByText('It exited with code 0.').waitFor();
  const copy = async (name: string) => {
    await page.getByText('Copy as').click();
    await page.getByRole('button', { name }).click();
  };

  await copy('ringfence run');
  await page.getByText('The command is copied. It leaves out its entry point, arguments').waitFor();
  const command = (await copied(page)).replace('127.0.0.1:50051', daemon.grpc).replace(/^ringfence/, '"$PROGRAM"');
  const env = { PATH: process.env['PATH'], PROGRAM: binary() };
  // The program says by this code that it was given nothing to do.
  const run = () => execFileSync('sh', ['-c', command], { env, stdio: 'pipe' });
  assert.throws(run, (error: { status?: number; stderr?: Buffer }) => {
    assert.match(String(error.stderr), /no habit ""/);
    return error.status === 64;
  });
  const { runs } = await daemon.client.runs.listRuns({});
  assert.deepEqual(runs[0]?.labels, labels);

  await copy('grpcurl');
  await until('the call is copied', async () => (await copied(page)).startsWith('grpcurl -plaintext -d '));
  await copy('Report of what happened');
  await until('the report is copied', async () => (await copied(page)).startsWith('Run\n'));
  const report = await copied(page);
  for (const part of [
    `  id: ${id}\n`,
    '  module: kit\n',
    '  It exited with code 0.\n',
    '  err 10\n  err 11\n',
    '  err 29\n',
  ]) {
    assert.ok(report.includes(part), part);
  }
  assert.ok(!report.includes('err 9\n'), 'only the last lines');
  assert.ok(!report.includes('out 1'), 'only standard error');
  assert.ok(report.includes('⟨U+202E⟩'));
});

browserTest('a line of the output stands in the address', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'hello']);
  const page = await open(`#/runs/${id}?at=1.3`);
  await page.getByText('It exited with code 0.').waitFor();
  const log = page.locator('ringfence-log');
  const at = () => log.evaluate((it) => String((it as unknown as { at: { seq: bigint; offset: number } }).at.seq));
  assert.equal(await at(), '1');
  await log.evaluate((it, run) => {
    const detail = { run, at: { seq: 2n, offset: 0 } };
    it.dispatchEvent(new CustomEvent('ringfence-link', { detail, bubbles: true, composed: true }));
  }, id);
  await page.waitForURL(/\?at=2\.0$/);
  await until('the log knows', async () => (await at()) === '2');
});

browserTest('a page that only shows has nothing that changes a run', { set: READ_ONLY }, async ({ daemon, open }) => {
  // The gRPC listener of a daemon whose page only shows takes runs all the same.
  const program = binary();
  const module = `${daemon.folder}/guest.wat`;
  execFileSync('sh', ['-c', `printf '%s' '(module (func (export "_start")))' > ${module}`]);
  const id = execFileSync(program, ['run', '--server', daemon.grpc, '--detach', module], { encoding: 'utf8' }).trim();
  const page = await open(`#/runs/${id}`);
  await page.getByText('It exited with code 0.').waitFor();
  await page.getByText('Copy as').waitFor();
  await page.getByRole('button', { name: 'Run again' }).waitFor({ state: 'detached' });
  assert.equal(await page.getByRole('button', { name: 'Kill' }).count(), 0);
});
