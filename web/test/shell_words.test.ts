import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import fc from 'fast-check';

import { joinWords, splitWords } from '../src/model/shell_words.js';

const wordsOf = (line: string) => {
  const read = splitWords(line);
  assert.ok('words' in read, `${line}: ${JSON.stringify(read)}`);
  return read.words;
};

test('words are split as a shell splits them', () => {
  const cases: ReadonlyArray<readonly [string, readonly string[]]> = [
    ['', []],
    ['  a  b\tc\n', ['a', 'b', 'c']],
    [`'a b' "c d"`, ['a b', 'c d']],
    [`a'b'"c"d`, ['abcd']],
    [`'' ""`, ['', '']],
    [`a\\ b \\'`, ['a b', `'`]],
    [`"a\\"b" "\\n" "\\\\" "\\$x"`, ['a"b', '\\n', '\\', '$x']],
    [`'a\\b'`, ['a\\b']],
    ['$HOME *.txt #x', ['$HOME', '*.txt', '#x']],
    ['a\\\nb', ['ab']],
    [`"a\\\nb"`, ['ab']],
    [`'<script>' "\u202e"`, ['<script>', '\u202e']],
  ];
  for (const [line, words] of cases) assert.deepEqual(wordsOf(line), words, line);
});

test('what is not closed is an error', () => {
  for (const line of [`'a`, `a "b`, `a\\`, `"a\\"`]) assert.ok('error' in splitWords(line), line);
});

const word = fc.string({ unit: 'grapheme' });

test('words that are joined are read as they were', () => {
  fc.assert(
    fc.property(fc.array(word), (words) => {
      assert.deepEqual(wordsOf(joinWords(words)), words);
    }),
  );
});

test('a shell reads joined words as they were', () => {
  const shellWord = word.filter((it) => !it.includes('\0'));
  fc.assert(
    fc.property(fc.array(shellWord, { minLength: 1 }), (words) => {
      const printed = execFileSync('/bin/sh', ['-c', `printf '%s\\0' ${joinWords(words)}`]).toString();
      assert.deepEqual(printed.split('\0').slice(0, -1), words);
    }),
    { numRuns: 30 },
  );
});

test('any line is read or refused', () => {
  fc.assert(fc.property(fc.string({ unit: 'binary' }), (line) => void splitWords(line)));
});
