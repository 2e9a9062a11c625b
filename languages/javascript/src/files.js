// The files that a run has, as `fs` of Node shows them: the synchronous functions, and `fs.promises` over them.

import { getDirectories } from 'wasi:filesystem/preopens@0.2.12';
import { Buffer } from './buffer.js';
import { normalize } from './path.js';
import { flushOut, readRest, writeErr, writeOut } from './streams.js';

const PIECE = 1 << 20;

// What Node calls the errors of WASI, with what it says of them and their numbers.
const ERRORS = {
  access: ['EACCES', 'permission denied', -13],
  'bad-descriptor': ['EBADF', 'bad file descriptor', -9],
  busy: ['EBUSY', 'resource busy or locked', -16],
  exist: ['EEXIST', 'file already exists', -17],
  'file-too-large': ['EFBIG', 'file too large', -27],
  'insufficient-memory': ['ENOMEM', 'not enough memory', -12],
  'insufficient-space': ['ENOSPC', 'no space left on device', -28],
  invalid: ['EINVAL', 'invalid argument', -22],
  io: ['EIO', 'i/o error', -5],
  'is-directory': ['EISDIR', 'illegal operation on a directory', -21],
  loop: ['ELOOP', 'too many symbolic links encountered', -40],
  'name-too-long': ['ENAMETOOLONG', 'name too long', -36],
  'no-entry': ['ENOENT', 'no such file or directory', -2],
  'not-directory': ['ENOTDIR', 'not a directory', -20],
  'not-empty': ['ENOTEMPTY', 'directory not empty', -39],
  'not-permitted': ['EPERM', 'operation not permitted', -1],
  quota: ['EDQUOT', 'disk quota exceeded', -122],
  'read-only': ['EROFS', 'read-only file system', -30],
  unsupported: ['ENOTSUP', 'operation not supported on socket', -95],
};

let roots;

// Returns the directory of the host's that holds a path, and the path from there.
function locate(path, call) {
  let name = path instanceof URL ? decodeURIComponent(path.pathname) : String(path);
  if (name.includes('\0')) throw new TypeError(`The argument 'path' must be a string without null bytes. Received ${JSON.stringify(name)}`);
  name = normalize(name.startsWith('/') ? name : `/${name}`);
  roots ??= getDirectories().map(([directory, place]) => [directory, normalize(place.startsWith('/') ? place : `/${place}`)]);
  let best;
  for (const [directory, place] of roots) {
    const prefix = place === '/' ? '/' : `${place}/`;
    if ((name === place || `${name}/`.startsWith(prefix)) && (best === undefined || place.length > best.place.length)) {
      best = { directory, place, rest: name.slice(prefix.length).replace(/\/$/, '') || '.' };
    }
  }
  if (best === undefined) throw failure('no-entry', call, path);
  return best;
}

function failure(code, call, path) {
  const [name, said, errno] = ERRORS[code] ?? [String(code).toUpperCase().replaceAll('-', '_'), String(code), -1];
  const place = path === undefined ? '' : ` '${path}'`;
  const error = new Error(`${name}: ${said}, ${call}${place}`);
  return Object.assign(error, { errno, code: name, syscall: call }, path === undefined ? {} : { path: String(path) });
}

// Calls WASI, and turns its errors into those of Node.
function attempt(call, path, action) {
  try {
    return action();
  } catch (error) {
    if (typeof error?.payload === 'string') throw failure(error.payload, call, path);
    throw error;
  }
}

function release(resource) {
  resource[Symbol.dispose]?.();
}

function openFile(path, openFlags, flags, call = 'open') {
  const { directory, rest } = locate(path, call);
  return attempt(call, path, () => directory.openAt({ symlinkFollow: true }, rest, openFlags, flags));
}

function encodingOf(options) {
  return typeof options === 'string' ? options : options?.encoding;
}

export function readFileSync(path, options) {
  const bytes = path === 0 || path === '/dev/stdin' ? readRest() : readBytes(path);
  const encoding = encodingOf(options);
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return encoding ? buffer.toString(encoding) : buffer;
}

function readBytes(path) {
  const file = openFile(path, {}, { read: true });
  try {
    const pieces = [];
    let size = 0;
    for (;;) {
      const [piece, isEnd] = attempt('read', undefined, () => file.read(BigInt(PIECE), BigInt(size)));
      pieces.push(piece);
      size += piece.length;
      if (isEnd || piece.length === 0) break;
    }
    return Buffer.concat(pieces, size);
  } finally {
    release(file);
  }
}

function bytesOf(data, options) {
  if (typeof data === 'string') return Buffer.from(data, encodingOf(options));
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  throw new TypeError('The "data" argument must be of type string or an instance of Buffer, TypedArray, or DataView.');
}

function writeBytes(file, bytes, from) {
  let at = 0;
  while (at < bytes.length) {
    const piece = bytes.subarray(at, at + PIECE);
    at += Number(attempt('write', undefined, () => file.write(piece, BigInt(from + at))));
  }
}

export function writeFileSync(path, data, options) {
  if (options?.flag === 'a') return appendFileSync(path, data, options);
  const bytes = bytesOf(data, options);
  if (path === 1 || path === '/dev/stdout') return writeOut(bytes);
  if (path === 2 || path === '/dev/stderr') return writeErr(bytes);
  const flags = { create: true, truncate: true, exclusive: options?.flag === 'wx' };
  const file = openFile(path, flags, { write: true });
  try {
    writeBytes(file, bytes, 0);
  } finally {
    release(file);
  }
  return undefined;
}

