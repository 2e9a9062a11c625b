// The last hour, and what stands in the daemon's walls.

import assert from 'node:assert/strict';

import type { Page } from 'playwright-core';

import { assertAccessible } from './accessible.js';
import { browserTest, kit, setTheme, setVisibility, type TestDaemon, until } from './harness.js';

/** Longer than the daemon takes for a sample. */
const SAMPLE_MS = 25_000;

/** Reads the table of a chart: its heads, and the sum of each column of numbers. */
async function sums(page: Page, title: string): Promise<Record<string, number>> {
  const table = page.getByRole('region', { name: `${title}, as a table` });
  return table.evaluate((region) => {
    const cells = (row: Element | null) => [...(row?.children ?? [])].map((it) => it.textContent?.trim() ?? '');
    const [, ...heads] = cells(region.querySelector('thead tr'));
    const rows = [...region.querySelectorAll('tbody tr')].map(cells);
    const sum = (at: number) => rows.reduce((total, row) => total + Number((row[at + 1] ?? '').replaceAll(',', '')), 0);
    return Object.fromEntries(heads.map((head, at) => [head, sum(at)]));
  });
}

async function openTable(page: Page, title: string): Promise<void> {
  await page.getByRole('figure', { name: title }).getByText('All figures as a table').click();
}

/** Runs something of each kind: three that exit, two that trap, one that times out, two that are refused. */
async function work(daemon: TestDaemon, digest: string): Promise<void> {
  for (let count = 0; count < 3; count += 1) await daemon.run(digest, ['kit', 'hello']);
  for (let count = 0; count < 2; count += 1) await daemon.run(digest, ['kit', 'panic']);
  await daemon.run(digest, ['kit', 'spin'], { timeout: { seconds: 0n, nanos: 100_000_000 } });
  for (let count = 0; count < 2; count += 1) {
    await daemon.run(digest, ['kit'], { entryPoint: 'gone' }).catch(() => undefined);
  }
}

browserTest('runs are in the charts, and in the figures beside them', { proxy: true }, async ({ daemon, proxy, open, allow }) => {
  const digest = await daemon.load(kit(), 'kit');
  await work(daemon, digest);
  const page = await open('#/overview');
  await page.getByRole('row', { name: 'exited 3' }).waitFor();
  await page.getByRole('row', { name: 'ENTRY_POINT_NOT_FOUND 2' }).waitFor();
  await page.getByText('It gave up', { exact: false }).or(page.getByText('The daemon gave up nothing')).first().waitFor();
  await openTable(page, 'Runs that ended');
  await openTable(page, 'Runs that were refused');
  const exited = async () => (await sums(page, 'Runs that ended'))['exited'];
  await until('a sample has the runs', async () => (await exited()) === 3);
  assert.deepEqual(await sums(page, 'Runs that ended'), { exited: 3, trapped: 2, 'timed out': 1 });
  assert.deepEqual(await sums(page, 'Runs that were refused'), { refused: 2 });
  await openTable(page, 'Duration of runs');
  await page.getByRole('region', { name: 'Duration of runs, as a table' }).getByText(/\d ms/).first().waitFor();

  // What happens while the tab is hidden, or the connection is broken, is there afterwards.
  await setVisibility(page, 'hidden');
  await until('the stream is closed', async () => proxy.streams === 0);
  for (let count = 0; count < 4; count += 1) await daemon.run(digest, ['kit', 'hello']);
  await new Promise((resolve) => setTimeout(resolve, SAMPLE_MS / 2));
  await setVisibility(page, 'visible');
  await until('what was missed is there', async () => (await exited()) === 7);
  allow(/.*/);
  proxy.cut();
  await daemon.run(digest, ['kit', 'hello']);
  await page.getByText('Not live').waitFor();
  proxy.mend();
  await until('what was missed is there', async () => (await exited()) === 8);

  // A daemon that starts anew knows nothing of the past, and this page still does.
  await daemon.kill();
  await daemon.restart();
  await page.getByText('No run has ended.').waitFor();
  assert.equal(await exited(), 8);
});

browserTest('the charts follow the theme, and their cursors go together', { theme: 'light' }, async ({ daemon, open }) => {
  const digest = await daemon.load(kit(), 'kit');
  const page = await open('#/overview');
  await work(daemon, digest);
  await openTable(page, 'Runs that ended');
  await until('there are two samples', async () => (await page.getByRole('region', { name: 'Runs that ended, as a table' }).getByRole('row').count()) > 2);
  const plots = page.locator('.u-over');
  assert.equal(await plots.count(), 6);
  const box = await plots.first().boundingBox();
  assert.ok(box !== null);
  await page.mouse.move(box.x + box.width - 2, box.y + 20);
  const times = async () => page.getByRole('figure').locator('li:first-child').allTextContents();
  await until('all show the same time', async () => new Set(await times()).size === 1);
  const painted = async () =>
    page.locator('canvas').first().evaluate((canvas: HTMLCanvasElement) => {
      const data = canvas.getContext('2d')?.getImageData(0, 0, canvas.width, canvas.height).data ?? [];
      let sum = 0;
      for (const byte of data) sum = (sum * 31 + byte) % 4_294_967_291;
      return sum;
    });
  await page.mouse.move(0, 0);
  const light = await painted();
  await setTheme(page, 'dark');
  await until('the colours change', async () => (await painted()) !== light);
  const dark = await painted();
  await page.getByRole('combobox', { name: 'Theme' }).selectOption('light');
  await until('the colours change back', async () => (await painted()) !== dark);
});

for (const theme of ['light', 'dark'] as const) {
  browserTest(`the overview is accessible in the ${theme} theme`, { theme, width: 360 }, async ({ daemon, open }) => {
    const digest = await daemon.load(kit(), 'kit');
    await work(daemon, digest);
    const page = await open('#/overview');
    await openTable(page, 'Runs that ended');
    await page.getByRole('region', { name: 'Runs that ended, as a table' }).getByRole('cell').first().waitFor();
    await page.getByText('What confines the daemon').waitFor();
    await assertAccessible(page);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.equal(overflow, 0);
  });
}
