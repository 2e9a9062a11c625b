// The runs that a watch tells of, and older ones that were listed, the newest first.

import { type RunInfo, RunState } from '../gen/ringfence/v1/run_pb.js';
import { clockLead, liveSince } from './run_times.js';

/** The most runs that are kept. Beyond them, the oldest that have ended are dropped. */
export const MAX_RUNS = 20_000;

interface Entry {
  run: RunInfo;
  /** Since when it executes or waits, by this browser's clock. */
  since: number;
  /** The watch that told of it last. */
  watch: number;
}

/** Gathers runs and their changes, and sorts them once they are looked at. */
export class RunList {
  readonly #entries = new Map<string, Entry>();
  /** Ended runs of listings, which no watch needs to tell of. */
  readonly #listed = new Map<string, RunInfo>();
  #sorted: RunInfo[] = [];
  #isSorted = true;
  #watch = 0;
  #lead = 0;
  #dropped = 0;

  constructor(readonly limit = MAX_RUNS) {}

  get size(): number {
    return this.#entries.size;
  }

  /** Whether no more runs of listings are kept. */
  get isFull(): boolean {
    return this.#listed.size >= this.limit;
  }

  /** How many runs were dropped because there were too many. */
  get dropped(): number {
    return this.#dropped;
  }

  /** Begins a watch, which tells of all runs again. */
  begin(): void {
    this.#watch += 1;
  }

  /** Takes a run as it is told of at `now`, in milliseconds of `Date.now()`. */
  take(run: RunInfo, now: number): void {
    this.#lead = clockLead(run, now) ?? this.#lead;
    const known = this.#entries.get(run.runId);
    const since = liveSince(run, now, this.#lead);
    if (known === undefined) this.#entries.set(run.runId, { run, since, watch: this.#watch });
    else Object.assign(known, { run, since, watch: this.#watch });
    this.#isSorted = false;
    if (this.#entries.size > this.limit * 1.1) this.#drop();
  }

  /** Takes a run of a listing, unless it goes on, which a watch tells. Returns whether it was not known. */
  takeListed(run: RunInfo): boolean {
    if (run.state !== RunState.ENDED || this.isFull) return false;
    const isNew = this.get(run.runId) === undefined;
    // Also one that is known: a watch that begins again may not tell of it any more.
    this.#listed.set(run.runId, run);
    this.#isSorted = false;
    return isNew;
  }

  /** Forgets what was listed. */
  forgetListed(): void {
    this.#listed.clear();
    this.#isSorted = false;
  }

  /** Takes what a run has used by now, unless something newer is known. */
  refresh(run: RunInfo, now: number): boolean {
    const known = this.#entries.get(run.runId);
    if (known === undefined || known.run.state !== RunState.RUNNING || run.state !== RunState.RUNNING) return false;
    this.#lead = clockLead(run, now) ?? this.#lead;
    known.run = run;
    this.#isSorted = false;
    return true;
  }

  /** Takes note that the watch has told of all runs: the others are no longer known to the daemon. */
  synced(): void {
    for (const [id, entry] of this.#entries) if (entry.watch !== this.#watch) this.#entries.delete(id);
    this.#isSorted = false;
  }

  /** Returns since when a run executes or waits, by this browser's clock. */
  since(id: string): number | undefined {
    return this.#entries.get(id)?.since;
  }

  get(id: string): RunInfo | undefined {
    return this.#entries.get(id)?.run ?? this.#listed.get(id);
  }

  /** Returns all runs, the newest first. What was returned before remains as it was. */
  newest(): readonly RunInfo[] {
    if (!this.#isSorted) {
      if (this.#entries.size > this.limit) this.#drop();
      const listed = [...this.#listed.values()].filter((it) => !this.#entries.has(it.runId));
      this.#sorted = [...this.#entries.values()].map((it) => it.run).concat(listed).sort(byNewest);
      this.#isSorted = true;
    }
    return this.#sorted;
  }

  #drop(): void {
    const ended = [...this.#entries.values()].map((it) => it.run).filter((it) => it.state === RunState.ENDED);
    const excess = this.#entries.size - this.limit;
    for (const run of ended.sort(byNewest).slice(-excess)) {
      this.#entries.delete(run.runId);
      this.#dropped += 1;
    }
  }
}

/** Compares ids, which sort by the time of the request. */
function byNewest(a: RunInfo, b: RunInfo): number {
  return a.runId < b.runId ? 1 : a.runId > b.runId ? -1 : 0;
}
