// The form that starts a run: what was typed, what is wrong with it, and the spec that it makes.

import { type MessageInitShape } from '@bufbuild/protobuf';
import { durationFromMs, durationMs } from '@bufbuild/protobuf/wkt';

import type { ModuleInfo } from '../gen/ringfence/v1/module_pb.js';
import type { RunInfo } from '../gen/ringfence/v1/run_pb.js';
import { OutputPolicy, type RunSpec, type RunSpecSchema } from '../gen/ringfence/v1/spec_pb.js';
import { checkNumber, type EntryPoint, entryPoints } from './entry_points.js';
import { moduleName } from './module_list.js';
import { parseLabels, parsePairs, writePairs } from './pairs.js';
import { parseCount, parseDuration, parseSize, writeDuration, writeSize } from './quantities.js';
import { joinWords, splitWords } from './shell_words.js';

/** A choice that is left to the daemon, or made. */
export type Choice = 'default' | 'on' | 'off';

/** What was typed and chosen. */
export interface RunForm {
  /** The entry point's name; empty: the module's command. */
  readonly entry: string;
  /** The values of the entry point's parameters. */
  readonly params: readonly string[];
  /** The arguments after the program's name, as a line of a shell. */
  readonly args: string;
  /** The program's name; empty: the module's. */
  readonly program: string;
  readonly env: string;
  readonly stdinFrom: 'none' | 'text' | 'file';
  readonly stdinText: string;
  readonly stdinFile: File | undefined;
  readonly openStdin: boolean;
  readonly memory: string;
  readonly memoryUnit: 'MiB' | 'pages';
  readonly fuel: string;
  /** Bytes of stack; empty: the default. */
  readonly stack: string;
  readonly timeout: string;
  readonly output: string;
  readonly truncate: boolean;
  readonly wasi: Choice;
  readonly clock: Choice;
  readonly network: boolean;
  /** The names of host functions, separated by spaces. */
  readonly hostFunctions: string;
  readonly mounts: string;
  readonly workingDir: string;
  readonly labels: string;
  readonly detach: boolean;
}

/** The fields that something can be wrong with. `params` has one for each value, as `params.0`. */
export type FormField = Exclude<keyof RunForm, 'params'> | 'module' | `params.${number}`;

export type FormErrors = ReadonlyMap<FormField, string>;

export type Spec = MessageInitShape<typeof RunSpecSchema>;

export const EMPTY_FORM: RunForm = {
  entry: '',
  params: [],
  args: '',
  program: '',
  env: '',
  stdinFrom: 'none',
  stdinText: '',
  stdinFile: undefined,
  openStdin: false,
  memory: '',
  memoryUnit: 'MiB',
  fuel: '',
  stack: '',
  timeout: '',
  output: '',
  truncate: false,
  wasi: 'default',
  clock: 'default',
  network: false,
  hostFunctions: '',
  mounts: '',
  workingDir: '',
  labels: '',
  detach: true,
};

const PAGES_A_MIB = 16;
const MAX_U32 = 0xffff_ffff;
const MAX_U64 = (1n << 64n) - 1n;

/** The sizes of stacks that there are, in bytes. */
export const STACKS: readonly number[] = [256 << 10, 512 << 10, 1 << 20, 4 << 20, 16 << 20];

/** Fits a form to a module: it calls what the module has, and may import the host functions that the module needs. */
export function formFor(form: RunForm, module: ModuleInfo): RunForm {
  const points = entryPoints(module);
  const entry = points.some((it) => it.name === form.entry) ? form.entry : (points[0]?.name ?? '');
  const needed = module.imports.filter((it) => it.module === 'ringfence').map((it) => `ringfence.${it.name}`);
  return { ...form, entry, hostFunctions: form.hostFunctions || needed.join(' ') };
}

/** Fills a form with what the daemon keeps of a run. */
export function formFromRun(run: RunInfo): RunForm {
  const { granted } = run;
  const stack = granted?.stackSize ?? 0;
  return {
    ...EMPTY_FORM,
    labels: writePairs(Object.entries(run.labels)),
    memory: granted?.memoryPages === undefined ? '' : String(granted.memoryPages),
    memoryUnit: 'pages',
    fuel: granted?.fuelLimit === undefined ? '' : String(granted.fuelLimit),
    stack: STACKS.includes(stack) ? String(stack) : '',
    // What a Run may capture by default is no limit that a stream needs.
    output: run.method === 'Run' || granted?.outputLimit === undefined ? '' : writeSize(granted.outputLimit),
    truncate: granted?.outputPolicy === OutputPolicy.TRUNCATE,
  };
}

