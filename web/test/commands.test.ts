import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { durationFromMs } from '@bufbuild/protobuf/wkt';
import fc from 'fast-check';

import { RunInfoSchema } from '../src/gen/ringfence/v1/run_pb.js';
import { OutputPolicy, RunSpecSchema } from '../src/gen/ringfence/v1/spec_pb.js';
import {
  asGrpcurl,
  asRingfence,
  type KnownSpec,
  NOT_KEPT,
  quoteWords,
  specToRepeat,
  type Target,
} from '../src/model/commands.js';

const DIGEST = `sha256:${'ab'.repeat(32)}`;
const TARGET: Target = { server: '127.0.0.1:50051', isSecure: false, needsToken: false };
const HOSTILE = [
  '; rm -rf ~',
  '$(touch /tmp/x)',
  '`id`',
  "it's",
  '"quoted"',
  '',
  ' ',
  '-n',
  '--',
  '--label=x=y',
  '~/*',
  '%s%n\\n\\',
  'a\u202eb',
  '\u001b[31m\u0015\u0003',
  'two\nlines\n\n',
  '\n',
  '\u200b',
  '🙂é',
  '=ls',
  '!!',
  '#no comment',
  '\\',
];

function known(init: MessageInitShape<typeof RunSpecSchema>): KnownSpec {
  return { spec: create(RunSpecSchema, { module: { case: 'digest', value: DIGEST }, ...init }), isWhole: true };
}

/** Lets a shell read a command, and returns the words that it reads. */
function read(command: string, shell = 'sh'): string[] {
  const script = `ringfence() { printf '%s\\0' "$@"; }\ngrpcurl() { printf '%s\\0' "$@"; }\n${command}\n`;
  const done = spawnSync(shell, {
    input: script,
    encoding: 'utf8',
    env: { PATH: process.env['PATH'], RINGFENCE_TOKEN: 'secret' },
  });
  assert.equal(done.stderr, '');
  return done.stdout.split('\0').slice(0, -1);
}

test('shells read the words that were quoted', () => {
  for (const shell of ['sh', 'bash']) {
    assert.deepEqual(read(`ringfence ${quoteWords(HOSTILE)}`, shell), HOSTILE);
  }
});

test('what is quoted has no character that a terminal would take for a key, but line breaks at the end of a word', () => {
  for (const word of HOSTILE) assert.doesNotMatch(quoteWords([word]).replace(/'\n+'$/, ''), /[\p{Cc}\u202e\u200b]/u);
});

test('any words are read as they were', () => {
  const word = fc.string({ unit: 'grapheme' }).map((it) => it.replaceAll('\0', ''));
  const words = fc.array(fc.oneof(word, fc.constantFrom(...HOSTILE)), { minLength: 1, maxLength: 20 });
  fc.assert(
    fc.property(words, (given) => assert.deepEqual(read(`ringfence ${quoteWords(given)}`), given)),
    { numRuns: 40 },
  );
});

test('a run as a command of ringfence', () => {
  const { text, leavesOut } = asRingfence(
    known({
      args: ['kit', ...HOSTILE],
      env: ['A=1; true'],
      labels: { 'x;y': '$(id)', job: 'a\u202eb' },
      timeout: durationFromMs(1_500),
      resources: {
        memoryPages: 64,
        fuelLimit: 7n,
        stackSize: 65_536,
        outputLimit: 1024n,
        outputPolicy: OutputPolicy.TRUNCATE,
      },
      security: { enableWasi: true, enableClock: false, enableNetwork: true, allowedHostFunctions: ['ringfence.log'] },
      mounts: [{ hostPath: '/a b', guestPath: '/c', readOnly: true }],
      workingDir: '/c',
      stdin: new Uint8Array([1]),
    }),
    TARGET,
  );
  assert.deepEqual(read(text), [
    'run',
    '--server=127.0.0.1:50051',
    '--label=job=a\u202eb',
    '--label=x;y=$(id)',
    '--env=A=1; true',
    '--mount=/a b:/c:ro',
    '--workdir=/c',
    '--timeout=1500ms',
    '--memory-pages=64',
    '--fuel=7',
    '--stack=65536',
    '--output-limit=1024',
    '--truncate',
    '--allow-host-function=ringfence.log',
    '--no-clock',
    '--network',
    '--no-stdin',
    '--',
    DIGEST,
    ...HOSTILE,
  ]);
  assert.deepEqual(leavesOut, ['its input', 'the name that the guest has as its first argument']);
});

