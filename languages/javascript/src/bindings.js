// What a run imports from its host to read, to write and to exit, and what the component calls.
//
// componentize-js makes bindings between this runner and WASI, as a script in a realm of their own. Each of their calls
// costs what a small program costs: they take records of what they do, register a finaliser and copy what is read
// twice. So the calls that every run makes go to the functions of the component that are beneath the bindings, which
// are reached by any function of their realm. Files go through the bindings.
//
// When the component is built, the runner is evaluated, the engine collects its garbage, the bindings take the runner's
// exports, and the memory as it then is becomes that of every run. The collection throws away what the engine keeps to
// be fast: tables of properties, atoms that it found lately, blocks of memory. So what makes runs fast is done when the
// exports are taken, and not before.

import { getStdin } from 'wasi:cli/stdin@0.2.12';

const RealmFunction = getStdin.constructor;

const realm = new RealmFunction('return globalThis')();

// The functions that the component calls, for `wasi:cli/run` and for `ringfence:runner/session`.
export const RUN = 'export_run_0_2_12$run';
export const EXECUTE = 'export_session_1_0_0$execute';

// What a program may replace.
const { apply } = Reflect;
const { encode, encodeInto } = TextEncoder.prototype;
const { set, subarray } = Uint8Array.prototype;
const { min } = Math;
const NativeUint8Array = Uint8Array;
const NativeUint32Array = Uint32Array;
const toBigInt = BigInt;

// The functions of the host, by their names in the bindings. A handle is a number, and so is the place of a result.
const HOST = {
  getStdin: '$import_wasi_cli_stdin_0_2_12$getStdin',
  getStdout: '$import_wasi_cli_stdout_0_2_12$getStdout',
  getStderr: '$import_wasi_cli_stderr_0_2_12$getStderr',
  exitWithCode: '$import_wasi_cli_exit_0_2_12$exitWithCode',
  blockingRead: '$import_wasi_io_streams_0_2_12$inputStream$method$blockingRead',
  checkWrite: '$import_wasi_io_streams_0_2_12$outputStream$method$checkWrite',
  write: '$import_wasi_io_streams_0_2_12$outputStream$method$write',
  blockingFlush: '$import_wasi_io_streams_0_2_12$outputStream$method$blockingFlush',
  blockingWriteAndFlush: '$import_wasi_io_streams_0_2_12$outputStream$method$blockingWriteAndFlush',
};

// What is allocated here is released when what the component calls returns, so it must not be released before. What the
// host has allocated has to be released.
const { memory, allocate, dealloc } = new RealmFunction('return { memory: $memory, allocate: $realloc, dealloc: $dealloc }')();

let release = dealloc;

let host = new RealmFunction(`return { ${Object.entries(HOST).map(([key, name]) => `${key}: ${name}`).join(', ')} }`)();

// All memory of the component, as far as it reached when it was last looked at.
let bytes = new Uint8Array(memory.buffer);
let words = new Uint32Array(memory.buffer);

// Makes sure that so many bytes from an address on are in `bytes` and `words`.
function reach(address, size) {
  if (address + size <= bytes.length) return;
  bytes = new NativeUint8Array(memory.buffer);
  words = new NativeUint32Array(memory.buffer);
}

// The most bytes that one call writes, which stand in memory of their own.
const PIECE = 1 << 16;

// The most bytes that one blocking write may have.
const BLOCKING = 4096;

let piece;
let pieceBytes;
let lineBytes;

// Allocates the memory that is written from. That of the program before is gone.
export function allocatePiece() {
  piece = allocate(0, 0, 8, PIECE);
  reach(piece, PIECE);
  pieceBytes = apply(subarray, bytes, [piece, piece + PIECE]);
  lineBytes = apply(subarray, bytes, [piece, piece + BLOCKING]);
}

allocatePiece();

const encoder = new TextEncoder();

// Returns whether a result is no error, having released it, since no result has anything but numbers beside a list.
function isRight(result) {
  reach(result, 4);
  const right = bytes[result] === 0;
  release(result);
  return right;
}

const streams = [undefined, undefined, undefined];

// Returns the handle of a standard stream, by its number in a process.
function handleOf(stream) {
  if (stream === 0) return (streams[0] ??= host.getStdin());
  if (stream === 1) return (streams[1] ??= host.getStdout());
  return (streams[2] ??= host.getStderr());
}

