// The runner of JavaScript programs, which docs/languages.md describes: it reads one program and executes it.
//
// All modules here are executed when the component is built, and the memory that they leave is what every run begins
// with.

import { EXECUTE, RUN, allocatePiece, exit as leave, exportAs, rehearse, resolveStandardClasses, whenBound } from './bindings.js';
import { describeUncaught, installStacks, isOfParser } from './errors.js';
import { EventEmitter } from './events.js';
import { inspect } from './inspect.js';
import { Buffer, baked, compile, console, createRequire, evaluate, lineReader, path, placed, process, sources } from './modules.js';
import { imports, packages } from './packages.js';
import { close, exit, renew, setTell } from './process.js';
import { flushOut, readExactly, setLive, writeErr } from './streams.js';
import { readFileSync } from './files.js';
import { endTimers, installTimers, whenIdle, whenQueueIsEmpty } from './timers.js';

// The most bytes that a header may have, which has the program in it.
const MAX_HEADER = 64 << 20;

// The exit code where the header is malformed, and no program was started.
const MALFORMED_HEADER = 64;

const decoder = new TextDecoder('utf-8', { fatal: true });

// What is called while a program runs, when it ends and before the next one, by names that the program does not replace.
const { apply, set: setProperty } = Reflect;
const { emit, listenerCount } = EventEmitter.prototype;
const { then } = Promise.prototype;
const { set } = Map.prototype;
const { includes, startsWith } = String.prototype;
const { decode } = TextDecoder.prototype;
const { isArray } = Array;
const { assign, keys: keysOf } = Object;
const { parse, stringify } = JSON;
const NativePromise = Promise;

// How many programs this interpreter has begun.
let executed = 0;

// Whether the present program of a session has ended.
let isConcluded = false;

// Ends the program with this exit code, or with the one that it has set: by leaving, but in a session.
let conclude = exit;

class MalformedHeader extends Error {}

function refuse(message) {
  throw new MalformedHeader(message);
}

// Reads the header, and nothing after it.
function readHeader() {
  const start = readExactly(4);
  if (start.length !== 4) refuse(`the input ends ${4 - start.length} bytes before the length does`);
  const size = start[0] + start[1] * 0x100 + start[2] * 0x10000 + start[3] * 0x1000000;
  if (size > MAX_HEADER) refuse(`its length is ${size} bytes, and ${MAX_HEADER} is the most`);
  const bytes = size === 0 ? start.subarray(4) : readExactly(size);
  if (bytes.length !== size) refuse(`the input ends ${size - bytes.length} bytes before the header does`);
  try {
    return parse(apply(decode, decoder, [bytes]));
  } catch (error) {
    return refuse(`it is no JSON in UTF-8: ${error.message}`);
  }
}

const isObject = (value) => typeof value === 'object' && value !== null && !isArray(value);
const has = (text, part) => apply(includes, text, [part]);

// Refuses what is not as the protocol has it, and fills in what may be left out. No message is made before it is due.
function checkHeader(header) {
  if (!isObject(header)) refuse('it has to be an object');
  const { protocol, program, file = 'main.js', args = [], env = {}, options = {} } = header;
  if (protocol !== 1) refuse(`"protocol" is ${stringify(protocol)}, and this runner knows 1`);
  if (typeof file !== 'string' || file === '' || has(file, '\0') || has(file, '\n')) {
    refuse('"file" has to be a text that is not empty, without NUL and line ends');
  }
  if (program !== undefined && typeof program !== 'string') refuse('"program" has to be a text');
  if (program === undefined && !apply(startsWith, file, ['/'])) refuse('"program" is missing, and "file" is no absolute path to read it from');
  if (!isArray(args)) refuse('"args" has to be an array of texts');
  for (let at = 0; at < args.length; at += 1) {
    const arg = args[at];
    if (typeof arg !== 'string' || has(arg, '\0')) refuse(`"args" has ${stringify(arg)}; an argument is a text without NUL`);
  }
  if (!isObject(env)) refuse('"env" has to be an object of texts');
  const keys = keysOf(env);
  for (let at = 0; at < keys.length; at += 1) checkVariable(keys[at], env[keys[at]]);
  if (!isObject(options)) refuse('"options" has to be an object');
  return { program, file, args, env, options };
}

