// Everything that is known of a run, in words: what it was, how it stands or ended, and what it used of what it had.

import {
  CancelCause,
  type Frame,
  Outcome,
  type RunResult,
  type Trap,
  type Value,
} from '../gen/ringfence/v1/result_pb.js';
import { type RunInfo, RunState } from '../gen/ringfence/v1/run_pb.js';
import { OutputPolicy, type Resources, type RunSpec } from '../gen/ringfence/v1/spec_pb.js';
import { formatBytes, formatCount, formatDuration, formatRoughCount, plural } from './format.js';
import { printable, printableLines } from './printable.js';
import { causeName, neverStarted, PAGE_BYTES, type Tone } from './run_end.js';
import { durationOf, ranFor, waitedFor } from './run_times.js';
import { sentence } from './sentences.js';

/** A fact with its name. */
export interface Fact {
  readonly name: string;
  readonly value: string;
}

/** How much was used of what. Without `allowed` there is no limit, or it is not told. */
export interface Use {
  readonly name: string;
  readonly used: number;
  readonly allowed: number | undefined;
  readonly text: string;
  /** Whether this is what ended the run. */
  readonly isOver: boolean;
}

export interface TrapSummary {
  readonly code: string;
  readonly message: string;
  /** The guest's call stack, the innermost call first. */
  readonly frames: readonly string[];
}

export interface RunSummary {
  readonly tone: Tone;
  /** How the run stands or ended: sentences, of which the first says it. */
  readonly sentences: readonly string[];
  readonly trap: TrapSummary | undefined;
  /** What a refusal tells besides its message. */
  readonly refusal: readonly Fact[];
  readonly uses: readonly Use[];
}

/** Summarises a run. `asked` is its spec, where this page knows it. */
export function summarise(run: RunInfo, asked?: RunSpec): RunSummary {
  const uses = usesOf(run, asked);
  const waited = waitSentence(run);
  const rest = waited === '' ? [] : [waited];
  if (run.end.case === 'error') {
    const { reason, message, metadata } = run.end.value;
    const refusal = Object.entries(metadata).sort(([a], [b]) => (a < b ? -1 : 1));
    return {
      tone: reason === 'RUN_CANCELLED' ? 'dim' : 'bad',
      sentences: [...errorSentences(run, reason, message), ...rest],
      trap: undefined,
      refusal: refusal.map(([name, value]) => ({ name: printable(name), value: printable(value) })),
      uses,
    };
  }
  if (run.end.case === 'result') {
    const result = run.end.value;
    return {
      tone: toneOf(result),
      sentences: [...endSentences(result, asked), ...besides(result), ...rest],
      trap: trapOf(result),
      refusal: [],
      uses,
    };
  }
  return {
    tone: run.state === RunState.QUEUED ? 'warn' : 'busy',
    sentences: [liveSentence(run), ...rest],
    trap: undefined,
    refusal: [],
    uses,
  };
}

function liveSentence(run: RunInfo): string {
  switch (run.state) {
    case RunState.COMPILING:
      return 'Its module is being found, checked or compiled.';
    case RunState.QUEUED:
      return 'It waits for a slot.';
    case RunState.RUNNING:
      return 'It runs.';
    case RunState.ENDED:
      return 'It has ended, and the daemon does not say how.';
    case RunState.UNSPECIFIED:
      return 'The daemon does not say how it stands.';
  }
}

function errorSentences(run: RunInfo, reason: string, message: string): string[] {
  const why = `${sentence(message)}${reason === '' ? '' : ` (${printable(reason)})`}`;
  if (reason === 'RUN_CANCELLED') return ['It was cancelled, or its caller left, before its first instruction.', why];
  if (neverStarted(run) && reason !== 'INTERNAL') return ['It was refused before its first instruction.', why];
  return [`The daemon failed ${neverStarted(run) ? 'to start it' : 'while it ran'}.`, why];
}

