// Makes lines of the events of a run. Lines are not on the wire: events have bytes, cut anywhere.

import type { LogPosition } from '../app/route.js';
import type { StreamEvent } from '../gen/ringfence/v1/event_pb.js';
import type { StyledSpan } from './ansi.js';
import { plural } from './format.js';
import { LineBuffer } from './line_buffer.js';
import { TerminalText } from './terminal_text.js';

/**
 * The most bytes of a line, counted from its last carriage return. What follows is shown as a line of its own, because
 * a line of a megabyte is slow to lay out, and nobody can read it.
 */
export const MAX_LINE_BYTES = 16_384;

const LINE_FEED = 10;
const CARRIAGE_RETURN = 13;
const NOTHING = new Uint8Array();

/** Where a line comes from; `note` is said by this page. */
export type LineSource = 'stdout' | 'stderr' | 'note';

/** A line as it is shown. Its owner changes it as long as it is open. */
export interface LogLine {
  /** Counts the lines of the run, from 1. */
  readonly number: number;
  /** By what lines are sorted: their number, or where those of several runs are merged, their time. */
  readonly order: number;
  /** Which of several runs it is of. */
  readonly tag: number | undefined;
  readonly source: LineSource;
  /** Where its first byte is. */
  readonly at: LogPosition;
  /** When its first byte was written, in milliseconds of `Date.now()`; `undefined` where nobody said. */
  readonly time: number | undefined;
  text: string;
  spans: readonly StyledSpan[];
  /** Whether more of it may come. */
  isOpen: boolean;
  /** Whether the next line of the same source is the rest of this one, which was too long. */
  goesOn: boolean;
}

/** What has changed since it was asked before. */
export interface LineChanges {
  readonly added: readonly LogLine[];
  /** Lines that were added before, and have another text now. */
  readonly changed: readonly LogLine[];
}

interface Start {
  readonly at: LogPosition;
  readonly time: number | undefined;
}

/** Output of one event. */
interface Piece {
  readonly seq: bigint;
  readonly time: number | undefined;
  readonly bytes: Uint8Array;
  /** The text of all bytes, where each of them is a character of ASCII. */
  readonly text: string | undefined;
}

const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
const NOT_ASCII = /[^\u0000-\u007f]/;
const NOT_PLAIN = /[^\t\n\u0020-\u007e]/;
const NO_SPANS: readonly StyledSpan[] = [];

/** Takes the events of a run in their order. However their bytes are cut, the lines are the same. */
export class LineAssembler {
  #count = 0;
  #latest = 0;
  #added: LogLine[] = [];
  readonly #changed = new Set<LogLine>();
  readonly #writers = { stdout: new LineWriter('stdout', this), stderr: new LineWriter('stderr', this) };

  /** Makes lines of a run, which are merged with those of others where it has a tag. */
  constructor(private readonly tag?: number) {}

  /** Takes the next event. */
  take(event: StreamEvent): void {
    const { seq, event: what } = event;
    const time = event.time === undefined ? undefined : Number(event.time.seconds) * 1_000 + event.time.nanos / 1e6;
    switch (what.case) {
      case 'stdout':
      case 'stderr':
        this.#writers[what.case].take(seq, time, what.value);
        break;
      case 'lost': {
        this.#endLines();
        const { firstSeq, count } = what.value;
        const text = `${plural(count, 'event')} of this run ${count === 1n ? 'is' : 'are'} missing here`;
        this.addNote(text, { seq: firstSeq, offset: 0 }, time);
        break;
      }
      case 'exit':
      case 'error':
        this.#endLines();
        break;
      default:
        break;
    }
  }

  /** Adds a line that the page says. */
  addNote(text: string, at: LogPosition, time: number | undefined): void {
    this.open('note', { at, time }).text = text;
  }

  /** How many lines were added since the last `drain`. */
  get waiting(): number {
    return this.#added.length;
  }

