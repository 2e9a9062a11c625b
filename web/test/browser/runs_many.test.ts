// The table of runs with thousands of them.

import assert from 'node:assert/strict';

import { browserTest, until, wat } from './harness.js';
import { rowOf, rows, short } from './run_rows.js';

const EXITS = wat('(module (func (export "_start")))');

browserTest(
  'thousands of runs have few rows in the document, and all can be reached',
  { set: { 'telemetry.log_level': '"error,ringfence=info"' } },
  async ({ daemon, open }) => {
    const digest = await daemon.load(EXITS, 'exits');
    const ids: string[] = [];
    const work = async () => {
      while (ids.length < 5_000) {
        const at = ids.push('') - 1;
        ids[at] = await daemon.start(digest, []);
      }
    };
    await Promise.all(Array.from({ length: 16 }, work));
    ids.sort();
    const page = await open('#/runs');
    await page.getByText('5,000 runs, 0 of them live.').waitFor();
    const grid = page.getByRole('grid');
    assert.equal(await grid.getAttribute('aria-rowcount'), '5001');
    const inDocument = await rows(page).count();
    assert.ok(inDocument < 60, `${inDocument} rows are in the document`);
    await rowOf(page, short(ids.at(-1)!)).waitFor();

    await page.keyboard.press('t');
    await page.keyboard.press('End');
    const oldest = rowOf(page, short(ids[0]!));
    await oldest.waitFor();
    assert.equal(await oldest.getAttribute('aria-rowindex'), '5001');
    const active = () => grid.getAttribute('aria-activedescendant');
    assert.equal(await active(), 'row-4999');
    await page.keyboard.press('ArrowUp');
    await page.keyboard.press('PageUp');
    await until('a page further up is active', async () => Number((await active())?.slice(4)) < 4_990);
    await page.keyboard.press('Home');
    await until('the first is active', async () => (await active()) === 'row-0');
    assert.ok((await rows(page).count()) < 60);

    // What is looked at stays where it is while runs come above it.
    await grid.evaluate((it) => (it.scrollTop = 2_000 * 36));
    const middle = rows(page).nth(10);
    await until('the middle is shown', async () => Number(await middle.getAttribute('aria-rowindex')) > 1_900);
    const watched = (await middle.locator('.run').textContent()) ?? '';
    const place = async () => (await rowOf(page, watched).boundingBox())?.y;
    const before = await place();
    const index = Number(await rowOf(page, watched).getAttribute('aria-rowindex'));
    for (let at = 0; at < 5; at += 1) await daemon.start(digest, []);
    await page.getByText('5,005 runs').waitFor();
    assert.equal(await rowOf(page, watched).getAttribute('aria-rowindex'), String(index + 5));
    assert.equal(await place(), before);
  },
);
