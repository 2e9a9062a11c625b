// Typing into a run.

import assert from 'node:assert/strict';

import { assertAccessible } from './accessible.js';
import { browserTest, kit, until } from './harness.js';

const OPEN = { openStdin: true };

browserTest('what is typed arrives, with and without a line break, until the end of file', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'lines'], OPEN);
  const page = await open(`#/runs/${id}`);
  const input = page.getByRole('textbox', { name: 'Standard input of the run' });
  await input.fill('<b>hello</b>');
  await input.press('Enter');
  await page.getByText('13 B sent in all.').waitFor();
  assert.equal(await input.inputValue(), '');
  await daemon.untilRun(id, (run) => (run.usage?.stdoutBytes ?? 0n) === 15n);
  await page.getByText('<<b>hello</b>>').waitFor();
  await page.getByRole('checkbox', { name: 'Add a line break' }).uncheck();
  await input.fill('two');
  await page.getByRole('button', { name: 'Send' }).click();
  await input.fill('\nthree');
  await page.getByRole('button', { name: 'Send' }).click();
  await page.getByText('22 B sent in all.').waitFor();
  await assertAccessible(page);
  await page.getByRole('button', { name: 'End of file' }).click();
  await page.getByText('It exited with code 0.').waitFor();
  const run = await daemon.untilEnded(id);
  assert.equal(run.usage?.stdoutBytes, 15n + 6n + 8n);
  await input.waitFor({ state: 'detached' });
});

browserTest('a run whose input is not open has no line to type into', { proxy: true }, async (fixture) => {
  const { daemon, open, proxy } = fixture;
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'sleep', '600000']);
  const page = await open(`#/runs/${id}`);
  await page.getByText(/^It runs\./).waitFor();
  await until('the page has asked', async () => proxy.seen.has('SendInput') && proxy.open.get('SendInput') === 0);
  await page.waitForTimeout(200);
  assert.equal(await page.getByRole('textbox', { name: 'Standard input of the run' }).count(), 0);
});

browserTest('what does not fit waits, and goes on once the guest reads', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const slow = await daemon.start(digest, ['kit', 'sip', '512'], OPEN);
  const page = await open(`#/runs/${slow}`);
  const input = page.getByRole('textbox', { name: 'Standard input of the run' });
  await input.fill('x'.repeat(300_000));
  await page.getByRole('button', { name: 'Send' }).click();
  await page.getByText('the guest has yet to read what was sent before').waitFor();
  await page.getByRole('button', { name: 'End of file' }).click();
  const run = await daemon.untilEnded(slow);
  assert.equal(run.end.case === 'result' && run.end.value.stdinBytes, 300_001n);
  await page.getByText('It exited with code 0.').waitFor();
});

browserTest('another writer is told of, and its input is not overwritten', async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'lines'], OPEN);
  const page = await open(`#/runs/${id}`);
  const input = page.getByRole('textbox', { name: 'Standard input of the run' });
  await input.waitFor();
  const theirs = new TextEncoder().encode('theirs\n');
  await daemon.client.runs.sendInput({ runId: id, offset: 0n, data: theirs });
  await input.fill('mine');
  await input.press('Enter');
  await page.getByText('Another writer sent input meanwhile, 7 B in all. 5 B of yours are not sent.').waitFor();
  await page.getByRole('button', { name: 'Send after theirs' }).click();
  await page.getByText('12 B sent in all.').waitFor();
  await daemon.client.runs.sendInput({ runId: id, offset: 12n, eof: true });
  await page.getByText('It exited with code 0.').waitFor();
  assert.equal((await daemon.untilEnded(id)).usage?.stdoutBytes, 16n);
});

browserTest('what is typed arrives once where answers get lost', { proxy: true }, async ({ daemon, open, proxy }) => {
  const digest = await daemon.load(kit(), 'kit');
  const id = await daemon.start(digest, ['kit', 'lines'], OPEN);
  const page = await open(`#/runs/${id}`);
  const input = page.getByRole('textbox', { name: 'Standard input of the run' });
  await input.waitFor();
  proxy.cut();
  await input.fill('once');
  await input.press('Enter');
  await page.getByText('It is tried again.', { exact: false }).first().waitFor();
  proxy.mend();
  await page.getByText('5 B sent in all.').waitFor();
  await until('the guest has read it', async () => {
    const { run } = await daemon.client.runs.getRun({ runId: id });
    return run?.usage?.stdoutBytes === 7n;
  });
});
