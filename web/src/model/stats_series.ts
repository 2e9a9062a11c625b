// The last hour of the daemon's figures, put together from the messages of any number of streams.

import { durationMs, timestampMs } from '@bufbuild/protobuf/wkt';

import { Outcome } from '../gen/ringfence/v1/result_pb.js';
import type { LatencySummary, Stats, StatsSample } from '../gen/ringfence/v1/stats_service_pb.js';
import { durationOf } from './run_times.js';

/** How far back charts go, which is how long the daemon keeps samples. */
export const HOUR_MS = 3_600_000;
/** Samples follow each other at least this closely, or something is missing between them. */
const SLACK_MS = 2_000;
/** How much of what is known already is asked for again: a message is up to one sample newer than its newest sample. */
const OVERLAP_MS = 30_000;

/** Outcomes in the order in which charts stack them. */
export const OUTCOMES: readonly Outcome[] = [
  Outcome.EXITED,
  Outcome.TRAPPED,
  Outcome.TIMED_OUT,
  Outcome.MEMORY_EXCEEDED,
  Outcome.FUEL_EXHAUSTED,
  Outcome.STACK_OVERFLOW,
  Outcome.OUTPUT_EXCEEDED,
  Outcome.CANCELLED,
];

/** A figure at each time, or nothing where there is none. */
export type Column = ReadonlyArray<number | null>;

/** Columns of equal length. Times are seconds, as charts take them. */
export interface StatsColumns {
  readonly times: readonly number[];
  /** Whether a time is that of a sample. The others are the edges of what the daemon has no samples of. */
  readonly isSample: readonly boolean[];
  /** Runs that ended, in the order of `OUTCOMES`. */
  readonly outcomes: readonly Column[];
  readonly refused: Column;
  readonly running: Column;
  readonly queued: Column;
  readonly waitHalf: Column;
  readonly waitMost: Column;
  readonly runHalf: Column;
  readonly runMost: Column;
  readonly memory: Column;
}

/** The samples of the last hour, and the newest figures. */
export class StatsSeries {
  #samples: StatsSample[] = [];
  #latest: Stats | undefined;
  #takenAt = 0;

  /** The newest figures. */
  get latest(): Stats | undefined {
    return this.#latest;
  }

  get samples(): readonly StatsSample[] {
    return this.#samples;
  }

  /** Returns how much of the past is missing, in milliseconds, at a time of this browser's clock. */
  missing(now: number): number {
    if (this.#samples.length === 0) return HOUR_MS;
    // A sample that comes twice is taken once.
    return Math.min(HOUR_MS, Math.max(0, now - this.#takenAt) + OVERLAP_MS);
  }

  /** Takes a message at a time of this browser's clock, and tells whether it had samples that were not known. */
  take(stats: Stats, now: number): boolean {
    this.#latest = stats;
    this.#takenAt = now;
    const end = stats.time === undefined ? 0 : timestampMs(stats.time);
    const byTime = new Map(this.#samples.map((it) => [timeOf(it), it]));
    const known = byTime.size;
    for (const sample of stats.history) byTime.set(timeOf(sample), byTime.get(timeOf(sample)) ?? sample);
    const isNew = byTime.size > known;
    if (isNew) this.#samples = [...byTime.values()].sort((a, b) => timeOf(a) - timeOf(b));
    this.#samples = this.#samples.filter((it) => timeOf(it) > end - HOUR_MS);
    return isNew;
  }

  /** Lays the samples out for charts, with a gap where the daemon has none. */
  columns(): StatsColumns {
    const rows = withGaps(this.#samples);
    const column = (edge: number | null, figure: (sample: StatsSample) => number | null): Column =>
      rows.map(({ sample }) => (sample === 'edge' ? edge : sample === 'gap' ? null : figure(sample)));
    // What happened in an interval is drawn as an area over all of it, which begins at its edge.
    const area = (figure: (sample: StatsSample) => number) => column(0, figure);
    const line = (figure: (sample: StatsSample) => number | null) => column(null, figure);
    return {
      times: rows.map(({ time }) => time / 1_000),
      isSample: rows.map(({ sample }) => typeof sample !== 'string'),
      outcomes: OUTCOMES.map((outcome) => area((it) => runsOf(it, outcome))),
      refused: area((it) => Number(it.refused)),
      running: line((it) => Math.max(0, it.runsInFlight - it.runsQueued)),
      queued: line((it) => it.runsQueued),
      waitHalf: line((it) => quantile(it.wait, 'p50')),
      waitMost: line((it) => quantile(it.wait, 'p99')),
      runHalf: line((it) => quantile(it.run, 'p50')),
      runMost: line((it) => quantile(it.run, 'p99')),
      memory: area((it) => Number(it.memoryReserved)),
    };
  }
}

/** Adds columns up, so that each stands on those before it: the last is the sum of all. */
export function stack(columns: readonly Column[]): Column[] {
  let below: Column | undefined;
  return columns.map((column) => {
    below = column.map((value, index) => (value === null ? null : value + (below?.[index] ?? 0)));
    return below;
  });
}

/** Returns a quantile in milliseconds; `null` where there were no durations. */
export function quantile(summary: LatencySummary | undefined, which: 'p50' | 'p90' | 'p99'): number | null {
  return durationOf(summary?.[which]) ?? null;
}

interface Row {
  readonly time: number;
  readonly sample: StatsSample | 'gap' | 'edge';
}

/** Puts the edge of its interval before a sample that follows no other, and a gap before that. */
function withGaps(samples: readonly StatsSample[]): Row[] {
  return samples.flatMap((sample, index): Row[] => {
    const time = timeOf(sample);
    const row = { time, sample };
    const before = samples[index - 1];
    const start = time - (sample.span === undefined ? 0 : durationMs(sample.span));
    const edge = { time: start, sample: 'edge' } as const;
    if (before === undefined) return [edge, row];
    if (start - timeOf(before) <= SLACK_MS) return [row];
    return [{ time: (timeOf(before) + start) / 2, sample: 'gap' }, edge, row];
  });
}

function runsOf(sample: StatsSample, outcome: Outcome): number {
  return Number(sample.outcomes.find((it) => it.outcome === outcome)?.runs ?? 0n);
}

function timeOf(sample: StatsSample): number {
  return sample.time === undefined ? 0 : timestampMs(sample.time);
}