test('a call of a function has its parameters as arguments', () => {
  const { text } = asRingfence(known({ entryPoint: 'add', args: ['1', '-2'], openStdin: true }), {
    ...TARGET,
    isSecure: true,
  });
  assert.deepEqual(read(text), [
    'run',
    '--server=https://127.0.0.1:50051',
    '--entry=add',
    '--open-stdin',
    '--',
    DIGEST,
    '1',
    '-2',
  ]);
});

test('a run as a call of grpcurl', () => {
  const spec = known({
    entryPoint: 'f',
    args: HOSTILE,
    env: ["A='"],
    labels: { 'x"': 'a\u202eb' },
    timeout: durationFromMs(1_500),
    resources: { memoryPages: 64, fuelLimit: 18_446_744_073_709_551_615n },
    security: { enableClock: false },
    stdin: new TextEncoder().encode('hi'),
  });
  const { text } = asGrpcurl(spec, TARGET);
  const [plain, flag, json, server, method, ...rest] = read(text);
  assert.deepEqual(
    [plain, flag, server, method, rest],
    ['-plaintext', '-d', '127.0.0.1:50051', 'ringfence.v1.SandboxService/RunStream', []],
  );
  assert.deepEqual(JSON.parse(json ?? ''), {
    spec: {
      digest: DIGEST,
      entryPoint: 'f',
      args: HOSTILE,
      env: ["A='"],
      stdin: 'aGk=',
      timeout: '1.5s',
      labels: { 'x"': 'a\u202eb' },
      resources: { memoryPages: 64, fuelLimit: '18446744073709551615' },
      security: { enableClock: false },
      detach: true,
    },
  });
  assert.doesNotMatch(text, /[\p{Cc}\u202e]/u);
});

test('a token is taken from the environment, and is not part of a command', () => {
  const { text } = asGrpcurl(known({}), { ...TARGET, isSecure: true, needsToken: true });
  assert.doesNotMatch(text, /secret/);
  assert.deepEqual(read(text).slice(0, 3), ['-H', 'authorization: Bearer secret', '-d']);
});

test('what is known of a run by the daemon is less than what this page asked for', () => {
  const run = create(RunInfoSchema, {
    runId: 'x',
    moduleDigest: DIGEST,
    labels: { a: 'b' },
    granted: { memoryPages: 3, outputPolicy: OutputPolicy.STOP },
  });
  const kept = specToRepeat(run, undefined);
  assert.deepEqual(kept?.isWhole, false);
  assert.deepEqual(read(asRingfence(kept!, TARGET).text).slice(1, 4), [
    '--server=127.0.0.1:50051',
    '--label=a=b',
    '--memory-pages=3',
  ]);
  assert.deepEqual(asRingfence(kept!, TARGET).leavesOut, [NOT_KEPT]);
  assert.deepEqual(asGrpcurl(kept!, TARGET).leavesOut, [NOT_KEPT]);
  const asked = create(RunSpecSchema, {
    module: { case: 'digest', value: DIGEST },
    args: ['a'],
    idempotencyKey: 'once',
  });
  assert.deepEqual(specToRepeat(run, asked)?.spec.args, ['a']);
  assert.equal(specToRepeat(run, asked)?.spec.idempotencyKey, '');
  assert.equal(specToRepeat(run, asked)?.spec.detach, true);
  assert.equal(specToRepeat(create(RunInfoSchema, { runId: 'x' }), undefined), undefined);
});
