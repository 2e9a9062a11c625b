// What axe-core finds wrong with a page.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';

import type { Page } from 'playwright-core';

import { WEB } from './harness.js';

interface Violation {
  readonly id: string;
  readonly impact: string | null;
  readonly nodes: ReadonlyArray<{ readonly target: unknown; readonly failureSummary?: string }>;
}

/** Asserts that axe-core finds nothing serious or critical on a page as it is now. */
export async function assertAccessible(page: Page): Promise<void> {
  const source = fs.readFileSync(path.join(WEB, 'node_modules/axe-core/axe.min.js'), 'utf8');
  // The page's CSP lets no script in but by the debugger.
  await page.evaluate(source);
  const violations = await page.evaluate(async () => {
    const { axe } = globalThis as unknown as { axe: { run: () => Promise<{ violations: Violation[] }> } };
    return (await axe.run()).violations;
  });
  const serious = violations.filter((it) => it.impact === 'serious' || it.impact === 'critical');
  const told = serious.flatMap(({ id, nodes }) =>
    nodes.map((it) => `${id}: ${JSON.stringify(it.target)} ${it.failureSummary}`),
  );
  assert.deepEqual(told, []);
}
