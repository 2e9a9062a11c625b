// One line of a terminal: text is written where the cursor is, over what is there.

import { type AnsiStyle, isSameStyle, PLAIN, type StyledSpan } from './ansi.js';

/** How far sequences may move the cursor beyond the text: a terminal has about so many columns. */
const MAX_COLUMN = 200;

/** Characters that take two columns. */
const WIDE = new RegExp(
  '[\\u1100-\\u115f\\u2e80-\\ua4cf\\ua960-\\ua97c\\uac00-\\ud7a3\\uf900-\\ufaff\\ufe30-\\ufe6f\\uff00-\\uff60' +
    '\\uffe0-\\uffe6\\u{1f300}-\\u{1f64f}\\u{1f680}-\\u{1f6ff}\\u{1f900}-\\u{1f9ff}\\u{1fa70}-\\u{1faff}' +
    '\\u{20000}-\\u{3fffd}]',
  'u',
);
const COMBINING = /[\p{M}\ufe00-\ufe0f]/u;

/** What stands in a column. A wide character has an empty cell after it. */
interface Cell {
  text: string;
  readonly style: AnsiStyle;
}

/** A line that is being written. */
export class LineBuffer {
  /** The text and its spans, as long as nothing was written over. */
  #text = '';
  #spans: StyledSpan[] = [];
  #cells: Cell[] | undefined;
  /** The column of the cursor; `undefined` is after the text. */
  #column: number | undefined;
  #isTouched = false;

  /** Whether anything was ever written, even if it is gone. */
  get isTouched(): boolean {
    return this.#isTouched;
  }

  get text(): string {
    this.#join();
    return this.#text;
  }

  get spans(): readonly StyledSpan[] {
    this.#join();
    return this.#spans;
  }

  clear(): void {
    this.#text = '';
    this.#spans = [];
    this.#cells = undefined;
    this.#column = undefined;
    this.#isTouched = false;
  }

  /** Writes text, which has no controls but tabs. */
  write(text: string, style: AnsiStyle): void {
    if (text === '') return;
    this.#isTouched = true;
    if (this.#column === undefined && this.#cells === undefined) {
      this.#append(text, style);
      return;
    }
    const cells = this.#split();
    let column = this.#column ?? cells.length;
    while (cells.length < column) cells.push({ text: ' ', style: PLAIN });
    for (const character of text) column = put(cells, column, character, style);
    this.#column = column >= cells.length ? undefined : column;
  }

  #append(text: string, style: AnsiStyle): void {
    const from = this.#text.length;
    this.#text += text;
    if (isSameStyle(style, PLAIN)) return;
    const last = this.#spans.at(-1);
    const isNext = last !== undefined && last.to === from && isSameStyle(last.style, style);
    if (isNext) this.#spans[this.#spans.length - 1] = { from: last.from, to: this.#text.length, style: last.style };
    else this.#spans.push({ from, to: this.#text.length, style });
  }

  /** Moves the cursor to a column. */
  moveTo(column: number): void {
    const here = this.#column;
    // Most lines end with a carriage return at most: what a column is need not be known for that.
    if (column <= 0) {
      this.#column = this.#text === '' && this.#cells === undefined ? undefined : 0;
      return;
    }
    const end = this.#split().length;
    const target = Math.min(column, Math.max(end, here ?? 0, MAX_COLUMN));
    this.#column = target === end ? undefined : target;
  }

  /** Moves the cursor by some columns, to the right where it is positive. */
  moveBy(columns: number): void {
    this.moveTo((this.#column ?? this.#split().length) + columns);
  }

  /** Erases from the cursor to the end (0), from the beginning to the cursor (1), or all of the line (2). */
  erase(part: number): void {
    if (part === 0 && this.#column === undefined) return;
    const cells = this.#split();
    const column = this.#column ?? cells.length;
    if (part === 0) cells.length = Math.min(cells.length, column);
    if (part === 1) cells.fill({ text: ' ', style: PLAIN }, 0, column + 1);
    if (part === 2) cells.length = 0;
    this.#column = column === cells.length ? undefined : column;
  }

  /** Returns the cells, which hold the line from now on. */
  #split(): Cell[] {
    if (this.#cells !== undefined) return this.#cells;
    const cells: Cell[] = [];
    let from = 0;
    const add = (to: number, style: AnsiStyle) => {
      for (const character of this.#text.slice(from, to)) put(cells, cells.length, character, style);
      from = to;
    };
    for (const span of this.#spans) {
      add(span.from, PLAIN);
      add(span.to, span.style);
    }
    add(this.#text.length, PLAIN);
    this.#cells = cells;
    return cells;
  }

  /** Makes text and spans of the cells. */
  #join(): void {
    const cells = this.#cells;
    if (cells === undefined) return;
    this.#text = '';
    this.#spans = [];
    for (const { text, style } of cells) {
      if (text !== '') this.#append(text, style);
    }
  }
}

/** Writes a character over what is in a column, and returns the column after it. */
function put(cells: Cell[], column: number, character: string, style: AnsiStyle): number {
  if (column > 0 && character > '\u02ff' && COMBINING.test(character)) {
    const before = cells[column - 1]?.text === '' ? cells[column - 2] : cells[column - 1];
    if (before !== undefined) {
      before.text += character;
      return column;
    }
  }
  const width = character > '\u10ff' && WIDE.test(character) ? 2 : 1;
  // Half of a wide character is none.
  if (cells[column]?.text === '' && column > 0) cells[column - 1] = { text: ' ', style: PLAIN };
  const after = column + width;
  if (cells[after]?.text === '') cells[after] = { text: ' ', style: PLAIN };
  cells[column] = { text: character, style };
  if (width === 2) cells[column + 1] = { text: '', style };
  return after;
}
