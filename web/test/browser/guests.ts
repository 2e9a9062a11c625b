// Guests for tests: Rust programs that are compiled once and kept, and WebAssembly text.

import { execFileSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';

/** The folder `web/`, from which the tests are run. */
export const WEB = process.cwd();
const CACHE = path.join(WEB, 'node_modules/.cache/guests');

/** Compiles a Rust program, of which the path from `web/` is given, for WASI preview 1. */
export function rustGuest(file: string): Uint8Array<ArrayBuffer> {
  return compile(fs.readFileSync(path.join(WEB, file), 'utf8'), path.basename(file, '.rs'));
}

/** Compiles a Rust program that stands in a test. */
export function rustSource(source: string): Uint8Array<ArrayBuffer> {
  return compile(source);
}

/** The kit of the Rust tests: `kit HABIT [ARGS...]`, see tests/guests/kit.rs. */
export function kit(): Uint8Array<ArrayBuffer> {
  return rustGuest('../tests/guests/kit.rs');
}

/** Prints what its arguments say, see guests/printer.rs. */
export function printer(): Uint8Array<ArrayBuffer> {
  return rustGuest('test/browser/guests/printer.rs');
}

/** WebAssembly text, as the daemon takes it. */
export function wat(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

/** Compiles a program, whose module is called `NAME.wasm` by its name section. */
function compile(source: string, name = 'guest'): Uint8Array<ArrayBuffer> {
  const hash = crypto.createHash('sha256').update(source).digest('hex').slice(0, 24);
  const wasm = path.join(CACHE, `${name}-${hash}.wasm`);
  if (!fs.existsSync(wasm)) {
    // Another test may compile the same program: each has a folder of its own until it is done.
    const own = path.join(CACHE, `${hash}.${process.pid}`);
    fs.mkdirSync(own, { recursive: true });
    fs.writeFileSync(path.join(own, `${name}.rs`), source);
    const flags = ['--edition', '2024', '--target', 'wasm32-wasip1', '-O'];
    execFileSync('rustc', [...flags, `${name}.rs`, '-o', `${name}.wasm`], { cwd: own, stdio: 'inherit' });
    fs.renameSync(path.join(own, `${name}.wasm`), wasm);
    fs.rmSync(own, { recursive: true });
  }
  return new Uint8Array(fs.readFileSync(wasm));
}
