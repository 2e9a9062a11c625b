// The form that starts a run.

import assert from 'node:assert/strict';

import type { Page } from 'playwright-core';

import { create } from '@bufbuild/protobuf';
import { OutputPolicy } from '../../src/gen/ringfence/v1/spec_pb.js';
import { ResourcesSchema } from '../../src/gen/ringfence/v1/spec_pb.js';
import { assertAccessible } from './accessible.js';
import { browserTest, kit, type TestDaemon, until, wat } from './harness.js';

const NUMBERS = `(module (memory 3)
  (func (export "add") (param i32 f64) (result f64) local.get 0 f64.convert_i32_s local.get 1 f64.add)
  (func (export "nothing")))`;

/** Starts what the form has, and returns the run's id once the page shows the run. */
async function start(page: Page): Promise<string> {
  await page.getByRole('button', { name: 'Start', exact: true }).click();
  await page.waitForURL(/#\/runs\/[0-9a-f]{32}\.test$/);
  return page.url().replace(/^.*#\/runs\//, '');
}

async function resultOf(daemon: TestDaemon, id: string) {
  const { end } = await daemon.untilEnded(id);
  assert.equal(end.case, 'result');
  return end.value;
}

/** Reads all that a run wrote to stdout. */
async function stdoutOf(daemon: TestDaemon, id: string): Promise<string> {
  let text = '';
  for await (const { event } of daemon.client.runs.attachRun({ runId: id })) {
    if (event.case === 'stdout') text += new TextDecoder().decode(event.value);
    if (event.case === 'exit' || event.case === 'error') return text;
  }
  return text;
}

browserTest('a module is chosen, and a run gets all that was filled in', async ({ daemon, open }) => {
  await daemon.load(kit(), 'kit', { team: 'a' });
  await daemon.load(wat(NUMBERS), 'numbers');
  const page = await open('#/start');
  await page.getByRole('searchbox', { name: 'Search for a module' }).fill('team=a');
  await page.getByRole('button', { name: /^kit/ }).press('Enter');
  await page.getByLabel('Arguments').fill(`dump 'two words' "it's"`);
  await page.getByLabel('Environment').fill('A=1\nB=<b>');
  await page.getByLabel('Memory', { exact: true }).fill('64');
  await page.getByLabel('Time', { exact: true }).fill('20s');
  await page.getByLabel('Fuel').fill('50M');
  await page.getByLabel('Call stack').selectOption('1 MiB');
  await page.getByLabel('Output', { exact: true }).fill('64KiB');
  await page.getByLabel('Drop output beyond its limit').check();
  await page.getByLabel('Labels').fill('job=7\nkind=page');
  const id = await start(page);
  const result = await resultOf(daemon, id);
  assert.deepEqual(
    result.granted,
    create(ResourcesSchema, {
      memoryPages: 1024,
      fuelLimit: 50_000_000n,
      stackSize: 1 << 20,
      outputLimit: 65_536n,
      outputPolicy: OutputPolicy.TRUNCATE,
    }),
  );
  assert.equal(await stdoutOf(daemon, id), "arg kit\narg dump\narg two words\narg it's\nenv A=1\nenv B=<b>\n");
  const { run } = await daemon.client.runs.getRun({ runId: id });
  assert.deepEqual([run?.labels, run?.detached], [{ job: '7', kind: 'page' }, true]);

  // Once more: this tab knows all of it.
  await page.goto(`${page.url().replace(/#.*/, '')}#/start?from=${id}`);
  await page.getByText('Filled as this tab started').waitFor();
  assert.equal(await page.getByLabel('Arguments').inputValue(), `dump 'two words' 'it'\\''s'`);
  assert.equal(
    await stdoutOf(daemon, await start(page)),
    "arg kit\narg dump\narg two words\narg it's\nenv A=1\nenv B=<b>\n",
  );
});

browserTest('values of parameters are checked by their types', async ({ daemon, open }) => {
  const digest = await daemon.load(wat(NUMBERS), 'numbers');
  const page = await open(`#/start?module=${digest}`);
  await page.getByLabel('Entry point').selectOption({ label: 'add(i32, f64) → f64' });
  await page.getByLabel('Parameter 1: i32').fill('4294967296');
  await page.getByLabel('Parameter 2: f64').fill('half');
  await page.getByRole('button', { name: 'Start', exact: true }).click();
  await page.getByText('This does not fit into an i32').waitFor();
  await page.getByText('This is not an f64').waitFor();
  const first = page.getByLabel('Parameter 1: i32');
  assert.equal(await first.getAttribute('aria-invalid'), 'true');
  await until('the first wrong field has the focus', async () => first.evaluate((it) => it.matches(':focus')));
  await first.fill('-2');
  await page.getByLabel('Parameter 2: f64').fill('0.5');
  await page.keyboard.press('Enter');
  await page.waitForURL(/#\/runs\//);
  const result = await resultOf(daemon, page.url().replace(/^.*#\/runs\//, ''));
  assert.deepEqual(
    result.values.map((it) => it.value),
    [{ case: 'f64', value: -1.5 }],
  );
  const { values } = await (async () => {
    await page.goto(`${page.url().replace(/#.*/, '')}#/start?module=${digest}`);
    await page.getByLabel('Entry point').selectOption({ label: 'nothing()' });
    return resultOf(daemon, await start(page));
  })();
  assert.deepEqual(values, []);
});

browserTest('what is wrong is told at its field, by the form or by the daemon', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const page = await open(`#/start?module=${digest}`);
  const wrong = async (label: string, text: string, says: string) => {
    const field = page.getByLabel(label, { exact: true });
    const before = await field.inputValue();
    await field.fill(text);
    await page.getByRole('button', { name: 'Start', exact: true }).click();
    const id = await until(`“${says}” is told at ${label}`, async () => {
      const ids = ((await field.getAttribute('aria-describedby')) ?? '').split(' ');
      const texts = await Promise.all(ids.map(async (it) => page.locator(`#${it}`).first().textContent()));
      return texts.some((it) => it?.includes(says)) && (await field.getAttribute('aria-invalid')) === 'true';
    });
    assert.ok(id);
    await field.fill(before);
  };
  await wrong('Arguments', `'open`, 'is opened and not closed');
  await wrong('Environment', 'A', 'Line 1 has no “=”');
  await wrong('Memory', '0.1', 'whole pages');
  await wrong('Memory', '1', 'it needs that much at least');
  await wrong('Time', 'soon', 'with its unit');
  // From here on, the daemon refuses.
  await wrong('Memory', '1000', 'LIMIT_ABOVE_MAXIMUM');
  await wrong('Time', '2h', 'LIMIT_ABOVE_MAXIMUM');
  await wrong('Mounts', '/etc:/etc:ro', 'POLICY_DENIED');
  await wrong('Working directory', 'relative', 'is not an absolute path');
  await wrong('Host functions', 'ringfence.format_disk', 'is not offered');
  await page.getByLabel('Network').check();
  await page.getByRole('button', { name: 'Start', exact: true }).click();
  await page.locator('#network-error').getByText('POLICY_DENIED').waitFor();
});

browserTest('input comes from a text, or from a file', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const page = await open(`#/start?module=${digest}`);
  const url = page.url();
  await page.getByLabel('Arguments').fill('echo');
  await page.getByLabel('Standard input').selectOption('a text');
  await page.getByLabel('Text', { exact: true }).fill('héllo\n');
  assert.equal(await stdoutOf(daemon, await start(page)), 'héllo\n');
  await page.goto(url);
  await page.getByLabel('Arguments').fill('echo');
  await page.getByLabel('Standard input').selectOption('a file');
  await page
    .getByLabel('File', { exact: true })
    .setInputFiles({ name: '<b>.bin', mimeType: '', buffer: Buffer.from('from a file') });
  await page.getByText('<b>.bin, 11 B').waitFor();
  assert.equal(await stdoutOf(daemon, await start(page)), 'from a file');
});

browserTest('an earlier run fills in what the daemon keeps of it', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'hello'], {
    labels: { job: '7' },
    resources: { memoryPages: 100, fuelLimit: 9_000_000n },
  });
  await daemon.untilEnded(id);
  const page = await open(`#/start?from=${id}`);
  await page.getByText('The daemon does not keep its entry point').waitFor();
  await page.getByText('kit', { exact: true }).waitFor();
  assert.equal(await page.getByLabel('Labels').inputValue(), 'job=7');
  assert.equal(await page.getByLabel('Memory', { exact: true }).inputValue(), '100');
  assert.equal(await page.getByLabel('Fuel').inputValue(), '9000000');
  await page.goto(`${page.url().replace(/#.*/, '')}#/start?from=gone.test`);
  await page.getByText('(SPEC_INVALID)').waitFor();
});

