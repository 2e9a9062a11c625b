import assert from 'node:assert/strict';
import { test } from 'node:test';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { durationFromMs, timestampFromMs } from '@bufbuild/protobuf/wkt';

import { CancelCause, FrameSchema, Outcome, RunResultSchema } from '../src/gen/ringfence/v1/result_pb.js';
import { RunInfoSchema, RunState } from '../src/gen/ringfence/v1/run_pb.js';
import { OutputPolicy, ResourcesSchema, RunSpecSchema } from '../src/gen/ringfence/v1/spec_pb.js';
import { endOf, standing } from '../src/model/run_end.js';
import { askedFor, formatFrame, formatValue, limitsOf, summarise } from '../src/model/run_summary.js';

type Result = MessageInitShape<typeof RunResultSchema>;
type Info = MessageInitShape<typeof RunInfoSchema>;

const GRANTED = { memoryPages: 64, fuelLimit: 1_000_000n, stackSize: 524_288, outputLimit: 65_536n };

function info(more: Info) {
  return create(RunInfoSchema, { runId: 'x', state: RunState.ENDED, ...more });
}

function ended(result: Result, more: Info = {}) {
  const value = create(RunResultSchema, result);
  value.granted ??= create(ResourcesSchema, GRANTED);
  return info({ started: timestampFromMs(0), end: { case: 'result', value }, ...more });
}

function refused(reason: string, message: string, more: Info = {}) {
  return info({ end: { case: 'error', value: { reason, message } }, ...more });
}

test('each end is told in sentences, and in brief', () => {
  const partial = 'What it wrote by then is partial output: 7 B of standard output and 0 B of standard error.';
  const notKept =
    'The daemon does not keep the limit: it was the timeout of the request, its deadline, or the default.';
  const cases: ReadonlyArray<readonly [ReturnType<typeof info>, readonly string[], string]> = [
    [ended({ outcome: Outcome.EXITED, exitCode: 0 }), ['It exited with code 0.'], 'Exited with 0'],
    [
      ended({ outcome: Outcome.EXITED, exitCode: 3 }),
      ['It exited with code 3, by which it says that it failed.'],
      'Exited with 3',
    ],
    [
      ended({ outcome: Outcome.EXITED, exitCode: 0, values: [{ value: { case: 'i32', value: -4 } }] }),
      ['It exited with code 0.', 'It returned -4 (i32).'],
      'Exited with 0',
    ],
    [
      ended({ outcome: Outcome.TRAPPED, trap: { code: 'unreachable', message: 'wasm trap: unreachable' } }),
      ['It trapped: unreachable.'],
      'Trapped: unreachable',
    ],
    [
      ended({ outcome: Outcome.MEMORY_EXCEEDED, exitCode: 3, memoryUsed: 3n << 20n, memoryDenied: true }),
      [
        'It went over its memory: it held 3 MiB of the 4 MiB (64 pages) that it had, wanted more, and was denied it.',
        'It then exited with code 3.',
      ],
      'Over the memory limit of 4 MiB',
    ],
    [
      ended({ outcome: Outcome.MEMORY_EXCEEDED, memoryUsed: 1n, trap: { code: 'unreachable', message: 'abort' } }),
      [
        'It went over its memory: it held 1 B of the 4 MiB (64 pages) that it had, wanted more, and was denied it.',
        'It then trapped: abort.',
      ],
      'Over the memory limit of 4 MiB',
    ],
    [
      ended({ outcome: Outcome.FUEL_EXHAUSTED, fuelConsumed: 1_000_000n }),
      ['It ran out of fuel: it used 1,000,000 of the 1,000,000 that it had.'],
      'Out of fuel, of which it had 1 million',
    ],
    [
      ended({ outcome: Outcome.STACK_OVERFLOW }),
      ['Its calls went too deep: it needed more than the 512 KiB of stack that it had.'],
      'Over the stack limit of 512 KiB',
    ],
    [
      ended({ outcome: Outcome.TIMED_OUT, duration: durationFromMs(2_017), stdoutBytes: 7n }),
      ['It reached its time limit, and was stopped after 2.01 s.', partial, notKept],
      'Timed out after 2.01 s',
    ],
    [
      ended({ outcome: Outcome.TIMED_OUT, duration: durationFromMs(90_000) }),
      ['It reached its time limit, and was stopped after 1 min 30 s.', 'It had written nothing by then.', notKept],
      'Timed out after 1 min 30 s',
    ],
    [
      ended({ outcome: Outcome.OUTPUT_EXCEEDED, stdoutBytes: 65_536n, stdoutTruncated: true }),
      ['It wrote more to standard output than it may: 64 KiB of the 64 KiB for each stream, and then more.'],
      'Over the output limit of 64 KiB',
    ],
    [
      ended({ outcome: Outcome.OUTPUT_EXCEEDED, stderrBytes: 65_536n, stderrTruncated: true }),
      ['It wrote more to standard error than it may: 64 KiB of the 64 KiB for each stream, and then more.'],
      'Over the output limit of 64 KiB',
    ],
    [
      ended({ outcome: Outcome.EXITED, exitCode: 0, stdoutBytes: 99_000n, stdoutTruncated: true }),
      ['It exited with code 0.', 'It wrote 96.7 KiB to standard output: 64 KiB of it are kept; the rest was dropped.'],
      'Exited with 0',
    ],
    [
      ended({ outcome: Outcome.EXITED, exitCode: 0, memoryDenied: true }),
      ['It exited with code 0.', 'It wanted more memory than it may have, was denied it, and went on.'],
      'Exited with 0',
    ],
    [
      ended({ outcome: Outcome.CANCELLED, cancelCause: CancelCause.CANCEL_RPC }),
      ['It was cancelled by a call that asked for it.'],
      'Cancelled by a call that asked for it',
    ],
    [
      ended({ outcome: Outcome.CANCELLED, cancelCause: CancelCause.CALLER_GONE }),
      ['It was cancelled because its caller left.', 'A run that is not detached ends with its caller.'],
      'Cancelled because its caller left',
    ],
    [
      ended({ outcome: Outcome.CANCELLED, cancelCause: CancelCause.READER_STALLED }),
      ['It was cancelled because its caller stopped reading its output.'],
      'Cancelled because its caller stopped reading its output',
    ],
    [
      ended({ outcome: Outcome.CANCELLED, cancelCause: CancelCause.DRAINING }),
      ['It was cancelled because the daemon shut down.'],
      'Cancelled because the daemon shut down',
    ],
    [
      refused('QUEUE_FULL', 'too many runs wait'),
      ['It was refused before its first instruction.', 'Too many runs wait. (QUEUE_FULL)'],
      'Refused: QUEUE_FULL: too many runs wait',
    ],
    [
      refused('INTERNAL', 'incident 7'),
      ['The daemon failed to start it.', 'Incident 7. (INTERNAL)'],
      'Failed: INTERNAL: incident 7',
    ],
    [
      refused('INTERNAL', 'incident 7', { started: timestampFromMs(1) }),
      ['The daemon failed while it ran.', 'Incident 7. (INTERNAL)'],
      'Failed: INTERNAL: incident 7',
    ],
    [
      refused('RUN_CANCELLED', 'the run was cancelled'),
      ['It was cancelled, or its caller left, before its first instruction.', 'The run was cancelled. (RUN_CANCELLED)'],
      'Cancelled before it started',
    ],
    [info({ state: RunState.ENDED }), ['It has ended, and the daemon does not say how.'], 'Ended'],
  ];
  for (const [run, sentences, brief] of cases) {
    assert.deepEqual(summarise(run).sentences, sentences);
    assert.equal(endOf(run)?.text, brief);
  }
});