// Reads at most so many bytes of standard input. It waits for some; at the end there is null.
export function read(count) {
  const result = host.blockingRead(handleOf(0), toBigInt(count));
  reach(result, 12);
  if (bytes[result] !== 0) {
    release(result);
    return null;
  }
  const at = words[(result >> 2) + 1];
  const size = words[(result >> 2) + 2];
  release(result);
  if (size === 0) return new NativeUint8Array(0);
  reach(at, size);
  const copy = new NativeUint8Array(size);
  apply(set, copy, [apply(subarray, bytes, [at, at + size])]);
  release(at, size, 1);
  return copy;
}

// Writes bytes to standard output (1) or standard error (2). Where nobody reads any more, there is nobody to tell.
export function write(stream, data) {
  const handle = handleOf(stream);
  let at = 0;
  while (at < data.length) {
    let size = min(data.length - at, BLOCKING);
    if (data.length - at > BLOCKING) {
      const room = roomOf(handle);
      if (room > BLOCKING) size = min(data.length - at, room, PIECE);
    }
    apply(set, pieceBytes, [at === 0 && size === data.length ? data : apply(subarray, data, [at, at + size])]);
    at += size;
    if (size <= BLOCKING) {
      if (!isRight(host.blockingWriteAndFlush(handle, piece, size))) return;
    } else if (!isRight(host.write(handle, piece, size)) || (at === data.length && !isRight(host.blockingFlush(handle)))) return;
  }
}

// Returns how many bytes a stream takes at once, or 0 where that is not known.
function roomOf(handle) {
  const result = host.checkWrite(handle);
  reach(result, 16);
  const room = bytes[result] === 0 ? min(words[(result >> 2) + 2], PIECE) : 0;
  const isLarge = bytes[result] === 0 && words[(result >> 2) + 3] !== 0;
  release(result);
  return isLarge ? PIECE : room;
}

// Writes a text to standard output (1) or standard error (2).
export function writeText(stream, text) {
  // A unit of a text is at most three bytes of UTF-8.
  if (text.length * 3 > BLOCKING) {
    write(stream, apply(encode, encoder, [text]));
    return;
  }
  const { written } = apply(encodeInto, encoder, [text, lineBytes]);
  isRight(host.blockingWriteAndFlush(handleOf(stream), piece, written));
}

// Ends the run with an exit code of one byte.
export function exit(code) {
  host.exitWithCode(code);
}

// Executes an action when the bindings have taken the exports: after the last collection of garbage.
export function whenBound(action) {
  const { bindExports } = realm;
  if (typeof bindExports !== 'function') throw new Error('the bindings have no function bindExports');
  realm.bindExports = (name) => {
    bindExports(name);
    action();
  };
}

// Has the component call a function for one of its exports, as it is: that of the bindings is asynchronous, and makes a
// promise in their realm. The function has to return a promise, and must not throw.
export function exportAs(name, action) {
  if (typeof realm[name] !== 'function') throw new Error(`the bindings have no function ${name}`);
  realm[name] = action;
}

// Makes the standard classes, each of which the engine otherwise makes where it first meets its name.
export function resolveStandardClasses() {
  for (const global of [globalThis, realm]) {
    for (const name of Reflect.ownKeys(global)) void global[name];
  }
}

// Thrown in place of the end of a rehearsal.
const ENDED = Symbol('the rehearsal has ended');

// Executes a run with a host of its own, which gives it this input and takes all that it writes, until it exits.
export function rehearse(input, run) {
  const real = host;
  let rest = input;
  // Nothing in a rehearsal is the host's.
  release = () => {};
  // Returns the place of a result that is no error, with the two words at its end.
  const succeed = (...values) => {
    const at = allocate(0, 0, 8, 16);
    reach(at, 16);
    words.set([0, ...values, 0, 0, 0].slice(0, 4), at >> 2);
    return at;
  };
  host = {
    getStdin: () => 1,
    getStdout: () => 2,
    getStderr: () => 3,
    exitWithCode: () => {
      throw ENDED;
    },
    blockingRead: (handle, count) => {
      const given = rest.subarray(0, Number(count));
      rest = rest.subarray(given.length);
      const at = allocate(0, 0, 1, given.length);
      reach(at, given.length);
      bytes.set(given, at);
      return succeed(at, given.length);
    },
    checkWrite: () => succeed(0, PIECE),
    write: () => succeed(),
    blockingFlush: () => succeed(),
    blockingWriteAndFlush: () => succeed(),
  };
  try {
    run();
  } catch (error) {
    if (error !== ENDED) throw error;
  } finally {
    host = real;
    release = dealloc;
    streams.fill(undefined);
  }
}
