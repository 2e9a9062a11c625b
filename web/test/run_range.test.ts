import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { boundsOf, fieldTime, isBackward, isWithin, LAST_RANGES, readTime, timesOf } from '../src/model/run_range.js';

const HOUR_MS = 3_600_000;

test('a range that ends now moves with the time, and has no end', () => {
  const lengths = LAST_RANGES.map((it) => {
    const { since, until } = boundsOf(it, 1_000 * HOUR_MS);
    assert.equal(until, undefined);
    return 1_000 - (since ?? 0) / HOUR_MS;
  });
  assert.deepEqual(lengths, [1, 24, 168]);
  assert.deepEqual(boundsOf(undefined, 5), { since: undefined, until: undefined });
  assert.deepEqual(boundsOf({ since: 1, until: 2 }, 5), { since: 1, until: 2 });
});

test('a range is backward where nothing is within it', () => {
  const bound = fc.option(fc.nat(100), { nil: undefined });
  fc.assert(
    fc.property(bound, bound, (since, until) => {
      const within = Array.from({ length: 102 }, (_, at) => at - 1).some((it) => isWithin(it, { since, until }));
      assert.equal(isBackward({ since, until }), !within);
    }),
  );
});

test('a field has the time of the browser, to the minute', () => {
  const time = new Date(2026, 10, 30, 4, 5).getTime();
  assert.equal(fieldTime(time), '2026-11-30T04:05');
  assert.equal(fieldTime(time + 59_999), '2026-11-30T04:05');
  assert.equal(readTime('2026-11-30T04:05'), time);
  assert.equal(fieldTime(undefined), '');
  assert.equal(readTime(''), undefined);
});

test('a call has the bounds that there are', () => {
  assert.deepEqual(timesOf({ since: undefined, until: undefined }), {});
  const { since, until } = timesOf({ since: 1_500, until: 2_000 });
  assert.deepEqual([since?.seconds, since?.nanos, until?.seconds, until?.nanos], [1n, 500_000_000, 2n, 0]);
});
