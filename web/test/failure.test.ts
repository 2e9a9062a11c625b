// What a call failed by.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Code, ConnectError } from '@connectrpc/connect';

import { failureOf, isAborted, isTransient } from '../src/api/failure.js';
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from '../src/gen/google/rpc/error_details_pb.js';

function refusal(code: Code, reason: string, retrySeconds?: number): ConnectError {
  const info = { desc: ErrorInfoSchema, value: { reason, domain: 'ringfence', metadata: { limit: 'runs.viewers' } } };
  const field = {
    desc: BadRequestSchema,
    value: { fieldViolations: [{ field: 'spec.args', description: 'too long' }] },
  };
  const details = [info, field];
  if (retrySeconds === undefined) return new ConnectError('no room', code, undefined, details);
  const retry = { desc: RetryInfoSchema, value: { retryDelay: { seconds: BigInt(retrySeconds), nanos: 500_000_000 } } };
  return new ConnectError('no room', code, undefined, [...details, retry]);
}

test('a refusal tells its reason, its figures, its fields and when to try again', () => {
  assert.deepEqual(failureOf(refusal(Code.ResourceExhausted, 'QUEUE_FULL', 1)), {
    code: Code.ResourceExhausted,
    reason: 'QUEUE_FULL',
    message: 'no room',
    metadata: { limit: 'runs.viewers' },
    fields: ['spec.args'],
    retryAfterMs: 1_500,
  });
});

test('whatever is thrown is a failure, without a reason, in words that say what happened', () => {
  const brokeOff = 'the connection to the daemon broke off';
  const thrown: ReadonlyArray<readonly [unknown, string]> = [
    [new TypeError('Failed to fetch'), brokeOff],
    [new TypeError('NetworkError when attempting to fetch resource.'), brokeOff],
    ['missing trailer', brokeOff],
    [new ConnectError('protocol error: incomplete envelope', Code.InvalidArgument), brokeOff],
    [new ConnectError('the operation timed out', Code.DeadlineExceeded), 'the daemon did not answer in time'],
    [new ConnectError('HTTP 502', Code.Unavailable), 'there was an answer, but none of the daemon (HTTP 502)'],
    [new ConnectError('the browser cannot read this file', Code.InvalidArgument), 'the browser cannot read this file'],
  ];
  for (const [error, message] of thrown) {
    const failure = failureOf(error);
    assert.deepEqual([failure.reason, failure.message, failure.retryAfterMs], ['', message, undefined]);
  }
});

test('a call that its caller ended is told from one that failed', () => {
  assert.ok(isAborted(new DOMException('', 'AbortError')));
  assert.ok(isAborted(new ConnectError('', Code.Canceled)));
  assert.ok(!isAborted(new TypeError('Failed to fetch')));
});

test('a broken connection, a busy daemon and one that ends are tried again', () => {
  const broken = [
    new TypeError('Failed to fetch'),
    'missing trailer',
    // A stream that is cut within a message.
    new ConnectError('protocol error: incomplete envelope', Code.InvalidArgument),
    new ConnectError('HTTP 502', Code.Unavailable),
    new ConnectError('the operation timed out', Code.DeadlineExceeded),
    refusal(Code.ResourceExhausted, 'QUEUE_FULL', 0),
    refusal(Code.Unavailable, 'SHUTTING_DOWN'),
  ];
  for (const error of broken) assert.ok(isTransient(failureOf(error)), String(error));
});

test('a refusal for good is not', () => {
  const final = [
    refusal(Code.NotFound, 'RUN_NOT_FOUND'),
    refusal(Code.Unavailable, 'STORE_UNAVAILABLE'),
    refusal(Code.Unauthenticated, 'CREDENTIALS_INVALID'),
    new ConnectError('HTTP 401', Code.Unauthenticated),
    new ConnectError('HTTP 403', Code.PermissionDenied),
    new ConnectError('HTTP 404', Code.Unimplemented),
    new ConnectError('', Code.Canceled),
  ];
  for (const error of final) assert.ok(!isTransient(failureOf(error)), String(error));
});
