import assert from 'node:assert/strict';
import { test } from 'node:test';
import { create } from '@bufbuild/protobuf';
import { durationFromMs, timestampFromMs } from '@bufbuild/protobuf/wkt';

import { Outcome } from '../src/gen/ringfence/v1/result_pb.js';
import { RunInfoSchema, RunState } from '../src/gen/ringfence/v1/run_pb.js';
import { RunSpecSchema } from '../src/gen/ringfence/v1/spec_pb.js';
import { diagnostics } from '../src/model/diagnostics.js';

const NOTHING = { moduleName: '', daemon: '', asked: undefined, stderr: { text: '' } };

test('a report has all that is known', () => {
  const run = create(RunInfoSchema, {
    runId: '01a2.box',
    state: RunState.ENDED,
    moduleDigest: 'sha256:ab',
    labels: { job: 'nightly', evil: 'a\u202e\u001b' },
    method: 'RunStream',
    caller: '127.0.0.1:9',
    detached: true,
    asked: timestampFromMs(0),
    started: timestampFromMs(10),
    ended: timestampFromMs(1_010),
    granted: { memoryPages: 1, stackSize: 262_144 },
    usage: { memoryUsed: 65_536n, elapsed: durationFromMs(1_000) },
    end: {
      case: 'result',
      value: {
        outcome: Outcome.TRAPPED,
        duration: durationFromMs(1_000),
        cpuTime: durationFromMs(3),
        trap: { code: 'unreachable', message: 'wasm trap', backtrace: [{ funcIndex: 1, funcName: 'main' }] },
      },
    },
  });
  const text = diagnostics(run, {
    moduleName: 'kit',
    daemon: 'ringfence 0.1.0, wasmtime 38',
    asked: create(RunSpecSchema, { args: ['kit', 'x'], env: ['KEY=secret'] }),
    stderr: { text: `one\n\u001b[31mtwo ${'x'.repeat(600)}` },
  });
  assert.equal(
    text,
    `Run
  id: 01a2.box
  module: kit
  digest: sha256:ab
  state: ended
  outcome: TRAPPED
  labels: evil=a⟨U+202E⟩␛, job=nightly
  method: RunStream
  caller: 127.0.0.1:9
  detached: yes
  asked: 1970-01-01T00:00:00.000Z
  started: 1970-01-01T00:00:00.010Z
  ended: 1970-01-01T00:00:01.010Z
  daemon: ringfence 0.1.0, wasmtime 38

How it stands
  It trapped: wasm trap.
  It waited 10 ms for its module and a slot.

Trap
  unreachable: wasm trap
  0: main (function 1)

Used
  Memory: 64 KiB of 64 KiB
  Time: 1 s
  Processor: 3 ms
  Standard output: 0 B
  Standard error: 0 B

Limits
  Stack: 256 KiB at most
  Fuel: not metered
  Output: as much as the daemon lets it

Asked for
  Arguments: "kit" "x"
  Environment: KEY

The last of standard error
  one
  ␛[31mtwo ${'x'.repeat(500 - '␛[31mtwo '.length)} …
`,
  );
});

test('a report of a refusal, and of a run of which little is known', () => {
  const refused = create(RunInfoSchema, {
    runId: 'x',
    state: RunState.ENDED,
    end: {
      case: 'error',
      value: { reason: 'QUEUE_FULL', message: 'too many runs', metadata: { limit: 'admission.queue' } },
    },
  });
  assert.equal(
    diagnostics(refused, { ...NOTHING, stderr: { error: 'it is gone' } }),
    `Run
  id: x
  state: ended
  outcome: REFUSED
  detached: no

How it stands
  It was refused before its first instruction.
  Too many runs. (QUEUE_FULL)

What the refusal tells
  limit: admission.queue

Standard error
  (not read: it is gone)
`,
  );
});
