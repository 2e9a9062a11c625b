import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { parseCount, parseDuration, parseSize, writeDuration, writeSize } from '../src/model/quantities.js';

test('durations', () => {
  const cases: ReadonlyArray<readonly [string, number | undefined]> = [
    ['500ms', 500],
    ['30s', 30_000],
    [' 2 m ', 120_000],
    ['2min', 120_000],
    ['1h', 3_600_000],
    ['1m 30s', 90_000],
    ['1.5s', 1_500],
    ['0s', 0],
    ['30', undefined],
    ['', undefined],
    ['-1s', undefined],
    ['1 year', undefined],
    ['1s!', undefined],
    ['1mx', undefined],
  ];
  for (const [text, ms] of cases) assert.equal(parseDuration(text), ms, text);
  fc.assert(
    fc.property(fc.nat(), (ms) => {
      assert.equal(parseDuration(writeDuration(ms)), ms);
    }),
  );
});

test('sizes', () => {
  const cases: ReadonlyArray<readonly [string, bigint | undefined]> = [
    ['65536', 65_536n],
    ['64KiB', 65_536n],
    ['1 mib', 1n << 20n],
    ['1.5 MiB', 1_572_864n],
    ['2k', 2_048n],
    ['1GiB', 1n << 30n],
    ['10 B', 10n],
    ['', undefined],
    ['1.5', undefined],
    ['-1', undefined],
    ['1TB', undefined],
    ['0x10', undefined],
  ];
  for (const [text, bytes] of cases) assert.equal(parseSize(text), bytes, text);
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 1n << 64n }), (bytes) => {
      assert.equal(parseSize(writeSize(bytes)), bytes);
    }),
  );
});

test('counts', () => {
  const cases: ReadonlyArray<readonly [string, bigint | undefined]> = [
    ['1000000', 1_000_000n],
    ['1,000,000', 1_000_000n],
    ['10_000', 10_000n],
    ['10M', 10_000_000n],
    ['2g', 2_000_000_000n],
    ['18446744073709551615', 18_446_744_073_709_551_615n],
    ['', undefined],
    ['1e9', undefined],
    ['-5', undefined],
    ['1.5M', undefined],
  ];
  for (const [text, count] of cases) assert.equal(parseCount(text), count, text);
});
