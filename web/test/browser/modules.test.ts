// The stored modules: listed, found, uploaded, shown, deleted.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';

import type { Page } from 'playwright-core';

import { assertAccessible } from './accessible.js';
import { type Fixture, browserTest, kit, type TestDaemon, tokenOf, until, wat } from './harness.js';
import { padded } from './wasm_padding.js';

const HOSTILE = '<img src=x onerror=alert(1)>\u202e\u200b"\'';
const ADD = '(module (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))';
const MIB = 1 << 20;
/** A module that has nothing. */
const NOTHING = new Uint8Array([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]);

/** Waits until the daemon has a module of a name, and returns its digest. */
async function untilStored(daemon: TestDaemon, name: string): Promise<string> {
  return until(`${name} is stored`, async () => {
    const { modules } = await daemon.client.modules.listModules({});
    return modules.find((it) => it.name === name)?.digest;
  });
}

/** Writes a file into the daemon's folder, which is removed with it. */
function fileOf({ daemon }: Pick<Fixture, 'daemon'>, name: string, bytes: Uint8Array): string {
  const file = path.join(daemon.folder, name);
  fs.writeFileSync(file, bytes);
  return file;
}

/** Drops a file that is made in the page onto its middle, as a mouse would. */
async function drop(page: Page, name: string, bytes: Uint8Array): Promise<void> {
  // There is something to drop onto before the page listens.
  await page.getByText('Upload a module', { exact: true }).first().waitFor();
  const files = await page.evaluateHandle(
    ([fileName, text]) => {
      const transfer = new DataTransfer();
      const content = Uint8Array.from(atob(text ?? ''), (it) => it.charCodeAt(0));
      transfer.items.add(new File([content], fileName ?? ''));
      return transfer;
    },
    [name, Buffer.from(bytes).toString('base64')],
  );
  const dispatch = async (type: string) => page.dispatchEvent('main', type, { dataTransfer: files });
  await dispatch('dragenter');
  await page.getByText('Drop WebAssembly modules to store them.').waitFor();
  await dispatch('dragover');
  await dispatch('drop');
}

