// The frame of the page.

import assert from 'node:assert/strict';

import { browserTest } from './harness.js';

browserTest('the page shows who answers and leads to its pages', async ({ open }) => {
  const page = await open();
  await page.getByText('test is serving').waitFor();
  await page.getByRole('link', { name: 'Overview' }).click();
  assert.equal(await page.title(), 'Overview · Ringfence');
});
