// A run as commands of a shell that start it once more.

import { create } from '@bufbuild/protobuf';

import type { RunInfo } from '../gen/ringfence/v1/run_pb.js';
import { OutputPolicy, type RunSpec, RunSpecSchema } from '../gen/ringfence/v1/spec_pb.js';
import { hasHidden, replaceHidden } from './printable.js';
import { durationOf } from './run_times.js';
import { joinWords } from './shell_words.js';

/** What is known of how a run was asked for. */
export interface KnownSpec {
  readonly spec: RunSpec;
  /** Whether that is all, as for runs that this page started. */
  readonly isWhole: boolean;
}

/** A command, and what of the run it leaves out. */
export interface Command {
  readonly text: string;
  readonly leavesOut: readonly string[];
}

/** Where the command is to find the daemon. */
export interface Target {
  /** The gRPC listener, as `HOST:PORT`. */
  readonly server: string;
  readonly isSecure: boolean;
  /** Whether the caller has to present a token, which is never written into a command. */
  readonly needsToken: boolean;
}

/** What a daemon does not keep of a run's spec. */
export const NOT_KEPT = 'its entry point, arguments, environment, input, mounts, rights and time limit';

/** The most that the option for the output limit takes. */
const MAX_U32 = 0xffff_ffffn;

/** Returns the spec of a run as far as it is known; `undefined` where not even its module is. */
export function specToRepeat(run: RunInfo, remembered: RunSpec | undefined): KnownSpec | undefined {
  if (remembered !== undefined) return { spec: { ...remembered, detach: true, idempotencyKey: '' }, isWhole: true };
  if (run.moduleDigest === '') return undefined;
  const spec = create(RunSpecSchema, {
    module: { case: 'digest', value: run.moduleDigest },
    labels: run.labels,
    detach: true,
    ...(run.granted === undefined ? {} : { resources: run.granted }),
  });
  return { spec, isWhole: false };
}

/** Writes a run as `ringfence run …`. */
export function asRingfence({ spec, isWhole }: KnownSpec, target: Target): Command {
  const { resources, security } = spec;
  const timeout = timeoutOf(spec);
  const flags = [`--server=${target.isSecure ? 'https://' : ''}${target.server}`];
  const add = (name: string, value: string | number | bigint | undefined) => {
    if (value !== undefined && value !== '') flags.push(`--${name}=${value}`);
  };
  add('entry', spec.entryPoint);
  for (const [key, value] of sorted(spec.labels)) add('label', `${key}=${value}`);
  for (const pair of spec.env) add('env', pair);
  for (const { hostPath, guestPath, readOnly } of spec.mounts)
    add('mount', `${hostPath}:${guestPath}${readOnly ? ':ro' : ''}`);
  add('workdir', spec.workingDir);
  add('timeout', timeout === undefined ? '' : `${timeout}ms`);
  add('memory-pages', resources?.memoryPages || undefined);
  add('fuel', resources?.fuelLimit || undefined);
  add('stack', resources?.stackSize || undefined);
  const output = resources?.outputLimit || undefined;
  if (output !== undefined && output <= MAX_U32) add('output-limit', output);
  if (resources?.outputPolicy === OutputPolicy.TRUNCATE) flags.push('--truncate');
  for (const name of security?.allowedHostFunctions ?? []) add('allow-host-function', name);
  if (security?.enableWasi === false) flags.push('--no-wasi');
  if (security?.enableClock === false) flags.push('--no-clock');
  if (security?.enableNetwork === true) flags.push('--network');
  if (spec.openStdin) flags.push('--open-stdin');
  else flags.push('--no-stdin');
  // The command itself gives the guest its name.
  const args = spec.entryPoint === '' ? spec.args.slice(1) : spec.args;
  const words = ['ringfence', 'run', ...flags, '--', digestOf(spec), ...args];
  return { text: quoteWords(words), leavesOut: leftOut(spec, isWhole) };
}

/** Writes a run as `grpcurl …`, which learns the messages by reflection. */
export function asGrpcurl({ spec, isWhole }: KnownSpec, target: Target): Command {
  const words = ['grpcurl', ...(target.isSecure ? [] : ['-plaintext'])];
  const json = replaceHidden(JSON.stringify({ spec: specJson(spec) }), escapeForJson);
  const ending = ['-d', json, target.server, 'ringfence.v1.SandboxService/RunStream'];
  // The shell takes the token from its environment, where it is not part of what is copied.
  const token = target.needsToken ? ' -H "authorization: Bearer $RINGFENCE_TOKEN"' : '';
  return { text: `${quoteWords(words)}${token} ${quoteWords(ending)}`, leavesOut: isWhole ? [] : [NOT_KEPT] };
}