  /** Returns what has changed since the last call. */
  drain(): LineChanges {
    this.#writers.stdout.show();
    this.#writers.stderr.show();
    const changes = { added: this.#added, changed: [...this.#changed] };
    this.#added = [];
    this.#changed.clear();
    return changes;
  }

  /** Adds a line. It is for the writers. */
  open(source: LineSource, { at, time }: Start): LogLine {
    this.#count += 1;
    // The lines of a run keep their order, whatever their times.
    this.#latest = Math.max(this.#latest, time ?? 0);
    const line = {
      number: this.#count,
      order: this.tag === undefined ? this.#count : this.#latest,
      tag: this.tag,
      source,
      at,
      time,
      text: '',
      spans: NO_SPANS,
      isOpen: source !== 'note',
      goesOn: false,
    };
    this.#added.push(line);
    return line;
  }

  /** Notes that a line is another than before. It is for the writers. */
  change(line: LogLine): void {
    const first = this.#added[0];
    if (first === undefined || line.number < first.number) this.#changed.add(line);
  }

  #endLines(): void {
    this.#writers.stdout.end();
    this.#writers.stderr.end();
  }
}

/** Writes the lines of one stream. */
class LineWriter {
  readonly #terminal = new TerminalText();
  readonly #buffer = new LineBuffer();
  /** The line that is open, once it has something to show. */
  #line: LogLine | undefined;
  /** The line that this one continues. */
  #before: LogLine | undefined;
  #start: Start | undefined;
  /** Bytes since the line's start or its last carriage return. */
  #length = 0;
  /** The beginning of a character whose other bytes have not come, and where it is. */
  #held: Uint8Array = NOTHING;
  #heldAt: LogPosition = { seq: 0n, offset: 0 };
  #isShown = true;

  constructor(
    private readonly source: 'stdout' | 'stderr',
    private readonly lines: LineAssembler,
  ) {}

  take(seq: bigint, time: number | undefined, bytes: Uint8Array): void {
    const text = this.#held.length === 0 ? decoder.decode(bytes) : undefined;
    const piece = { seq, time, bytes, text: text === undefined || NOT_ASCII.test(text) ? undefined : text };
    const isPlain = piece.text !== undefined && !NOT_PLAIN.test(piece.text) && this.#terminal.isPlain;
    const mayReturn = !isPlain && bytes.includes(CARRIAGE_RETURN);
    let from = 0;
    while (from < bytes.length) {
      if (isPlain && this.#start === undefined) from = this.#takePlainLines(piece, from);
      if (from === bytes.length) break;
      const feed = bytes.indexOf(LINE_FEED, from);
      const to = feed < 0 ? bytes.length : feed;
      this.#start ??= { at: { seq, offset: from }, time };
      this.#takePart(piece, from, to, mayReturn);
      if (feed >= 0) this.#endLine();
      from = to + 1;
    }
  }

  /** Takes whole lines that are shown as they are, as most lines are. Returns where the first other one begins. */
  #takePlainLines({ seq, time, text = '' }: Piece, begin: number): number {
    let from = begin;
    for (let to = text.indexOf('\n', from); to >= 0 && to - from <= MAX_LINE_BYTES; to = text.indexOf('\n', from)) {
      const line = this.lines.open(this.source, { at: { seq, offset: from }, time });
      line.text = text.slice(from, to);
      line.isOpen = false;
      from = to + 1;
    }
    return from;
  }