test('a limit of time is told where this page asked for it', () => {
  const run = ended({ outcome: Outcome.TIMED_OUT, duration: durationFromMs(2_017) });
  const asked = create(RunSpecSchema, { timeout: durationFromMs(2_000) });
  assert.deepEqual(summarise(run, asked).sentences, [
    'It reached its time limit of 2 s, and was stopped after 2.01 s.',
    'It had written nothing by then.',
  ]);
});

test('what a live run does and waits for', () => {
  const cases: ReadonlyArray<readonly [RunState, string, string]> = [
    [
      RunState.COMPILING,
      'Its module is being found, checked or compiled.',
      'Its module is being found, checked or compiled',
    ],
    [RunState.QUEUED, 'It waits for a slot.', 'Waits for a slot'],
    [RunState.RUNNING, 'It runs.', 'Runs'],
  ];
  for (const [state, sentence, brief] of cases) {
    const run = info({ state });
    assert.deepEqual(summarise(run).sentences, [sentence]);
    assert.equal(standing(run).text, brief);
    assert.equal(endOf(run), undefined);
  }
});

test('how long a run waited', () => {
  const asked = timestampFromMs(1_000);
  const started = info({ state: RunState.RUNNING, asked, started: timestampFromMs(1_250) });
  assert.deepEqual(summarise(started).sentences, ['It runs.', 'It waited 250 ms for its module and a slot.']);
  const atOnce = info({ state: RunState.RUNNING, asked, started: { ...asked, nanos: 999_999 } });
  assert.equal(summarise(atOnce).sentences.at(-1), 'It had its module and a slot at once.');
  const never = refused('WAIT_EXPIRED', 'no slot came free', { asked, ended: timestampFromMs(31_000) });
  assert.equal(summarise(never).sentences.at(-1), 'That was 30 s after the request.');
});