function toneOf(result: RunResult): Tone {
  if (result.outcome === Outcome.EXITED) return result.exitCode === 0 || result.exitCode === undefined ? 'good' : 'bad';
  return result.outcome === Outcome.CANCELLED ? 'dim' : 'bad';
}

/** Says how a run ended; where at a limit, with how much was used and how much was allowed. */
function endSentences(result: RunResult, asked: RunSpec | undefined): string[] {
  const { outcome, granted, trap } = result;
  switch (outcome) {
    case Outcome.EXITED:
      return [
        result.exitCode === 0
          ? 'It exited with code 0.'
          : `It exited with code ${result.exitCode}, by which it says that it failed.`,
      ];
    case Outcome.TRAPPED:
      return [`It trapped: ${clause(trap)}`];
    case Outcome.MEMORY_EXCEEDED:
      return memorySentences(result);
    case Outcome.FUEL_EXHAUSTED:
      return [
        `It ran out of fuel: it used ${fuelOf(result.fuelConsumed)} of the ${fuelOf(granted?.fuelLimit)} that it had.`,
      ];
    case Outcome.STACK_OVERFLOW: {
      const allowed = granted?.stackSize === undefined ? '' : `${formatBytes(granted.stackSize)} of `;
      return [`Its calls went too deep: it needed more than the ${allowed}stack that it had.`];
    }
    case Outcome.TIMED_OUT:
      return timeoutSentences(result, asked);
    case Outcome.OUTPUT_EXCEEDED:
      return [outputSentence(result, granted)];
    case Outcome.CANCELLED:
      return cancelSentences(result);
    case Outcome.UNSPECIFIED:
      return ['It ended, and the daemon does not say how.'];
  }
}

function memorySentences(result: RunResult): string[] {
  const pages = result.granted?.memoryPages;
  const allowed =
    pages === undefined ? '' : ` of the ${formatBytes(pages * PAGE_BYTES)} (${plural(pages, 'page')}) that it had`;
  const then =
    result.exitCode === undefined
      ? `It then trapped: ${clause(result.trap)}`
      : `It then exited with code ${result.exitCode}.`;
  return [
    `It went over its memory: it held ${formatBytes(result.memoryUsed)}${allowed}, wanted more, and was denied it.`,
    then,
  ];
}

function timeoutSentences(result: RunResult, asked: RunSpec | undefined): string[] {
  const allowed = durationOf(asked?.timeout) ?? 0;
  const of = allowed > 0 ? ` of ${formatDuration(allowed)}` : '';
  const took = formatDuration(durationOf(result.duration) ?? 0);
  const { stdoutBytes: out, stderrBytes: err } = result;
  const streams = `${formatBytes(out)} of standard output and ${formatBytes(err)} of standard error`;
  const wrote =
    out + err === 0n ? 'It had written nothing by then.' : `What it wrote by then is partial output: ${streams}.`;
  const hint = 'The daemon does not keep the limit: it was the timeout of the request, its deadline, or the default.';
  return [`It reached its time limit${of}, and was stopped after ${took}.`, wrote, ...(allowed > 0 ? [] : [hint])];
}

function outputSentence(result: RunResult, granted: Resources | undefined): string {
  const limit = granted?.outputLimit;
  const isError = result.stderrTruncated && !result.stdoutTruncated;
  const name = isError ? 'standard error' : 'standard output';
  const used = formatBytes(isError ? result.stderrBytes : result.stdoutBytes);
  const allowed = limit === undefined ? '' : ` of the ${formatBytes(limit)} for each stream`;
  return `It wrote more to ${name} than it may: ${used}${allowed}, and then more.`;
}

function cancelSentences(result: RunResult): string[] {
  const first = `It was cancelled ${causeName(result.cancelCause)}.`;
  if (result.cancelCause !== CancelCause.CALLER_GONE) return [first];
  return [first, 'A run that is not detached ends with its caller.'];
}

/** Says why a guest trapped, to follow a colon. */
function clause(trap: Trap | undefined): string {
  const message = printable(trap?.message.trim() || trap?.code || 'the daemon does not say why');
  return `${message.replace(/^wasm trap: /, '')}.`.replace(/\.\.$/, '.');
}