  /** Ends the line that is open, and all that is begun. */
  end(): void {
    if (this.#start !== undefined) this.#endLine({ hasLineFeed: false });
    this.#terminal.reset();
  }

  /** Writes into the line what has come for it. */
  show(): void {
    if (this.#isShown || this.#line === undefined) return;
    this.#isShown = true;
    this.#line.text = this.#buffer.text;
    this.#line.spans = this.#buffer.spans.length === 0 ? NO_SPANS : this.#buffer.spans.slice();
    this.lines.change(this.#line);
  }

  /** Takes bytes of one line, which is cut where it is too long. */
  #takePart(piece: Piece, from: number, to: number, mayReturn: boolean): void {
    let start = from;
    while (this.#length + to - start > MAX_LINE_BYTES) {
      const room = start + MAX_LINE_BYTES - this.#length;
      const back = mayReturn ? piece.bytes.subarray(start, Math.min(room, to)).lastIndexOf(CARRIAGE_RETURN) : -1;
      const cut = back < 0 ? room : start + back + 1;
      this.#write(piece, start, cut);
      if (back < 0) this.#cut({ seq: piece.seq, offset: cut }, piece.time);
      else this.#length = 0;
      start = cut;
    }
    if (start === to) return;
    const back = mayReturn ? piece.bytes.subarray(start, to).lastIndexOf(CARRIAGE_RETURN) : -1;
    this.#length = back < 0 ? this.#length + to - start : to - start - back - 1;
    this.#write(piece, start, to);
  }

  #write({ seq, bytes, text }: Piece, from: number, to: number): void {
    if (text !== undefined) {
      this.#print(from === 0 && to === text.length ? text : text.slice(from, to));
      return;
    }
    const held = this.#held;
    let all = bytes.subarray(from, to);
    if (held.length > 0) {
      all = new Uint8Array(held.length + to - from);
      all.set(held);
      all.set(bytes.subarray(from, to), held.length);
    }
    const begun = lengthOfBegun(all);
    // Otherwise it began in an event before.
    if (begun > 0 && begun <= to - from) this.#heldAt = { seq, offset: to - begun };
    this.#held = begun === 0 ? NOTHING : all.slice(all.length - begun);
    this.#print(decoder.decode(all.subarray(0, all.length - begun)));
  }

  #print(text: string): void {
    this.#terminal.write(text, this.#buffer);
    this.#touch();
  }

  /** Adds the line once there is something in it. */
  #touch(): void {
    this.#isShown = false;
    if (this.#line !== undefined || !this.#buffer.isTouched || this.#start === undefined) return;
    this.#line = this.lines.open(this.source, this.#start);
    if (this.#before === undefined) return;
    this.#before.goesOn = true;
    this.#before.isOpen = false;
    this.lines.change(this.#before);
    this.#before = undefined;
  }

  /** Goes on in another line at a place. */
  #cut(next: LogPosition, time: number | undefined): void {
    this.show();
    this.#before = this.#line ?? this.#before;
    this.#line = undefined;
    this.#buffer.clear();
    this.#length = this.#held.length;
    this.#start = { at: this.#held.length > 0 ? this.#heldAt : next, time };
  }

  #endLine({ hasLineFeed = true } = {}): void {
    if (this.#held.length > 0) {
      const held = this.#held;
      this.#held = NOTHING;
      this.#print(decoder.decode(held));
    }
    this.#terminal.endLine(this.#buffer);
    this.#touch();
    if (this.#line === undefined && this.#before === undefined && hasLineFeed && this.#start !== undefined) {
      this.#line = this.lines.open(this.source, this.#start);
    }
    this.show();
    const last = this.#line ?? this.#before;
    if (last !== undefined) {
      last.isOpen = false;
      this.lines.change(last);
    }
    this.#line = undefined;
    this.#before = undefined;
    this.#start = undefined;
    this.#buffer.clear();
    this.#length = 0;
  }
}

/** Tells how many of the last bytes may be the beginning of a character (in UTF-8) that has not come whole. */
function lengthOfBegun(bytes: Uint8Array): number {
  for (let back = 1; back <= 3 && back <= bytes.length; back++) {
    const byte = bytes[bytes.length - back] ?? 0;
    if (byte < 0x80) return 0;
    if (byte < 0xc0) continue;
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
    return length > back ? back : 0;
  }
  return 0;
}
