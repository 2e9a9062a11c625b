// What is asked before runs are ended, and what is told afterwards.

import { plural, shortRunId } from './format.js';

/** The most runs that a question names. */
const MOST_NAMED = 5;

/** A run that is to be ended, as far as it is known. */
export interface Target {
  readonly id: string;
  /** The name of its module or something else that people know it by; empty where it is not known. */
  readonly name: string;
}

/** What came of it. */
export interface KillCounts {
  /** Runs that were ended. */
  readonly cancelled: number;
  /** Runs that had ended, or ended by themselves meanwhile. */
  readonly alone: number;
  /** Runs that were asked to end, and had not by the time of the answer. */
  readonly unfinished: number;
  /** Why a call failed; the others went on. */
  readonly failures: readonly string[];
}

/** Names the first of the runs that are to be ended, each on a line of its own. */
export function namesOfTargets(targets: readonly Target[], count: number): string {
  const named = targets.slice(0, MOST_NAMED).map(({ id, name }) => `${name === '' ? 'Run' : name} ${shortRunId(id)}`);
  const rest = count - named.length;
  return [...named, ...(rest > 0 ? [`and ${plural(rest, 'more', 'more')}`] : [])].join('\n');
}

/** Says what came of ending runs. */
export function killResult({ cancelled, alone, unfinished, failures }: KillCounts): string {
  const parts: string[] = [];
  if (cancelled > 0) parts.push(`${plural(cancelled, 'run')} ended.`);
  if (alone > 0) parts.push(`${plural(alone, 'run')} ended without that.`);
  if (unfinished > 0)
    parts.push(`${plural(unfinished, 'run')} ${unfinished === 1 ? 'is' : 'are'} still ending or still there.`);
  if (failures.length > 0) parts.push(`${plural(failures.length, 'call')} failed: ${failures[0]}`);
  return parts.length === 0 ? 'No run was there to end.' : parts.join(' ');
}
