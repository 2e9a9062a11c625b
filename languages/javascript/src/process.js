// `process` of Node, and how a program ends.

import { exit as exitWithCode } from './bindings.js';
import { Buffer } from './buffer.js';
import { EventEmitter } from './events.js';
import { endOut, flushOut, readSome, reopenOut, writeErr, writeOut } from './streams.js';
import { timers } from './timers.js';

const PIECE = 1 << 16;

const { apply, defineProperty, set } = Reflect;
const { is } = Object;
const { removeAllListeners } = EventEmitter.prototype;

// Has a stream begin again, at the input of another program.
let renewInput;

// Standard input as Node's stream, read when somebody listens.
class Input extends EventEmitter {
  fd = 0;
  isTTY = false;
  #decoder;
  #isFlowing = false;

  static {
    renewInput = (input) => {
      input.#decoder = undefined;
      input.#isFlowing = false;
      apply(removeAllListeners, input, []);
    };
  }

  setEncoding() {
    this.#decoder = new TextDecoder();
    return this;
  }

  on(name, listener) {
    super.on(name, listener);
    if (name === 'data' || name === 'end' || name === 'readable') this.resume();
    return this;
  }

  once(name, listener) {
    super.once(name, listener);
    if (name === 'data' || name === 'end' || name === 'readable') this.resume();
    return this;
  }

