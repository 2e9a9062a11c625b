// The log of a run: what each control does, by mouse and by keyboard.

import assert from 'node:assert/strict';
import fs from 'node:fs';

import { browserTest, printer, until } from './harness.js';
import { LogPage } from './log_helpers.js';

const line = (i: number) => `line ${i}`;

browserTest('it follows, stops where one scrolls up, counts what came since, and jumps', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'repeat:300:line {}\\n', 'tick:2000:40:tick {}\\n'], {
    timeout: { seconds: 100n },
  });
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  await log.untilLine(/^tick \d+$/);
  assert.equal(await log.isPressed('Follow'), true);
  await log.untilAtEnd();
  // By mouse.
  await log.wheel(-400);
  await log.untilPressed('Follow', false);
  const more = log.log.getByRole('button', { name: /^\d+ new lines?/ });
  await more.waitFor();
  const seen = await log.lines();
  const [count] = /\d+/.exec((await more.textContent()) ?? '') ?? [];
  await until('more lines come', async () => parseInt((await more.textContent())?.trim() ?? '', 10) > Number(count));
  assert.deepEqual((await log.lines()).slice(0, 10), seen.slice(0, 10), 'nothing moves');
  await more.click();
  await log.untilAtEnd();
  await more.waitFor({ state: 'detached' });
  await log.untilPressed('Follow', true);
  await log.button('First').click();
  await log.untilLine(line(0));
  await log.untilPressed('Follow', false);
  await log.button('Latest').click();
  await log.untilAtEnd();
  await log.button('Follow').click();
  await log.untilPressed('Follow', false);
  // Who scrolls back to the end follows again.
  await log.wheel(-300);
  await until('one is away', async () => (await log.fromEnd()) > 100);
  await log.wheel(100_000);
  await log.untilPressed('Follow', true);
  // By keyboard.
  await page.keyboard.press('f');
  await log.untilPressed('Follow', false);
  await page.keyboard.press('Home');
  await log.untilLine(line(0));
  await page.keyboard.press('End');
  await log.untilPressed('Follow', true);
  await log.untilAtEnd();
  await log.log.locator('.cm-content').focus();
  await page.keyboard.press('PageUp');
  await log.untilPressed('Follow', false);
  await page.keyboard.press('f');
  await log.untilPressed('Follow', true);
});

browserTest('a pause holds everything still, and what comes is counted', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'out:begun', 'tick:600:40: {}\\n', 'out:the end\\n']);
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  await log.untilLine(/^ \d+$/);
  for (const press of [() => log.button('Pause').click(), () => page.keyboard.press('p')]) {
    await press();
    await log.untilPressed('Pause', true);
    const seen = await log.lines();
    await until('lines are counted', async () => {
      const [button] = await log.log.getByRole('button', { name: /new lines?\. Go on/ }).allTextContents();
      return parseInt(button?.trim() ?? '', 10) > 5;
    });
    assert.deepEqual(await log.lines(), seen);
    await press();
    await log.untilPressed('Pause', false);
    await until('it goes on', async () => (await log.lines()).at(-1) !== seen.at(-1));
    await log.untilAtEnd();
  }
  await log.button('Pause').click();
  await log.log.getByRole('button', { name: /Go on/ }).click();
  await log.untilPressed('Pause', false);
});

browserTest('streams, times, wrap and numbers are switches, and remembered', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const long = 'long '.repeat(100).trim();
  const id = await daemon.start(digest, ['printer', 'out:one\\n', 'err:two\\n', `out:${long}\\n`]);
  await daemon.untilEnded(id);
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  await log.untilLines(['one', 'two', long]);
  assert.deepEqual(await log.numbers(), ['1', '2', '3']);
  assert.deepEqual(await log.log.locator('.cm-streams .cm-gutterElement:visible').allTextContents(), ['err']);
  const streams = log.log.getByRole('combobox', { name: 'Streams' });
  await streams.selectOption('stderr');
  await log.untilLines(['two']);
  assert.deepEqual(await log.numbers(), ['2']);
  await streams.selectOption('stdout');
  await log.untilLines(['one', long]);
  await log.log.getByText('2 lines of 3 lines').waitFor();
  await streams.focus();
  await page.keyboard.press('ArrowUp');
  await log.untilLines(['one', 'two', long]);
  // By mouse, and back by keyboard.
  const wrapped = log.log.locator('.cm-lineWrapping');
  const times = log.log.locator('.cm-times .cm-gutterElement:visible').first();
  await wrapped.waitFor();
  await log.button('Wrap').click();
  await wrapped.waitFor({ state: 'detached' });
  await page.keyboard.press('w');
  await wrapped.waitFor();
  await page.keyboard.press('w');
  await log.button('Times').click();
  assert.match((await times.textContent()) ?? '', /^\d\d:\d\d:\d\d\.\d{3}$/);
  await page.keyboard.press('t');
  await times.waitFor({ state: 'detached' });
  await page.keyboard.press('t');
  await log.button('Numbers').click();
  await until('no number is there', async () => (await log.numbers()).length === 0);
  await page.reload();
  await log.untilLines(['one', 'two', long]);
  assert.deepEqual(
    await Promise.all(['Times', 'Wrap', 'Numbers'].map((it) => log.isPressed(it))),
    [true, false, false],
  );
  await times.waitFor();
  assert.equal(await wrapped.count(), 0);
  await page.keyboard.press('#');
  await until('numbers are there', async () => (await log.numbers()).length === 3);
});