/** Fills a form with all that a run was asked for. */
export function formFromSpec(spec: RunSpec): RunForm {
  const { resources, security, timeout, stdin } = spec;
  const text = stdin.length === 0 ? '' : decoded(stdin);
  const chosen = (is: boolean | undefined): Choice => (is === undefined ? 'default' : is ? 'on' : 'off');
  const stack = resources?.stackSize ?? 0;
  return {
    ...EMPTY_FORM,
    entry: spec.entryPoint,
    // Which of the two they are is decided by the entry point.
    params: spec.args,
    program: spec.args[0] ?? '',
    args: joinWords(spec.args.slice(1)),
    env: spec.env.join('\n'),
    stdinFrom: stdin.length === 0 ? 'none' : text === undefined ? 'file' : 'text',
    stdinText: text ?? '',
    stdinFile: text === undefined ? new File([new Uint8Array(stdin)], 'input of the earlier run') : undefined,
    openStdin: spec.openStdin,
    memory: resources?.memoryPages === undefined ? '' : String(resources.memoryPages),
    memoryUnit: resources?.memoryPages === undefined ? 'MiB' : 'pages',
    fuel: resources?.fuelLimit === undefined ? '' : String(resources.fuelLimit),
    stack: STACKS.includes(stack) ? String(stack) : '',
    timeout: timeout === undefined ? '' : writeDuration(durationMs(timeout)),
    output: resources?.outputLimit === undefined ? '' : writeSize(resources.outputLimit),
    truncate: resources?.outputPolicy === OutputPolicy.TRUNCATE,
    wasi: chosen(security?.enableWasi),
    clock: chosen(security?.enableClock),
    network: security?.enableNetwork ?? false,
    hostFunctions: (security?.allowedHostFunctions ?? []).join(' '),
    mounts: spec.mounts.map((it) => `${it.hostPath}:${it.guestPath}${it.readOnly ? ':ro' : ''}`).join('\n'),
    workingDir: spec.workingDir,
    labels: writePairs(Object.entries(spec.labels)),
    detach: spec.detach,
  };
}

function decoded(bytes: Uint8Array): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}

/** Returns the entry point that a form chose, of those that its module has. */
export function chosenEntry(form: RunForm, module: ModuleInfo | undefined): EntryPoint | undefined {
  return module === undefined ? undefined : entryPoints(module).find((it) => it.name === form.entry);
}

/** Makes the spec of a form, or says what is wrong at which field. */
export function checkForm(
  form: RunForm,
  module: ModuleInfo | undefined,
  stdin: Uint8Array<ArrayBuffer>,
): { readonly spec: Spec } | { readonly errors: FormErrors } {
  const errors = new Map<FormField, string>();
  if (module === undefined) return { errors: errors.set('module', 'Choose a module.') };
  const entry = chosenEntry(form, module);
  if (entry === undefined) errors.set('entry', 'This module has nothing that can be called so.');
  const hasWasi = form.wasi !== 'off';
  const env = hasWasi ? take(errors, 'env', parsePairs(form.env)) : undefined;
  const labels = take(errors, 'labels', parseLabels(form.labels)) ?? new Map<string, string>();
  const timeout = parsed(
    errors,
    form,
    'timeout',
    parseDuration,
    'Write a duration with its unit, such as 500ms, 30s or 2m.',
  );
  const spec: Spec = {
    module: { case: 'digest', value: module.digest },
    entryPoint: form.entry,
    args: argsOf(form, entry, module, errors),
    env: [...(env ?? [])].map(([key, value]) => `${key}=${value}`),
    stdin: hasWasi ? stdin : new Uint8Array(),
    openStdin: hasWasi && form.openStdin,
    mounts: hasWasi ? mountsOf(form, errors) : [],
    workingDir: hasWasi ? form.workingDir.trim() : '',
    labels: Object.fromEntries(labels),
    detach: form.detach,
    ...(timeout === undefined ? {} : { timeout: durationFromMs(timeout) }),
    ...resourcesOf(form, module, errors),
    ...securityOf(form),
  };
  return errors.size > 0 ? { errors } : { spec };
}

/** Returns the field of the form that a field of a refusal stands for, such as `spec.args[2]`. */
export function fieldOf(path: string, reason: string, entry: EntryPoint | undefined): FormField | undefined {
  const [, name = path, index] = /^(?:spec\.)?(?:resources\.|security\.)?(\w+)(?:\[(\d+)\])?/.exec(path) ?? [];
  if (name === 'args' && (entry?.params.length ?? 0) > 0) return `params.${Number(index ?? 0)}`;
  if (name === 'module' && reason === 'IMPORT_NOT_ALLOWED') return 'hostFunctions';
  return FIELDS[name];
}

const FIELDS: Readonly<Record<string, FormField>> = {
  module: 'module',
  digest: 'module',
  entry_point: 'entry',
  args: 'args',
  env: 'env',
  stdin: 'stdinFrom',
  open_stdin: 'openStdin',
  working_dir: 'workingDir',
  mounts: 'mounts',
  memory_pages: 'memory',
  fuel_limit: 'fuel',
  stack_size: 'stack',
  output_limit: 'output',
  output_policy: 'truncate',
  timeout: 'timeout',
  labels: 'labels',
  detach: 'detach',
  enable_wasi: 'wasi',
  enable_clock: 'clock',
  enable_network: 'network',
  allowed_host_functions: 'hostFunctions',
};

type Errors = Map<FormField, string>;