  resume() {
    if (!this.#isFlowing) {
      this.#isFlowing = true;
      timers.setTimeout(() => this.#flow(), 0);
    }
    return this;
  }

  pause() {
    this.#isFlowing = false;
    return this;
  }

  unref() {
    return this;
  }

  ref() {
    return this;
  }

  #flow() {
    if (!this.#isFlowing) return;
    const piece = this.read();
    if (piece === null) {
      this.emit('end');
      this.emit('close');
      return;
    }
    this.emit('data', piece);
    timers.setTimeout(() => this.#flow(), 0);
  }

  // Returns what there is, or null at the end. It waits for it.
  read(count = PIECE) {
    const bytes = readSome(count);
    if (bytes.length === 0) return null;
    if (this.#decoder) return this.#decoder.decode(bytes, { stream: true });
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  async *[Symbol.asyncIterator]() {
    for (let piece = this.read(); piece !== null; piece = this.read()) yield piece;
  }

  pipe(target) {
    this.on('data', (piece) => target.write(piece));
    return target;
  }
}

// Standard output or standard error as Node's stream.
class Output extends EventEmitter {
  constructor(fd, send) {
    super();
    this.fd = fd;
    this.send = send;
    this.isTTY = false;
    this.writable = true;
    Object.defineProperty(this, 'send', { enumerable: false });
  }

  write(data, encoding, callback = encoding) {
    if (!this.writable) throw Object.assign(new Error('write after end'), { code: 'ERR_STREAM_WRITE_AFTER_END' });
    if (typeof data !== 'string' && !ArrayBuffer.isView(data)) {
      throw Object.assign(
        new TypeError('The "chunk" argument must be of type string or an instance of Buffer or Uint8Array.'),
        { code: 'ERR_INVALID_ARG_TYPE' },
      );
    }
    if (typeof data === 'string' && typeof encoding === 'string') this.send(Buffer.from(data, encoding));
    else this.send(typeof data === 'string' ? data : new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    if (typeof callback === 'function') queueMicrotask(callback);
    return true;
  }

  end(data, encoding, callback) {
    if (data !== undefined && typeof data !== 'function') this.write(data, encoding);
    this.writable = false;
    if (this.fd === 1) endOut();
    const last = [data, encoding, callback].find((value) => typeof value === 'function');
    if (last) queueMicrotask(last);
    return this;
  }
}

const { isFinite } = Number;
const { trunc } = Math;
const toNumber = Number;
let isExiting = false;
// The exit code that was asked for, where the program has left no `process.exitCode` that can have it.
let unassigned;
let tell;

// Takes what tells standard error of an error that nobody caught.
export function setTell(action) {
  tell = action;
}

// Ends the run with an exit code, after what the program wants to do at its end. It ends whatever the program has put in
// place of what is called for that.
export function exit(code) {
  const last = close(code);
  flushOut();
  exitWithCode(last);
}

// Does what the program wants to do at its end, and returns its exit code, which is the one given or the one that it has
// set.
export function close(code) {
  if (code !== undefined) assignCode(toNumber(code));
  let failed = 0;
  if (!isExiting) {
    isExiting = true;
    try {
      process.emit('exit', askedCode());
    } catch (error) {
      failed = 1;
      tell(error);
    }
  }
  let asked = 1;
  try {
    asked = askedCode();
  } catch (error) {
    if (failed === 0) tell(error);
  }
  return asked === 0 ? failed : asked;
}

// Sets `process.exitCode`, which handlers of `exit` see and change. The program may have frozen `process`.
function assignCode(code) {
  unassigned = undefined;
  try {
    if (set(process, 'exitCode', code) && is(process.exitCode, code)) return;
  } catch {
    // An accessor of the program's throws.
  }
  unassigned = code;
}

// Returns the exit code that the program has set. What is no number is 1.
function askedCode() {
  const asked = toNumber(unassigned ?? process.exitCode ?? 0);
  return isFinite(asked) ? trunc(asked) & 0xff : 1;
}

// How many programs have had the standard input, but for the present one.
export let inputsBefore = 0;

// Makes ready for another program: the end, the exit code and the standard streams are each program's own.
export function renew() {
  isExiting = false;
  unassigned = undefined;
  apply(removeAllListeners, process, ['beforeExit']);
  apply(removeAllListeners, process, ['exit']);
  defineProperty(process, 'exitCode', { __proto__: null, value: undefined, writable: true, enumerable: true, configurable: true });
  inputsBefore += 1;
  renewInput(stdin);
  set(stdout, 'writable', true);
  set(stderr, 'writable', true);
  reopenOut();
}

export const process = new EventEmitter();

const stdin = new Input();
const stdout = new Output(1, writeOut);
const stderr = new Output(2, writeErr);

const monotonic = () => performance.now();

Object.assign(process, {
  argv: ['node', 'main.js'],
  argv0: 'node',
  execArgv: [],
  execPath: '/usr/bin/node',
  env: {},
  exitCode: undefined,
  pid: 1,
  ppid: 0,
  platform: 'linux',
  arch: 'wasm32',
  title: 'node',
  version: 'v20.0.0',
  versions: { node: '20.0.0', ringfence: '1' },
  release: { name: 'ringfence' },
  stdin,
  stdout,
  stderr,
  exit,
  cwd: () => '/',
  uptime: () => monotonic() / 1000,
  umask: () => 0o22,
  nextTick: (callback, ...values) => queueMicrotask(() => callback(...values)),
  memoryUsage: () => ({ rss: 0, heapTotal: 0, heapUsed: 0, external: 0, arrayBuffers: 0 }),
  hrtime: Object.assign(
    (before = [0, 0]) => {
      const now = process.hrtime.bigint() - (BigInt(before[0]) * 1000000000n + BigInt(before[1]));
      return [Number(now / 1000000000n), Number(now % 1000000000n)];
    },
    { bigint: () => BigInt(Math.round(monotonic() * 1e6)) },
  ),
  emitWarning: (warning) => writeErr(`(ringfence) Warning: ${warning?.message ?? warning}\n`),
  abort: () => exit(134),
  kill: () => {
    throw Object.assign(new Error('kill ENOSYS'), { code: 'ENOSYS', syscall: 'kill' });
  },
  chdir: () => {
    throw Object.assign(new Error('ENOSYS: function not implemented, chdir'), { code: 'ENOSYS', syscall: 'chdir' });
  },
});