export function appendFileSync(path, data, options) {
  const bytes = bytesOf(data, options);
  if (path === 1) return writeOut(bytes);
  if (path === 2) return writeErr(bytes);
  const file = openFile(path, { create: true }, { write: true });
  try {
    writeBytes(file, bytes, Number(attempt('fstat', path, () => file.stat()).size));
  } finally {
    release(file);
  }
  return undefined;
}

// Writes to standard output or standard error by their descriptors, as `fs.writeSync` does.
export function writeSync(descriptor, data) {
  if (descriptor !== 1 && descriptor !== 2) throw failure('bad-descriptor', 'write');
  const bytes = bytesOf(data);
  if (descriptor === 1) {
    writeOut(bytes);
    flushOut();
  } else {
    writeErr(bytes);
  }
  return bytes.length;
}

// What `fs.statSync` tells of a file.
export class Stats {
  constructor(stat) {
    const time = (at) => (at === undefined ? 0 : Number(at.seconds) * 1000 + at.nanoseconds / 1e6);
    this.kind = stat.type;
    this.size = Number(stat.size);
    this.nlink = Number(stat.linkCount);
    this.mtimeMs = time(stat.dataModificationTimestamp);
    this.atimeMs = time(stat.dataAccessTimestamp);
    this.ctimeMs = time(stat.statusChangeTimestamp);
    this.mtime = new Date(this.mtimeMs);
    Object.defineProperty(this, 'kind', { enumerable: false });
  }

  isFile() {
    return this.kind === 'regular-file';
  }

  isDirectory() {
    return this.kind === 'directory';
  }

  isSymbolicLink() {
    return this.kind === 'symbolic-link';
  }
}

export function statSync(path, options) {
  return statAt(path, { symlinkFollow: true }, options, 'stat');
}

export function lstatSync(path, options) {
  return statAt(path, {}, options, 'lstat');
}

function statAt(path, flags, options, call) {
  try {
    const { directory, rest } = locate(path, call);
    return new Stats(attempt(call, path, () => directory.statAt(flags, rest)));
  } catch (error) {
    if (options?.throwIfNoEntry === false && error.code === 'ENOENT') return undefined;
    throw error;
  }
}

export function existsSync(path) {
  try {
    statSync(path);
    return true;
  } catch {
    return false;
  }
}

export function accessSync(path) {
  statAt(path, { symlinkFollow: true }, undefined, 'access');
}

export function readdirSync(path, options) {
  const folder = openFile(path, { directory: true }, { read: true }, 'scandir');
  const stream = attempt('scandir', path, () => folder.readDirectory());
  const entries = [];
  for (;;) {
    const entry = attempt('scandir', path, () => stream.readDirectoryEntry());
    if (entry === undefined || entry === null) break;
    entries.push(entry);
  }
  release(stream);
  release(folder);
  entries.sort((one, other) => (one.name < other.name ? -1 : 1));
  if (!options?.withFileTypes) return entries.map((entry) => entry.name);
  return entries.map(({ name, type }) => ({
    name,
    parentPath: String(path),
    isFile: () => type === 'regular-file',
    isDirectory: () => type === 'directory',
    isSymbolicLink: () => type === 'symbolic-link',
  }));
}

export function mkdirSync(path, options) {
  const make = (name) => {
    const { directory, rest } = locate(name, 'mkdir');
    attempt('mkdir', name, () => directory.createDirectoryAt(rest));
  };
  if (!options?.recursive) return make(path);
  let name = '';
  for (const part of normalize(String(path)).split('/').filter((piece) => piece !== '')) {
    name += `/${part}`;
    if (!existsSync(name)) make(name);
  }
  return undefined;
}

export function unlinkSync(path) {
  const { directory, rest } = locate(path, 'unlink');
  attempt('unlink', path, () => directory.unlinkFileAt(rest));
}

export function rmdirSync(path) {
  const { directory, rest } = locate(path, 'rmdir');
  attempt('rmdir', path, () => directory.removeDirectoryAt(rest));
}

export function rmSync(path, options) {
  const stat = lstatSync(path, { throwIfNoEntry: !options?.force });
  if (stat === undefined) return;
  if (!stat.isDirectory()) {
    unlinkSync(path);
    return;
  }
  if (!options?.recursive) throw failure('is-directory', 'rm', path);
  for (const name of readdirSync(path)) rmSync(`${path}/${name}`, options);
  rmdirSync(path);
}

export function renameSync(from, to) {
  const source = locate(from, 'rename');
  const target = locate(to, 'rename');
  attempt('rename', from, () => source.directory.renameAt(source.rest, target.directory, target.rest));
}

export function copyFileSync(from, to) {
  writeFileSync(to, readFileSync(from));
}

const synchronous = {
  readFile: readFileSync, writeFile: writeFileSync, appendFile: appendFileSync, stat: statSync, lstat: lstatSync,
  access: accessSync, readdir: readdirSync, mkdir: mkdirSync, unlink: unlinkSync, rmdir: rmdirSync, rm: rmSync,
  rename: renameSync, copyFile: copyFileSync,
};

export const promises = Object.fromEntries(
  Object.entries(synchronous).map(([name, action]) => [name, async (...values) => action(...values)]),
);

// The functions of `fs` that call back.
export const withCallbacks = Object.fromEntries(
  Object.entries(promises).map(([name, action]) => [name, (...values) => {
    const callback = values.pop();
    action(...values).then((result) => callback(null, result), (error) => callback(error));
  }]),
);
