// What the daemon says when it refuses a call, for people and for code.

import { durationMs } from '@bufbuild/protobuf/wkt';
import { Code, ConnectError } from '@connectrpc/connect';

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from '../gen/google/rpc/error_details_pb.js';

/** A call that failed. */
export interface Failure {
  readonly code: Code;
  /** The stable reason, such as `QUEUE_FULL`; empty where none was given, as by a broken connection. */
  readonly reason: string;
  readonly message: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** The fields at fault. */
  readonly fields: readonly string[];
  /** How long to wait before the next try; `undefined` where a try does not help. */
  readonly retryAfterMs: number | undefined;
}

/** Tells what a call failed by. */
export function failureOf(error: unknown): Failure {
  const failed = ConnectError.from(error);
  const [info] = failed.findDetails(ErrorInfoSchema);
  const [retry] = failed.findDetails(RetryInfoSchema);
  const [request] = failed.findDetails(BadRequestSchema);
  return {
    code: failed.code,
    reason: info?.reason ?? '',
    message: info === undefined ? wordsOf(failed) : failed.rawMessage,
    metadata: info?.metadata ?? {},
    fields: (request?.fieldViolations ?? []).map((it) => it.field),
    retryAfterMs: retry?.retryDelay === undefined ? undefined : durationMs(retry.retryDelay),
  };
}

/** Says what happened to a call that no daemon answered: the words of browsers and libraries help nobody. */
function wordsOf(failed: ConnectError): string {
  const { code, rawMessage, cause } = failed;
  if (code === Code.DeadlineExceeded) return 'the daemon did not answer in time';
  if (/^HTTP \d+$/.test(rawMessage)) return `there was an answer, but none of the daemon (${rawMessage})`;
  const isBroken = cause instanceof TypeError || /^(missing trailer$|protocol error)/.test(rawMessage);
  return isBroken ? 'the connection to the daemon broke off' : rawMessage;
}

/** Tells whether a call ended because its caller ended it. */
export function isAborted(error: unknown): boolean {
  return ConnectError.from(error).code === Code.Canceled;
}

/** Without a reason, these say that somebody between here and the daemon refuses, or that it is no such daemon. */
const REFUSALS = [Code.Canceled, Code.PermissionDenied, Code.Unauthenticated, Code.Unimplemented];

/** Tells whether a failure is one of the connection or of a busy daemon, so that the same call may succeed later. */
export function isTransient(failure: Failure): boolean {
  if (failure.retryAfterMs !== undefined) return true;
  // The daemon that ends may be started again, or another one takes its place.
  if (failure.reason === 'SHUTTING_DOWN') return true;
  // A connection that breaks off is told in several ways, and what the daemon itself refuses has a reason.
  return failure.reason === '' && !REFUSALS.includes(failure.code);
}
