// Measures how long it takes from opening the page to its first row, on loopback, with a browser that has nothing of it
// yet: page.mjs [TIMES]. The page is the one that `npm run build` makes, and comes from the daemon where it serves one.
// The daemon is that of RINGFENCE_BINARY, else of target/release.

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import readline from 'node:readline';
import { chromium } from 'playwright-core';
import { build } from '../scripts/build.mjs';
import { servePage } from '../scripts/dev.mjs';

const TARGET_MS = 300;
const RUNS = 200;
const SETTLE_MS = 500;
const web = path.dirname(import.meta.dirname);
const times = Number(process.argv[2] ?? '20');
/** Returns at once. */
const guest = '(module (func (export "_start")))';

/** Starts a daemon at free ports, and returns it with the address of its admin listener. */
async function startDaemon() {
  const program = process.env.RINGFENCE_BINARY ?? path.join(web, '../target/release/ringfence');
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('RINGFENCE_')));
  const set = ['admin.listen=["127.0.0.1:0"]', 'store.url="memory:"', 'telemetry.log_format=json'];
  const flags = ['serve', '--listen', '127.0.0.1:0', ...set.flatMap((it) => ['--set', it])];
  const child = spawn(program, flags, { env, stdio: ['ignore', 'inherit', 'pipe'] });
  process.on('exit', () => child.kill('SIGKILL'));
  let admin;
  for await (const line of readline.createInterface({ input: child.stderr })) {
    const { fields } = JSON.parse(line);
    if (fields.admin !== undefined) admin = `http://${fields.admin}`;
    if (fields.message === 'serving') break;
  }
  child.stderr.resume();
  return { child, admin };
}

/** Runs a guest by the simplest request that there is: the message is written by hand. */
async function run(admin) {
  const field = (tag, bytes) => Buffer.concat([Buffer.from([tag, bytes.length]), bytes]);
  const message = field(0x0a, Buffer.concat([field(0x0a, Buffer.from(guest)), field(0x22, Buffer.from('bench'))]));
  const body = Buffer.concat([Buffer.from([0, 0, 0, 0, message.length]), message]);
  await new Promise((resolve, reject) => {
    const headers = { 'content-type': 'application/grpc-web+proto' };
    const request = http.request(`${admin}/ringfence.v1.SandboxService/Run`, { method: 'POST', headers }, (answer) => {
      answer.resume().on('end', resolve);
      if (answer.headers['grpc-status'] !== undefined) reject(new Error(answer.headers['grpc-message']));
    });
    request.on('error', reject).end(body);
  });
}

/** Notes in the page when the first row is in the document, and when it was painted. */
function watchForRow() {
  const find = (root) => {
    for (const element of root.querySelectorAll('*')) {
      if (element.matches('[role=row]') && element.querySelector('[role=gridcell]')) return element;
      const found = element.shadowRoot === null ? null : find(element.shadowRoot);
      if (found) return found;
    }
    return null;
  };
  const look = () => {
    if (find(document) === null) requestAnimationFrame(look);
    // The frame in which it is painted ends after this.
    else requestAnimationFrame(() => setTimeout(() => (globalThis.firstRow = performance.now())));
  };
  requestAnimationFrame(look);
}

const { child, admin } = await startDaemon();
for (let i = 0; i < RUNS; i += 1) await run(admin);
const isServed = (await fetch(`${admin}/`)).ok;
const files = await build();
const server = isServed ? undefined : await servePage({ daemon: admin, files: () => files });
const url = server?.url ?? `${admin}/`;
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-dev-shm-usage'],
});
const measured = [];
for (let i = 0; i < times; i += 1) {
  const context = await browser.newContext();
  await context.addInitScript(watchForRow);
  const page = await context.newPage();
  // The tab before is being taken down, and this one set up.
  await page.waitForTimeout(SETTLE_MS);
  await page.goto(url);
  await page.waitForFunction(() => globalThis.firstRow !== undefined);
  measured.push(await page.evaluate(() => globalThis.firstRow));
  await context.close();
}
await browser.close();
await server?.close();
child.kill('SIGKILL');
measured.sort((a, b) => a - b);
const at = (share) => Math.round(measured[Math.min(measured.length - 1, Math.floor(share * measured.length))]);
console.log(
  `from opening to the first of ${RUNS} rows, ${times} times, ${isServed ? 'from the daemon' : 'from dev.mjs'}:`,
);
console.log(
  `median ${at(0.5)} ms, nine of ten within ${at(0.9)} ms, longest ${at(1)} ms; the target is ${TARGET_MS} ms`,
);
if (at(0.5) > TARGET_MS) process.exitCode = 1;
