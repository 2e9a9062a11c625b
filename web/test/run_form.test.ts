import assert from 'node:assert/strict';
import { test } from 'node:test';
import { create, toBinary } from '@bufbuild/protobuf';
import fc from 'fast-check';

import { ModuleInfoSchema, ModuleKind } from '../src/gen/ringfence/v1/module_pb.js';
import { RunInfoSchema } from '../src/gen/ringfence/v1/run_pb.js';
import { OutputPolicy, RunSpecSchema } from '../src/gen/ringfence/v1/spec_pb.js';
import {
  checkForm,
  EMPTY_FORM,
  fieldOf,
  formFor,
  formFromRun,
  formFromSpec,
  type RunForm,
} from '../src/model/run_form.js';

const digest = `sha256:${'ab'.repeat(32)}`;
const module = create(ModuleInfoSchema, {
  digest,
  name: 'tool',
  kind: ModuleKind.CORE,
  memoryMinimumPages: 32n,
  exports: [
    { name: '_start', kind: 'func', type: '() -> ()' },
    { name: 'add', kind: 'func', type: '(i32, f64) -> (i64)' },
  ],
  imports: [{ module: 'ringfence', name: 'log', kind: 'func' }],
});

function specOf(form: Partial<RunForm>, stdin = new Uint8Array()) {
  const made = checkForm({ ...EMPTY_FORM, ...form }, module, stdin);
  assert.ok('spec' in made, 'errors' in made ? JSON.stringify([...made.errors]) : '');
  return create(RunSpecSchema, made.spec);
}

function errorsOf(form: Partial<RunForm>) {
  const made = checkForm({ ...EMPTY_FORM, ...form }, module, new Uint8Array());
  return 'errors' in made ? [...made.errors.keys()] : [];
}

test('what is left empty is left to the daemon', () => {
  const spec = specOf({});
  assert.deepEqual(
    toBinary(RunSpecSchema, spec),
    toBinary(RunSpecSchema, create(RunSpecSchema, { module: { case: 'digest', value: digest }, detach: true })),
  );
});

test('everything that is typed is in the spec', () => {
  const spec = specOf(
    {
      args: `run 'a b'`,
      env: 'A=1\nB=x y',
      openStdin: true,
      memory: '64',
      fuel: '1M',
      stack: '1048576',
      timeout: '1m 30s',
      output: '64KiB',
      truncate: true,
      wasi: 'on',
      clock: 'off',
      network: true,
      hostFunctions: 'ringfence.log, ringfence.label',
      mounts: '/srv/0:1:/data:ro\n/tmp:/t',
      workingDir: '/data',
      labels: 'job=7',
      detach: false,
    },
    new TextEncoder().encode('hello'),
  );
  assert.deepEqual(spec.args, ['tool', 'run', 'a b']);
  assert.deepEqual(spec.env, ['A=1', 'B=x y']);
  assert.equal(new TextDecoder().decode(spec.stdin), 'hello');
  assert.equal(spec.openStdin, true);
  assert.equal(spec.resources?.memoryPages, 1024);
  assert.equal(spec.resources?.fuelLimit, 1_000_000n);
  assert.equal(spec.resources?.stackSize, 1 << 20);
  assert.equal(spec.resources?.outputLimit, 65_536n);
  assert.equal(spec.resources?.outputPolicy, OutputPolicy.TRUNCATE);
  assert.equal(spec.timeout?.seconds, 90n);
  assert.deepEqual(
    [spec.security?.enableWasi, spec.security?.enableClock, spec.security?.enableNetwork],
    [true, false, true],
  );
  assert.deepEqual(spec.security?.allowedHostFunctions, ['ringfence.log', 'ringfence.label']);
  assert.deepEqual(
    spec.mounts.map((it) => [it.hostPath, it.guestPath, it.readOnly]),
    [
      ['/srv/0:1', '/data', true],
      ['/tmp', '/t', false],
    ],
  );
  assert.deepEqual([spec.workingDir, spec.labels, spec.detach], ['/data', { job: '7' }, false]);
});

test('parameters are given as they are, without a program’s name', () => {
  const spec = specOf({ entry: 'add', params: [' 0x10 ', 'nan'], args: 'ignored' });
  assert.equal(spec.entryPoint, 'add');
  assert.deepEqual(spec.args, ['0x10', 'nan']);
  assert.deepEqual(errorsOf({ entry: 'add', params: ['x'] }), ['params.0', 'params.1']);
});

test('what WASI would hand over is not sent without it', () => {
  const spec = specOf(
    { wasi: 'off', env: 'A=1', openStdin: true, mounts: '/a:/b', workingDir: '/b' },
    new Uint8Array([1]),
  );
  assert.deepEqual([spec.env, spec.stdin.length, spec.openStdin, spec.mounts, spec.workingDir], [[], 0, false, [], '']);
});

