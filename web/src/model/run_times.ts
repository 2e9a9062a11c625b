// When a run was asked for, started and ended, by the clock of this browser: that of the daemon may be another.

import { type Duration, timestampMs } from '@bufbuild/protobuf/wkt';

import { type RunInfo, RunState } from '../gen/ringfence/v1/run_pb.js';

/** Returns a duration in milliseconds, with their fractions: short runs take microseconds. */
export function durationOf(duration: Duration | undefined): number | undefined {
  return duration === undefined ? undefined : Number(duration.seconds) * 1_000 + duration.nanos / 1e6;
}

/** Returns how far the daemon's clock is ahead of this one, by what it tells of a run that executes now. */
export function clockLead(run: RunInfo, now: number): number | undefined {
  const elapsed = durationOf(run.usage?.elapsed);
  if (run.state !== RunState.RUNNING || run.started === undefined || elapsed === undefined) return undefined;
  return timestampMs(run.started) + elapsed - now;
}

/** Returns since when a run executes or waits, in milliseconds of `Date.now()`, if it was told of at `now`. */
export function liveSince(run: RunInfo, now: number, lead: number): number {
  const elapsed = durationOf(run.usage?.elapsed);
  if (run.state === RunState.RUNNING && elapsed !== undefined) return now - elapsed;
  return run.asked === undefined ? now : Math.min(now, timestampMs(run.asked) - lead);
}

/** Returns how long a run executed; `undefined` for one that goes on or never started. */
export function ranFor(run: RunInfo): number | undefined {
  if (run.state !== RunState.ENDED) return undefined;
  if (run.end.case === 'result') return durationOf(run.end.value.duration);
  return run.started === undefined ? undefined : durationOf(run.usage?.elapsed);
}

/** Returns how long a run waited from its request to its first instruction, or to its refusal. */
export function waitedFor(run: RunInfo): number | undefined {
  const { asked } = run;
  const until = run.started ?? run.ended;
  if (asked === undefined || until === undefined) return undefined;
  return Math.max(0, Number(until.seconds - asked.seconds) * 1_000 + (until.nanos - asked.nanos) / 1e6);
}
