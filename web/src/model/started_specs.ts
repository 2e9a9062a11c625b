// What the runs were asked for that this page started: a daemon does not keep arguments, environment and input of a
// run. It is kept in memory until the page is closed, because it may have secrets in it.

import { clone } from '@bufbuild/protobuf';

import { type RunSpec, RunSpecSchema } from '../gen/ringfence/v1/spec_pb.js';

const MOST_SPECS = 100;
/** Runs with more input than this are not remembered. */
const MOST_INPUT = 1 << 20;

const specs = new Map<string, RunSpec>();

/** Remembers what a run was asked for, and forgets the oldest where there are many. */
export function rememberSpec(id: string, spec: RunSpec): void {
  const { module } = spec;
  if (spec.stdin.length > MOST_INPUT || module.case === 'wasm') return;
  specs.set(id, clone(RunSpecSchema, spec));
  for (const oldest of specs.keys()) {
    if (specs.size <= MOST_SPECS) break;
    specs.delete(oldest);
  }
}

/** Returns what a run was asked for; `undefined` where this page did not start it. */
export function specOf(id: string): RunSpec | undefined {
  const spec = specs.get(id);
  return spec === undefined ? undefined : clone(RunSpecSchema, spec);
}

/** Forgets all of them, since whoever is signed in next is somebody else. */
export function forgetSpecs(): void {
  specs.clear();
}