function leftOut(spec: RunSpec, isWhole: boolean): string[] {
  if (!isWhole) return [NOT_KEPT];
  const parts: string[] = [];
  if (spec.stdin.length > 0) parts.push('its input');
  if (spec.entryPoint === '' && spec.args.length > 0) parts.push('the name that the guest has as its first argument');
  if ((spec.resources?.outputLimit ?? 0n) > MAX_U32) parts.push('its output limit, which the option does not take');
  return parts;
}

/** The spec as JSON of protobuf, with what was left to the daemon left out. */
function specJson(spec: RunSpec): Record<string, unknown> {
  const { resources, security } = spec;
  const timeout = timeoutOf(spec);
  const json: Record<string, unknown> = { digest: digestOf(spec) };
  const add = (to: Record<string, unknown>, name: string, value: unknown) => {
    const isNone =
      value === undefined || value === '' || value === false || (Array.isArray(value) && value.length === 0);
    if (!isNone) to[name] = typeof value === 'bigint' ? String(value) : value;
  };
  add(json, 'entryPoint', spec.entryPoint);
  add(json, 'args', spec.args);
  add(json, 'env', spec.env);
  add(json, 'stdin', spec.stdin.length === 0 ? '' : base64(spec.stdin));
  add(json, 'openStdin', spec.openStdin);
  add(json, 'workingDir', spec.workingDir);
  add(
    json,
    'mounts',
    spec.mounts.map(({ hostPath, guestPath, readOnly }) => ({ hostPath, guestPath, readOnly })),
  );
  add(json, 'timeout', timeout === undefined ? '' : `${timeout / 1_000}s`);
  if (Object.keys(spec.labels).length > 0) json['labels'] = Object.fromEntries(sorted(spec.labels));
  if (resources !== undefined) {
    const part: Record<string, unknown> = {};
    add(part, 'memoryPages', resources.memoryPages);
    add(part, 'fuelLimit', resources.fuelLimit);
    add(part, 'stackSize', resources.stackSize);
    add(part, 'outputLimit', resources.outputLimit);
    if (resources.outputPolicy === OutputPolicy.TRUNCATE) part['outputPolicy'] = 'OUTPUT_POLICY_TRUNCATE';
    json['resources'] = part;
  }
  if (security !== undefined) {
    const part: Record<string, unknown> = {};
    // Not to be left out where they are false: what is absent is left to the policy.
    if (security.enableWasi !== undefined) part['enableWasi'] = security.enableWasi;
    if (security.enableClock !== undefined) part['enableClock'] = security.enableClock;
    add(part, 'allowedHostFunctions', security.allowedHostFunctions);
    add(part, 'enableNetwork', security.enableNetwork);
    json['security'] = part;
  }
  json['detach'] = true;
  return json;
}

function digestOf({ module }: RunSpec): string {
  return module.case === 'digest' ? module.value : '';
}

/** Returns the time limit in whole milliseconds; `undefined` where it is left to the daemon. */
function timeoutOf(spec: RunSpec): number | undefined {
  const ms = Math.ceil(durationOf(spec.timeout) ?? 0);
  return ms > 0 ? ms : undefined;
}

function sorted(pairs: Readonly<Record<string, string>>): Array<[string, string]> {
  return Object.entries(pairs).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
}

function base64(bytes: Uint8Array): string {
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/**
 * Writes words so that a POSIX shell reads the same words, and that nothing happens where they are pasted into a
 * terminal: a control character would be taken for a key there, and a hidden one not be seen.
 */
export function quoteWords(words: readonly string[]): string {
  return words.map((word) => (hasHidden(word) ? printed(word) : joinWords([word]))).join(' ');
}

/** Writes a word as what `printf` prints, with its hidden characters in octal. */
function printed(word: string): string {
  const [, body = '', ends = ''] = /^(.*?)(\n*)$/s.exec(word) ?? [];
  const format = replaceHidden(body.replaceAll('\\', '\\\\').replaceAll('%', '%%'), octal).replaceAll("'", `'\\''`);
  // A shell takes line breaks off the end of what a command prints.
  const kept = ends === '' ? '' : `'${ends}'`;
  return body === '' ? kept : `"$(printf -- '${format}')"${kept}`;
}

function octal(character: string): string {
  const bytes = [...new TextEncoder().encode(character)];
  return bytes.map((byte) => `\\${byte.toString(8).padStart(3, '0')}`).join('');
}

function escapeForJson(character: string): string {
  return Array.from({ length: character.length }, (_, at) => character.charCodeAt(at))
    .map((unit) => `\\u${unit.toString(16).padStart(4, '0')}`)
    .join('');
}
