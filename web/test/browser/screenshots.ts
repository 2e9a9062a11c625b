// Takes six screenshots, and the one of the README, of a daemon that is busy with made-up work, in both themes:
// `SCREENSHOTS=FOLDER MINUTES=10 node scripts/test.mjs browser screenshots`. The longer it works, the more the overview
// has to show.

import fs from 'node:fs';
import path from 'node:path';

import type { Page } from 'playwright-core';

import { RunState } from '../../src/gen/ringfence/v1/run_pb.js';
import { browserTest, type Fixture, printer, setTheme, setSize, type TestDaemon, until } from './harness.js';

const FOLDER = process.env['SCREENSHOTS'] ?? '/tmp/ringfence-screenshots';
const MINUTES = Number(process.env['MINUTES'] ?? '1');

interface Job {
  readonly module: string;
  readonly args: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
  /** How often it comes, among the others. */
  readonly weight: number;
  readonly timeoutMs?: number;
  readonly memoryPages?: number;
  readonly fuel?: bigint;
}

const RESIZE = [
  'out:\\e[1mresize\\e[0m 24 images to 1600 px\\n',
  'tick:24:60:  img_00{}.jpg \\e[32m✓\\e[0m 4032×3024 → 1600×1200\\n',
  'out:24 images, 31.4 MB → 5.2 MB\\n',
];
const REPORT = [
  'out:reading orders.csv\\n',
  'tick:6:80:region {}: 1842 orders\\n',
  'err:\\e[33mwarning:\\e[0m 3 rows without a date\\n',
  'out:report.html written\\n',
];

const JOBS: readonly Job[] = [
  { module: 'resize-images', args: RESIZE, labels: { team: 'media', job: 'nightly' }, weight: 5 },
  { module: 'invoice-report', args: REPORT, labels: { team: 'billing', month: '2026-11' }, weight: 4 },
  { module: 'sort-orders', args: ['repeat:400:order {} sorted\\n'], labels: { team: 'billing' }, weight: 5 },
  {
    module: 'fraud-score',
    args: ['out:score 0.12\\n'],
    labels: { team: 'risk', model: 'v7' },
    weight: 8,
    fuel: 50_000_000n,
  },
  { module: 'fraud-score', args: ['spin'], labels: { team: 'risk', model: 'v8-beta' }, weight: 1, fuel: 50_000_000n },
  {
    module: 'user-script',
    args: ['err:TypeError: rows is undefined\\n', 'exit:1'],
    labels: { user: '4711' },
    weight: 2,
  },
  { module: 'user-script', args: ['out:hello from a user\\n'], labels: { user: '1138' }, weight: 3 },
  { module: 'user-script', args: ['out:counting\\n', 'spin'], labels: { user: '2001' }, weight: 1, timeoutMs: 700 },
  { module: 'pack-archive', args: ['out:packing\\n', 'hog'], labels: { team: 'media' }, weight: 1, memoryPages: 400 },
  {
    module: 'parse-upload',
    args: ['out:parsing \\e[36minvoice.pdf\\e[0m\\n', 'trap'],
    labels: { team: 'billing' },
    weight: 1,
  },
];

/** What a guest prints of its i-th file, and how long it takes for that. */
function ingested(i: number): string[] {
  const file = `part-${String(i).padStart(4, '0')}.csv`;
  const rows = 18_000 + ((i * 7_919) % 9_000);
  const took = `${((rows * 37) / 1e6).toFixed(2)} MB in ${40 + (i % 23)} ms`;
  const steps = [`out:\\e[36m${file}\\e[0m  ${rows} rows  \\e[32m✓\\e[0m ${took}\\n`];
  const warning = `\\e[33mwarning:\\e[0m ${file}:${1_200 + i * 3}: currency is empty, taking \\e[1mEUR\\e[0m`;
  const error = `\\e[31merror:\\e[0m ${file}:${900 + i}: \\e[1mnot a date\\e[0m "31.02.2026", row is skipped`;
  const checkpoint = `\\e[2mcheckpoint ${i}: ${(i * 22_500).toLocaleString('en')} rows\\e[0m`;
  if (i % 9 === 5) steps.push(`err:${warning}\\n`);
  if (i % 17 === 11) steps.push(`err:${error}\\n`);
  if (i % 12 === 8) steps.push(`out:${checkpoint}\\n`);
  return [...steps, 'sleep:210'];
}

