import assert from 'node:assert/strict';
import { test } from 'node:test';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import fc from 'fast-check';

import { type StreamEvent, StreamEventSchema } from '../src/gen/ringfence/v1/event_pb.js';
import { isSameStyle } from '../src/model/ansi.js';
import { LineAssembler, type LogLine, MAX_LINE_BYTES } from '../src/model/line_assembler.js';

type What = NonNullable<MessageInitShape<typeof StreamEventSchema>['event']>;
/** Output of a stream: text stands for its bytes. */
type Output = readonly ['stdout' | 'stderr', string | Uint8Array];
type Bytes = [Output[0], Uint8Array];

const encoder = new TextEncoder();
const bytesOf = (it: string | Uint8Array) => (typeof it === 'string' ? encoder.encode(it) : it);

function eventOf(seq: number, event: What): StreamEvent {
  return create(StreamEventSchema, { seq: BigInt(seq), time: { seconds: BigInt(seq) }, event });
}

/** Takes outputs, each as an event, from the number 1 on, and then the end. */
function assemble(outputs: readonly Output[], drainAfterEach = false): LogLine[] {
  const assembler = new LineAssembler();
  const lines: LogLine[] = [];
  const drain = () => {
    const { added, changed } = assembler.drain();
    assert.ok(changed.every((it) => lines.includes(it)));
    lines.push(...added);
  };
  outputs.forEach(([stream, it], i) => {
    assembler.take(eventOf(i + 1, { case: stream, value: bytesOf(it) }));
    if (drainAfterEach) drain();
  });
  assembler.take(eventOf(outputs.length + 1, { case: 'exit', value: {} }));
  drain();
  assert.deepEqual(lines.map((it) => it.number), lines.map((_, i) => i + 1));
  assert.ok(lines.every((it) => !it.isOpen));
  return lines;
}

const textOf = (lines: readonly LogLine[]) => lines.map((it) => it.text);
const out = (...parts: (string | Uint8Array)[]) => textOf(assemble(parts.map((it) => ['stdout', it])));

test('lines are made of bytes that are cut anywhere', () => {
  assert.deepEqual(out('one\ntwo\n', 'th', 'ree\n\nfive'), ['one', 'two', 'three', '', 'five']);
  assert.deepEqual(out('a\r\nb\r', '\nc\r\n'), ['a', 'b', 'c']);
  assert.deepEqual(out('gr\xfcn', new Uint8Array([0xe6]), new Uint8Array([0x97, 0xa5]), '\n'), ['grün日']);
  assert.deepEqual(out(), []);
  assert.deepEqual(out(''), []);
  assert.deepEqual(out('\n'), ['']);
});

test('a position is that of the first byte', () => {
  const lines = assemble([['stdout', 'one\ntwo'], ['stderr', 'x\n'], ['stdout', '\nthree\n']]);
  assert.deepEqual(
    lines.map(({ text, source, at, time }) => [text, source, Number(at.seq), at.offset, time]),
    [
      ['one', 'stdout', 1, 0, 1000],
      ['two', 'stdout', 1, 4, 1000],
      ['x', 'stderr', 2, 0, 2000],
      ['three', 'stdout', 3, 1, 3000],
    ],
  );
});

test('a line of stderr in the middle of one of stdout is a line of its own', () => {
  const assembler = new LineAssembler();
  assembler.take(eventOf(1, { case: 'stdout', value: bytesOf('begun') }));
  const { added: [open] } = assembler.drain();
  assert.equal(open?.text, 'begun');
  assert.equal(open.isOpen, true);
  assembler.take(eventOf(2, { case: 'stderr', value: bytesOf('\x1b[31mred\nstill') }));
  assembler.take(eventOf(3, { case: 'stdout', value: bytesOf(' and ended\n') }));
  const { added, changed } = assembler.drain();
  assert.deepEqual(textOf(added), ['red', 'still']);
  assert.deepEqual(changed, [open]);
  assert.equal(open.text, 'begun and ended');
  assert.equal(open.isOpen, false);
  // The colour is one of stderr.
  assert.equal(open.spans.length, 0);
  assert.deepEqual(added.map((it) => it.spans.map((span) => span.style.foreground)), [[1], [1]]);
});

test('carriage returns, backspaces and erasing show what a terminal would', () => {
  const cases: ReadonlyArray<readonly [string, string]> = [
    ['10%\r20%\r100%\n', '100%'],
    ['long line\rshort\n', 'shortline'],
    ['long line\rshort\x1b[K\n', 'short'],
    ['long line\x1b[2K\rshort\n', 'short'],
    ['abc\b\bX\n', 'aXc'],
    ['abc\x1b[1KX\n', '   X'],
    ['a\x1b[5GX\n', 'a   X'],
    ['abc\x1b[3DX\x1b[1CY\n', 'XbcY'.slice(0, 1) + 'bY'],
    ['a\x1b[9999999CX\n', `a${' '.repeat(199)}X`],
    ['日本\rab\n', 'ab本'],
    ['日本\ra\n', 'a 本'],
    ['ab\r日\n', '日'],
    ['e\u0301x\ry\n', 'yx'],
    ['\rabc\r\n', 'abc'],
    ['\b\b\bX\n', 'X'],
  ];
  for (const [text, shown] of cases) assert.deepEqual(out(text), [shown], JSON.stringify(text));
});

