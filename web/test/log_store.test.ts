import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import type { LogLine } from '../src/model/line_assembler.js';
import { matcherOf, SearchCounter, type SearchQuery } from '../src/model/log_search.js';
import { compareLines, filterOf, lineAt, type ListChange, LogStore } from '../src/model/log_store.js';
import { placeOf, ShownLines } from '../src/model/log_store.js';
import { PatternError } from '../src/model/regex_syntax.js';

function lineOf(number: number, text: string, more: Partial<LogLine> = {}): LogLine {
  const at = { seq: BigInt(number), offset: 0 };
  const rest = { tag: undefined, time: number, spans: [], isOpen: false, goesOn: false };
  return { number, order: number, source: 'stdout', at, text, ...rest, ...more };
}

/** Does to a list what a change says, and checks what is removed. */
function applyTo(list: LogLine[], { at, removed, inserted }: ListChange): void {
  assert.deepEqual(list.slice(at, at + removed.length), removed);
  list.splice(at, removed.length, ...inserted);
}

const never = () => false;
const text = (lines: readonly LogLine[]) => lines.map((it) => it.text);

test('lines of several runs are merged in time, those of one in their order', () => {
  const store = new LogStore();
  const of = (tag: number, ...times: number[]) =>
    times.map((order, i) => lineOf(i + 1, `${tag}@${order}`, { order, tag }));
  store.add(of(0, 1, 3, 3, 9));
  assert.deepEqual(text(store.lines), ['0@1', '0@3', '0@3', '0@9']);
  const changes = store.add(of(1, 0, 3, 4, 10));
  assert.deepEqual(text(store.lines), ['1@0', '0@1', '0@3', '0@3', '1@3', '1@4', '0@9', '1@10']);
  assert.deepEqual(changes.map((it) => [it.at, it.inserted.length]), [[0, 1], [4, 2], [7, 1]]);
});

test('the oldest lines are dropped, and a line says so', () => {
  const store = new LogStore(100);
  const list: LogLine[] = [];
  for (let i = 1; i <= 250; i++) {
    for (const change of store.add([lineOf(i, `line ${i}`)])) applyTo(list, change);
    assert.deepEqual(list, store.lines);
    assert.ok(store.lines.length <= 101);
  }
  assert.equal(store.lines.at(-1)?.text, 'line 250');
  assert.equal(store.lines[0]?.text, `${store.dropped} earlier lines are no longer kept by this page`);
  assert.equal(store.lines[1]?.text, `line ${store.dropped + 1}`);
  const small = new LogStore(100, 1_000);
  for (let i = 1; i <= 20; i++) small.add([lineOf(i, 'x'.repeat(100))]);
  assert.ok(small.lines.length <= 11);
  assert.equal(small.dropped, 20 - small.lines.length + 1);
});

test('filters judge by stream and by match, and let notes through', () => {
  const [out, err, note] = [lineOf(1, 'a'), lineOf(2, 'ab', { source: 'stderr' }), lineOf(3, 'x', { source: 'note' })];
  const shown = (...of: Parameters<typeof filterOf>) => [out, err, note].filter((it) => filterOf(...of)?.(it) ?? true);
  assert.deepEqual(shown('both', undefined), [out, err, note]);
  assert.deepEqual(shown('stderr', undefined), [err, note]);
  assert.deepEqual(shown('both', (it) => it.includes('b')), [err, note]);
  assert.deepEqual(shown('stdout', (it) => it.includes('b')), [note]);
});

test('a line is found by the place of a byte', () => {
  const at = (seq: number, offset: number) => ({ seq: BigInt(seq), offset });
  const lines = [at(1, 0), at(1, 10), at(3, 0), at(2, 5)].map((it, i) => lineOf(i, '', { at: it }));
  assert.equal(lineAt(lines, at(1, 10)), lines[1]);
  assert.equal(lineAt(lines, at(1, 12)), lines[1]);
  assert.equal(lineAt(lines, at(2, 9)), lines[3]);
  assert.equal(lineAt(lines, at(9, 0)), lines[2]);
  assert.equal(lineAt(lines, at(0, 9)), undefined);
});

const newLine = fc.record({ order: fc.integer({ min: 0, max: 30 }), text: fc.constantFrom('a', 'b', 'ab', 'aa') });
/** What may happen to a log. */
const step = fc.oneof(
  fc.array(newLine, { maxLength: 5 }),
  fc.record({ line: fc.nat(), text: fc.constantFrom('a', 'b', 'bb', '') }),
  fc.constant('advance' as const),
);

