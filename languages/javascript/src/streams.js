// The standard streams. What is written to standard output is gathered, and leaves in large pieces.

import { read, write, writeText } from './bindings.js';

// How many characters of standard output are gathered before they are written.
const GATHERED = 1 << 16;

// What a program may replace.
const { apply } = Reflect;
const { includes } = String.prototype;
const { set } = Uint8Array.prototype;
const NativeUint8Array = Uint8Array;

// Whether each line is written when it ends, as to a terminal.
let isLive = false;
let isOutEnded = false;
let gathered = '';

export function setLive(live) {
  isLive = live;
}

// Opens standard output again, for the next program of a session.
export function reopenOut() {
  isOutEnded = false;
}

export function flushOut() {
  if (gathered === '') return;
  const text = gathered;
  gathered = '';
  writeText(1, text);
}

// Writes what is gathered, and drops what is written to standard output from now on, as the console of Node does after the
// program has ended the stream.
export function endOut() {
  flushOut();
  isOutEnded = true;
}

// Writes a text or bytes to standard output.
export function writeOut(data) {
  if (isOutEnded) return;
  if (typeof data === 'string') {
    gathered += data;
    if (gathered.length > GATHERED || (isLive && apply(includes, data, ['\n']))) flushOut();
    return;
  }
  flushOut();
  write(1, data);
}

// Writes a text or bytes to standard error, at once.
export function writeErr(data) {
  if (typeof data === 'string') writeText(2, data);
  else write(2, data);
}

// Reads at most so many bytes, or none at the end of the input. It waits until there are some, and whoever types them has to
// see what they are asked for.
export function readSome(count) {
  flushOut();
  for (;;) {
    const bytes = read(count);
    if (bytes === null) return new NativeUint8Array(0);
    if (bytes.length > 0) return bytes;
  }
}

// Reads exactly so many bytes, or fewer where the input ends before.
export function readExactly(count) {
  const first = readSome(count);
  if (first.length === count) return first;
  const pieces = [first];
  let size = first.length;
  while (size < count) {
    const piece = readSome(count - size);
    if (piece.length === 0) break;
    pieces[pieces.length] = piece;
    size += piece.length;
  }
  return join(pieces, size);
}

// Reads what is left of the input.
export function readRest() {
  const pieces = [];
  let size = 0;
  for (;;) {
    const piece = readSome(1 << 16);
    if (piece.length === 0) return join(pieces, size);
    pieces[pieces.length] = piece;
    size += piece.length;
  }
}

function join(pieces, size) {
  const whole = new NativeUint8Array(size);
  let filled = 0;
  for (let at = 0; at < pieces.length; at += 1) {
    apply(set, whole, [pieces[at], filled]);
    filled += pieces[at].length;
  }
  return whole;
}
