// The log while things happen to it: output at its pace, breaks, a crash, a hidden tab, and output that is missed.

import assert from 'node:assert/strict';

import { browserTest, printer, setVisibility, until } from './harness.js';
import { LogPage } from './log_helpers.js';

const KEEPS_ALL = { set: { 'runs.log_bytes': '"64MiB"', 'policy.max_stream_output': '"64MiB"' } };

/** Whether each line has the number after that of the line before. */
function isWithoutGaps(lines: readonly string[]): boolean {
  const numbers = lines.map((it) => Number(/\d+$/.exec(it)?.[0]));
  return numbers.every((it, i) => i === 0 || it === numbers[i - 1]! + 1);
}

browserTest('lines are seen soon after they are written', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'sleep:2500', 'tick:21:97:tick {}\\n', 'sleep:60000'], {
    timeout: { seconds: 90n },
  });
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  await log.log.getByText('Nothing was written yet.').waitFor();
  const lines = await log.log.locator('.cm-content').elementHandle();
  const seen = await lines!.evaluate(async (content) => {
    const times: number[] = [];
    while (times.length < 20) {
      const count = [...content.querySelectorAll('.cm-line')].filter((it) => it.textContent !== '').length;
      while (times.length < count) times.push(Date.now());
      await new Promise((resolve) => requestAnimationFrame(resolve));
    }
    return times;
  });
  const written: number[] = [];
  for await (const { event, time } of daemon.client.runs.attachRun({ runId: id })) {
    if (event.case !== 'stdout') continue;
    written.push(Number(time!.seconds) * 1_000 + time!.nanos / 1e6);
    if (written.length === 20) break;
  }
  const waits = written.map((it, i) => seen[i]! - it).sort((a, b) => a - b);
  assert.ok(waits[10]! < 200, `half of the lines take ${waits[10]} ms and more`);
});

browserTest('after a break it goes on where it was', { proxy: true }, async ({ daemon, open, proxy, allow }) => {
  allow(/Failed to load|ERR_/);
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'tick:400:20:tick {}\\n']);
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  const state = log.log.getByRole('status');
  await log.untilLine(/^tick \d\d$/);
  await state.getByText('Live', { exact: true }).waitFor();
  for (let i = 0; i < 2; i++) {
    proxy.cut();
    await state.getByText(/Not live/).waitFor();
    const seen = (await log.lines()).at(-1);
    proxy.mend();
    await log.log.getByRole('button', { name: 'Try now' }).click({ timeout: 1_000 }).catch(() => {});
    await state.getByText('Live', { exact: true }).waitFor();
    await until('it goes on', async () => (await log.lines()).at(-1) !== seen);
  }
  await state.getByText('Ended.').waitFor();
  await log.log.getByText('400 lines', { exact: true }).waitFor();
  await log.untilLine('tick 399');
  assert.ok(isWithoutGaps(await log.lines()));
});

browserTest('a daemon that was killed and started again no longer knows the run', async ({ daemon, open, allow }) => {
  allow(/Failed to load|ERR_/);
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'tick:1000:50:tick {}\\n'], { timeout: { seconds: 60n } });
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  await log.untilLine(/^tick \d\d$/);
  await daemon.kill();
  const state = log.log.getByRole('status');
  await state.getByText(/Not live/).waitFor();
  const seen = await log.lines();
  await daemon.restart();
  await state.getByText(/RUN_NOT_FOUND/).waitFor();
  assert.equal((await log.lines()).at(-1), seen.at(-1), 'what was read is still there');
  assert.equal(await log.log.getByRole('button', { name: 'Try now' }).count(), 0);
});

browserTest('a hidden tab has no stream, and shows what came meanwhile', { proxy: true }, async (fixture) => {
  const { daemon, open, proxy } = fixture;
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'tick:300:20:tick {}\\n', 'sleep:60000'], {
    timeout: { seconds: 90n },
  });
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  await log.untilLine(/^tick \d\d$/);
  assert.equal(proxy.open.get('AttachRun'), 1);
  await setVisibility(page, 'hidden');
  await until('the stream is closed', async () => proxy.open.get('AttachRun') === 0);
  await log.log.getByRole('status').getByText('Closed while this tab is hidden.').waitFor();
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  await setVisibility(page, 'visible');
  await log.untilLine('tick 299');
  assert.ok(isWithoutGaps(await log.lines()));
  await log.log.getByText('300 lines', { exact: true }).waitFor();
  assert.equal(proxy.seen.get('AttachRun'), 2);
});

