// Finds runs in the table of runs.

import type { Locator, Page } from 'playwright-core';

/** The rows of the table of runs that are in the document. */
export const rows = (page: Page): Locator => page.getByRole('grid', { name: 'Runs' }).locator('.rows [role="row"]');
/** The row that has a text. */
export const rowOf = (page: Page, text: string): Locator => rows(page).filter({ hasText: text });
/** The part of a run's id that the page shows. */
export const short = (id: string): string => `…${id.slice(24, 32)}`;
/** What the page says of the number of runs. */
export const counts = async (page: Page): Promise<string> =>
  (await page.getByText(/^\d[\d,]* runs?, /).textContent()) ?? '';
/** Returns the text of a cell, by the class that names its column. */
export const cell = async (row: Locator, name: string): Promise<string> =>
  ((await row.locator(`.${name}`).textContent()) ?? '').trim();
