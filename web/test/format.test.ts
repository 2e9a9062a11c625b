import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import {
  formatAbsolute,
  formatBytes,
  formatCount,
  formatDuration,
  formatRelative,
  formatRoughCount,
  instanceOf,
  plural,
  shortDigest,
  shortRunId,
} from '../src/model/format.js';

test('bytes', () => {
  const cases: ReadonlyArray<readonly [number | bigint, string]> = [
    [0, '0 B'],
    [1023, '1,023 B'],
    [1024, '1 KiB'],
    [1536n, '1.5 KiB'],
    [65_536, '64 KiB'],
    [1_048_575, '1 MiB'],
    [1_533_000, '1.46 MiB'],
    [256 << 20, '256 MiB'],
    [1023 * 1024, '1023 KiB'],
    [18_446_744_073_709_551_615n, '16 EiB'],
  ];
  for (const [bytes, shown] of cases) assert.equal(formatBytes(bytes), shown);
});

test('counts', () => {
  assert.equal(formatCount(0), '0');
  assert.equal(formatCount(999), '999');
  assert.equal(formatCount(1_000), '1,000');
  assert.equal(formatCount(18_446_744_073_709_551_615n), '18,446,744,073,709,551,615');
  assert.equal(formatRoughCount(999_999), '999,999');
  assert.equal(formatRoughCount(1_000_000), '1 million');
  assert.equal(formatRoughCount(1_239_999_999n), '1.23 billion');
  assert.equal(plural(1, 'run'), '1 run');
  assert.equal(plural(0, 'run'), '0 runs');
  assert.equal(plural(2n, 'entry', 'entries'), '2 entries');
});

test('durations', () => {
  const cases: ReadonlyArray<readonly [number, string]> = [
    [0, '0 ms'],
    [-5, '0 ms'],
    [0.1234, '0.12 ms'],
    [4.2, '4.2 ms'],
    [99, '99 ms'],
    [250.4, '250 ms'],
    [999.4, '999 ms'],
    [999.6, '1 s'],
    [1_000, '1 s'],
    [1_250, '1.25 s'],
    [12_345, '12.3 s'],
    [59_999, '59.9 s'],
    [60_000, '1 min 00 s'],
    [125_900, '2 min 05 s'],
    [3_600_000, '1 h 00 min'],
    [90_061_000, '1 d 01 h'],
    [864_000_000_000, '10,000 d 00 h'],
  ];
  for (const [ms, shown] of cases) assert.equal(formatDuration(ms), shown);
});

test('a longer duration is never shown as a shorter one of the same unit', () => {
  const number = (ms: number) => Number.parseFloat(formatDuration(ms));
  fc.assert(
    fc.property(fc.integer({ min: 1_000, max: 59_999 }), fc.integer({ min: 1_000, max: 59_999 }), (a, b) => {
      assert.equal(a <= b ? number(a) <= number(b) : number(a) >= number(b), true);
    }),
  );
});

test('times', () => {
  const now = Date.parse('2026-11-29T15:31:28.123Z');
  assert.equal(formatRelative(now, now), 'just now');
  assert.equal(formatRelative(now - 5_999, now), '5 s ago');
  assert.equal(formatRelative(now - 61_000, now), '1 min ago');
  assert.equal(formatRelative(now - 7_200_000, now), '2 h ago');
  assert.equal(formatRelative(now - 4 * 86_400_000, now), '4 d ago');
  assert.equal(formatRelative(now + 3_000, now), 'in 3 s');
  assert.match(formatAbsolute(now), /^2026-11-(29|30) \d\d:\d1:28\.123 [+-]\d\d:\d\d$/);
  assert.equal(Date.parse(formatAbsolute(now).replace(' ', 'T').replace(' ', '')), now);
  assert.equal(formatAbsolute(Number.NaN), 'at an unknown time');
});

test('names', () => {
  assert.equal(shortDigest(`sha256:0123456789abcdef${'0'.repeat(48)}`), '0123456789ab…');
  assert.equal(shortDigest(''), '');
  assert.equal(shortRunId('019ac3b0c2f17d3e8a1b2c3d4e5f6071.box'), '…4e5f6071');
  assert.equal(shortRunId('short'), 'short');
  assert.equal(shortRunId('not the id of a run at all'), 'not the id o…');
  assert.equal(instanceOf('019ac3b0c2f17d3e8a1b2c3d4e5f6071.box.local'), 'box.local');
  assert.equal(instanceOf('x'), '');
});