/** Says what else a result has to tell. */
function besides(result: RunResult): string[] {
  const parts: string[] = [];
  if (result.values.length > 0) parts.push(`It returned ${result.values.map(formatValue).join(', ')}.`);
  if (result.memoryDenied && result.outcome !== Outcome.MEMORY_EXCEEDED) {
    parts.push('It wanted more memory than it may have, was denied it, and went on.');
  }
  if (result.outcome === Outcome.OUTPUT_EXCEEDED) return parts;
  const limit = result.granted?.outputLimit;
  const kept = limit === undefined ? '' : ` ${formatBytes(limit)} of it are kept;`;
  const name = (stream: string, bytes: bigint) =>
    `It wrote ${formatBytes(bytes)} to ${stream}:${kept} the rest was dropped.`;
  if (result.stdoutTruncated) parts.push(name('standard output', result.stdoutBytes));
  if (result.stderrTruncated) parts.push(name('standard error', result.stderrBytes));
  return parts;
}

/** Says how long a run waited for what, as far as the daemon tells. */
function waitSentence(run: RunInfo): string {
  const waited = waitedFor(run);
  if (waited === undefined) return '';
  if (waited < 1) return run.started === undefined ? 'That was at once.' : 'It had its module and a slot at once.';
  const time = formatDuration(waited);
  if (run.started === undefined) return `That was ${time} after the request.`;
  // The daemon does not tell how much of it was for which.
  return `It waited ${time} for its module and a slot.`;
}

/** Shows a value that an entry point returned, with its type. */
export function formatValue({ value }: Value): string {
  return value.case === undefined
    ? 'a value of an unknown type'
    : `${Object.is(value.value, -0) ? '-0' : value.value} (${value.case})`;
}

function trapOf({ trap }: RunResult): TrapSummary | undefined {
  if (trap === undefined) return undefined;
  return { code: printable(trap.code), message: printableLines(trap.message), frames: trap.backtrace.map(formatFrame) };
}

/** Shows a call on the guest's stack, such as `kit::main (function 27, at 0x13ef)`. */
export function formatFrame(frame: Frame): string {
  const module = frame.moduleName === '' ? '' : `${printable(frame.moduleName)}!`;
  const name = frame.funcName === '' ? 'a function without a name' : `${module}${printable(demangle(frame.funcName))}`;
  const offset = frame.moduleOffset === undefined ? '' : `, at 0x${frame.moduleOffset.toString(16)}`;
  return `${name} (function ${frame.funcIndex}${offset})`;
}

/** Reads the older of the two ways in which Rust writes paths as names, `_ZN3kit4main17h…E`. */
function demangle(name: string): string {
  const [, body] = /^_ZN((?:\d+[^\s]+)+)17h[0-9a-f]{16}E(?:\.llvm\.\d+)?$/.exec(name) ?? [];
  if (body === undefined) return name;
  const parts: string[] = [];
  for (let rest = body; rest !== '';) {
    const digits = /^\d+/.exec(rest)?.[0] ?? '';
    const length = Number(digits);
    if (digits === '' || length === 0 || rest.length < digits.length + length) return name;
    parts.push(rest.slice(digits.length, digits.length + length));
    rest = rest.slice(digits.length + length);
  }
  const plain: Readonly<Record<string, string>> = {
    LT: '<',
    GT: '>',
    RF: '&',
    BP: '*',
    LP: '(',
    RP: ')',
    C: ',',
    u7b: '{',
    u7d: '}',
    u20: ' ',
  };
  return parts
    .map((it) =>
      it
        .replace(/^_(?=\$)/, '')
        .replace(/\$(\w+)\$/g, (whole, code: string) => plain[code] ?? whole)
        .replaceAll('..', '::'),
    )
    .join('::');
}

