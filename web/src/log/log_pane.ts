// Lines on their way to the eye: those that come are kept, judged by the filter, shown and searched, a little in each
// frame, so that the page stays quick however much there is.

import type { LineChanges, LineSource, LogLine } from '../model/line_assembler.js';
import { type Matcher, matcherOf, type MatchPlace, SearchCounter, type SearchQuery } from '../model/log_search.js';
import { filterOf, type ListChange, LogStore, placeOf, ShownLines } from '../model/log_store.js';
import { PatternError } from '../model/regex_syntax.js';
import type { LogView } from './log_view.js';

/** How long a frame may be busy with filter and search. */
const BUSY_MS = 7;
/** Lines that come are shown this often: nobody reads faster, and each time is a layout. */
const SHOW_EVERY_MS = 40;
/** How often those who show figures hear of them. */
const TELL_MS = 100;

/** Where lines come from. */
export interface LineInput {
  /** Returns what has come since the last call. */
  drain: () => LineChanges;
  /** How many lines have come since, without taking them. */
  waiting: () => number;
}

/** What a search has found. */
export interface SearchState {
  readonly total: number;
  /** The place of the match that one went to, from 1; 0 before that. */
  readonly current: number;
  readonly isComplete: boolean;
  /** What is wrong with the pattern; empty where nothing is. */
  readonly error: string;
}

/** Connects lines with the view that shows them. */
export class LogPane {
  readonly store = new LogStore();
  #shown = new ShownLines(this.store.lines, undefined);
  #counter: SearchCounter | undefined;
  #place: { readonly line: LogLine; readonly match: number } | undefined;
  #error = '';
  #query: SearchQuery = { text: '', isRegex: false, isCaseSensitive: false };
  #source: LineSource | 'both' = 'both';
  #isFiltering = false;
  #isPaused = false;
  #frame = 0;
  #frameTimer: ReturnType<typeof setTimeout> | undefined;
  #shownAt = -Infinity;
  #toldAt = -Infinity;
  #tellTimer: ReturnType<typeof setTimeout> | undefined;
  /** Lines that came at the end since the view does not follow. */
  #since = 0;
  /** The line to hold in sight once the filter has got there. */
  #held: LogLine | undefined;
  /** Goes to the match that was asked for before it was found. */
  #stepLater: (() => void) | undefined;

