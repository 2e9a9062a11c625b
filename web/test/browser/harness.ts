// The harness of the browser tests: a real daemon, real guests, and the page in Chromium.
//
//   browserTest('what holds', async ({ daemon, open }) => {
//     // A module; there are also printer(), wat('(module …)') and rustSource('…').
//     const digest = await daemon.load(kit(), 'kit');
//     // A detached run; daemon.run(…) waits for its end.
//     const id = await daemon.start(digest, ['kit', 'hello']);
//     // A page of playwright-core.
//     const page = await open('#/runs');
//     await page.getByText('hello').waitFor();
//   });
//
// - `browserTest(name, options, body)` takes options of the daemon (`set`, `store: 'file'`, `hasArchive: true`,
//   `tenants: ['a', 'b']`, whose tokens `tokenOf('a')` gives) and of the page (`theme: 'dark'`, `width`, `height`,
//   `reducedMotion`), and `proxy: true` or `prefix: '/some/path'` to have a proxy between them, and `minutes`, how long
//   it may take.
// - `daemon`: `client.{sandbox,runs,modules,stats}` (connect-web in Node), `load`, `start`, `run`, `untilRun`,
//   `untilEnded`, `kill` (as a crash) and `restart` (same ports), `drain`, `log`, the addresses `admin` and `grpc`, and
//   `folder`.
// - `open(hash, options)` opens a page in a context of its own, with options over those of the test. Of the page:
//   `setVisibility(page, 'hidden' | 'visible')`, `setTheme(page, 'dark')`, `setSize(page, 360, 740)`.
// - `proxy`: `cut`, `mend`, `streams` (open now), `mostStreams`, `open` and `seen` by method.
// - `until(what, ask)` waits by asking; PATIENCE_MS is how long anything may take.
// - When the body is done, the test fails on any violation of the CSP or of Trusted Types, on any error of the page or
//   on its console, on any request to another origin, and on any window that opened. `allow(/…/)` excuses what matches.
//   Daemon, browser context, servers and folders then end, also when the test fails.
//
// The page comes from its sources, with `PAGE=bundle` as it is built for the daemon, and with `PAGE=dist` from the
// daemon itself. The daemon is that of RINGFENCE_BINARY, else of target/release. CHROMIUM names another browser than
// /usr/bin/chromium. HEADED=1 shows it.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core';

import { type DaemonOptions, PATIENCE_MS, TestDaemon } from './daemon.js';
import { TestProxy } from './proxy.js';
import { build, servePage } from './scripts.js';

export { binary, PATIENCE_MS, type TestDaemon, tokenOf, until } from './daemon.js';
export { kit, printer, rustGuest, rustSource, wat, WEB } from './guests.js';
export { TestProxy } from './proxy.js';

/** How a page is shown. */
export interface PageOptions {
  readonly theme?: 'light' | 'dark';
  readonly width?: number;
  readonly height?: number;
  readonly reducedMotion?: boolean;
}

export interface TestOptions extends DaemonOptions, PageOptions {
  /** Has a proxy between browser and daemon. */
  readonly proxy?: boolean;
  /** Has the page under a path of that proxy. */
  readonly prefix?: string;
  /** How long the test may take; 3 where nothing is said. */
  readonly minutes?: number;
}

/** What a test is given. */
export interface Fixture {
  readonly daemon: TestDaemon;
  /** The proxy; only with `proxy` or `prefix`. */
  readonly proxy: TestProxy;
  /** The address of the page, without a hash. */
  readonly url: string;
  /** Opens a page in a browser context of its own. */
  readonly open: (hash?: string, options?: PageOptions) => Promise<Page>;
  /** Excuses complaints that match. */
  readonly allow: (pattern: RegExp) => void;
  /** What was found fault with so far. */
  readonly complaints: readonly string[];
}

let browser: Promise<Browser> | undefined;
let sources: Promise<Map<string, Buffer>> | undefined;
after(async () => (await browser)?.close());

/** Starts the browser once for all tests of a file. */
export async function launched(): Promise<Browser> {
  browser ??= chromium.launch({
    executablePath: process.env['CHROMIUM'] ?? '/usr/bin/chromium',
    headless: process.env['HEADED'] === undefined,
    args: ['--no-sandbox', '--disable-dev-shm-usage'],
  });
  return browser;
}

/** A test with a daemon and a browser of its own. */
export function browserTest(name: string, body: (fixture: Fixture) => Promise<void>): void;
export function browserTest(name: string, options: TestOptions, body: (fixture: Fixture) => Promise<void>): void;
export function browserTest(
  name: string,
  ...rest: [(fixture: Fixture) => Promise<void>] | [TestOptions, (fixture: Fixture) => Promise<void>]
): void {
  const [options, body] = rest.length === 1 ? [{}, rest[0]] : rest;
  void test(name, { timeout: (options.minutes ?? 3) * 60_000 }, async () => withFixture(options, body));
}