function argsOf(form: RunForm, entry: EntryPoint | undefined, module: ModuleInfo, errors: Errors): string[] {
  if (entry !== undefined && entry.params.length > 0) {
    const values = entry.params.map((_, index) => (form.params[index] ?? '').trim());
    for (const [index, type] of entry.params.entries()) {
      const wrong = checkNumber(type, values[index] ?? '');
      if (wrong !== undefined) errors.set(`params.${index}`, wrong);
    }
    return values;
  }
  const read = splitWords(form.args);
  if ('error' in read) {
    errors.set('args', read.error);
    return [];
  }
  // Without arguments the daemon takes the same name by itself.
  if (read.words.length === 0 && form.program === '') return [];
  const program = form.program || moduleName(module).replaceAll('\0', '') || 'main';
  return [program, ...read.words];
}

function resourcesOf(form: RunForm, module: ModuleInfo, errors: Errors): Pick<Spec, 'resources'> {
  const memoryPages = memoryOf(form, module, errors);
  const count = (text: string) => inRange(parseCount(text), MAX_U64);
  const size = (text: string) => inRange(parseSize(text), MAX_U64);
  const fuelLimit = parsed(errors, form, 'fuel', count, 'Write a whole number above zero, such as 1,000,000 or 10M.');
  const outputLimit = parsed(errors, form, 'output', size, 'Write a size such as 64KiB, 1MiB or a number of bytes.');
  const resources = {
    ...(memoryPages === undefined ? {} : { memoryPages }),
    ...(fuelLimit === undefined ? {} : { fuelLimit }),
    ...(form.stack === '' ? {} : { stackSize: Number(form.stack) }),
    ...(outputLimit === undefined ? {} : { outputLimit }),
    ...(form.truncate ? { outputPolicy: OutputPolicy.TRUNCATE } : {}),
  };
  return Object.keys(resources).length === 0 ? {} : { resources };
}

function memoryOf(form: RunForm, module: ModuleInfo, errors: Errors): number | undefined {
  const text = form.memory.trim();
  if (text === '') return undefined;
  const pages = Number(text.replace(/[_,]/g, '')) * (form.memoryUnit === 'MiB' ? PAGES_A_MIB : 1);
  const least = Number(module.memoryMinimumPages);
  if (!/^\d[\d_,]*(\.\d+)?$/.test(text) || !Number.isInteger(pages) || pages < 1 || pages > MAX_U32) {
    errors.set('memory', `Write a number of ${form.memoryUnit} that makes whole pages of 64 KiB.`);
  } else if (pages < least) {
    const inUnit = form.memoryUnit === 'MiB' ? `${least / PAGES_A_MIB} MiB` : `${least} pages`;
    errors.set('memory', `The module declares ${inUnit}: it needs that much at least.`);
  }
  return pages;
}

function securityOf(form: RunForm): Pick<Spec, 'security'> {
  const allowedHostFunctions = form.hostFunctions.split(/[\s,]+/).filter((it) => it !== '');
  const security = {
    ...(form.wasi === 'default' ? {} : { enableWasi: form.wasi === 'on' }),
    ...(form.clock === 'default' ? {} : { enableClock: form.clock === 'on' }),
    ...(form.network ? { enableNetwork: true } : {}),
    ...(allowedHostFunctions.length === 0 ? {} : { allowedHostFunctions }),
  };
  return Object.keys(security).length === 0 ? {} : { security };
}

/** Reads mounts as `HOST:GUEST[:ro]`, where the guest's path is absolute, so that a host path may have colons. */
function mountsOf(form: RunForm, errors: Errors): Array<{ hostPath: string; guestPath: string; readOnly: boolean }> {
  const lines = form.mounts
    .split(/\r?\n/)
    .map((it) => it.trim())
    .filter((it) => it !== '');
  return lines.flatMap((line) => {
    const [, hostPath, guestPath, end] = /^(\/.*?):(\/.*?)(:ro)?$/.exec(line) ?? [];
    if (hostPath !== undefined && guestPath !== undefined)
      return [{ hostPath, guestPath, readOnly: end !== undefined }];
    errors.set('mounts', 'Write each mount as /HOST:/GUEST or /HOST:/GUEST:ro, with absolute paths.');
    return [];
  });
}

function take(
  errors: Errors,
  field: FormField,
  read: ReturnType<typeof parsePairs>,
): ReadonlyMap<string, string> | undefined {
  if ('pairs' in read) return read.pairs;
  errors.set(field, read.error);
  return undefined;
}

/** Reads a field that may be empty: zero and what cannot be read are errors. */
function parsed<T extends number | bigint>(
  errors: Errors,
  form: RunForm,
  field: 'timeout' | 'fuel' | 'output',
  parse: (text: string) => T | undefined,
  wrong: string,
): T | undefined {
  if (form[field].trim() === '') return undefined;
  const value = parse(form[field]);
  if (value !== undefined && value > 0) return value;
  errors.set(field, wrong);
  return undefined;
}

function inRange(value: bigint | undefined, most: bigint): bigint | undefined {
  return value !== undefined && value <= most ? value : undefined;
}
