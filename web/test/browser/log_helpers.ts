// What tests of the log see and do.

import assert from 'node:assert/strict';

import type { Locator, Page } from 'playwright-core';

import { type TestDaemon, until } from './harness.js';

/** The log of a page, by what a reader has of it. */
export class LogPage {
  readonly log: Locator;
  readonly search: Locator;

  constructor(
    readonly page: Page,
    scope = 'ringfence-log',
  ) {
    this.log = page.locator(scope);
    this.search = this.log.getByRole('searchbox');
  }

  button(name: string): Locator {
    return this.log.getByRole('button', { name, exact: true });
  }

  /** Lines as they are in sight. */
  async lines(): Promise<string[]> {
    const all = await this.log.locator('.cm-line').evaluateAll((lines) => {
      const { top, bottom } = lines[0]?.closest('.cm-scroller')?.getBoundingClientRect() ?? { top: 0, bottom: 0 };
      const isInSight = ({ top: above, bottom: below }: DOMRect) => below > top + 1 && above < bottom - 1;
      return lines.filter((it) => isInSight(it.getBoundingClientRect())).map((it) => it.textContent ?? '');
    });
    return all.at(-1) === '' ? all.slice(0, -1) : all;
  }

  /** Numbers of lines as they are in sight. */
  async numbers(): Promise<string[]> {
    const all = await this.log.locator('.cm-numbers .cm-gutterElement:visible').allTextContents();
    return all.filter((it) => it !== '');
  }

  async untilLine(text: string | RegExp): Promise<void> {
    const isIt = (line: string) => (typeof text === 'string' ? line === text : text.test(line));
    await until(`the line ${String(text)}`, async () => (await this.lines()).some(isIt));
  }

  async untilLines(expected: readonly string[]): Promise<void> {
    let seen: string[] = [];
    await until('the lines', async () => {
      seen = await this.lines();
      return JSON.stringify(seen) === JSON.stringify(expected);
    }).catch(() => assert.deepEqual(seen, expected));
  }

  async isPressed(name: string): Promise<boolean> {
    return (await this.button(name).getAttribute('aria-pressed')) === 'true';
  }

  async untilPressed(name: string, isPressed: boolean): Promise<void> {
    await until(`${name} is ${isPressed ? '' : 'not '}pressed`, async () => (await this.isPressed(name)) === isPressed);
  }

  /** Turns the wheel over the lines. */
  async wheel(deltaY: number): Promise<void> {
    await this.log.locator('.cm-scroller').first().hover();
    await this.page.mouse.wheel(0, deltaY);
  }

  /** How far the lines are from their end, in pixels. */
  async fromEnd(): Promise<number> {
    return this.log.locator('.cm-scroller').first().evaluate((it) => it.scrollHeight - it.clientHeight - it.scrollTop);
  }

  async untilAtEnd(): Promise<void> {
    await until('the end is in sight', async () => (await this.fromEnd()) < 8);
  }
}

/** Waits until a run has written at least so many bytes. */
export async function untilWritten(daemon: TestDaemon, id: string, bytes: number): Promise<void> {
  await daemon.untilRun(id, (run) => Number((run.usage?.stdoutBytes ?? 0n) + (run.usage?.stderrBytes ?? 0n)) >= bytes);
}
