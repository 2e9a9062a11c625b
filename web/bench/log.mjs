// Measures the log in headless Chromium, with a real daemon and real guests. Run by hand, from web/:
//
//   RINGFENCE_BINARY=../target/release/ringfence node bench/log.mjs
//
// It prints: how long 100,000 lines take to load, and the heap then; the frames while 2,000 lines a second come for
// 10 s; and how long after it was written a line is seen.

import path from 'node:path';
import { pathToFileURL } from 'node:url';
import esbuild from 'esbuild';
import { chromium } from 'playwright-core';
import { build } from '../scripts/build.mjs';
import { servePage } from '../scripts/dev.mjs';

const web = path.dirname(import.meta.dirname);
process.chdir(web);
const LINES = 100_000;
const RATE_SECONDS = 10;

/** Imports what the browser tests have for daemons and guests. */
async function harness() {
  const outfile = path.join(web, 'node_modules/.cache/bench/harness.mjs');
  await esbuild.build({
    stdin: {
      contents: "export { TestDaemon } from './daemon.js'; export { printer } from './guests.js';",
      resolveDir: 'test/browser',
    },
    outfile,
    bundle: true,
    packages: 'external',
    platform: 'node',
    format: 'esm',
    logLevel: 'warning',
  });
  return import(pathToFileURL(outfile).href);
}

/** Runs in the page: gives functions that see what the reader sees. */
function prepare() {
  const deep = (name, root = document) => {
    const found = root.querySelector(name);
    if (found !== null) return found;
    for (const it of root.querySelectorAll('*')) {
      const inside = it.shadowRoot === null ? null : deep(name, it.shadowRoot);
      if (inside !== null) return inside;
    }
    return null;
  };
  const bench = {
    lastLine: () => {
      const lines = deep('.cm-content')?.querySelectorAll('.cm-line') ?? [];
      return [...lines].map((it) => it.textContent).findLast((it) => it !== '') ?? '';
    },
    // Looks once a frame.
    until: (holds) =>
      new Promise((resolve) => {
        const look = () => (holds() ? resolve(performance.now()) : requestAnimationFrame(look));
        look();
      }),
    frames: (ms) =>
      new Promise((resolve) => {
        const gaps = [];
        let before = performance.now();
        const end = before + ms;
        const next = (now) => {
          gaps.push(now - before);
          before = now;
          if (now < end) requestAnimationFrame(next);
          else resolve(gaps);
        };
        requestAnimationFrame(next);
      }),
  };
  globalThis.bench = bench;
}

const { TestDaemon, printer } = await harness();
const daemon = await TestDaemon.start({
  set: { 'runs.log_bytes': '"64MiB"', 'runs.log_budget': '"256MiB"', 'policy.max_stream_output': '"64MiB"' },
});
const files = await build();
const server = await servePage({ daemon: daemon.admin, files: async () => files });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-dev-shm-usage', '--enable-precise-memory-info'],
});

async function opened(hash) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
  await context.addInitScript(prepare);
  const page = await context.newPage();
  page.on('pageerror', (error) => console.error(error));
  await page.goto(server.url + hash);
  return { page, close: () => context.close() };
}

async function heapOf(page) {
  const client = await page.context().newCDPSession(page);
  await client.send('Performance.enable');
  const read = async () => {
    const { metrics } = await client.send('Performance.getMetrics');
    return (metrics.find((it) => it.name === 'JSHeapUsedSize').value / 1e6).toFixed(0);
  };
  const before = await read();
  await client.send('HeapProfiler.collectGarbage');
  return `${before} MB (${await read()} MB after a collection)`;
}

