// Several logs that are shown and searched as one: those of runs side by side, or the one of all merged.

import type { LineSource, LogLine } from '../model/line_assembler.js';
import type { SearchQuery } from '../model/log_search.js';
import { type LineInput, LogPane, type SearchState } from './log_pane.js';
import type { LogView } from './log_view.js';

/** A view, and which run it shows: by its tag, or where it has none all of them. */
export interface GroupView {
  readonly view: LogView;
  readonly tag: number | undefined;
}

/** The panes of a group of views, which come and go. */
export class LogGroup {
  #panes: Array<GroupView & { readonly pane: LogPane }> = [];
  #query: SearchQuery = { text: '', isRegex: false, isCaseSensitive: false };
  #isFiltering = false;
  #source: LineSource | 'both' = 'both';
  #isPaused = false;
  /** The pane in which one went to a match last. */
  #active = 0;

  constructor(
    private readonly inputOf: (tag: number | undefined) => LineInput,
    private readonly changed: () => void,
  ) {}

  /** Shows lines in these views from now on. What views showed that are gone, the new ones do. */
  setViews(views: readonly GroupView[]): void {
    const isGone = ({ view }: GroupView) => !views.some((it) => it.view === view);
    const orphans = this.#panes.filter(isGone).flatMap(({ pane }) => {
      pane.stop();
      return pane.store.lines.filter((it) => it.number > 0);
    });
    this.#panes = views.map((it) => this.#panes.find(({ view }) => view === it.view) ?? this.#create(it, orphans));
    this.#active = Math.min(this.#active, Math.max(views.length - 1, 0));
  }

  #create({ view, tag }: GroupView, orphans: readonly LogLine[]): GroupView & { readonly pane: LogPane } {
    const before = orphans.filter((it) => tag === undefined || it.tag === tag);
    const pane = new LogPane(view, this.inputOf(tag), this.changed, before);
    pane.isPaused = this.#isPaused;
    if (this.#source !== 'both') pane.source = this.#source;
    if (this.#query.text !== '') pane.search(this.#query, this.#isFiltering);
    return { view, tag, pane };
  }

  /** Says that there are lines to take. */
  schedule(): void {
    for (const { pane } of this.#panes) pane.schedule();
  }

  stop(): void {
    for (const { pane } of this.#panes) pane.stop();
    this.#panes = [];
  }

  get query(): SearchQuery {
    return this.#query;
  }

  get isFiltering(): boolean {
    return this.#isFiltering;
  }

  search(query: SearchQuery, isFiltering: boolean): void {
    this.#query = query;
    this.#isFiltering = isFiltering;
    for (const { pane } of this.#panes) pane.search(query, isFiltering);
  }

  get source(): LineSource | 'both' {
    return this.#source;
  }

  set source(source: LineSource | 'both') {
    this.#source = source;
    for (const { pane } of this.#panes) pane.source = source;
  }

  get isPaused(): boolean {
    return this.#isPaused;
  }

  set isPaused(pauses: boolean) {
    this.#isPaused = pauses;
    for (const { pane } of this.#panes) pane.isPaused = pauses;
  }

  get isFollowing(): boolean {
    return this.#panes.every(({ view }) => view.isFollowing);
  }

  set isFollowing(follows: boolean) {
    for (const { view } of this.#panes) view.isFollowing = follows;
  }

  /** Shows the first line of each. */
  toFirst(): void {
    for (const { view } of this.#panes) view.reveal(0);
  }

  /** Says that the reader has seen the last line of a view. */
  caughtUp(view: LogView): void {
    this.#panes.find((it) => it.view === view)?.pane.caughtUp();
  }

  get lineCount(): number {
    return this.#panes.reduce((sum, { pane }) => sum + pane.lines.length, 0);
  }

  get newLines(): number {
    return this.#panes.reduce((sum, { pane }) => sum + pane.newLines, 0);
  }

  /** The view in which one went to a match last. */
  get activeView(): LogView | undefined {
    return this.#panes[this.#active]?.view;
  }

  /** What the search has found in all panes; matches are counted from the first pane on. */
  get found(): SearchState {
    const all = this.#panes.map(({ pane }) => pane.found);
    const before = all.slice(0, this.#active).reduce((sum, it) => sum + it.total, 0);
    const current = all[this.#active]?.current ?? 0;
    return {
      total: all.reduce((sum, it) => sum + it.total, 0),
      current: current === 0 ? 0 : before + current,
      isComplete: all.every((it) => it.isComplete),
      error: all[0]?.error ?? '',
    };
  }

  /** Goes to the next match, in the next pane where this one has no more. */
  step(step: 1 | -1): void {
    const { current = 0, total = 0 } = this.#panes[this.#active]?.pane.found ?? {};
    const isLast = total === 0 || (step > 0 ? current === total : current === 1);
    const count = isLast ? this.#panes.length : 0;
    for (let i = 1; i < count; i++) {
      const next = (((this.#active + i * step) % count) + count) % count;
      const pane = this.#panes[next]?.pane;
      if (pane === undefined || pane.found.total === 0) continue;
      this.#panes[this.#active]?.pane.leaveMatch();
      this.#active = next;
      pane.step(step, { fromEnd: true });
      return;
    }
    // Its own first match where no other has any, or the one that it has yet to find.
    this.#panes[this.#active]?.pane.step(step);
  }
}
