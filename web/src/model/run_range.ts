// The time in which the runs of a list were asked for.

import { type Timestamp, timestampFromMs } from '@bufbuild/protobuf/wkt';

const HOUR_MS = 3_600_000;
/** Ranges that end now, by their lengths. */
const LAST = { hour: HOUR_MS, day: 24 * HOUR_MS, week: 7 * 24 * HOUR_MS };

/** A range that ends now, and moves on with the time. */
export type LastRange = keyof typeof LAST;

export const LAST_RANGES = Object.keys(LAST) as readonly LastRange[];

/** Times of `Date.now()`: from the first on, and before the second. A bound that is absent is none. */
export interface Bounds {
  readonly since: number | undefined;
  readonly until: number | undefined;
}

export type RunRange = LastRange | Bounds;

/** Returns the bounds that a range has at `now`. */
export function boundsOf(range: RunRange | undefined, now: number): Bounds {
  if (typeof range === 'object') return range;
  return { since: range && now - LAST[range], until: undefined };
}

/** Tells whether a range ends before it begins, so that a daemon refuses it. */
export function isBackward({ since, until }: Bounds): boolean {
  return since !== undefined && until !== undefined && until <= since;
}

/** Tells whether a time is within bounds. */
export function isWithin(time: number, { since, until }: Bounds): boolean {
  return (since === undefined || time >= since) && (until === undefined || time < until);
}

/** Reads a range from an address; `undefined` where there is none. */
export function readRange(params: URLSearchParams): RunRange | undefined {
  const last = LAST_RANGES.find((it) => it === params.get('last'));
  if (last !== undefined || !(params.has('since') || params.has('until'))) return last;
  const at = (name: keyof Bounds) => readTime(params.get(name) ?? '');
  return { since: at('since'), until: at('until') };
}

/** Writes a range into an address. */
export function writeRange(range: RunRange | undefined, params: URLSearchParams): void {
  if (typeof range === 'string') params.set('last', range);
  else if (range !== undefined) {
    // A bound that is absent is written too, so that a range without any remains one.
    const at = (time: number | undefined) => (time === undefined ? '' : new Date(time).toISOString());
    params.set('since', at(range.since));
    if (range.until !== undefined) params.set('until', at(range.until));
  }
}

/** Reads a time of an address or of a field, which is one of this browser's zone where it names none. */
export function readTime(text: string): number | undefined {
  const time = Date.parse(text);
  return Number.isNaN(time) ? undefined : time;
}

/** Writes a time as a field for times has it, to the minute. */
export function fieldTime(time: number | undefined): string {
  if (time === undefined) return '';
  const date = new Date(time);
  // Such a field has the time of this browser's zone, and the format that is there has that of UTC.
  const shifted = new Date(time - date.getTimezoneOffset() * 60_000);
  return shifted.toISOString().slice(0, 16);
}

/** Returns bounds as the fields of calls have them. */
export function timesOf({ since, until }: Bounds): { since?: Timestamp; until?: Timestamp } {
  return {
    ...(since !== undefined && { since: timestampFromMs(since) }),
    ...(until !== undefined && { until: timestampFromMs(until) }),
  };
}