test('styles are kept where text is written over', () => {
  const [line] = assemble([['stdout', '\x1b[31mred\x1b[0m plain\r\x1b[32mgr\n']]);
  assert.equal(line?.text, 'grd plain');
  assert.deepEqual(line.spans.map(({ from, to, style }) => [from, to, style.foreground]), [[0, 2, 2], [2, 3, 1]]);
});

test('escape sequences are removed and take no text with them', () => {
  const cases: ReadonlyArray<readonly [string, string]> = [
    ['\x1b]8;;http://x.example/\x07link\x1b]8;;\x07!', 'link!'],
    ['\x1b]8;;http://x.example/\x1b\\link\x1b]8;;\x1b\\!', 'link!'],
    ['a\x1b]52;c;c2VjcmV0\x07b', 'ab'],
    ['a\x1bP1$qm\x1b\\b\x1b_Gi=1\x1b\\c\x1b^x\x1b\\d\x1bXx\x1b\\e', 'abcde'],
    ['a\x1b[?25lb\x1b[2Jc\x1b[>4;1md\x1b[0 qe\x1b[10;20Hf', 'abcdef'],
    ['a\x1b(Bb\x1b7c\x1bMd\x1b=e\x1bcf', 'abcdef'],
    // What is cut off is text, but for its beginning.
    ['a\x1b]8;;http://x.example/ text', 'a8;;http://x.example/ text'],
    ['a\x1b]0;title\x1b[31mred', 'a0;titlered'],
    ['a\x1b[31', 'a31'],
    ['a\x1b[31é', 'a31é'],
    ['a\x1bP rest', 'a rest'],
    ['a\x1b', 'a␛'],
    ['a\x1b\x1b[31mb', 'a␛b'],
    ['a\x1b(é', 'a␛(é'],
    [`a\x1b]52;${'x'.repeat(20_000)}\x07b`.slice(0, 16_000), `a52;${'x'.repeat(15_994)}`],
  ];
  for (const [text, shown] of cases) {
    assert.deepEqual(out(`${text}\nnext\n`), [shown, 'next'], JSON.stringify(text).slice(0, 80));
  }
});

test('what cannot be seen is shown', () => {
  const hidden = 'a\0b\x07c\x0bd\x7f\u202ee\u200bf\ufeff\tg\u009bh\n';
  assert.deepEqual(out(hidden), ['a␀b␇c␋d␡⟨U+202E⟩e⟨U+200B⟩f⟨U+FEFF⟩\tg⟨U+009B⟩h']);
  assert.deepEqual(out(new Uint8Array([0xff, 0x41, 0xe2, 0x82, 0x0a, 0xac, 0xc3])), ['�A�', '��']);
  assert.deepEqual(out('\ufeffbom\n'), ['⟨U+FEFF⟩bom']);
  assert.deepEqual(out('<script>alert(1)</script>\n'), ['<script>alert(1)</script>']);
});

test('events that are missed are a line, and what was begun before is not gone on with', () => {
  const assembler = new LineAssembler();
  assembler.take(eventOf(1, { case: 'stdout', value: bytesOf('\x1b[31mbegun') }));
  assembler.take(eventOf(1, { case: 'lost', value: { firstSeq: 2n, count: 1234n } }));
  assembler.take(eventOf(1236, { case: 'stdout', value: bytesOf('rest\n') }));
  const { added } = assembler.drain();
  assert.deepEqual(added.map(({ source, text, isOpen }) => [source, text, isOpen]), [
    ['stdout', 'begun', false],
    ['note', '1,234 events of this run are missing here', false],
    ['stdout', 'rest', false],
  ]);
  assert.equal(added[1]?.at.seq, 2n);
  assert.equal(added[2]?.spans.length, 0);
});

