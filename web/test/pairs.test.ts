import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { parseLabels, parsePairs, writePairs } from '../src/model/pairs.js';

const errorOf = (read: ReturnType<typeof parsePairs>) => ('error' in read ? read.error : '');

test('lines are pairs', () => {
  const read = parsePairs('A=1\r\n\n B =x=y\nEMPTY=\nSPACE= s ');
  assert.ok('pairs' in read);
  assert.deepEqual(
    [...read.pairs],
    [
      ['A', '1'],
      ['B', 'x=y'],
      ['EMPTY', ''],
      ['SPACE', ' s '],
    ],
  );
});

test('what is no pair is told by its line', () => {
  assert.match(errorOf(parsePairs('A=1\nB')), /Line 2/);
  assert.match(errorOf(parsePairs('=1')), /Line 1/);
  assert.match(errorOf(parsePairs('A=1\nA=2')), /Line 2.*already/);
});

test('labels keep to the daemon’s rules', () => {
  assert.ok('pairs' in parseLabels('job=7'));
  assert.match(errorOf(parseLabels('ringfence.x=1')), /own/);
  assert.match(errorOf(parseLabels(`a=${'é'.repeat(65)}`)), /128/);
  assert.match(errorOf(parseLabels('a=\u001b[31m')), /control/);
  assert.match(errorOf(parseLabels(Array.from({ length: 33 }, (_, at) => `k${at}=1`).join('\n'))), /33/);
});

test('pairs that are written are read as they were', () => {
  const key = fc.stringMatching(/^[a-z][a-z .]{0,8}[a-z]$/);
  const value = fc.string().filter((it) => !/[\r\n\0]/.test(it));
  fc.assert(
    fc.property(fc.dictionary(key, value), (pairs) => {
      const read = parsePairs(writePairs(Object.entries(pairs)));
      assert.ok('pairs' in read);
      assert.deepEqual([...read.pairs], Object.entries(pairs));
    }),
  );
});