async function load(digest, what, text) {
  const id = await daemon.start(digest, ['printer', `repeat:${LINES}:${text}`, 'out:the last line\\n']);
  await daemon.untilEnded(id);
  for (let i = 0; i < 3; i++) {
    const { page, close } = await opened(`#/runs/${id}`);
    const at = await page.evaluate(() => bench.until(() => bench.lastLine() === 'the last line'));
    const first = await page.evaluate(
      () => performance.getEntriesByType('resource').find((it) => it.name.endsWith('AttachRun')).startTime,
    );
    console.log(`${LINES} ${what} lines: ${(at - first).toFixed(0)} ms after they were asked for,`,
      `${at.toFixed(0)} ms after the page was opened; heap ${await heapOf(page)}`);
    await close();
  }
}

async function rate(digest, what, text) {
  // A pause of a millisecond takes about two: five lines each come to a little more than 2,000 a second.
  const id = await daemon.start(digest, ['printer', `tick:${(RATE_SECONDS + 5) * 450}:1:${text.repeat(5)}`], {
    timeout: { seconds: 60n },
  });
  const { page, close } = await opened(`#/runs/${id}`);
  await page.evaluate(() => bench.until(() => bench.lastLine() !== ''));
  const count = () =>
    page.getByText(/^[\d,]+ lines/).first().textContent().then((it) => Number(it.replace(/\D/g, '')));
  const [begin, from] = [await count(), Date.now()];
  const gaps = await page.evaluate((ms) => bench.frames(ms), RATE_SECONDS * 1_000);
  const lines = ((await count()) - begin) / ((Date.now() - from) / 1_000);
  const sorted = gaps.toSorted((a, b) => a - b);
  const share = (100 * gaps.filter((it) => it < 33).length) / gaps.length;
  console.log(`${lines.toFixed(0)} ${what} lines a second for ${RATE_SECONDS} s:`,
    `${share.toFixed(1)} % of ${gaps.length} frames under 33 ms, median ${sorted[gaps.length >> 1].toFixed(1)} ms,`,
    `the longest ${sorted.at(-1).toFixed(0)} ms;`,
    `heap ${await heapOf(page)}`);
  await close();
}

async function latency(digest) {
  const id = await daemon.start(digest, ['printer', 'sleep:1500', 'tick:50:97:tick {}\\n']);
  const { page, close } = await opened(`#/runs/${id}`);
  const seen = await page.evaluate(async () => {
    const times = [];
    for (let i = 0; i < 50; i++) {
      await bench.until(() => bench.lastLine() === `tick ${i}` || Number(bench.lastLine().slice(5)) > i);
      times.push(Date.now());
    }
    return times;
  });
  const written = [];
  for await (const { time, event } of daemon.client.runs.attachRun({ runId: id })) {
    if (event.case !== 'stdout') continue;
    const count = new TextDecoder().decode(event.value).split('\n').length - 1;
    for (let i = 0; i < count; i++) written.push(Number(time.seconds) * 1_000 + time.nanos / 1e6);
  }
  const waits = seen.map((it, i) => it - written[i]).sort((a, b) => a - b);
  const [median, latest] = [waits[25].toFixed(0), waits[49].toFixed(0)];
  console.log(`a line is seen ${median} ms after it was written (median of 50; the latest ${latest} ms)`);
  await close();
}

try {
  const digest = await daemon.load(printer(), 'printer');
  await load(digest, 'plain', '2026-11-29T15:31:28.123Z INFO request {} took 12 ms for /some/path/of/it?x={}\\n');
  const coloured = '\\e[2m2026-11-29T15:31:28.123Z\\e[0m \\e[32m INFO\\e[0m \\e[1mrequest\\e[0m {}';
  await load(digest, 'coloured', `${coloured} took \\e[38;5;208m12\\e[0m ms\\n`);
  await rate(digest, 'plain', 'INFO request {} took 12 ms for /some/path of something\\n');
  await rate(digest, 'coloured', '\\e[32mINFO\\e[0m request {} took \\e[1m12 ms\\e[0m\\n');
  await latency(digest);
} finally {
  await browser.close();
  await server.close();
  await daemon.end();
}
