// axe-core finds nothing serious on any page, in both themes, on a phone and on a large screen.

import assert from 'node:assert/strict';

import type { Page } from 'playwright-core';

import { RunState } from '../../src/gen/ringfence/v1/run_pb.js';
import { assertAccessible } from './accessible.js';
import { browserTest, printer, type TestDaemon, tokenOf } from './harness.js';

/** A place, and what is there once it has come. */
type Place = readonly [hash: string, there: RegExp];

const LABELS = { team: 'media' };

/** Runs of each kind, and one that goes on. */
async function populate(daemon: TestDaemon): Promise<readonly Place[]> {
  const digest = await daemon.load(printer(), 'printer', LABELS);
  const start = (args: string[], more = {}) => daemon.start(digest, ['printer', ...args], { labels: LABELS, ...more });
  const colours =
    '\\e[1mbold\\e[0m \\e[2mdim\\e[0m \\e[31mred\\e[0m \\e[32mgreen\\e[0m \\e[33myellow\\e[0m \\e[34mblue\\e[0m';
  const exited = await start(['repeat:200:line {}\\n', `out:${colours}\\n`, 'err:a warning\\n', 'exit:3']);
  const trapped = await start(['out:begun\\n', 'trap']);
  const late = await start(['out:begun\\n', 'spin'], { timeout: { nanos: 300_000_000 } });
  const hog = await start(['hog'], { resources: { memoryPages: 300 } });
  const empty = await start(['spin'], { resources: { fuelLimit: 10_000_000n } });
  for (const id of [exited, trapped, late, hog, empty]) await daemon.untilEnded(id);
  const live = await start(['tick:100000:200:\\e[36mtick\\e[0m {}\\n'], { openStdin: true });
  await daemon.untilRun(live, (run) => run.state === RunState.RUNNING);
  await daemon.client.sandbox
    .run({ spec: { module: { case: 'digest', value: digest }, entryPoint: 'no' } })
    .catch(() => {});
  return [
    ['#/runs', /printer/],
    ['#/runs?last=hour', /this daemon has no archive/i],
    ['#/runs?since=2026-11-30T02:00Z&until=2026-11-30T01:00Z', /The second time is not after the first/],
    [`#/runs/${exited}`, /a warning/],
    [`#/runs/${trapped}`, /unreachable/],
    [`#/runs/${late}`, /begun/],
    [`#/runs/${hog}`, /memory/],
    [`#/runs/${live}`, /tick/],
    ['#/runs/00000000000000000000000000000000.test', /./],
    ['#/together?label=team=media', /tick/],
    ['#/together?label=team=media&layout=columns', /tick/],
    ['#/modules', /printer/],
    [`#/modules/${digest}`, /_start/],
    [`#/start?module=${digest}`, /printer/],
    [`#/start?from=${exited}`, /printer/],
    ['#/overview', /printer|Overview/],
    ['#/nowhere', /There is no such page/],
  ];
}

async function check(page: Page, what: string): Promise<void> {
  try {
    await assertAccessible(page);
  } catch (error) {
    throw new Error(`${what}: ${(error as Error).message}`);
  }
}

/** Goes to a place, and returns what is wrong there. */
async function checkPlace(page: Page, [hash, there]: Place): Promise<string[]> {
  try {
    await page.evaluate((it) => (location.hash = it), hash);
    await page.getByRole('main').getByText(there).first().waitFor({ state: 'attached', timeout: 10_000 });
    await page.waitForTimeout(400);
    await check(page, hash);
    return [];
  } catch (error) {
    return [(error as Error).message];
  }
}

for (const theme of ['light', 'dark'] as const) {
  for (const width of [360, 1440]) {
    const look = { theme, width, reducedMotion: true };
    browserTest(`every page, ${theme}, ${width} px wide`, { ...look, minutes: 6 }, async ({ daemon, open }) => {
      const places = await populate(daemon);
      const page = await open('#/nowhere');
      await page.getByText('test is serving').waitFor();
      const wrong: string[] = [];
      for (const place of places) wrong.push(...(await checkPlace(page, place)));
      assert.deepEqual(wrong, []);
      await page.keyboard.press('?');
      await page.getByRole('dialog', { name: 'Keys' }).waitFor();
      await check(page, 'the list of keys');
    });

    browserTest(`signing in, ${theme}, ${width} px wide`, { ...look, tenants: ['a'] }, async ({ open }) => {
      const page = await open();
      await page.getByLabel('Token').waitFor();
      await check(page, 'the form');
      await page.getByLabel('Token').fill('no such token');
      await page.keyboard.press('Enter');
      await page.getByText('The daemon does not accept this token').waitFor();
      await check(page, 'the form, with a wrong token');
      await page.getByLabel('Token').fill(tokenOf('a'));
      await page.keyboard.press('Enter');
      await page.getByText('test is serving').waitFor();
      await page.evaluate(() => {
        for (const kind of ['done', 'failed']) {
          window.dispatchEvent(new CustomEvent('ringfence-toast', { detail: { kind, text: `It is ${kind}.` } }));
        }
      });
      await page.getByText('It is failed.').waitFor();
      await check(page, 'messages, and an empty list');
    });

    const set = { 'admin.read_only': 'true' };
    browserTest(`a page that only shows, ${theme}, ${width} px wide`, { ...look, set }, async ({ daemon, open }) => {
      const page = await open();
      await page.getByText("the daemon's listener is read-only").waitFor();
      await check(page, 'a notice');
      await daemon.kill();
      await page.getByText('The daemon does not answer.').waitFor();
      await check(page, 'a daemon that is gone');
    });
  }
}