/** Says what a run used of what it had. */
function usesOf(run: RunInfo, asked: RunSpec | undefined): Use[] {
  const { usage } = run;
  if (usage === undefined) return [];
  const result = run.end.case === 'result' ? run.end.value : undefined;
  const granted = result?.granted ?? run.granted;
  const ended = result?.outcome;
  const uses: Use[] = [];
  const add = (
    name: string,
    used: number,
    allowed: number | undefined,
    format: (amount: number) => string,
    isOver: boolean,
  ) => {
    const text = allowed === undefined ? format(used) : `${format(used)} of ${format(allowed)}`;
    uses.push({ name, used, allowed, text, isOver });
  };
  const pages = granted?.memoryPages;
  const memory = pages === undefined ? undefined : pages * PAGE_BYTES;
  add('Memory', Number(usage.memoryUsed), memory, formatBytes, ended === Outcome.MEMORY_EXCEEDED);
  if (usage.fuelConsumed !== undefined) {
    const limit = granted?.fuelLimit;
    add(
      'Fuel',
      Number(usage.fuelConsumed),
      limit === undefined ? undefined : Number(limit),
      formatRoughCount,
      ended === Outcome.FUEL_EXHAUSTED,
    );
  }
  const timeout = durationOf(asked?.timeout) || undefined;
  const took = ranFor(run) ?? durationOf(usage.elapsed);
  // The time of a live run is told by a clock, unless there is a limit to see it by.
  if (took !== undefined && (result !== undefined || timeout !== undefined))
    add('Time', took, timeout, formatDuration, ended === Outcome.TIMED_OUT);
  const cpu = durationOf(result?.cpuTime);
  if (cpu !== undefined) add('Processor', cpu, undefined, formatDuration, false);
  const output = granted?.outputLimit === undefined ? undefined : Number(granted.outputLimit);
  const isOver = ended === Outcome.OUTPUT_EXCEEDED;
  add('Standard output', Number(usage.stdoutBytes), output, formatBytes, isOver && result?.stdoutTruncated === true);
  add('Standard error', Number(usage.stderrBytes), output, formatBytes, isOver && result?.stderrTruncated === true);
  if (result !== undefined && result.stdinBytes > 0n)
    add('Input read', Number(result.stdinBytes), undefined, formatBytes, false);
  return uses;
}

/** Returns the limits that a run got and that no bar shows. */
export function limitsOf(granted: Resources | undefined): Fact[] {
  if (granted === undefined) return [];
  const facts: Fact[] = [];
  if (granted.stackSize !== undefined)
    facts.push({ name: 'Stack', value: `${formatBytes(granted.stackSize)} at most` });
  if (granted.fuelLimit === undefined) facts.push({ name: 'Fuel', value: 'not metered' });
  const then = granted.outputPolicy === OutputPolicy.TRUNCATE ? 'the rest is dropped' : 'the run ends';
  const limit = granted.outputLimit;
  facts.push({
    name: 'Output',
    value: limit === undefined ? 'as much as the daemon lets it' : `${formatBytes(limit)} a stream, then ${then}`,
  });
  return facts;
}

/** Says what a run was asked for with, where this page knows it. */
export function askedFor(spec: RunSpec): Fact[] {
  const facts: Fact[] = [];
  const add = (name: string, value: string) => {
    if (value !== '') facts.push({ name, value: printable(value) });
  };
  add('Entry point', spec.entryPoint);
  add('Arguments', spec.args.map((it) => JSON.stringify(it)).join(' '));
  // Values of the environment are secrets as often as not.
  add('Environment', spec.env.map((it) => it.split('=', 1)[0]).join(', '));
  add('Directory', spec.workingDir);
  add(
    'Mounts',
    spec.mounts.map((it) => `${it.hostPath} at ${it.guestPath}${it.readOnly ? ', to read' : ''}`).join('; '),
  );
  add('Input', spec.stdin.length === 0 ? '' : formatBytes(spec.stdin.length));
  return facts;
}

function fuelOf(amount: bigint | undefined): string {
  return amount === undefined ? 'unknown amount' : formatCount(amount);
}