test('what is wrong is told at its field', () => {
  assert.deepEqual(errorsOf({ entry: 'gone' }), ['entry']);
  assert.deepEqual(errorsOf({ args: `'` }), ['args']);
  assert.deepEqual(errorsOf({ env: 'A' }), ['env']);
  assert.deepEqual(errorsOf({ labels: 'ringfence.a=1' }), ['labels']);
  for (const memory of ['0', '1', 'x', '0.3', '-5', '1e9']) assert.deepEqual(errorsOf({ memory }), ['memory'], memory);
  assert.deepEqual(errorsOf({ memory: '31', memoryUnit: 'pages' }), ['memory']);
  assert.deepEqual(errorsOf({ memory: '32', memoryUnit: 'pages' }), []);
  for (const fuel of ['0', 'x', '18446744073709551616']) assert.deepEqual(errorsOf({ fuel }), ['fuel'], fuel);
  for (const timeout of ['30', '0s', 'soon']) assert.deepEqual(errorsOf({ timeout }), ['timeout'], timeout);
  assert.deepEqual(errorsOf({ output: '0' }), ['output']);
  assert.deepEqual(errorsOf({ mounts: 'data:/data' }), ['mounts']);
  const nothing = checkForm(EMPTY_FORM, undefined, new Uint8Array());
  assert.deepEqual('errors' in nothing && [...nothing.errors.keys()], ['module']);
});

test('a form is made for its module', () => {
  assert.equal(formFor(EMPTY_FORM, module).hostFunctions, 'ringfence.log');
  assert.equal(formFor({ ...EMPTY_FORM, entry: 'gone' }, module).entry, '');
  const reactor = create(ModuleInfoSchema, {
    kind: ModuleKind.CORE,
    exports: [{ name: 'f', kind: 'func', type: '() -> ()' }],
  });
  assert.equal(formFor(EMPTY_FORM, reactor).entry, 'f');
});

test('an earlier run fills in what the daemon keeps of it', () => {
  const run = create(RunInfoSchema, {
    moduleDigest: digest,
    method: 'RunStream',
    labels: { job: '7' },
    granted: {
      memoryPages: 288,
      fuelLimit: 5n,
      stackSize: 524_288,
      outputPolicy: OutputPolicy.STOP,
      outputLimit: 1n << 20n,
    },
  });
  const spec = specOf(formFromRun(run));
  assert.equal(spec.resources?.memoryPages, 288);
  assert.equal(spec.resources?.fuelLimit, 5n);
  assert.equal(spec.resources?.stackSize, 524_288);
  assert.equal(spec.resources?.outputLimit, 1n << 20n);
  assert.deepEqual(spec.labels, { job: '7' });
});

test('a spec that fills a form is made by it again', async () => {
  const typed: Array<Partial<RunForm>> = [
    {},
    { args: `run 'a b'`, program: 'p', env: 'A=1\nB=', openStdin: true, timeout: '1500ms', wasi: 'on', clock: 'off' },
    { entry: 'add', params: ['1', '2'], memory: '64', fuel: '7', stack: '262144', output: '5KiB', truncate: true },
    {
      network: true,
      hostFunctions: 'ringfence.log',
      mounts: '/a:/b:ro\n/c:/d',
      workingDir: '/b',
      labels: 'k=v=w',
      detach: false,
    },
  ];
  for (const form of typed) {
    const spec = specOf(form, new TextEncoder().encode('input'));
    const again = formFromSpec(spec);
    assert.deepEqual([again.stdinFrom, again.stdinText], ['text', 'input']);
    assert.deepEqual(specOf(again, new TextEncoder().encode(again.stdinText)), spec);
  }
  const binary = formFromSpec(specOf({}, new Uint8Array([0xff, 0])));
  assert.equal(binary.stdinFrom, 'file');
  assert.deepEqual(new Uint8Array((await binary.stdinFile?.arrayBuffer()) ?? []), new Uint8Array([0xff, 0]));
});

test('a refusal’s field is one of the form', () => {
  const add = { name: 'add', params: ['i32', 'f64'], results: [] } as const;
  assert.equal(fieldOf('spec.resources.memory_pages', '', undefined), 'memory');
  assert.equal(fieldOf('spec.security.enable_wasi', '', undefined), 'wasi');
  assert.equal(fieldOf('spec.mounts[0].host_path', 'POLICY_DENIED', undefined), 'mounts');
  assert.equal(fieldOf('spec.args', '', undefined), 'args');
  assert.equal(fieldOf('spec.args[1]', '', add), 'params.1');
  assert.equal(fieldOf('module', 'IMPORT_NOT_ALLOWED', undefined), 'hostFunctions');
  assert.equal(fieldOf('spec.digest', '', undefined), 'module');
  assert.equal(fieldOf('something.else', '', undefined), undefined);
});

test('whatever is typed makes a spec or errors', () => {
  const text = fc.string();
  const anything = fc.record({
    args: text,
    env: text,
    memory: text,
    fuel: text,
    timeout: text,
    output: text,
    mounts: text,
    labels: text,
  });
  fc.assert(
    fc.property(anything, (typed) => {
      const made = checkForm({ ...EMPTY_FORM, ...typed }, module, new Uint8Array());
      if ('spec' in made) toBinary(RunSpecSchema, create(RunSpecSchema, made.spec));
      else assert.ok(made.errors.size > 0);
    }),
  );
});
