// examples/dashboard-embed: the log in a page of somebody else, at another origin.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import { test } from 'node:test';

import { TestDaemon } from './daemon.js';
import { launched, wat, WEB } from './harness.js';
import { LogPage } from './log_helpers.js';
import { build } from './scripts.js';

const EXAMPLE = path.join(WEB, '../examples/dashboard-embed');

/** Serves the example, for a daemon at another address than the one that it names. */
async function serveExample(daemon: () => string): Promise<{ origin: string; close: () => void }> {
  const files = process.env['PAGE'] === 'dist' ? new Map<string, Buffer>() : await build();
  const server = http.createServer((request, response) => {
    const { pathname } = new URL(request.url ?? '/', 'http://localhost');
    const script = files.get(pathname.slice(1));
    if (pathname === '/') {
      const page = fs.readFileSync(path.join(EXAMPLE, 'index.html'), 'utf8');
      // Scripts that are not built yet are nowhere else than here.
      const local = files.size > 0 ? page.replace('http://127.0.0.1:9090/ringfence-log.js', '/ringfence-log.js') : page;
      response.setHeader('content-type', 'text/html');
      response.end(local.replaceAll('http://127.0.0.1:9090', daemon()));
    } else if (script !== undefined) {
      response.setHeader('content-type', 'text/javascript');
      response.end(script);
    } else {
      response.writeHead(404).end();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { origin, close: () => server.close() };
}

void test("a page of another origin shows a run's log in thirty lines", { timeout: 120_000 }, async () => {
  let admin = '';
  const example = await serveExample(() => admin);
  const origins = JSON.stringify([example.origin]);
  const daemon = await TestDaemon.start({ set: { 'admin.cors_origins': origins } });
  admin = daemon.admin;
  const context = await (await launched()).newContext({ colorScheme: 'dark', viewport: { width: 1000, height: 800 } });
  try {
    assert.ok(fs.readFileSync(path.join(EXAMPLE, 'index.html'), 'utf8').split('\n').length <= 31);
    const asked = new Set<string>();
    const errors: string[] = [];
    context.on('request', (request) => asked.add(new URL(request.url()).origin));
    const page = await context.newPage();
    page.on('pageerror', (error) => errors.push(error.message));
    const digest = await daemon.load(wat(fs.readFileSync(path.join(EXAMPLE, 'ticks.wat'), 'utf8')));
    const id = await daemon.start(digest, []);
    await page.goto(`${example.origin}/?run=${id}`);
    const log = new LogPage(page);
    await log.untilLines(['tick', 'tick']);
    assert.equal(await page.locator('#state').textContent(), 'runs');
    // It has its colours without our style sheet, and those that the page gives.
    const backgroundOf = (it: Element) => getComputedStyle(it).backgroundColor;
    assert.equal(await log.button('Follow').evaluate(backgroundOf), 'rgb(201, 162, 255)');
    assert.equal(await log.log.locator('.cm-editor').evaluate(backgroundOf), 'rgb(15, 20, 25)');
    // The keys of our page are none of theirs.
    await page.keyboard.press('p');
    assert.equal(await log.isPressed('Pause'), false);
    await log.button('Pause').click();
    await log.untilPressed('Pause', true);
    // It may be taken out and put in again.
    await page.evaluate(() => {
      const log = document.querySelector('ringfence-log')!;
      log.remove();
      document.body.append(log);
    });
    await log.untilLine('tick');
    assert.equal(await log.log.locator('.cm-editor').count(), 1);
    await log.untilPressed('Pause', false);
    await daemon.client.runs.cancelRun({ runId: id });
    await page.locator('#state').getByText('ended with no exit code').waitFor();
    assert.deepEqual([...asked].sort(), [example.origin, daemon.admin].sort());
    assert.deepEqual(errors, []);
    // A page of another origin that the daemon does not know gets nothing.
    const stranger = await context.newPage();
    const there = `${example.origin.replace('127.0.0.1', 'localhost')}/?run=${id}`;
    if (process.env['PAGE'] === 'dist') {
      // Not even the element.
      const [refused] = await Promise.all([stranger.waitForEvent('requestfailed'), stranger.goto(there)]);
      assert.equal(refused.url(), `${daemon.admin}/ringfence-log.js`);
      assert.ok(await stranger.evaluate(() => customElements.get('ringfence-log') === undefined));
    } else {
      await stranger.goto(there);
      await new LogPage(stranger).log.getByRole('status').getByText(/Not live/).waitFor();
    }
  } finally {
    await context.close();
    example.close();
    await daemon.end();
  }
});