/** Sets everything up, runs `body`, asserts that the page stayed within its walls, and takes everything down. */
export async function withFixture(options: TestOptions, body: (fixture: Fixture) => Promise<void>): Promise<void> {
  const endings: Array<() => Promise<unknown>> = [];
  try {
    const daemon = await TestDaemon.start(options);
    endings.push(() => daemon.end());
    let url = `${daemon.admin}/`;
    if (process.env['PAGE'] !== 'dist') {
      sources ??= build({ dev: process.env['PAGE'] !== 'bundle' });
      const server = await servePage({ daemon: daemon.admin, files: () => sources! });
      endings.push(() => server.close());
      url = server.url;
    }
    const proxy = await TestProxy.start(url, options.prefix);
    endings.push(() => proxy.end());
    if (options.proxy === true || options.prefix !== undefined) url = proxy.url;
    const complaints: string[] = [];
    const allowed: RegExp[] = [];
    const open = async (hash = '', more: PageOptions = {}) => {
      const context = await newContext({ ...options, ...more });
      endings.push(() => context.close());
      const page = await watchedPage(context, new URL(url).origin, complaints);
      await page.goto(url + hash);
      return page;
    };
    await body({ daemon, proxy, url, open, complaints, allow: (pattern) => allowed.push(pattern) });
    const found = complaints.filter((it) => !allowed.some((pattern) => pattern.test(it)));
    assert.deepEqual(found, [], 'the page stays within its walls');
  } finally {
    for (const end of endings.reverse()) await end().catch((error: unknown) => console.error(error));
  }
}

async function newContext(options: PageOptions): Promise<BrowserContext> {
  const { theme = 'light', width = 1280, height = 800, reducedMotion = false } = options;
  const context = await (
    await launched()
  ).newContext({
    colorScheme: theme,
    reducedMotion: reducedMotion ? 'reduce' : 'no-preference',
    viewport: { width, height },
    acceptDownloads: true,
    permissions: ['clipboard-read', 'clipboard-write'],
  });
  context.setDefaultTimeout(PATIENCE_MS);
  return context;
}

/** Opens a tab whose every wrong step is written down. */
async function watchedPage(context: BrowserContext, origin: string, complaints: string[]): Promise<Page> {
  await context.exposeBinding('ringfenceTestComplaint', (_, text: string) => complaints.push(text));
  await context.addInitScript(prepare);
  context.on('request', (request) => {
    // The origin of a `blob:` is that of its page.
    if (new URL(request.url()).origin !== origin) complaints.push(`request: ${request.url().slice(0, 200)}`);
  });
  const page = await context.newPage();
  context.on('page', (opened) => complaints.push(`window: ${opened.url()}`));
  page.on('pageerror', (error) => complaints.push(`error: ${error.stack ?? error.message}`));
  page.on('websocket', (socket) => complaints.push(`websocket: ${socket.url()}`));
  page.on('dialog', (dialog) => {
    complaints.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on('console', (message) => {
    // A call that is refused, or a daemon that is not there, is told so by the browser.
    if (message.type() !== 'error' || message.text().startsWith('Failed to load resource')) return;
    complaints.push(`console: ${message.text()}`);
  });
  return page;
}

/** Runs in the page before anything else: reports violations, and lets the test say whether the tab is shown. */
function prepare(): void {
  const scope = globalThis as unknown as {
    ringfenceTestComplaint: (text: string) => void;
    ringfenceTestVisibility: (state: DocumentVisibilityState) => void;
  };
  document.addEventListener('securitypolicyviolation', (event) => {
    const { effectiveDirective, blockedURI, sourceFile, lineNumber, sample } = event;
    scope.ringfenceTestComplaint(
      `violation: ${effectiveDirective} ${blockedURI} ${sourceFile}:${lineNumber} ${sample}`,
    );
  });
  let state: DocumentVisibilityState = 'visible';
  Object.defineProperty(document, 'visibilityState', { get: () => state });
  Object.defineProperty(document, 'hidden', { get: () => state === 'hidden' });
  scope.ringfenceTestVisibility = (next) => {
    state = next;
    document.dispatchEvent(new Event('visibilitychange', { bubbles: true }));
  };
}

/** Hides or shows the tab, as far as the page can tell. */
export async function setVisibility(page: Page, state: 'hidden' | 'visible'): Promise<void> {
  await page.evaluate((next) => {
    (globalThis as unknown as { ringfenceTestVisibility: (state: string) => void }).ringfenceTestVisibility(next);
  }, state);
}

/** Changes the theme of the system. */
export async function setTheme(page: Page, theme: 'light' | 'dark'): Promise<void> {
  await page.emulateMedia({ colorScheme: theme });
}

/** Changes the size of the window. */
export async function setSize(page: Page, width: number, height: number): Promise<void> {
  await page.setViewportSize({ width, height });
}