  /**
   * Shows in `view` what comes from `input`, after lines that came before. `changed` is called, not too often, when a
   * figure is another.
   */
  constructor(
    readonly view: LogView,
    private readonly input: LineInput,
    private readonly changed: () => void,
    before: readonly LogLine[] = [],
  ) {
    this.store.add(before);
    view.reset(this.#shown.lines);
    this.schedule();
  }

  /** Says that there are lines to take. */
  schedule(): void {
    if (this.#frame !== 0 || this.#frameTimer !== undefined) return;
    const wait = this.#shownAt + SHOW_EVERY_MS - performance.now();
    if (wait <= 0) this.#advanceSoon();
    else this.#frameTimer = setTimeout(() => this.#advanceSoon(), wait);
  }

  #advanceSoon(): void {
    clearTimeout(this.#frameTimer);
    this.#frameTimer = undefined;
    if (this.#frame !== 0) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.#shownAt = performance.now();
      this.#advance();
    });
  }

  /** Ends what is going on. */
  stop(): void {
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#frameTimer);
    clearTimeout(this.#tellTimer);
    this.#frame = 0;
    this.#frameTimer = undefined;
    this.#tellTimer = undefined;
  }

  /** Lines that are shown. */
  get lines(): readonly LogLine[] {
    return this.#shown.lines;
  }

  /** How many lines have come since a pause began, or since the view stopped to follow. */
  get newLines(): number {
    return this.#isPaused ? this.input.waiting() : this.#since;
  }

  get isPaused(): boolean {
    return this.#isPaused;
  }

  set isPaused(pauses: boolean) {
    this.#isPaused = pauses;
    if (!pauses) this.schedule();
    this.changed();
  }

  /** Says that the reader has seen the last line. */
  caughtUp(): void {
    this.#since = 0;
    this.changed();
  }

  get source(): LineSource | 'both' {
    return this.#source;
  }

  set source(source: LineSource | 'both') {
    this.#source = source;
    this.#judgeAnew();
  }

  get query(): SearchQuery {
    return this.#query;
  }

  get isFiltering(): boolean {
    return this.#isFiltering;
  }

  /** Looks for something, and hides what does not match where `isFiltering`. */
  search(query: SearchQuery, isFiltering: boolean): void {
    const wasFiltering = this.#isFiltering && this.#counter !== undefined;
    const before = this.#query;
    this.#query = query;
    this.#isFiltering = isFiltering;
    const parts = ['text', 'isRegex', 'isCaseSensitive'] as const;
    if (parts.some((it) => before[it] !== query[it])) this.#look();
    if (wasFiltering || (isFiltering && this.#counter !== undefined)) this.#judgeAnew();
    else this.#advanceSoon();
    this.changed();
  }

  #look(): void {
    let matcher: Matcher | undefined;
    this.#error = '';
    try {
      matcher = matcherOf(this.#query);
    } catch (error) {
      if (!(error instanceof PatternError)) throw error;
      this.#error = error.message;
    }
    this.#counter = matcher === undefined ? undefined : new SearchCounter(matcher);
    this.#place = undefined;
    this.#stepLater = undefined;
    this.view.highlight(matcher, undefined);
  }

  get found(): SearchState {
    const counter = this.#counter;
    if (counter === undefined) return { total: 0, current: 0, isComplete: true, error: this.#error };
    const place = this.#matchPlace();
    return {
      total: counter.total,
      current: place === undefined ? 0 : counter.ordinalOf(this.lines, place) + 1,
      isComplete: this.#shown.isComplete && counter.isComplete(this.lines),
      error: '',
    };
  }

  /** Goes to the next match, or to the one before: from the one that is current, from what is in sight, or round. */
  step(step: 1 | -1, { fromEnd = false } = {}): void {
    const counter = this.#counter;
    if (counter === undefined) return;
    const inSight = this.view.isInSight(this.view.here) ? this.view.here : this.view.firstInSight;
    const line = fromEnd ? (step > 0 ? 0 : this.lines.length) : inSight;
    const here = (fromEnd ? undefined : this.#matchPlace()) ?? { line, match: step > 0 ? -1 : 0 };
    const place = counter.step(this.lines, here, step);
    // A key that is pressed before the frame that counts is not lost.
    const isLater = place === undefined && !counter.isComplete(this.lines);
    this.#stepLater = isLater ? () => this.step(step, { fromEnd }) : undefined;
    if (place === undefined) return;
    const found = this.lines[place.line]!;
    this.#place = { line: found, match: place.match };
    this.view.highlight(counter.matcher, this.#place);
    this.view.reveal(place.line, counter.matcher(found.text)[place.match]?.from ?? 0);
    this.changed();
  }

  /** Says that one is at no match any more. */
  leaveMatch(): void {
    this.#place = undefined;
    this.view.highlight(this.#counter?.matcher, undefined);
  }

  /** Finds the match that one went to, whose line may be gone. */
  #matchPlace(): MatchPlace | undefined {
    if (this.#place === undefined) return undefined;
    const line = placeOf(this.lines, this.#place.line);
    return this.lines[line] === this.#place.line ? { line, match: this.#place.match } : undefined;
  }

  /** Shows those lines that pass the filter as it is now. */
  #judgeAnew(): void {
    this.#held = this.view.isFollowing ? undefined : this.lines[this.view.firstInSight];
    const matcher = this.#isFiltering ? this.#counter?.matcher : undefined;
    const filter = filterOf(this.#source, matcher === undefined ? undefined : (text) => matcher(text).length > 0);
    this.#shown = new ShownLines(this.store.lines, filter);
    if (this.#counter !== undefined) this.#counter = new SearchCounter(this.#counter.matcher);
    this.#advance({ takes: false, resets: true });
    this.changed();
  }

  /** Goes on for a frame. */
  #advance({ takes = true, resets = false } = {}): void {
    const end = performance.now() + BUSY_MS;
    const isLate = () => performance.now() > end;
    // What a filter finds later is not new.
    const isCaughtUp = this.#shown.isComplete;
    const changes = takes && !this.#isPaused ? this.#take() : [];
    const more = this.#shown.advance(isLate);
    if (more !== undefined) changes.push(more);
    if (isCaughtUp && !resets && !this.view.isFollowing) this.#since += countNew(changes);
    if (resets) this.view.reset(this.#shown.lines);
    else this.view.apply(changes);
    for (const change of changes) this.#counter?.apply(change);
    const isCounted = this.#counter?.advance(this.lines, isLate) ?? true;
    this.#stepLater?.();
    this.#holdInSight();
    if (!this.#shown.isComplete || !isCounted) this.#advanceSoon();
    if (changes.length > 0 || this.#isPaused || this.#counter !== undefined) this.#tell();
  }

  /** Takes the lines that came. */
  #take(): ListChange[] {
    const { added, changed } = this.input.drain();
    const changes: ListChange[] = [];
    const add = (change: ListChange | undefined) => {
      if (change !== undefined) changes.push(change);
    };
    for (const line of changed) {
      this.store.close(line);
      add(this.#shown.change(line));
    }
    for (const change of this.store.add(added)) add(this.#shown.apply(change));
    return changes;
  }

  #holdInSight(): void {
    const held = this.#held;
    if (held === undefined) return;
    const place = placeOf(this.lines, held);
    if (place >= this.lines.length && !this.#shown.isComplete) return;
    this.#held = undefined;
    this.view.reveal(place, 0, 'start');
  }

  #tell(): void {
    if (this.#tellTimer !== undefined) return;
    const wait = Math.max(this.#toldAt + TELL_MS - performance.now(), 0);
    this.#tellTimer = setTimeout(() => {
      this.#tellTimer = undefined;
      this.#toldAt = performance.now();
      this.changed();
    }, wait);
  }
}

/** Counts lines that are new, and not only other than before. */
function countNew(changes: readonly ListChange[]): number {
  return changes.reduce((sum, { removed, inserted }) => sum + (removed.length === 0 ? inserted.length : 0), 0);
}