function checkVariable(key, value) {
  if (typeof value !== 'string' || has(value, '\0')) refuse(`"env" has no text without NUL for ${stringify(key)}`);
  if (key === '' || has(key, '=') || has(key, '\0')) {
    refuse(`"env" has the key ${stringify(key)}; keys are not empty, have no "=" and no NUL`);
  }
}

// Ends the program by an error that nobody caught, unless it has a handler of those.
function fail(error) {
  if (isConcluded) return;
  if (apply(listenerCount, process, ['uncaughtException']) === 0) {
    tell(error);
    conclude(1);
    return;
  }
  try {
    apply(emit, process, ['uncaughtException', error, 'uncaughtException']);
  } catch (second) {
    tell(second);
    conclude(7);
  }
}

function tell(error) {
  flushOut();
  writeErr(describeUncaught(error, sources, inspect));
}

// Gives a program the same numbers in each run, where its caller asked for the deterministic clock.
function fixRandomness() {
  let state = 0x9e3779b9;
  Math.random = () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

// Executes the text of a program, which has this name in what is shown of errors. What its last statement promises is
// waited for.
function execute(file, name, text) {
  apply(set, sources, [name, text]);
  const filename = path.resolve(file);
  const folder = path.dirname(filename);
  const module = { exports: {}, id: '.', filename, loaded: false };
  const require = createRequire(folder);
  require.main = module;
  // They are there since the component was built: to define them again would cost more than all the rest.
  globalThis.require = require;
  globalThis.module = module;
  globalThis.exports = module.exports;
  globalThis.__filename = filename;
  globalThis.__dirname = folder;
  let result;
  try {
    result = evaluate(`${text}\n//# sourceURL=${name}`);
  } catch (error) {
    if (!isOfParser(error)) throw error;
    placed(error, name, 0);
    result = executeInFunction(name, text, error);
  }
  if (isPromise(result)) apply(then, result, [undefined, fail]);
}

function isPromise(value) {
  try {
    return value instanceof NativePromise;
  } catch {
    // A proxy whose trap throws.
    return false;
  }
}

// Executes a program that is none by itself but is in a function: one that awaits, or returns, at its top.
function executeInFunction(name, text, error) {
  let wrapped;
  try {
    wrapped = compile(name, text, '', 'async ');
  } catch {
    throw error;
  }
  return apply(wrapped, globalThis.module.exports, []);
}

// What the component calls for `wasi:cli/run`. It returns when the engine runs what is queued, and the run exits from there.
function start() {
  begin();
  whenIdle(end);
  return pending;
}

// A promise that nothing resolves: the engine executes what is queued until the program exits.
const pending = new Promise(() => {});

// Ends a program that has nothing left to do.
function end() {
  try {
    if (apply(listenerCount, process, ['beforeExit']) > 0) {
      process.emit('beforeExit', process.exitCode ?? 0);
      whenIdle(() => conclude());
      return;
    }
  } catch (error) {
    fail(error);
  }
  conclude();
}

// What the component calls for a program of a session. The promise has the exit code of the program.
function executeNext() {
  const next = new NativePromise((resolve) => {
    conclude = (code) => endProgram(code, resolve);
  });
  isConcluded = false;
  begin();
  if (!isConcluded) whenIdle(end);
  return next;
}

// Ends a program of a session, once. Its timers are gone with it, and what it has queued is still executed.
function endProgram(code, resolve) {
  if (isConcluded) return;
  isConcluded = true;
  const last = close(code);
  endTimers();
  whenQueueIsEmpty(() => {
    endTimers();
    flushOut();
    resolve(last);
  });
}

// Reads a program and executes it, but for what it leaves to do later. It does not throw.
function begin() {
  try {
    beginProgram();
  } catch (error) {
    fail(error);
  }
}

function beginProgram() {
  if (executed > 0) {
    allocatePiece();
    renew();
  }
  executed += 1;
  let header;
  try {
    header = checkHeader(readHeader());
  } catch (error) {
    if (!(error instanceof MalformedHeader)) throw error;
    writeErr(`the runner of JavaScript was given a malformed header: ${error.message}\n`);
    leave(MALFORMED_HEADER);
  }
  const { file, args, env, options } = header;
  const argv = ['node', file];
  for (let at = 0; at < args.length; at += 1) argv[at + 2] = args[at];
  giveArguments(argv);
  setLive(options.unbuffered === true);
  if (executed === 1) {
    process.env = { ...env };
    if (options.deterministic === true) fixRandomness();
  } else {
    addVariables(env);
  }
  const program = header.program ?? readProgram(file);
  // Functions of programs before it may be shown, and they have the same name of file.
  if (program !== undefined) execute(file, executed === 1 ? file : `${file}[${executed}]`, program);
}

// Sets `process.argv`, of which an earlier program of the session may have left only the array: `process` may be frozen.
function giveArguments(argv) {
  if (setProperty(process, 'argv', argv)) return;
  const there = process.argv;
  there.length = 0;
  for (let at = 0; at < argv.length; at += 1) there[at] = argv[at];
}

// Adds variables to those that the programs before have left.
function addVariables(env) {
  if (isObject(process.env)) assign(process.env, env);
  else process.env = { ...env };
}

// Returns the text of a program that lies in a file, or says that it cannot be read and ends with code 2.
function readProgram(file) {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    writeErr(`node: cannot open '${file}': ${error.message}\n`);
    conclude(2);
    return undefined;
  }
}