browserTest('search counts, goes on, takes patterns, and says what is wrong with one', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'repeat:1000:line {} of them\\n', `out:${'a'.repeat(15_000)}\\n`]);
  await daemon.untilEnded(id);
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  const says = (text: string | RegExp) => log.log.getByRole('status').getByText(text, { exact: true }).waitFor();
  await log.log.getByText('1,001 lines').waitFor();
  await page.keyboard.press('/');
  await page.keyboard.type('LINE 99');
  await says('11 matches');
  await page.keyboard.press('Enter');
  await says(/^\d+ of 11$/);
  await log.button('First').click();
  await log.search.fill('');
  await log.search.fill('LINE 99');
  await page.keyboard.press('Enter');
  await says('1 of 11');
  await log.untilLine('line 99 of them');
  assert.equal(await log.log.locator('.cm-current').textContent(), 'line 99');
  await page.keyboard.press('Enter');
  await says('2 of 11');
  await log.untilLine('line 990 of them');
  await page.keyboard.press('Shift+Enter');
  await says('1 of 11');
  await page.keyboard.press('Shift+Enter');
  await says('11 of 11');
  await log.log.getByRole('button', { name: 'Next match' }).click();
  await says('1 of 11');
  await log.log.getByRole('button', { name: 'Previous match' }).click();
  await says('11 of 11');
  await page.keyboard.press('n');
  await says('1 of 11');
  await page.keyboard.press('N');
  await says('11 of 11');
  // Enter before the frame that looks for what was typed.
  await log.button('First').click();
  await log.search.evaluate((field: HTMLInputElement) => {
    field.value = 'line 98';
    field.dispatchEvent(new Event('input'));
    field.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' }));
  });
  await says('1 of 11');
  await log.untilLine('line 98 of them');
  await log.search.fill('LINE 99');
  // Case, and patterns.
  await log.button('Match case').click();
  await says('Nothing matches.');
  await log.search.fill('^line [0-9]{2} of');
  await says('Nothing matches.');
  await log.button('Regular expression').click();
  await says('90 matches');
  await log.search.fill('line (');
  await says('Unterminated group.');
  assert.equal(await log.search.getAttribute('aria-invalid'), 'true');
  await log.search.fill('(a)\\1');
  await says('Back references cannot be searched for here.');
  // Browsers need longer than there is time for it.
  await log.search.fill('(a+)+b');
  await says('Nothing matches.');
  await page.keyboard.press('Escape');
  assert.equal(await log.search.inputValue(), '');
});

browserTest('a filter shows only what matches, with the numbers that lines have', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'repeat:500:line {}\\n', 'sleep:60000'], {
    timeout: { seconds: 90n },
  });
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  await log.log.getByText('500 lines').waitFor();
  await log.button('Filter').click();
  await log.log.getByText('500 lines').waitFor();
  await log.search.fill('99');
  await log.untilLines(['line 99', 'line 199', 'line 299', 'line 399', 'line 499']);
  assert.deepEqual(await log.numbers(), ['100', '200', '300', '400', '500']);
  await log.log.getByText('5 lines of 500 lines').waitFor();
  await log.search.fill('nothing');
  await log.log.getByText('No line is one of those to show.').waitFor();
  await log.search.fill('line 1');
  await log.log.getByText('111 lines of 500 lines').waitFor();
  await log.button('Filter').press('Enter');
  await log.log.getByText('500 lines', { exact: true }).waitFor();
  assert.ok((await log.log.locator('.cm-match').count()) >= 0);
});