browserTest(
  'a run that waits for its slot is shown when it starts',
  { set: { 'admission.slots': '1' } },
  async ({ daemon, open }) => {
    const digest = await daemon.load(kit(), 'kit');
    const first = await daemon.start(digest, ['kit', 'sleep', '600000']);
    const page = await open(`#/start?module=${digest}`);
    await page.getByLabel('Arguments').fill('hello');
    await page.getByRole('button', { name: 'Start', exact: true }).click();
    await page.getByText('waits for a slot').waitFor();
    await daemon.client.runs.cancelRun({ runId: first });
    await page.waitForURL(/#\/runs\//);
  },
);

browserTest('a run that is not to go on ends with its tab', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const page = await open(`#/start?module=${digest}`);
  await page.getByLabel('Arguments').fill('sleep 600000');
  await page.getByLabel('Go on without this page').uncheck();
  const id = await start(page);
  await daemon.untilRun(id, (run) => run.started !== undefined);
  await page.reload();
  await daemon.untilEnded(id);
});

for (const theme of ['light', 'dark'] as const) {
  browserTest(`the form is accessible in the ${theme} theme`, { theme, width: 360 }, async ({ daemon, open }) => {
    const digest = await daemon.load(wat(NUMBERS), 'numbers');
    const page = await open('#/start');
    await page.getByRole('button', { name: /^numbers/ }).waitFor();
    await assertAccessible(page);
    await page.goto(`${page.url().replace(/#.*/, '')}#/start?module=${digest}`);
    await page.getByLabel('Parameter 1: i32').waitFor();
    await page.getByRole('button', { name: 'Start', exact: true }).click();
    await page.getByText('A value is missing: this is an i32.').waitFor();
    await assertAccessible(page);
    const overflow = await page.evaluate(
      () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
    );
    assert.equal(overflow, 0);
  });
}