browserTest(
  'output that is missed is said where it was',
  { set: { 'runs.log_bytes': '"256KiB"' } },
  async ({ daemon, open }) => {
    const digest = await daemon.load(printer(), 'printer');
    const steps = ['out:begun\\n', 'sleep:100', `repeat:20000:${'x'.repeat(100)} {}\\n`, 'out:done\\n', 'sleep:60000'];
    const id = await daemon.start(digest, ['printer', ...steps], { timeout: { seconds: 90n } });
    await daemon.untilRun(id, (run) => Number(run.usage?.stdoutBytes ?? 0n) > 2_000_000);
    const page = await open(`#/runs/${id}?at=1.0`);
    const log = new LogPage(page);
    await log.log.getByText('The line that the link is to is no longer kept.').waitFor();
    await log.button('First').click();
    await until('the gap is said', async () => {
      const [first] = await log.lines();
      return first !== undefined && /^[\d,]+ events of this run are missing here$/.test(first);
    });
    const saved = page.waitForEvent('download');
    await log.log.getByText('Download').click();
    await log.button('stdout').click();
    await saved;
    await log.log.getByText(/events of the run are no longer kept/).waitFor();
  },
);

browserTest(
  'what comes in a long pause is read when it ends, and all of it',
  KEEPS_ALL,
  async ({ daemon, open }) => {
    const digest = await daemon.load(printer(), 'printer');
    const flood = `repeat:24000:${'x'.repeat(1_000)} {}\\n`;
    const id = await daemon.start(digest, ['printer', 'out:begun\\n', 'read', flood, 'out:done\\n'], {
      openStdin: true,
      timeout: { seconds: 100n },
    });
    const page = await open(`#/runs/${id}`);
    const log = new LogPage(page);
    await log.untilLine('begun');
    await log.button('Pause').click();
    await log.untilPressed('Pause', true);
    await daemon.client.runs.sendInput({ runId: id, data: new TextEncoder().encode('go\n') });
    await log.log.getByRole('button', { name: /^More than [\d,]+ new lines\. Go on/ }).waitFor();
    assert.deepEqual(await log.lines(), ['begun']);
    await page.keyboard.press('p');
    await log.log.getByText('24,003 lines', { exact: true }).waitFor();
    await log.untilLine('done');
    await log.log.getByRole('status').getByText('Ended.').waitFor();
  },
);

browserTest('a page keeps half a million lines, and says how many it does not', KEEPS_ALL, async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'repeat:520000:x\\n', 'out:done\\n'], {
    timeout: { seconds: 60n },
  });
  await daemon.untilEnded(id);
  const log = new LogPage(await open(`#/runs/${id}`));
  await log.untilLine('done');
  await log.button('First').click();
  await log.untilLine(/earlier lines are no longer kept by this page$/);
  const [note] = await log.lines();
  const dropped = Number(/^[\d,]+/.exec(note ?? '')?.[0].replaceAll(',', ''));
  assert.ok(dropped >= 20_001 && dropped <= 70_002, `${dropped} lines are dropped`);
  assert.equal((await log.numbers()).at(0), String(dropped + 1));
  // The line that says so is one of those that are there.
  const kept = (520_001 - dropped + 1).toLocaleString('en');
  await log.log.getByText(`${kept} lines`, { exact: true }).waitFor();
});

browserTest('progress bars, characters and sequences that are cut stay one line', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const cut = ['out:gr\\xc3', 'sleep:30', 'out:\\xbcn \\e[3', 'sleep:30', 'out:1mrot', 'sleep:30', 'out:\\e[0m\\n'];
  const bar = ['out:  0 %', ...[25, 50, 75, 100].flatMap((it) => ['sleep:40', `out:\\r${String(it).padStart(3)} %`])];
  const mixed = ['sleep:30', 'err:error in the middle\\n', 'sleep:30', 'out:, done\\n'];
  const id = await daemon.start(digest, ['printer', ...cut, ...bar, ...mixed]);
  const log = new LogPage(await open(`#/runs/${id}`));
  await log.untilLines(['grün rot', '100 %, done', 'error in the middle']);
  const red = await log.log.getByText('rot', { exact: true }).evaluate((it) => getComputedStyle(it).color);
  assert.equal(red, 'rgb(179, 38, 30)');
});
