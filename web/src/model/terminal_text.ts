// Text with escape sequences, as a terminal takes it: SGR becomes styles, what moves the cursor in its line moves it,
// and every other sequence is removed. One that is cut off takes no text with it: all but its beginning is shown.

import { type AnsiStyle, applySgr, PLAIN } from './ansi.js';
import type { LineBuffer } from './line_buffer.js';
import { printableLines } from './printable.js';

/** The most characters of a sequence. One that is longer is taken for one that is cut off. */
export const MAX_SEQUENCE = 16_384;

const MOVES = /[\b\r]/;
const NOT_SIMPLE = /[^\t\u0020-\u007e]/;
/** `ESC [`, parameters, intermediates and a final character. */
const CSI = /\u001b\[([\u0030-\u003f]*)([\u0020-\u002f]*)([\u0040-\u007e])/y;
const CSI_BEGUN = /\u001b\[[\u0030-\u003f]*[\u0020-\u002f]*$/y;
/** OSC, which BEL ends as well; DCS, SOS, PM and APC. */
const STRING = /\u001b(?:\][^\u0007\u0018\u001a\u001b]*(?:\u0007|\u001b\\)|[PX^_][^\u0018\u001a\u001b]*\u001b\\)/y;
const STRING_BEGUN = /\u001b(?:\][^\u0007\u0018\u001a\u001b]*|[PX^_][^\u0018\u001a\u001b]*)\u001b?$/y;
const STRING_STARTS = /\u001b[\]PX^_]/y;
/** Sequences of two characters, or with intermediates between, such as `ESC ( B`. */
const SHORT = /\u001b[\u0020-\u002f]*[\u0030-\u007e]/y;
const SHORT_BEGUN = /\u001b[\u0020-\u002f]*$/y;

/** Takes the text of one stream and writes it into a line. */
export class TerminalText {
  #style: AnsiStyle = PLAIN;
  /** A sequence that has not ended. */
  #begun = '';

  /** Whether text without controls would be shown as it is. */
  get isPlain(): boolean {
    return this.#style === PLAIN && this.#begun === '';
  }

  /** Writes text that has no line feeds. */
  write(text: string, line: LineBuffer): void {
    const all = this.#begun + text;
    this.#begun = '';
    let at = 0;
    while (at < all.length) {
      const escape = all.indexOf('\u001b', at);
      const to = escape < 0 ? all.length : escape;
      if (to > at) this.#writeText(at === 0 && to === all.length ? all : all.slice(at, to), line);
      if (escape < 0) return;
      at = this.#takeStyle(all, escape) ?? this.#takeSequence(all, escape, line);
    }
  }

  /** Writes text that has no sequences. */
  #writeText(text: string, line: LineBuffer): void {
    if (!NOT_SIMPLE.test(text)) {
      line.write(text, this.#style);
      return;
    }
    let rest = text;
    for (let at = rest.search(MOVES); at >= 0; at = rest.search(MOVES)) {
      line.write(printableLines(rest.slice(0, at)), this.#style);
      if (rest[at] === '\r') line.moveTo(0);
      else line.moveBy(-1);
      rest = rest.slice(at + 1);
    }
    line.write(printableLines(rest), this.#style);
  }

  /** Takes a sequence of SGR, the most frequent one, and returns where what follows begins. */
  #takeStyle(text: string, at: number): number | undefined {
    if (text.charCodeAt(at + 1) !== 0x5b) return undefined;
    let to = at + 2;
    for (let code = text.charCodeAt(to); code >= 0x30 && code <= 0x3b; code = text.charCodeAt(to)) to += 1;
    if (text.charCodeAt(to) !== 0x6d || to - at >= MAX_SEQUENCE) return undefined;
    this.#style = applySgr(this.#style, text.slice(at + 2, to));
    return to + 1;
  }

  /** Ends a line, and what is begun in it. */
  endLine(line: LineBuffer): void {
    while (this.#begun !== '') {
      const begun = this.#begun;
      this.#begun = '';
      this.#skipBeginning(begun, 0, line);
      this.write(begun.slice(beginningOf(begun, 0)), line);
    }
  }

  /** Forgets all that came before. */
  reset(): void {
    this.#style = PLAIN;
    this.#begun = '';
  }

  /** Takes the sequence that begins at `at`, and returns where what follows begins. */
  #takeSequence(text: string, at: number, line: LineBuffer): number {
    const csi = matchAt(CSI, text, at);
    if (csi !== null && csi[0].length <= MAX_SEQUENCE) {
      this.#apply(csi, line);
      return at + csi[0].length;
    }
    const isString = matchAt(STRING_STARTS, text, at) !== null;
    const whole = isString ? matchAt(STRING, text, at) : text[at + 1] === '[' ? null : matchAt(SHORT, text, at);
    if (whole !== null && whole[0].length <= MAX_SEQUENCE) return at + whole[0].length;
    const begun = matchAt(CSI_BEGUN, text, at) ?? matchAt(STRING_BEGUN, text, at) ?? matchAt(SHORT_BEGUN, text, at);
    if (begun !== null && begun[0].length <= MAX_SEQUENCE) {
      this.#begun = begun[0];
      return text.length;
    }
    this.#skipBeginning(text, at, line);
    return at + beginningOf(text, at);
  }

  /** Shows an escape that begins nothing. */
  #skipBeginning(text: string, at: number, line: LineBuffer): void {
    if (beginningOf(text, at) === 1) line.write('␛', this.#style);
  }

  #apply([, parameters = '', intermediates, final]: RegExpExecArray, line: LineBuffer): void {
    if (intermediates !== '' || /[^\d;:]/.test(parameters)) return;
    const count = Number(parameters.slice(0, 5).split(';')[0]);
    if (final === 'K') line.erase(count);
    else if (final === 'G') line.moveTo(Math.max(count, 1) - 1);
    else if (final === 'C') line.moveBy(Math.max(count, 1));
    else if (final === 'D') line.moveBy(-Math.max(count, 1));
  }
}

function matchAt(pattern: RegExp, text: string, at: number): RegExpExecArray | null {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** Tells how many characters of a sequence that is cut off are not shown as text. */
function beginningOf(text: string, at: number): number {
  return text[at + 1] === '[' || matchAt(STRING_STARTS, text, at) !== null ? 2 : 1;
}
