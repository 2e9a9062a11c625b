// How a run stands and how it ended, in a few words: for a row of a table, a title, or a line of a report.

import { timestampMs } from '@bufbuild/protobuf/wkt';

import { CancelCause, Outcome, type RunResult } from '../gen/ringfence/v1/result_pb.js';
import { type RunInfo, RunState } from '../gen/ringfence/v1/run_pb.js';
import { formatBytes, formatDuration, formatRoughCount } from './format.js';
import { durationOf } from './run_times.js';
import { printable } from './printable.js';

/** How good or bad something is, which the page shows by a colour besides the words. */
export type Tone = 'good' | 'bad' | 'warn' | 'busy' | 'dim';

export interface Phrase {
  readonly tone: Tone;
  readonly text: string;
}

/** Bytes of a page of linear memory. */
export const PAGE_BYTES = 65_536;

/** Returns the word by which the page and the commands name a state. */
export function stateName(state: RunState): string {
  switch (state) {
    case RunState.COMPILING:
      return 'compiling';
    case RunState.QUEUED:
      return 'queued';
    case RunState.RUNNING:
      return 'running';
    case RunState.ENDED:
      return 'ended';
    case RunState.UNSPECIFIED:
      return 'unknown';
  }
}

/** Returns the words by which the page names an outcome. */
export function outcomeName(outcome: Outcome): string {
  switch (outcome) {
    case Outcome.EXITED:
      return 'exited';
    case Outcome.TRAPPED:
      return 'trapped';
    case Outcome.MEMORY_EXCEEDED:
      return 'over the memory limit';
    case Outcome.FUEL_EXHAUSTED:
      return 'out of fuel';
    case Outcome.STACK_OVERFLOW:
      return 'over the stack limit';
    case Outcome.TIMED_OUT:
      return 'timed out';
    case Outcome.OUTPUT_EXCEEDED:
      return 'over the output limit';
    case Outcome.CANCELLED:
      return 'cancelled';
    case Outcome.UNSPECIFIED:
      return 'ended, and the daemon does not say how';
  }
}

/** Says who ended a run. */
export function causeName(cause: CancelCause): string {
  switch (cause) {
    case CancelCause.CANCEL_RPC:
      return 'by a call that asked for it';
    case CancelCause.CALLER_GONE:
      return 'because its caller left';
    case CancelCause.READER_STALLED:
      return 'because its caller stopped reading its output';
    case CancelCause.DRAINING:
      return 'because the daemon shut down';
    case CancelCause.UNSPECIFIED:
      return 'and the daemon does not say by whom';
  }
}

/** Tells whether a run was refused or failed without having executed anything. */
export function neverStarted(run: RunInfo): boolean {
  return run.end.case === 'error' && run.started === undefined;
}

/** Says how a run ended; `undefined` while it goes on. */
export function endOf(run: RunInfo): Phrase | undefined {
  switch (run.end.case) {
    case undefined:
      return run.state === RunState.ENDED ? { tone: 'warn', text: 'Ended' } : undefined;
    case 'result':
      return resultInBrief(run.end.value);
    case 'error': {
      const { reason, message } = run.end.value;
      const why = printable(reason === '' ? message : `${reason}${message === '' ? '' : `: ${message}`}`);
      if (reason === 'RUN_CANCELLED') return { tone: 'dim', text: 'Cancelled before it started' };
      return { tone: 'bad', text: `${neverStarted(run) && reason !== 'INTERNAL' ? 'Refused' : 'Failed'}: ${why}` };
    }
  }
}

function resultInBrief(result: RunResult): Phrase {
  const { outcome, granted, trap } = result;
  const of = (amount: string | undefined) => (amount === undefined ? '' : ` of ${amount}`);
  const bytes = (amount: number | bigint | undefined) => (amount === undefined ? undefined : formatBytes(amount));
  switch (outcome) {
    case Outcome.EXITED: {
      const code = result.exitCode ?? 0;
      return { tone: code === 0 ? 'good' : 'bad', text: `Exited with ${code}` };
    }
    case Outcome.TRAPPED: {
      const why = trap?.message.replace(/^wasm trap: /, '') || trap?.code || 'the daemon does not say why';
      return { tone: 'bad', text: `Trapped: ${printable(why)}` };
    }
    case Outcome.MEMORY_EXCEEDED: {
      const pages = granted?.memoryPages;
      return {
        tone: 'bad',
        text: `Over the memory limit${of(bytes(pages === undefined ? undefined : pages * PAGE_BYTES))}`,
      };
    }
    case Outcome.FUEL_EXHAUSTED: {
      const fuel = granted?.fuelLimit;
      return {
        tone: 'bad',
        text: `Out of fuel${fuel === undefined ? '' : `, of which it had ${formatRoughCount(fuel)}`}`,
      };
    }
    case Outcome.STACK_OVERFLOW:
      return { tone: 'bad', text: `Over the stack limit${of(bytes(granted?.stackSize))}` };
    case Outcome.OUTPUT_EXCEEDED:
      return { tone: 'bad', text: `Over the output limit${of(bytes(granted?.outputLimit))}` };
    case Outcome.TIMED_OUT:
      return { tone: 'bad', text: `Timed out after ${formatDuration(durationOf(result.duration) ?? 0)}` };
    case Outcome.CANCELLED:
      return { tone: 'dim', text: `Cancelled ${causeName(result.cancelCause)}` };
    case Outcome.UNSPECIFIED:
      return { tone: 'warn', text: 'Ended, and the daemon does not say how' };
  }
}

/** Says what a run does now or how it ended. */
export function standing(run: RunInfo): Phrase {
  const end = endOf(run);
  if (end !== undefined) return end;
  switch (run.state) {
    case RunState.COMPILING:
      return { tone: 'busy', text: 'Its module is being found, checked or compiled' };
    case RunState.QUEUED:
      return { tone: 'warn', text: 'Waits for a slot' };
    case RunState.RUNNING:
      return { tone: 'busy', text: 'Runs' };
    case RunState.ENDED:
    case RunState.UNSPECIFIED:
      return { tone: 'dim', text: stateName(run.state) };
  }
}

/** Tells whether a run has not ended. */
export function isLive(run: RunInfo): boolean {
  return run.state !== RunState.ENDED;
}

/** Returns when a run was requested, in milliseconds of `Date.now()`. */
export function askedAt(run: RunInfo): number | undefined {
  return run.asked === undefined ? undefined : timestampMs(run.asked);
}