test('what is shown is what passes the filter, and what is counted is what matches, whatever happens', () => {
  const isShown = (line: LogLine) => line.source === 'note' || line.text.includes('a');
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), fc.boolean(), (steps, filters) => {
      const store = new LogStore(12);
      const shown = new ShownLines(store.lines, filters ? isShown : undefined);
      const counter = new SearchCounter(matcherOf({ text: 'a', isRegex: false, isCaseSensitive: true })!);
      const list: LogLine[] = [];
      const take = (change: ListChange | undefined) => {
        if (change === undefined) return;
        applyTo(list, change);
        assert.deepEqual(list, shown.lines);
        counter.apply(change);
      };
      let number = 0;
      for (const it of steps) {
        if (it === 'advance') {
          take(shown.advance(() => true));
          counter.advance(shown.lines, () => true);
        } else if (Array.isArray(it)) {
          const added = it.map(({ order, text }) => lineOf(++number, text, { order }));
          for (const change of store.add(added)) take(shown.apply(change));
        } else if (store.lines.length > 0) {
          const line = store.lines[it.line % store.lines.length]!;
          if (line.source === 'note') continue;
          line.text = it.text;
          take(shown.change(line));
        }
        assert.deepEqual([...store.lines].sort(compareLines), store.lines);
      }
      take(shown.advance(never));
      assert.ok(shown.isComplete && counter.advance(shown.lines, never));
      assert.deepEqual(shown.lines, filters ? store.lines.filter(isShown) : store.lines);
      const expected = shown.lines.reduce((sum, it) => sum + (it.text.match(/a/g)?.length ?? 0), 0);
      assert.equal(counter.total, expected);
      for (const it of shown.lines) assert.equal(shown.lines[placeOf(shown.lines, it)], it);
    }),
    { numRuns: 2_000 },
  );
});

const matches = (query: Partial<SearchQuery> & { text: string }, line: string) =>
  matcherOf({ isRegex: false, isCaseSensitive: false, ...query })?.(line).map((it) => line.slice(it.from, it.to));

test('text is found as it stands, and patterns as patterns', () => {
  assert.equal(matcherOf({ text: '', isRegex: true, isCaseSensitive: true }), undefined);
  assert.deepEqual(matches({ text: 'a.b' }, 'A.B axb'), ['A.B']);
  assert.deepEqual(matches({ text: 'a.b', isCaseSensitive: true }, 'A.B a.b'), ['a.b']);
  assert.deepEqual(matches({ text: '(' }, 'f((x))'), ['(', '(']);
  assert.deepEqual(matches({ text: 'a.b', isRegex: true }, 'A.B axb'), ['A.B', 'axb']);
  assert.deepEqual(matches({ text: 'TIME.*ms', isRegex: true }, 'a time of 12 ms'), ['time of 12 ms']);
  assert.deepEqual(matches({ text: 'TIME.*ms', isRegex: true, isCaseSensitive: true }, 'a time of 12 ms'), []);
  assert.deepEqual(matches({ text: 'a*', isRegex: true }, 'baab'), ['aa']);
  assert.deepEqual(matches({ text: 'a*', isRegex: true }, 'b'), ['']);
  assert.deepEqual(matches({ text: '^$', isRegex: true }, ''), ['']);
  assert.deepEqual(matches({ text: '^$', isRegex: true }, 'x'), []);
  assert.equal(matches({ text: 'x' }, 'x'.repeat(5_000))?.length, 1_000);
  assert.throws(() => matches({ text: '(', isRegex: true }, ''), PatternError);
});

test('one goes from match to match, and round', () => {
  const lines = ['a', 'x', 'a a', 'a'].map((it, i) => lineOf(i, it));
  const counter = new SearchCounter(matcherOf({ text: 'a', isRegex: false, isCaseSensitive: false })!);
  assert.ok(counter.advance(lines, never));
  const seen: number[] = [];
  let place = { line: 0, match: -1 };
  for (let i = 0; i < 5; i++) {
    place = counter.step(lines, place, 1)!;
    seen.push(counter.ordinalOf(lines, place));
  }
  assert.deepEqual(seen, [0, 1, 2, 3, 0]);
  assert.deepEqual(counter.step(lines, place, -1), { line: 3, match: 0 });
  assert.deepEqual(counter.step(lines, { line: 3, match: 0 }, -1), { line: 2, match: 1 });
  assert.equal(new SearchCounter(() => []).step(lines, place, 1), undefined);
});

test('a search for a hostile pattern in hostile text ends', () => {
  const before = performance.now();
  for (const it of ['(a+)+b', 'a.*z|a', '(a|aa)+$', '(.*)*x', '(a*)*(b*)*c']) {
    matches({ text: it, isRegex: true }, 'a'.repeat(16_384));
  }
  assert.ok(performance.now() - before < 20_000);
});
