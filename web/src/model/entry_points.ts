// What can be called in a module, and the values that are given to it.

import { type ModuleInfo, ModuleKind } from '../gen/ringfence/v1/module_pb.js';

/** A type that values of a call can have. */
export type NumberType = 'i32' | 'i64' | 'f32' | 'f64';

/** A function that a run can call. */
export interface EntryPoint {
  /** The name of the export; empty for what a run calls by itself (`_start`, or a component's `wasi:cli/run`). */
  readonly name: string;
  readonly params: readonly NumberType[];
  readonly results: readonly NumberType[];
}

const TYPES: readonly string[] = ['i32', 'i64', 'f32', 'f64'] satisfies NumberType[];
const START = '_start';
const INITIALIZE = '_initialize';
const COMMAND: EntryPoint = { name: '', params: [], results: [] };

/** Lists what a run of a module can call, its command first. */
export function entryPoints(module: ModuleInfo): EntryPoint[] {
  if (module.kind === ModuleKind.COMPONENT) {
    const runs = module.exports.some((it) => /^wasi:cli\/run(@|$)/.test(it.name));
    return runs ? [COMMAND] : [];
  }
  const initialize = module.exports.find((it) => it.kind === 'func' && it.name === INITIALIZE);
  // It is called before any other function, which has to be possible.
  const isBlocked = initialize !== undefined && initialize.type !== '() -> ()';
  const points: EntryPoint[] = [];
  for (const { name, kind, type } of module.exports) {
    const signature = kind === 'func' ? parseSignature(type) : undefined;
    if (signature === undefined) continue;
    if (name === START) points.unshift({ ...signature, name: '' });
    else if (!isBlocked || name === INITIALIZE) points.push({ ...signature, name });
  }
  return points;
}

/** Reads a type such as `(i32, i64) -> (f64)`; `undefined` where it has anything but numbers. */
export function parseSignature(type: string): Pick<EntryPoint, 'params' | 'results'> | undefined {
  const [, left, right] = /^\(([^()]*)\) -> \(([^()]*)\)$/.exec(type) ?? [];
  const [params, results] = [numbers(left), numbers(right)];
  return params === undefined || results === undefined ? undefined : { params, results };
}

function numbers(list: string | undefined): NumberType[] | undefined {
  if (list === undefined) return undefined;
  const types = list === '' ? [] : list.split(', ');
  return types.every((it): it is NumberType => TYPES.includes(it)) ? types : undefined;
}

/** Tells what is wrong with a value of a type, as the daemon judges it; `undefined` where nothing is. */
export function checkNumber(type: NumberType, text: string): string | undefined {
  if (text === '') return `A value is missing: this is an ${type}.`;
  if (type === 'f32' || type === 'f64') {
    const isFloat = /^[+-]?(inf|infinity|nan|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)$/i.test(text);
    return isFloat ? undefined : `This is not an ${type}: write a number such as 1.5, -2e10, inf or nan.`;
  }
  const bits = type === 'i32' ? 32n : 64n;
  const [, sign, digits] = /^([+-]?)(\d+|0x[\da-f]+)$/i.exec(text) ?? [];
  if (digits === undefined) return `This is not an ${type}: write a whole number, in decimal or as 0x….`;
  const magnitude = BigInt(digits.replace(/^0X/, '0x'));
  const most = sign === '-' ? 1n << (bits - 1n) : (1n << bits) - 1n;
  return magnitude <= most
    ? undefined
    : `This does not fit into an ${type}: it is from ${-(1n << (bits - 1n))} to ${(1n << bits) - 1n}.`;
}

/** Shows the type of a function, such as `(i32, i32) → i32`. */
export function showSignature({ params, results }: Pick<EntryPoint, 'params' | 'results'>): string {
  const given = `(${params.join(', ')})`;
  if (results.length === 0) return given;
  return `${given} → ${results.length === 1 ? results[0] : `(${results.join(', ')})`}`;
}