// Makes the global names those of Node, as far as they work here.
function install() {
  for (const name of ['fetch', 'Request', 'Response', 'Headers', 'WorkerLocation', 'location', 'addEventListener', 'removeEventListener', 'dispatchEvent']) {
    delete globalThis[name];
  }
  const nextLine = lineReader();
  const readline = (prompt) => {
    if (prompt !== undefined) process.stdout.write(String(prompt));
    flushOut();
    return nextLine().value ?? null;
  };
  const ofProgram = { require: undefined, module: undefined, exports: undefined, __filename: undefined, __dirname: undefined };
  const names = { console, process, Buffer, global: globalThis, readline, ...ofProgram };
  for (const [name, value] of Object.entries(names)) {
    Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
  }
  for (const [name, text] of Object.entries(packages)) baked.set(name, text);
  installStacks();
  setTell(tell);
  installTimers(fail);
  const require = createRequire('/');
  for (const name of imports) require(name);
}

// Programs that are executed while the component is built, so that the functions which they call are compiled.
const PROGRAMS = [
  "console.log('hello')\n",
  "for (const value of [1, 'a', { a: [1, 2] }, new Map([[1, 2]])]) console.log(value, [value], '%s', process.argv)\n",
  "console.error(new Error('a'), Buffer.from('a').toString('hex'), require('path').join('/a', 'b'), 1.5)\n",
  "class A { constructor(a) { this.a = a } }\nconsole.log(JSON.stringify(new A(1)), `${[1, 2].map((n) => n * n)}`)\n",
];

// Executes programs, so that a run finds in memory what the engine makes when something is done for the first time.
function warmUp() {
  for (const program of [...PROGRAMS, ...PROGRAMS]) {
    const text = JSON.stringify({ protocol: 1, program, file: 'main.js', args: ['a'], env: { a: 'a' }, options: { unbuffered: true } });
    const header = new TextEncoder().encode(text);
    rehearse(Uint8Array.of(header.length & 0xff, header.length >> 8, 0, 0, ...header), () => {
      begin();
      end();
    });
    renew();
    setLive(false);
    executed = 0;
  }
  sources.clear();
}

resolveStandardClasses();
install();
whenBound(() => {
  warmUp();
  exportAs(RUN, start);
  exportAs(EXECUTE, executeNext);
});

export const run = { run: start };
export const session = { execute: executeNext };