browserTest('20 MB are uploaded by the chooser, run, and typed into', async (fixture) => {
  const { daemon, open } = fixture;
  const file = fileOf(fixture, 'large.wasm', padded(kit(), 20 * MIB));
  const page = await open('#/modules');
  // By keys alone: the button opens the chooser, and Enter in a field sends.
  const chooser = page.waitForEvent('filechooser');
  await page.getByRole('button', { name: 'Upload a module' }).focus();
  await page.keyboard.press('Enter');
  await (await chooser).setFiles(file);
  await page.getByLabel('Name', { exact: true }).fill('large one');
  await page.getByLabel('Labels').fill('size=20MB');
  await page.getByLabel('Name', { exact: true }).press('Enter');
  await page.getByText('Stored as').waitFor();
  const digest = await untilStored(daemon, 'large one');
  await page
    .getByRole('row', { name: /large one/ })
    .getByText('size=20MB')
    .waitFor();
  await page.getByRole('link', { name: 'Run it' }).click();
  await page.getByLabel('Arguments').fill('lines');
  await page.getByLabel('Leave it open for typing').check();
  await page.getByRole('button', { name: 'Start' }).click();
  await page.waitForURL(/#\/runs\/[0-9a-f]{32}\.test$/);
  const runId = decodeURIComponent(page.url().replace(/^.*#\/runs\//, ''));
  await daemon.untilRun(runId, (run) => run.moduleDigest === digest);
  const input = page.getByRole('textbox', { name: /input/i });
  await input.fill('typed here');
  await input.press('Enter');
  await page.getByText('<typed here>').first().waitFor();
});

browserTest('progress is told while a module is sent, and it can be cancelled', { proxy: true }, async (fixture) => {
  const { daemon, open } = fixture;
  const file = fileOf(fixture, 'slow.wasm', padded(kit(), 20 * MIB));
  const page = await open('#/modules');
  const client = await page.context().newCDPSession(page);
  const slow = { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: 4 * MIB };
  await client.send('Network.emulateNetworkConditions', slow);
  await page.setInputFiles('input[type=file]', file);
  await page.getByRole('button', { name: 'Upload', exact: true }).click();
  const progress = page.getByRole('progressbar', { name: 'Sent bytes' });
  await until(
    'a part of it is sent',
    async () => (await progress.evaluate((it: HTMLProgressElement) => it.position)) > 0.05,
  );
  await page.getByText(/of 20 MiB are sent/).waitFor();
  await page.getByRole('button', { name: 'Cancel' }).click();
  await progress.waitFor({ state: 'detached' });
  assert.deepEqual((await daemon.client.modules.listModules({})).modules, []);
});

browserTest('a file that is dropped is stored, also while another page is shown', async ({ daemon, open }) => {
  const page = await open('#/modules');
  await page.getByText('No module is stored').waitFor();
  await drop(page, 'add.wat', wat(ADD));
  await page.getByRole('button', { name: 'Upload', exact: true }).click();
  await page.getByRole('link', { name: 'Runs' }).click();
  const digest = await untilStored(daemon, 'add');
  await page.getByRole('link', { name: 'Modules' }).click();
  await page.getByRole('link', { name: 'add', exact: true }).click();
  await page.getByText(digest).waitFor();
  await page.getByText('add(i32, i32) → i32').waitFor();
  await page.getByRole('button', { name: 'Start a run' }).click();
  await page.getByLabel('Parameter 2: i32').waitFor();
});

browserTest('a module that is refused is told in words', { set: { 'compile.max_module': '1MiB' } }, async (fixture) => {
  const { open } = fixture;
  const page = await open('#/modules');
  await drop(page, 'bad.wasm', wat('(module (func (export "f") unknown))'));
  await page.getByRole('button', { name: 'Upload', exact: true }).click();
  await page.getByText('(MODULE_INVALID)').waitFor();
  await page.getByRole('button', { name: 'Cancel' }).click();
  await page.setInputFiles('input[type=file]', fileOf(fixture, 'large.wasm', padded(kit(), 3 * MIB)));
  await page.getByRole('button', { name: 'Upload', exact: true }).click();
  await page.getByText('The file has 3 MiB. This daemon takes modules of up to 1 MiB (compile.max_module).').waitFor();
  await page.getByLabel('Name', { exact: true }).fill('x'.repeat(129));
  await page.getByLabel('Labels').fill('no label');
  await page.getByRole('button', { name: 'Upload', exact: true }).click();
  await page.getByText('A name has at most 128 bytes.').waitFor();
  await page.getByText('Line 1 has no “=”').waitFor();
});

browserTest('modules are found by words, sorted and deleted', async ({ daemon, open }) => {
  for (let index = 0; index < 12; index += 1) {
    const text = `(module (memory ${index + 1}) (func (export "f${index}")))`;
    await daemon.load(wat(text), `tool-${index}`, { team: index % 2 === 0 ? 'even' : 'odd' });
  }
  const page = await open('#/modules?text=odd');
  await page.getByText('6 of 12 modules').waitFor();
  const names = async () => page.getByRole('rowheader').getByRole('link').allTextContents();
  await page.getByRole('columnheader', { name: 'Memory minimum' }).getByRole('button').click();
  assert.deepEqual(await names(), ['tool-11', 'tool-9', 'tool-7', 'tool-5', 'tool-3', 'tool-1']);
  await page.getByRole('columnheader', { name: 'Module' }).getByRole('button').press('Enter');
  assert.deepEqual(await names(), ['tool-1', 'tool-3', 'tool-5', 'tool-7', 'tool-9', 'tool-11']);
  assert.equal(await page.getByRole('columnheader', { name: 'Module' }).getAttribute('aria-sort'), 'ascending');
  await page.keyboard.press('/');
  await page.keyboard.press('End');
  await page.keyboard.type(' tool-11');
  await page.getByText('1 of 12 modules').waitFor();
  assert.match(page.url(), /text=odd\+tool-11$/);
  await page.getByRole('button', { name: 'Delete tool-11' }).click();
  await page.getByRole('button', { name: 'Cancel' }).click();
  await page.getByRole('button', { name: 'Delete tool-11' }).click();
  await page.getByRole('button', { name: 'Delete', exact: true }).click();
  await page.getByText('No module matches').waitFor();
  await page.getByRole('button', { name: 'Show all' }).click();
  await page.getByText('11 modules').waitFor();
});

browserTest('names and labels of others are text', async ({ daemon, open }) => {
  const text = `(module (func (export "<script>alert(1)</script>")) (func (export "\\u{202e}x")))`;
  const digest = await daemon.load(wat(text), HOSTILE, { '<b>key</b>': HOSTILE });
  const page = await open('#/modules');
  await page
    .getByRole('link', { name: /<img src=x onerror=alert\(1\)>⟨U\+202E⟩⟨U\+200B⟩/ })
    .first()
    .click();
  await page.getByRole('cell', { name: '<script>alert(1)</script>' }).waitFor();
  await page.getByText('<b>key</b>=<img').waitFor();
  await page.getByRole('button', { name: 'Delete' }).click();
  await page.getByRole('alertdialog').getByText(digest).waitFor();
  await page.getByRole('button', { name: 'Cancel' }).click();
  await page.getByRole('button', { name: 'Start a run' }).click();
  await page.getByLabel('Entry point').waitFor();
  assert.equal(await page.locator('img, script:not([src]), b').count(), 0);
});

browserTest('a module is stored for whoever is signed in', { tenants: ['alice', 'bob'] }, async ({ daemon, open }) => {
  const page = await open('#/modules');
  await page.getByLabel('Token').fill(tokenOf('bob'));
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByText('No module is stored').waitFor();
  await page.setInputFiles('input[type=file]', {
    name: 'large.wasm',
    mimeType: '',
    buffer: Buffer.from(padded(NOTHING, MIB)),
  });
  await page.getByRole('button', { name: 'Upload', exact: true }).click();
  await page.getByText('Stored as').waitFor();
  assert.equal((await daemon.clientOf('bob').modules.listModules({})).modules.length, 1);
  assert.equal((await daemon.clientOf('alice').modules.listModules({})).modules.length, 0);
});

browserTest(
  'a page that may change nothing has no controls for it',
  { set: { 'admin.read_only': 'true' } },
  async ({ daemon, open }) => {
    const page = await open('#/modules');
    await page.getByText('No module is stored.').waitFor();
    assert.equal(await page.getByRole('button', { name: 'Upload a module' }).count(), 0);
    await page.goto(`${page.url().replace(/#.*/, '')}#/start`);
    await page.getByText('it is read-only here').waitFor();
    assert.ok(daemon.admin);
  },
);

for (const theme of ['light', 'dark'] as const) {
  browserTest(`the pages of modules are accessible in the ${theme} theme`, { theme }, async ({ daemon, open }) => {
    const digest = await daemon.load(kit(), 'kit', { team: 'a' });
    const page = await open('#/modules');
    await page.getByRole('link', { name: 'kit' }).first().waitFor();
    await page.setInputFiles('input[type=file]', {
      name: 'a.wasm',
      mimeType: 'application/wasm',
      buffer: Buffer.from([0]),
    });
    await page.getByLabel('Labels').fill('x');
    await page.getByRole('button', { name: 'Upload', exact: true }).click();
    await page.getByText('Line 1 has no “=”').waitFor();
    await assertAccessible(page);
    await page.goto(`${page.url().replace(/#.*/, '')}#/modules/${digest}`);
    await page.getByText(digest).waitFor();
    await assertAccessible(page);
  });
}
