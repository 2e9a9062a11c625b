// The runs that a watch tells of, the newest first.

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
  #sorted: RunInfo[] = [];
  #isSorted = true;
  #watch = 0;
  #lead = 0;
  #dropped = 0;

  constructor(readonly limit = MAX_RUNS) {}

  get size(): number {
    return this.#entries.size;
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
    return this.#entries.get(id)?.run;
  }

  /** Returns all runs, the newest first. What was returned before remains as it was. */
  newest(): readonly RunInfo[] {
    if (!this.#isSorted) {
      if (this.#entries.size > this.limit) this.#drop();
      this.#sorted = [...this.#entries.values()].map((it) => it.run).sort(byNewest);
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
