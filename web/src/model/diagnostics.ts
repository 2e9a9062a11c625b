// A report of a run as plain text, with all that helps whoever looks for the cause.

import { timestampMs, type Timestamp } from '@bufbuild/protobuf/wkt';

import { Outcome } from '../gen/ringfence/v1/result_pb.js';
import type { RunInfo } from '../gen/ringfence/v1/run_pb.js';
import type { RunSpec } from '../gen/ringfence/v1/spec_pb.js';
import { printable, printableLines } from './printable.js';
import { stateName } from './run_end.js';
import { askedFor, type Fact, limitsOf, summarise } from './run_summary.js';

/** What a report is made of besides the run. */
export interface Surroundings {
  readonly moduleName: string;
  /** The version of the daemon and its runtime; empty where they are not known. */
  readonly daemon: string;
  readonly asked: RunSpec | undefined;
  /** The last of standard error, or why it is not there. */
  readonly stderr: { readonly text: string } | { readonly error: string };
}

/** The longest line of standard error in a report. */
const LONGEST_LINE = 500;

/** Writes the report. */
export function diagnostics(run: RunInfo, around: Surroundings): string {
  const { sentences, trap, refusal, uses } = summarise(run, around.asked);
  const outcome =
    run.end.case === 'result' ? Outcome[run.end.value.outcome] : run.end.case === 'error' ? 'REFUSED' : '';
  const labels = Object.entries(run.labels).map(([key, value]) => printable(`${key}=${value}`));
  const parts = [
    section('Run', [
      { name: 'id', value: printable(run.runId) },
      { name: 'module', value: around.moduleName },
      { name: 'digest', value: printable(run.moduleDigest) },
      { name: 'state', value: stateName(run.state) },
      { name: 'outcome', value: outcome ?? '' },
      { name: 'labels', value: labels.sort().join(', ') },
      { name: 'method', value: printable(run.method) },
      { name: 'caller', value: printable(run.caller) },
      { name: 'detached', value: run.detached ? 'yes' : 'no' },
      { name: 'asked', value: iso(run.asked) },
      { name: 'started', value: iso(run.started) },
      { name: 'ended', value: iso(run.ended) },
      { name: 'daemon', value: printable(around.daemon) },
    ]),
    ['How it stands', ...sentences.map((it) => `  ${it}`)],
    section('What the refusal tells', refusal),
    trap === undefined
      ? []
      : ['Trap', `  ${trap.code}: ${trap.message}`, ...trap.frames.map((it, at) => `  ${at}: ${it}`)],
    section(
      'Used',
      uses.map(({ name, text }) => ({ name, value: text })),
    ),
    section('Limits', limitsOf(run.granted)),
    section('Asked for', around.asked === undefined ? [] : askedFor(around.asked)),
    stderrLines(around.stderr),
  ];
  return `${parts
    .filter((it) => it.length > 0)
    .map((it) => it.join('\n'))
    .join('\n\n')}\n`;
}

function section(title: string, facts: readonly Fact[]): string[] {
  const told = facts.filter((it) => it.value !== '');
  return told.length === 0 ? [] : [title, ...told.map(({ name, value }) => `  ${name}: ${value}`)];
}

function stderrLines(stderr: Surroundings['stderr']): string[] {
  if ('error' in stderr) return ['Standard error', `  (not read: ${printable(stderr.error)})`];
  if (stderr.text === '') return [];
  const lines = printableLines(stderr.text).split('\n');
  const cut = (line: string) => (line.length > LONGEST_LINE ? `${line.slice(0, LONGEST_LINE)} …` : line);
  return ['The last of standard error', ...lines.map((it) => `  ${cut(it)}`)];
}

function iso(time: Timestamp | undefined): string {
  if (time === undefined) return '';
  const date = new Date(timestampMs(time));
  return Number.isNaN(date.getTime()) ? '' : date.toISOString();
}
