import assert from 'node:assert/strict';
import { test } from 'node:test';
import { create } from '@bufbuild/protobuf';

import { RunSpecSchema } from '../src/gen/ringfence/v1/spec_pb.js';
import { forgetSpecs, rememberSpec, specOf } from '../src/model/started_specs.js';

const spec = (args: string[], stdin = 0) =>
  create(RunSpecSchema, { module: { case: 'digest', value: 'sha256:1' }, args, stdin: new Uint8Array(stdin) });

test('the specs of the latest runs are remembered, as they were', () => {
  const given = spec(['a']);
  rememberSpec('first', given);
  given.args.push('b');
  specOf('first')?.args.push('c');
  assert.deepEqual(specOf('first')?.args, ['a']);
  for (let at = 0; at < 100; at += 1) rememberSpec(`run ${at}`, spec([]));
  assert.equal(specOf('first'), undefined);
  assert.notEqual(specOf('run 0'), undefined);
  forgetSpecs();
  assert.equal(specOf('run 99'), undefined);
});

test('what is too large to be kept is not', () => {
  rememberSpec('large', spec([], (1 << 20) + 1));
  assert.equal(specOf('large'), undefined);
  rememberSpec('inline', create(RunSpecSchema, { module: { case: 'wasm', value: new Uint8Array(3) } }));
  assert.equal(specOf('inline'), undefined);
});
