// Which runs of a list are shown.

import type { StateFilter } from '../app/route.js';
import { type RunInfo, RunState } from '../gen/ringfence/v1/run_pb.js';
import { askedAt, endOf } from './run_end.js';
import { boundsOf, isWithin, type RunRange } from './run_range.js';

/** What runs are selected by. */
export interface RunFilter {
  /** Words that all have to be in what is known about a run, in whichever case. */
  readonly text: string;
  /** States of which a run has one; all where it is empty. */
  readonly states: readonly StateFilter[];
  /** Labels all of which a run has. */
  readonly labels: ReadonlyMap<string, string>;
  /** When it was asked for; absent for what the daemon remembers. */
  readonly range?: RunRange | undefined;
}

const STATES: Readonly<Record<StateFilter, RunState>> = {
  compiling: RunState.COMPILING,
  queued: RunState.QUEUED,
  running: RunState.RUNNING,
  ended: RunState.ENDED,
};

/** Returns the states of the API by the names that an address has for them. */
export function runStates(states: readonly StateFilter[]): RunState[] {
  return states.map((it) => STATES[it]);
}

/** Creates the test whether a run is selected at `now`. `nameOf` returns the name of a module. */
export function matcher(
  filter: RunFilter,
  nameOf: (digest: string) => string,
  now: number,
): (run: RunInfo) => boolean {
  const words = filter.text
    .toLowerCase()
    .split(/\s+/)
    .filter((it) => it !== '');
  const states = new Set(runStates(filter.states));
  const labels = [...filter.labels];
  const bounds = boundsOf(filter.range, now);
  return (run) => {
    if (states.size > 0 && !states.has(run.state)) return false;
    if (labels.some(([key, value]) => !Object.hasOwn(run.labels, key) || run.labels[key] !== value)) return false;
    if (!isWithin(askedAt(run) ?? now, bounds)) return false;
    if (words.length === 0) return true;
    const text = searched(run, nameOf(run.moduleDigest));
    return words.every((it) => text.includes(it));
  };
}

/** What a run was when its searched text was made: a list has thousands of runs, and is searched at each letter. */
const made = new WeakMap<RunInfo, { readonly name: string; readonly text: string }>();

function searched(run: RunInfo, name: string): string {
  const before = made.get(run);
  if (before !== undefined && before.name === name) return before.text;
  const labels = Object.entries(run.labels).map(([key, value]) => `${key}=${value}`);
  const parts = [run.runId, name, run.moduleDigest, ...labels, endOf(run)?.text ?? ''];
  // No word has a line break, so that none is found across two parts.
  const text = parts.join('\n').toLowerCase();
  made.set(run, { name, text });
  return text;
}

/** Reads a label as it is typed, `KEY=VALUE`, or says what is wrong with it. */
export function parseLabel(text: string): { key: string; value: string } | string {
  const at = text.indexOf('=');
  const key = (at < 0 ? text : text.slice(0, at)).trim();
  if (at < 0 || key === '') return 'A label is KEY=VALUE.';
  return { key, value: text.slice(at + 1).trim() };
}

/** Tells whether all that is selected is selected by labels, so that the daemon can end it by one call. */
export function isOfLabels(filter: RunFilter): boolean {
  return filter.labels.size > 0 && filter.range === undefined && filter.text.trim() === '';
}

/** Tells whether all that is selected and has ended is selected by labels and time, as the daemon deletes by. */
export function isDeletable({ text, states, labels, range }: RunFilter): boolean {
  const isOfEnded = states.length === 0 || states.join() === 'ended';
  return (labels.size > 0 || range !== undefined) && isOfEnded && text.trim() === '';
}
