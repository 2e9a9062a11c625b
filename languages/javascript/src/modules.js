// `require`: the modules of Node that there are, and files of the run.

import { Buffer } from './buffer.js';
import { console } from './console.js';
import { EventEmitter } from './events.js';
import * as files from './files.js';
import { format, inspect } from './inspect.js';
import * as path from './path.js';
import { inputsBefore, process } from './process.js';
import { readRest } from './streams.js';
import { timers } from './timers.js';

// The sources of all files that were executed, by their names, for what is shown of errors.
export const sources = new Map();

const loaded = new Map();

const fs = { ...files.withCallbacks, ...files, constants: { F_OK: 0, R_OK: 4, W_OK: 2, X_OK: 1 } };
delete fs.withCallbacks;

const sleeping = {
  setTimeout: (delay, value) => new Promise((resolve) => { timers.setTimeout(resolve, delay, value); }),
  setImmediate: (value) => new Promise((resolve) => { timers.setImmediate(resolve, value); }),
};

const util = {
  inspect: Object.assign((...values) => inspect(...values), { custom: Symbol.for('nodejs.util.inspect.custom') }),
  format,
  promisify: (action) => (...values) => new Promise((resolve, reject) => {
    action(...values, (error, result) => (error ? reject(error) : resolve(result)));
  }),
  inherits: (child, parent) => Object.setPrototypeOf(child.prototype, parent.prototype),
  isDeepStrictEqual: isDeepEqual,
  types: { isPromise: (value) => value instanceof Promise, isDate: (value) => value instanceof Date },
  TextEncoder,
  TextDecoder,
};

// Returns whether two values are equal in all that they hold.
function isDeepEqual(one, other) {
  if (Object.is(one, other)) return true;
  if (typeof one !== 'object' || typeof other !== 'object' || one === null || other === null) return false;
  if (Object.getPrototypeOf(one) !== Object.getPrototypeOf(other)) return false;
  if (one instanceof Date) return one.getTime() === other.getTime();
  if (one instanceof RegExp) return String(one) === String(other);
  if (one instanceof Map || one instanceof Set) {
    if (one.size !== other.size) return false;
    const left = [...one];
    const right = [...other];
    return left.every((item) => right.some((candidate) => isDeepEqual(item, candidate)));
  }
  const keys = Object.keys(one);
  return keys.length === Object.keys(other).length
    && keys.every((key) => Object.hasOwn(other, key) && isDeepEqual(one[key], other[key]));
}

class AssertionError extends Error {
  constructor({ message, actual, expected, operator }) {
    super(message ?? `${inspect(actual)} ${operator} ${inspect(expected)}`);
    this.name = 'AssertionError';
    Object.assign(this, { code: 'ERR_ASSERTION', actual, expected, operator });
  }
}

function fail(message, actual, expected, operator) {
  throw message instanceof Error ? message : new AssertionError({ message, actual, expected, operator });
}

const assert = Object.assign((value, message) => {
  if (!value) fail(message ?? 'The expression evaluated to a falsy value', value, true, '==');
}, {
  AssertionError,
  equal: (one, other, message) => (one == other ? undefined : fail(message, one, other, '==')), // eslint-disable-line eqeqeq
  notEqual: (one, other, message) => (one != other ? undefined : fail(message, one, other, '!=')), // eslint-disable-line eqeqeq
  strictEqual: (one, other, message) => (Object.is(one, other) ? undefined : fail(message, one, other, '===')),
  notStrictEqual: (one, other, message) => (Object.is(one, other) ? fail(message, one, other, '!==') : undefined),
  deepEqual: (one, other, message) => (isDeepEqual(one, other) ? undefined : fail(message, one, other, 'deepEqual')),
  deepStrictEqual: (one, other, message) => (isDeepEqual(one, other) ? undefined : fail(message, one, other, 'deepStrictEqual')),
  fail: (message) => fail(message ?? 'Failed'),
  throws: (action, expected) => {
    try {
      action();
    } catch (error) {
      if (expected instanceof RegExp && !expected.test(String(error))) throw error;
      if (typeof expected === 'function' && expected.prototype && !(error instanceof expected)) throw error;
      return;
    }
    fail('Missing expected exception.');
  },
});
assert.ok = assert;
assert.strict = assert;

// Lines of standard input.
class Interface extends EventEmitter {
  #next = lineReader();
  #isClosed = false;

