// The lines that a page keeps, and those of them that it shows.

import type { LogPosition } from '../app/route.js';
import { plural } from './format.js';
import type { LineSource, LogLine } from './line_assembler.js';

/** The most lines that are kept before the oldest are dropped. */
export const MAX_LINES = 500_000;
/** The most characters, in units of UTF-16. */
export const MAX_CHARACTERS = 64 << 20;
/** The share of them that is dropped at once. */
const DROPPED_SHARE = 0.1;

/** A change of a list: at a place, lines are removed, and then others inserted. */
export interface ListChange {
  readonly at: number;
  readonly removed: readonly LogLine[];
  readonly inserted: readonly LogLine[];
}

/** Compares lines by their order. */
export function compareLines(a: LogLine, b: LogLine): number {
  return a.order - b.order || (a.tag ?? 0) - (b.tag ?? 0) || a.number - b.number;
}

/** Finds the first place in a sorted list before which a line belongs, or where it is. */
export function placeOf(lines: readonly LogLine[], line: LogLine): number {
  let [low, high] = [0, lines.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (compareLines(lines[middle]!, line) < 0) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** All lines that are kept, in their order. */
export class LogStore {
  readonly lines: LogLine[] = [];
  #characters = 0;
  #dropped = 0;
  /** Stands first once lines were dropped, and says so. */
  #note: LogLine | undefined;

  constructor(
    private readonly maxLines = MAX_LINES,
    private readonly maxCharacters = MAX_CHARACTERS,
  ) {}

  /** How many lines were dropped. */
  get dropped(): number {
    return this.#dropped;
  }

  /** Adds lines, in whichever order. Returns what that changes, one after the other. */
  add(added: readonly LogLine[]): ListChange[] {
    if (added.length === 0) return [];
    const changes = this.#insert(isSorted(added) ? added : [...added].sort(compareLines));
    for (const line of added) this.close(line);
    if (this.lines.length > this.maxLines || this.#characters > this.maxCharacters) changes.push(...this.#drop());
    return changes;
  }

  /** Counts what a line has, once it has all. */
  close(line: LogLine): void {
    if (!line.isOpen) this.#characters += line.text.length;
  }

  #insert(added: readonly LogLine[]): ListChange[] {
    const changes: ListChange[] = [];
    let from = 0;
    while (from < added.length) {
      const at = this.#placeAfter(added[from]!);
      const before = this.lines[at];
      let to = from + 1;
      while (to < added.length && (before === undefined || compareLines(added[to]!, before) < 0)) to += 1;
      const inserted = from === 0 && to === added.length ? added : added.slice(from, to);
      insertAt(this.lines, at, inserted);
      changes.push({ at, removed: [], inserted });
      from = to;
    }
    return changes;
  }

  #placeAfter(line: LogLine): number {
    const last = this.lines.at(-1);
    return last === undefined || compareLines(last, line) < 0 ? this.lines.length : placeOf(this.lines, line);
  }

  #drop(): ListChange[] {
    const first = this.#note === undefined ? 0 : 1;
    let count = 0;
    let characters = 0;
    const leastLines = this.lines.length - this.maxLines * (1 - DROPPED_SHARE);
    const leastCharacters = this.#characters - this.maxCharacters * (1 - DROPPED_SHARE);
    const isOver = this.lines.length > this.maxLines;
    while (first + count < this.lines.length - 1 && (characters < leastCharacters || (isOver && count < leastLines))) {
      const line = this.lines[first + count]!;
      if (!line.isOpen) characters += line.text.length;
      count += 1;
    }
    const removed = this.lines.splice(first, count);
    this.#characters -= characters;
    this.#dropped += count;
    return [{ at: first, removed, inserted: [] }, this.#tellDropped()];
  }

  #tellDropped(): ListChange {
    const removed = this.#note === undefined ? [] : [this.#note];
    const count = `${plural(this.#dropped, 'earlier line')} ${this.#dropped === 1 ? 'is' : 'are'}`;
    const text = `${count} no longer kept by this page`;
    this.#note = { ...FIRST_NOTE, text };
    if (removed.length === 0) this.lines.unshift(this.#note);
    else this.lines[0] = this.#note;
    return { at: 0, removed, inserted: [this.#note] };
  }
}

const FIRST_NOTE: LogLine = {
  number: 0,
  order: -Infinity,
  tag: undefined,
  source: 'note',
  at: { seq: 0n, offset: 0 },
  time: undefined,
  text: '',
  spans: [],
  isOpen: false,
  goesOn: false,
};

/** Inserts items, which may be more than a call may have as its arguments. */
function insertAt<T>(list: T[], at: number, items: readonly T[]): void {
  const after = list.splice(at);
  for (const item of items) list.push(item);
  for (const item of after) list.push(item);
}

function isSorted(lines: readonly LogLine[]): boolean {
  return lines.every((it, i) => i === 0 || compareLines(lines[i - 1]!, it) < 0);
}

/** Tells whether a line is one of those to show. Notes are always. */
export type LineFilter = (line: LogLine) => boolean;

/** Makes a filter of what is asked for; `undefined` shows all. */
export function filterOf(
  source: LineSource | 'both',
  matches: ((text: string) => boolean) | undefined,
): LineFilter | undefined {
  if (source === 'both' && matches === undefined) return undefined;
  return (line) =>
    line.source === 'note' ||
    ((source === 'both' || line.source === source) && (matches === undefined || matches(line.text)));
}

/** Those lines of a store that pass a filter. */
export class ShownLines {
  readonly lines: LogLine[] = [];
  /** Lines of the store before it have been judged. */
  #next = 0;

  constructor(
    private readonly all: readonly LogLine[],
    private readonly filter: LineFilter | undefined,
  ) {}

  /** Judges further lines until all are done, or `isLate` says so. Returns those to show, which are now the last. */
  advance(isLate: () => boolean): ListChange | undefined {
    const at = this.lines.length;
    const inserted: LogLine[] = [];
    for (; this.#next < this.all.length; this.#next++) {
      const line = this.all[this.#next]!;
      if (this.filter === undefined || this.filter(line)) inserted.push(line);
      if (this.filter !== undefined && this.#next % 64 === 63 && isLate()) {
        this.#next += 1;
        break;
      }
    }
    if (inserted.length === 0) return undefined;
    insertAt(this.lines, at, inserted);
    return { at, removed: [], inserted };
  }

  /** Whether all lines have been judged. */
  get isComplete(): boolean {
    return this.#next >= this.all.length;
  }

  /** Takes a change of the store, which has been made. Returns what it changes here. */
  apply({ at, removed, inserted }: ListChange): ListChange | undefined {
    const gone = Math.min(removed.length, Math.max(this.#next - at, 0));
    this.#next -= gone;
    const hidden = removed.slice(0, gone).filter((it) => this.#isHere(it));
    const isJudged = at < this.#next || (at === 0 && gone > 0);
    if (isJudged) this.#next += inserted.length;
    const shown = isJudged ? inserted.filter((it) => this.filter?.(it) ?? true) : [];
    const [first] = hidden.length > 0 ? hidden : shown;
    if (first === undefined) return undefined;
    const place = placeOf(this.lines, first);
    this.lines.splice(place, hidden.length);
    insertAt(this.lines, place, shown);
    return { at: place, removed: hidden, inserted: shown };
  }

  /** Takes a line that has another text now. */
  change(line: LogLine): ListChange | undefined {
    const place = placeOf(this.lines, line);
    const isHere = this.lines[place] === line;
    if (!isHere && placeOf(this.all, line) >= this.#next) return undefined;
    const isShown = this.filter?.(line) ?? true;
    if (!isHere && !isShown) return undefined;
    this.lines.splice(place, isHere ? 1 : 0, ...(isShown ? [line] : []));
    return { at: place, removed: isHere ? [line] : [], inserted: isShown ? [line] : [] };
  }

  #isHere(line: LogLine): boolean {
    return this.lines[placeOf(this.lines, line)] === line;
  }
}

/** Finds the line at a position: the one that begins there, or else the last that begins before. */
export function lineAt(lines: readonly LogLine[], { seq, offset }: LogPosition): LogLine | undefined {
  let before: LogLine | undefined;
  for (const line of lines) {
    if (line.source === 'note') continue;
    const { at } = line;
    if (at.seq === seq && at.offset === offset) return line;
    const isBefore = at.seq < seq || (at.seq === seq && at.offset < offset);
    if (isBefore && (before === undefined || isLater(at, before.at))) before = line;
  }
  return before;
}

function isLater(a: LogPosition, b: LogPosition): boolean {
  return a.seq > b.seq || (a.seq === b.seq && a.offset > b.offset);
}
