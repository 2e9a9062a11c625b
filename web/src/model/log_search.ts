// Search in lines: what is looked for, where it is, and how often.

import { isHarmless, LinearRegex, type Match, requiredText } from './linear_regex.js';
import type { LogLine } from './line_assembler.js';
import type { ListChange } from './log_store.js';
import { parseRegex } from './regex_syntax.js';

/** The most matches of a line that are counted and marked. */
export const MAX_MATCHES_OF_LINE = 1_000;
/** The most instructions that a regular expression may take for a line. */
const MAX_STEPS_OF_LINE = 2_000_000;

/** What is looked for. */
export interface SearchQuery {
  readonly text: string;
  readonly isRegex: boolean;
  readonly isCaseSensitive: boolean;
}

/** Finds the places of a line that match. Those that are empty count only where there is no other: as one. */
export type Matcher = (text: string) => readonly Match[];

const NONE: readonly Match[] = [];

/** Makes a matcher, or throws a `PatternError`. Returns `undefined` where nothing is looked for. */
export function matcherOf(query: SearchQuery): Matcher | undefined {
  if (query.text === '') return undefined;
  const flags = query.isCaseSensitive ? 'g' : 'gi';
  if (!query.isRegex) return nativeMatcher(new RegExp(query.text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&'), flags));
  const tree = parseRegex(query.text, !query.isCaseSensitive);
  const regex = new LinearRegex(tree);
  if (isHarmless(tree)) return nativeMatcher(new RegExp(query.text, isUnicode(query.text) ? `${flags}u` : flags));
  return linearMatcher(regex, prefilter(requiredText(tree), query.isCaseSensitive));
}

function isUnicode(pattern: string): boolean {
  try {
    new RegExp(pattern, 'u');
    return true;
  } catch {
    return false;
  }
}

function nativeMatcher(regex: RegExp): Matcher {
  return (text) => {
    regex.lastIndex = 0;
    let match = regex.exec(text);
    if (match === null) return NONE;
    const matches: Match[] = [];
    for (; match !== null && matches.length < MAX_MATCHES_OF_LINE; match = regex.exec(text)) {
      if (match[0] === '') regex.lastIndex += 1;
      else matches.push({ from: match.index, to: match.index + match[0].length });
    }
    return matches.length > 0 ? matches : [{ from: 0, to: 0 }];
  };
}

function linearMatcher(regex: LinearRegex, mayMatch: (text: string) => boolean): Matcher {
  return (text) => {
    if (!mayMatch(text)) return NONE;
    const matches: Match[] = [];
    let isFound = false;
    const last = regex.steps + MAX_STEPS_OF_LINE;
    for (let at = 0; at <= text.length && matches.length < MAX_MATCHES_OF_LINE && regex.steps < last; ) {
      const match = regex.find(text, at);
      if (match === undefined) break;
      isFound = true;
      if (match.to > match.from) matches.push(match);
      at = Math.max(match.to, match.from + 1);
    }
    return isFound && matches.length === 0 ? [{ from: 0, to: 0 }] : matches;
  };
}

/** Returns a quick test that every line with a match passes. */
function prefilter(required: string, isCaseSensitive: boolean): (text: string) => boolean {
  if (required === '') return () => true;
  if (isCaseSensitive) return (text) => text.includes(required);
  // Beyond ASCII, the case of a letter may depend on what is beside it.
  if (/[^\u0000-\u007f]/.test(required)) return () => true;
  const lower = required.toLowerCase();
  return (text) => text.toLowerCase().includes(lower);
}

/** A match, by its line's place in the list and its own in the line. */
export interface MatchPlace {
  readonly line: number;
  readonly match: number;
}

/** Counts the matches of a list of lines, some lines at a time. */
export class SearchCounter {
  /** How often each line matches that does. */
  readonly #counts = new Map<LogLine, number>();
  /** Lines before it have been searched. */
  #next = 0;
  #total = 0;

  constructor(readonly matcher: Matcher) {}

  /** How many matches were found so far. */
  get total(): number {
    return this.#total;
  }

  /** Whether all lines have been searched. */
  isComplete(lines: readonly LogLine[]): boolean {
    return this.#next >= lines.length;
  }

  /** Searches on until all lines are done, or `isLate` says so. Returns whether all are done. */
  advance(lines: readonly LogLine[], isLate: () => boolean): boolean {
    while (this.#next < lines.length) {
      this.#count(lines[this.#next]!);
      this.#next += 1;
      if (this.#next % 32 === 0 && isLate()) break;
    }
    return this.isComplete(lines);
  }

  /** Takes a change of the list. */
  apply({ at, removed, inserted }: ListChange): void {
    const gone = Math.min(removed.length, Math.max(this.#next - at, 0));
    for (const line of removed) this.#forget(line);
    this.#next -= gone;
    if (at >= this.#next) return;
    for (const line of inserted) this.#count(line);
    this.#next += inserted.length;
  }

  /** Tells how many matches are before one. */
  ordinalOf(lines: readonly LogLine[], place: MatchPlace): number {
    let sum = place.match;
    for (let i = 0; i < place.line && i < lines.length; i++) sum += this.#counts.get(lines[i]!) ?? 0;
    return sum;
  }

  /** Finds the next match after a place (or before, with `step` -1), and goes on at the other end. */
  step(lines: readonly LogLine[], from: MatchPlace, step: 1 | -1): MatchPlace | undefined {
    const here = this.#countOf(lines, from.line);
    const beside = from.match + step;
    if (beside >= 0 && beside < here) return { line: from.line, match: beside };
    for (let i = 1; i <= lines.length; i++) {
      const line = (((from.line + i * step) % lines.length) + lines.length) % lines.length;
      const count = this.#countOf(lines, line);
      if (count > 0) return { line, match: step > 0 ? 0 : count - 1 };
    }
    return undefined;
  }

  #countOf(lines: readonly LogLine[], index: number): number {
    const line = lines[index];
    return line === undefined ? 0 : (this.#counts.get(line) ?? 0);
  }

  #count(line: LogLine): void {
    this.#forget(line);
    const count = this.matcher(line.text).length;
    if (count === 0) return;
    this.#counts.set(line, count);
    this.#total += count;
  }

  #forget(line: LogLine): void {
    const count = this.#counts.get(line);
    if (count === undefined) return;
    this.#counts.delete(line);
    this.#total -= count;
  }
}