/** What a guest prints that runs on while the pictures are taken. */
const LIVE: readonly string[] = [
  'out:\\e[1mingest\\e[0m s3-export/2026-11-29 → orders.db\\n',
  'out:manifest: 412 files, 3.1 GB\\n',
  'err:\\e[33mwarning:\\e[0m manifest has no checksums, reading all of each file\\n',
  ...Array.from({ length: 400 }, (_, i) => ingested(i)).flat(),
];

/** The chance of these pictures, which is the same each time. */
function dice(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

class Work {
  readonly #digests = new Map<string, string>();
  readonly #chance = dice(7);

  constructor(readonly daemon: TestDaemon) {}

  async load(): Promise<void> {
    const wasm = printer();
    for (const name of [...new Set(JOBS.map((it) => it.module)), 'ingest-orders']) {
      // Each is a module of its own by a section that nobody reads.
      const section = [0, name.length + 1, name.length, ...Buffer.from(name)];
      const digest = await this.daemon.load(new Uint8Array([...wasm, ...section]), name, { source: 'ci' });
      this.#digests.set(name, digest);
    }
  }

  async start(job: Job): Promise<string> {
    const { timeoutMs = 20_000, memoryPages, fuel } = job;
    return this.daemon.start(this.#digests.get(job.module)!, [job.module, ...job.args], {
      labels: { ...job.labels },
      timeout: { seconds: BigInt(Math.floor(timeoutMs / 1_000)), nanos: (timeoutMs % 1_000) * 1_000_000 },
      resources: {
        ...(memoryPages === undefined ? {} : { memoryPages }),
        ...(fuel === undefined ? {} : { fuelLimit: fuel }),
      },
    });
  }

  /** Starts a job by its weight. */
  async startAny(): Promise<string | undefined> {
    let at = this.#chance() * JOBS.reduce((sum, it) => sum + it.weight, 0);
    const job = JOBS.find((it) => (at -= it.weight) < 0) ?? JOBS[0]!;
    // Some are refused where there is no room, as in life.
    return this.start(job).catch(() => undefined);
  }

  async keepOn(until: number): Promise<void> {
    while (Date.now() < until) {
      // More in some minutes than in others.
      const pace = 1.5 + Math.sin(Date.now() / 40_000);
      void this.startAny();
      await new Promise((resolve) => setTimeout(resolve, (300 * this.#chance()) / pace));
    }
  }
}

async function shoot(page: Page, name: string): Promise<void> {
  for (const theme of ['light', 'dark'] as const) {
    await setTheme(page, theme);
    await page.waitForTimeout(700);
    await page.screenshot({ path: path.join(FOLDER, `${name}-${theme}.png`) });
  }
}

async function takeAll({ daemon, open }: Fixture, work: Work): Promise<void> {
  const live = { team: 'billing', job: 'nightly' };
  const id = await work.start({ module: 'ingest-orders', args: LIVE, labels: live, weight: 1, timeoutMs: 290_000 });
  await daemon.untilRun(id, (run) => run.state === RunState.RUNNING);
  const trapped = await work.start(JOBS.find((it) => it.args.includes('trap'))!);
  await daemon.untilEnded(trapped);
  const page = await open('#/overview', { width: 1440, height: 900 });
  await page.waitForTimeout(3_000);
  await shoot(page, 'overview');
  await page.goto(page.url().replace(/#.*/, '#/modules'));
  await shoot(page, 'modules');
  await page.goto(page.url().replace(/#.*/, `#/runs/${trapped}`));
  await shoot(page, 'trap');
  await page.goto(page.url().replace(/#.*/, `#/runs/${id}`));
  await until(
    'it prints',
    async () => (await daemon.client.runs.getRun({ runId: id })).run!.usage!.stdoutBytes > 2_500n,
  );
  await shoot(page, 'run');
  // That of the README, which is shown smaller.
  await setSize(page, 1200, 720);
  await shoot(page, 'readme');
  await setSize(page, 1440, 900);
  await page.goto(page.url().replace(/#.*/, '#/runs'));
  await shoot(page, 'runs');
  await setSize(page, 390, 844);
  await page.goto(page.url().replace(/#.*/, `#/runs/${id}`));
  await shoot(page, 'phone');
}

const options = { set: { 'admission.slots': '12', 'server.instance': 'atlas-1', 'admission.max_wait': '"3s"' } };
browserTest('six pictures', { ...options, minutes: MINUTES + 3 }, async (fixture) => {
  fs.mkdirSync(FOLDER, { recursive: true });
  const work = new Work(fixture.daemon);
  await work.load();
  await work.keepOn(Date.now() + MINUTES * 60_000);
  const background = work.keepOn(Date.now() + 40_000);
  await takeAll(fixture, work);
  await background;
});