test('a line that is too long goes on in the next', () => {
  const lines = assemble([['stdout', `${'x'.repeat(1 << 20)}\nnext\n`]]);
  const pieces = (1 << 20) / MAX_LINE_BYTES;
  assert.equal(lines.length, pieces + 1);
  assert.deepEqual(lines.map((it) => it.goesOn), [...Array<boolean>(pieces - 1).fill(true), false, false]);
  assert.deepEqual(lines[1]?.at, { seq: 1n, offset: MAX_LINE_BYTES });
  assert.equal(textOf(lines.slice(0, pieces)).join(''), 'x'.repeat(1 << 20));
  // A progress bar is one line, however long it goes on.
  assert.equal(out(`${'working hard\r'.repeat(10_000)}done\n`).length, 1);
  // No character is cut.
  const wide = assemble([['stdout', `x${'日'.repeat(MAX_LINE_BYTES)}`]]);
  assert.equal(textOf(wide).join(''), `x${'日'.repeat(MAX_LINE_BYTES)}`);
});

/** Bytes that are of interest to whoever makes lines of them. */
const INTERESTING = [
  ...['\n', '\r', '\r\n', '\b', '\t', '\0', '\x07', '[', ']', ';', 'm', '5', 'abc', ' ', '\x1b', '\x1bP', '\x1b\\'],
  ...['\x1b[31m', '\x1b[0m', '\x1b[1;38;5;208m', '\x1b]8;;x\x07', '\x1b]52;c;abc\x1b\\', '\x1b[K', '\x1b[2K'],
  ...['\x1b[3G', '日本', 'é', '👍', 'e\u0301', '\u202e', '\u200b'],
];
const some = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom(...INTERESTING).map(bytesOf) },
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 4 }) },
);
/** About as much as a line may have. */
const much = fc
  .tuple(
    fc.integer({ min: MAX_LINE_BYTES - 12, max: MAX_LINE_BYTES + 4 }),
    fc.constantFrom('x', '日', '\x1b[m', 'ab\r', '\x1b]'),
  )
  .map(([size, it]) => bytesOf(it.repeat(Math.ceil(size / bytesOf(it).length))));
const outputsOf = (bytes: fc.Arbitrary<Uint8Array>) => {
  const one = fc.tuple(fc.constantFrom('stdout' as const, 'stderr' as const), fc.array(bytes, { maxLength: 6 }));
  const joined = ([stream, parts]: [Output[0], Uint8Array[]]): Bytes => [stream, Buffer.concat(parts)];
  return fc.array(one, { maxLength: 6 }).map((all) => all.map(joined));
};
const outputs = outputsOf(some);
const longOutputs = outputsOf(fc.oneof({ weight: 5, arbitrary: some }, { weight: 1, arbitrary: much }));

/** Cuts each output after the bytes that `cuts` says, in turn. */
function cut(all: readonly Bytes[], cuts: readonly number[]): Bytes[] {
  let next = 0;
  return all.flatMap(([stream, it]) => {
    const parts: Bytes[] = [];
    for (let from = 0; from < it.length; ) {
      const to = from + (cuts.length === 0 ? it.length : (cuts[next++ % cuts.length] ?? 1));
      parts.push([stream, it.subarray(from, to)]);
      from = to;
    }
    return parts;
  });
}

/** What lines are, with the places of their first bytes in all that was written. */
function meaning(lines: readonly LogLine[], events: readonly Bytes[]) {
  let sum = 0;
  const starts = events.map(([, it]) => (sum += it.length) - it.length);
  return lines.map(({ source, text, spans, goesOn, at }) => ({
    source,
    text,
    spans: spans.map((it) => [it.from, it.to, it.style.foreground, it.style.background, it.style.flags].join()),
    goesOn,
    at: starts[Number(at.seq) - 1]! + at.offset,
  }));
}

test('however bytes are cut, the lines are equal, and their positions mean the same bytes', () => {
  const isSame = (all: readonly Bytes[], cuts: readonly number[], drains: boolean) => {
    const [whole, parts] = [cut(all, []), cut(all, cuts)];
    assert.deepEqual(meaning(assemble(parts, drains), parts), meaning(assemble(whole), whole));
  };
  const few = fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 8 });
  fc.assert(fc.property(outputs, few, fc.boolean(), isSame), { numRuns: 1_000 });
  const many = fc.array(fc.integer({ min: 1, max: 20_000 }), { minLength: 1, maxLength: 8 })
    // So many pieces of a few bytes would take long.
    .filter((cuts) => Math.max(...cuts) > 2_000);
  fc.assert(fc.property(longOutputs, many, fc.boolean(), isSame), { numRuns: 200 });
});

test('spans are in their line, in order, and no two that touch are alike', () => {
  const isRight = (all: readonly Output[]) => {
    for (const { text, spans } of assemble(all)) {
      assert.doesNotMatch(text, /[\0-\x08\x0a-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/);
      spans.forEach((span, i) => {
        assert.ok(span.from < span.to && span.to <= text.length);
        const before = spans[i - 1];
        if (before === undefined) return;
        assert.ok(before.to < span.from || (before.to === span.from && !isSameStyle(before.style, span.style)));
      });
    }
  };
  fc.assert(fc.property(outputs, isRight), { numRuns: 1_000 });
});