  constructor() {
    super();
    timers.setTimeout(() => this.#flow(), 0);
  }

  #flow() {
    if (this.#isClosed) return;
    if (this.listenerCount('line') > 0) {
      const { value, done } = this.#next();
      if (done) {
        this.close();
        return;
      }
      this.emit('line', value);
      timers.setTimeout(() => this.#flow(), 0);
    } else if (this.listenerCount('close') > 0) {
      this.close();
    }
  }

  question(text, options, callback = options) {
    process.stdout.write(text);
    const { value } = this.#next();
    const answer = value ?? '';
    if (typeof callback === 'function') timers.setTimeout(callback, 0, answer);
    return Promise.resolve(answer);
  }

  close() {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.emit('close');
  }

  setPrompt() {}

  prompt() {}

  async *[Symbol.asyncIterator]() {
    for (let next = this.#next(); !next.done; next = this.#next()) yield next.value;
  }
}

// Returns what returns the next line of the present program's standard input, as an iterator does. What a program of a
// session has read and not used is not the next one's.
export function lineReader() {
  let lines;
  let owner;
  return () => {
    if (owner !== inputsBefore) lines = inputLines();
    owner = inputsBefore;
    return lines.next();
  };
}

// Yields the lines of standard input as they come.
function* inputLines() {
  const decoder = new TextDecoder();
  let rest = '';
  process.stdin.setEncoding('utf8');
  for (let piece = process.stdin.read(); piece !== null; piece = process.stdin.read()) {
    const lines = (rest + piece).split('\n');
    rest = lines.pop();
    for (const line of lines) yield line.endsWith('\r') ? line.slice(0, -1) : line;
  }
  rest += decoder.decode();
  if (rest !== '') yield rest;
}

const readline = { createInterface: () => new Interface(), Interface };

const builtins = {
  assert: () => assert,
  'assert/strict': () => assert,
  buffer: () => ({ Buffer }),
  console: () => console,
  crypto: () => ({
    randomUUID: () => crypto.randomUUID(),
    randomBytes: (count) => crypto.getRandomValues(Buffer.alloc(count)),
    randomInt: (low, high) => (high === undefined ? Math.floor(Math.random() * low) : low + Math.floor(Math.random() * (high - low))),
    webcrypto: crypto,
    subtle: crypto.subtle,
  }),
  events: () => EventEmitter,
  fs: () => fs,
  'fs/promises': () => files.promises,
  module: () => ({ builtinModules: Object.keys(builtins), createRequire: () => createRequire('/') }),
  os: () => ({ EOL: '\n', platform: () => 'linux', arch: () => 'wasm32', cpus: () => [], tmpdir: () => '/tmp', homedir: () => '/', hostname: () => 'ringfence', type: () => 'Linux' }),
  path: () => ({ ...path, posix: path }),
  'path/posix': () => path,
  perf_hooks: () => ({ performance }),
  process: () => process,
  readline: () => readline,
  'readline/promises': () => readline,
  timers: () => timers,
  'timers/promises': () => sleeping,
  url: () => ({ URL, URLSearchParams, fileURLToPath: (url) => decodeURIComponent(new URL(url).pathname), pathToFileURL: (file) => new URL(`file://${path.resolve(file)}`) }),
  util: () => util,
};

function missing(name) {
  const error = new Error(`Cannot find module '${name}'`);
  error.code = 'MODULE_NOT_FOUND';
  return error;
}

// Returns the file that a name stands for: itself, with an ending, or the index of a folder.
function resolveFile(name) {
  for (const file of [name, `${name}.js`, `${name}.cjs`, `${name}.json`, `${name}/index.js`, `${name}/index.json`]) {
    if (files.statSync(file, { throwIfNoEntry: false })?.isFile()) return file;
  }
  return undefined;
}

// Returns the file of a package in `node_modules`, of this folder or one above it.
function resolvePackage(name, folder) {
  for (let at = folder; ; at = path.dirname(at)) {
    const place = path.join(at, 'node_modules', name);
    const manifest = path.join(place, 'package.json');
    if (files.existsSync(manifest)) {
      const { main } = JSON.parse(files.readFileSync(manifest, 'utf8'));
      const file = resolveFile(path.join(place, main ?? 'index.js'));
      if (file !== undefined) return file;
    }
    const file = resolveFile(place);
    if (file !== undefined) return file;
    if (at === '/') return undefined;
  }
}

// Returns the function `require` for the files of a folder.
export function createRequire(folder) {
  const resolve = (name) => {
    const file = /^\.{0,2}\//.test(name) || name === '.' || name === '..'
      ? resolveFile(path.resolve(folder, name))
      : resolvePackage(name, folder);
    if (file === undefined) throw missing(name);
    return file;
  };
  const require = (asked) => {
    const name = String(asked);
    const plain = name.startsWith('node:') ? name.slice(5) : name;
    if (Object.hasOwn(builtins, plain)) return builtins[plain]();
    if (baked.has(name)) return load(`/node_modules/${name}`, baked.get(name));
    const file = resolve(name);
    return load(file, files.readFileSync(file, 'utf8'));
  };
  require.resolve = resolve;
  require.cache = {};
  return require;
}

// The packages that the build bundled, as the texts of CommonJS modules by their names.
export const baked = new Map();

function load(file, text) {
  const known = loaded.get(file);
  if (known !== undefined) return known.exports;
  const module = { exports: {}, id: file, filename: file, loaded: false };
  loaded.set(file, module);
  if (file.endsWith('.json')) {
    module.exports = JSON.parse(text);
    return module.exports;
  }
  sources.set(file, text);
  try {
    const wrapped = compile(file, text, 'exports, require, module, __filename, __dirname', '');
    const folder = path.dirname(file);
    wrapped.call(module.exports, module.exports, createRequire(folder), module, file, folder);
  } catch (error) {
    loaded.delete(file);
    throw error;
  }
  module.loaded = true;
  return module.exports;
}

// Evaluates a text in the global scope, as it does by any name but its own.
export const evaluate = eval;

// Compiles a file as the body of a function. Its lines keep their numbers.
export function compile(file, text, parameters, prefix) {
  const head = `(${prefix}function (${parameters}) {`;
  try {
    return evaluate(`${head}${text}\n})\n//# sourceURL=${file}`);
  } catch (error) {
    throw placed(error, file, head.length);
  }
}

// Notes where the text of a program is wrong, since the engine tells it of the text that it was given.
export function placed(error, file, shift) {
  if (error instanceof SyntaxError && error.place === undefined) {
    const column = error.lineNumber === 1 ? error.columnNumber - shift : error.columnNumber;
    Object.defineProperty(error, 'place', { value: { file, line: error.lineNumber, column } });
  }
  return error;
}

export { Buffer, console, path, process, readRest };