test('what a refusal tells besides its message', () => {
  const run = info({
    end: {
      case: 'error',
      value: { reason: 'LIMIT_ABOVE_MAXIMUM', message: 'too much', metadata: { limit: 'policy.x', asked: '9\u202e' } },
    },
  });
  assert.deepEqual(summarise(run).refusal, [
    { name: 'asked', value: '9⟨U+202E⟩' },
    { name: 'limit', value: 'policy.x' },
  ]);
});

test('what a run used of what it had', () => {
  const usage = { elapsed: durationFromMs(1_500), memoryUsed: 1_048_576n, fuelConsumed: 250_000n, stdoutBytes: 1_024n };
  const live = info({ state: RunState.RUNNING, granted: GRANTED, usage });
  assert.deepEqual(
    summarise(live).uses.map(({ name, text, isOver }) => [name, text, isOver]),
    [
      ['Memory', '1 MiB of 4 MiB', false],
      ['Fuel', '250,000 of 1 million', false],
      ['Standard output', '1 KiB of 64 KiB', false],
      ['Standard error', '0 B of 64 KiB', false],
    ],
  );
  const result = {
    outcome: Outcome.TIMED_OUT,
    duration: durationFromMs(2_000),
    cpuTime: durationFromMs(5),
    stdinBytes: 3n,
  };
  const asked = create(RunSpecSchema, { timeout: durationFromMs(2_000) });
  assert.deepEqual(
    summarise(ended({ ...result, granted: {} }, { usage: { memoryUsed: 0n } }), asked).uses.map(
      ({ name, text, isOver }) => [name, text, isOver],
    ),
    [
      ['Memory', '0 B', false],
      ['Time', '2 s of 2 s', true],
      ['Processor', '5 ms', false],
      ['Standard output', '0 B', false],
      ['Standard error', '0 B', false],
      ['Input read', '3 B', false],
    ],
  );
});

test('the limits that no bar shows', () => {
  assert.deepEqual(limitsOf(undefined), []);
  assert.deepEqual(
    limitsOf(
      create(RunSpecSchema, {
        resources: { stackSize: 524_288, outputLimit: 1024n, outputPolicy: OutputPolicy.TRUNCATE },
      }).resources,
    ),
    [
      { name: 'Stack', value: '512 KiB at most' },
      { name: 'Fuel', value: 'not metered' },
      { name: 'Output', value: '1 KiB a stream, then the rest is dropped' },
    ],
  );
});

test('what a run was asked for with, without values of its environment', () => {
  const spec = create(RunSpecSchema, {
    entryPoint: 'f\u202e',
    args: ['kit', 'a b', '\n'],
    env: ['TOKEN=secret'],
    stdin: new Uint8Array(2_048),
    mounts: [{ hostPath: '/a', guestPath: '/b', readOnly: true }],
  });
  assert.deepEqual(askedFor(spec), [
    { name: 'Entry point', value: 'f⟨U+202E⟩' },
    { name: 'Arguments', value: '"kit" "a b" "\\n"' },
    { name: 'Environment', value: 'TOKEN' },
    { name: 'Mounts', value: '/a at /b, to read' },
    { name: 'Input', value: '2 KiB' },
  ]);
});

test('calls on a stack, and values', () => {
  const cases: ReadonlyArray<readonly [MessageInitShape<typeof FrameSchema>, string]> = [
    [
      { funcIndex: 27, funcName: '_ZN3kit4main17h269c5bbb402c5113E', moduleOffset: 5103n },
      'kit::main (function 27, at 0x13ef)',
    ],
    [
      { funcName: '_ZN3std2rt10lang_start28_$u7b$$u7b$closure$u7d$$u7d$17h8bace2fd7f1af66bE.llvm.3766277323934701612' },
      'std::rt::lang_start::{{closure}} (function 0)',
    ],
    [{ funcIndex: 3 }, 'a function without a name (function 3)'],
    [{ funcIndex: 3, funcName: 'add', moduleName: 'calc' }, 'calc!add (function 3)'],
    [{ funcName: '_ZN9main17h269c5bbb402c5113E' }, '_ZN9main17h269c5bbb402c5113E (function 0)'],
    [{ funcName: '<img src=x>\u202e' }, '<img src=x>⟨U+202E⟩ (function 0)'],
  ];
  for (const [frame, shown] of cases) assert.equal(formatFrame(create(FrameSchema, frame)), shown);
  const run = ended({ values: [{ value: { case: 'i64', value: -1n } }, { value: { case: 'f64', value: -0 } }, {}] });
  assert.equal(run.end.case, 'result');
  if (run.end.case !== 'result') return;
  assert.deepEqual(run.end.value.values.map(formatValue), ['-1 (i64)', '-0 (f64)', 'a value of an unknown type']);
});
