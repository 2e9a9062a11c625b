import assert from 'node:assert/strict';
import { test } from 'node:test';
import { create } from '@bufbuild/protobuf';
import fc from 'fast-check';

import { ModuleInfoSchema, ModuleKind } from '../src/gen/ringfence/v1/module_pb.js';
import { checkNumber, entryPoints, parseSignature, showSignature } from '../src/model/entry_points.js';

const core = (...exports: Array<readonly [string, string, string?]>) =>
  create(ModuleInfoSchema, {
    kind: ModuleKind.CORE,
    exports: exports.map(([name, kind, type = '']) => ({ name, kind, type })),
  });

test('a module’s functions of numbers can be called, and its command comes first', () => {
  const module = core(
    ['add', 'func', '(i32, i64) -> (f64)'],
    ['memory', 'memory'],
    ['_start', 'func', '() -> ()'],
    ['ref', 'func', '(externref) -> ()'],
    ['typed', 'func', '((ref null 1)) -> ()'],
  );
  assert.deepEqual(entryPoints(module), [
    { name: '', params: [], results: [] },
    { name: 'add', params: ['i32', 'i64'], results: ['f64'] },
  ]);
  assert.deepEqual(entryPoints(core()), []);
});

test('what has to be called before anything else has to be callable', () => {
  const blocked = core(['_initialize', 'func', '(i32) -> ()'], ['f', 'func', '() -> ()']);
  assert.deepEqual(
    entryPoints(blocked).map((it) => it.name),
    ['_initialize'],
  );
  const reactor = core(['_initialize', 'func', '() -> ()'], ['f', 'func', '() -> ()']);
  assert.deepEqual(
    entryPoints(reactor).map((it) => it.name),
    ['_initialize', 'f'],
  );
});

test('a component is called by wasi:cli/run only', () => {
  const component = (name: string) =>
    create(ModuleInfoSchema, { kind: ModuleKind.COMPONENT, exports: [{ name, kind: 'instance' }] });
  assert.equal(entryPoints(component('wasi:cli/run@0.2.3')).length, 1);
  assert.equal(entryPoints(component('wasi:cli/runner@0.2.3')).length, 0);
});

test('signatures', () => {
  assert.deepEqual(parseSignature('() -> (i32)'), { params: [], results: ['i32'] });
  assert.equal(parseSignature('(i32)'), undefined);
  assert.equal(parseSignature('(v128) -> ()'), undefined);
  assert.equal(showSignature({ params: ['i32', 'i32'], results: ['i32'] }), '(i32, i32) → i32');
  assert.equal(showSignature({ params: [], results: [] }), '()');
  assert.equal(showSignature({ params: [], results: ['i32', 'f64'] }), '() → (i32, f64)');
});

test('numbers are judged as the daemon judges them', () => {
  const right: ReadonlyArray<readonly ['i32' | 'i64' | 'f32' | 'f64', string]> = [
    ['i32', '0'],
    ['i32', '-1'],
    ['i32', '+7'],
    ['i32', '4294967295'],
    ['i32', '-2147483648'],
    ['i32', '0xFFFFFFFF'],
    ['i32', '-0x80000000'],
    ['i64', '18446744073709551615'],
    ['i64', '-9223372036854775808'],
    ['i64', '0Xff'],
    ['f32', '1.5'],
    ['f32', '.5'],
    ['f32', '5.'],
    ['f64', '-2e10'],
    ['f64', 'inf'],
    ['f64', '-Infinity'],
    ['f64', 'NaN'],
  ];
  for (const [type, text] of right) assert.equal(checkNumber(type, text), undefined, `${type} ${text}`);
  const wrong: ReadonlyArray<readonly ['i32' | 'i64' | 'f32' | 'f64', string]> = [
    ['i32', ''],
    ['i32', '4294967296'],
    ['i32', '-2147483649'],
    ['i32', '1.0'],
    ['i32', '1_000'],
    ['i32', '0x'],
    ['i32', '--1'],
    ['i32', '0x-1'],
    ['i64', '18446744073709551616'],
    ['i64', '0b1'],
    ['f32', '.'],
    ['f32', '0x1'],
    ['f64', '1e'],
    ['f64', 'one'],
    ['f64', '1,5'],
  ];
  for (const [type, text] of wrong) assert.notEqual(checkNumber(type, text), undefined, `${type} ${text}`);
  fc.assert(fc.property(fc.double(), (value) => checkNumber('f64', String(value)) === undefined));
  fc.assert(
    fc.property(
      fc.bigInt({ min: -(1n << 63n), max: (1n << 64n) - 1n }),
      (it) => checkNumber('i64', `${it}`) === undefined,
    ),
  );
});