browserTest('a line has an address, which means the same line later', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'repeat:400:line {}\\n', 'err:over\\n', 'sleep:60000'], {
    timeout: { seconds: 90n },
  });
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  await log.untilLine('over');
  await log.button('First').click();
  await log.untilLine(line(4));
  await log.log.locator('.cm-numbers').getByText('5', { exact: true }).click();
  const marked = log.log.locator('.cm-line.cm-marked');
  await until('the address has a place', async () => /\?at=1\.28$/.test(page.url()));
  assert.equal(await marked.textContent(), line(4));
  // By keyboard: the line that one is at.
  await log.log.locator('.cm-content').focus();
  for (let i = 0; i < 6; i++) await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  await until('the address has another place', async () => !page.url().endsWith('at=1.28'));
  const there = (await marked.textContent()) ?? '';
  assert.match(there, /^line \d+$/);
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('l');
  const next = line(Number(there.slice(5)) + 1);
  await until('the next line is marked', async () => (await marked.textContent()) === next);
  const second = new LogPage(await open(new URL(page.url()).hash));
  await second.untilLine(next);
  assert.equal(await second.log.locator('.cm-line.cm-marked').textContent(), next);
  assert.equal(await second.isPressed('Follow'), false);
  await daemon.client.runs.cancelRun({ runId: id });
  const never = new LogPage(await open(`#/runs/${id}?at=99.0`));
  await never.log.getByText('This run has not written the line that the link is to.').waitFor();
});

browserTest('what is selected is copied exactly, and without a selection all lines are', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const long = 'x'.repeat(40_000);
  const steps = ['repeat:2000:line {}\\n', 'err:\\e[31mred\\e[0m\\tand\\n', `out:${long}\\n`];
  const id = await daemon.start(digest, ['printer', ...steps]);
  await daemon.untilEnded(id);
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  await log.log.getByText('2,004 lines').waitFor();
  const expected = `${Array.from({ length: 2_000 }, (_, i) => `line ${i}\n`).join('')}red\tand\n${long}\n`;
  const clipboard = () => page.evaluate(() => navigator.clipboard.readText());
  await log.button('Copy').click();
  await log.log.getByText('The text, 2,002 lines, is copied.').waitFor();
  assert.equal(await clipboard(), expected);
  await page.evaluate(() => navigator.clipboard.writeText(''));
  await log.log.locator('.cm-content').focus();
  await page.keyboard.press('Control+a');
  await page.keyboard.press('Control+c');
  await until('something is copied', async () => (await clipboard()) !== '');
  assert.equal(await clipboard(), expected);
  // A part, by keyboard.
  await page.keyboard.press('Home');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Shift+ArrowDown');
  await page.keyboard.press('Shift+ArrowDown');
  await page.keyboard.press('Control+c');
  await until('the part is copied', async () => (await clipboard()) === 'line 1\nline 2\n');
  // By mouse.
  await log.button('First').click();
  const [from, to] = [log.log.getByText('line 3', { exact: true }), log.log.getByText('line 5', { exact: true })];
  const [a, b] = [await from.boundingBox(), await to.boundingBox()];
  await page.mouse.move(a!.x + 9, a!.y + 5);
  await page.mouse.down();
  await page.mouse.move(b!.x + 9, b!.y + 5, { steps: 5 });
  await page.mouse.up();
  await page.keyboard.press('Control+c');
  await until('the lines are copied', async () => (await clipboard()) === 'line 3\nline 4\n');
  await log.button('Copy').click();
  await log.log.getByText('The selection, 2 lines, is copied.').waitFor();
});

browserTest('the output is saved byte for byte, each stream or both', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const outputs = ['out:a\\r\\n\\xff\\0', 'err:\\e[31mred', 'out:\\xe2\\x82', 'out:\\xac\\n'];
  const steps = outputs.flatMap((it) => [it, 'sleep:50']);
  const id = await daemon.start(digest, ['printer', ...steps, 'sleep:60000'], { timeout: { seconds: 90n } });
  const page = await open(`#/runs/${id}`);
  const log = new LogPage(page);
  await log.untilLine('�␀€');
  const [out, err] = [Buffer.from('a\r\n\xff\0\xe2\x82\xac\n', 'latin1'), Buffer.from('\x1b[31mred')];
  const both = Buffer.from('a\r\n\xff\0\x1b[31mred\xe2\x82\xac\n', 'latin1');
  const save = async (name: string) => {
    const saved = page.waitForEvent('download');
    await log.log.getByText('Download').click();
    await log.button(name).click();
    const download = await saved;
    return [download.suggestedFilename(), fs.readFileSync(await download.path())] as const;
  };
  assert.deepEqual(await save('stdout'), [`${id}.stdout`, out]);
  await log.log.getByText(`${id}.stdout has ${out.length} B so far.`).waitFor();
  assert.deepEqual(await save('stderr'), [`${id}.stderr`, err]);
  assert.deepEqual(await save('Both streams, in their order'), [`${id}.log`, both]);
  await daemon.client.runs.cancelRun({ runId: id });
  assert.deepEqual(await save('stdout'), [`${id}.stdout`, out]);
  await log.log.getByText(`${id}.stdout has ${out.length} B.`).waitFor();
});
