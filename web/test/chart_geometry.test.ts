import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { areaPath, type Frame, linePath, nearest, timeScale, valueScale } from '../src/model/chart_geometry.js';

const frame: Frame = { left: 50, right: 410, top: 10, bottom: 130 };
const START = 1_800_000_000;
const x = timeScale(START - 3_600, START, frame, 0);

test('times have marks at whole minutes of the clock, as far apart as their text needs', () => {
  assert.equal(x.place(START - 3_600), 50);
  assert.equal(x.place(START), 410);
  assert.ok(x.marks.every((it) => it % 900 === 0));
  const wide = timeScale(START - 3_600, START, { ...frame, right: 1_250 }, 0);
  assert.equal((wide.marks[1] ?? 0) - (wide.marks[0] ?? 0), 300);
  const india = timeScale(START - 3_600, START, { ...frame, right: 170 }, 5.5 * 3_600);
  assert.ok(india.marks.every((it) => (it + 1_800) % 3_600 === 0));
});

test('counts have whole marks, bytes those of binary units, durations those of magnitudes', () => {
  assert.deepEqual(valueScale('counts', [[null]], frame).marks, [0, 1]);
  assert.deepEqual(valueScale('counts', [[3]], frame).marks, [0, 1, 2, 3]);
  assert.deepEqual(valueScale('counts', [[7, 41]], frame).marks, [0, 20, 40, 60]);
  assert.deepEqual(valueScale('bytes', [[20 << 20]], frame).marks, [0, 8 << 20, 16 << 20, 24 << 20]);
  assert.deepEqual(valueScale('durations', [[0.2, null, 5]], frame).marks, [0.1, 1, 10]);
  assert.deepEqual(
    valueScale('durations', [[0]], frame).marks.map((it) => it.toFixed(2)),
    ['0.01', '0.10'],
  );
  assert.deepEqual(valueScale('durations', [[0.5, 300_000]], frame).marks, [0.1, 10, 1_000, 100_000]);
});

test('every figure is within its frame', () => {
  const figures = fc.array(fc.option(fc.double({ min: 0, max: 1e15, noNaN: true })));
  fc.assert(
    fc.property(fc.constantFrom('counts', 'bytes', 'durations'), figures, (axis, column) => {
      const scale = valueScale(axis, [column], frame);
      for (const value of [...column, ...scale.marks]) {
        if (value === null) continue;
        const place = scale.place(value);
        assert.ok(place >= frame.top - 1e-6 && place <= frame.bottom + 1e-6, `${value} at ${place}`);
      }
      assert.ok(scale.marks.length >= 2 && scale.marks.length <= 12, `${scale.marks.length} marks`);
    }),
  );
});

const y = valueScale('counts', [[3]], frame);

test('areas go by steps, and end at gaps', () => {
  const times = [START - 30, START - 20, START - 10, START];
  assert.equal(areaPath(times, [0, 3, null, 1], x, y), 'M407 130V10H408V130ZM410 130V130Z');
  assert.equal(areaPath(times, [0, 0, 3, 3], x, y), 'M407 130V130H408V10H409V10H410V130Z');
  assert.equal(areaPath([], [], x, y), '');
});

test('lines are broken where there are no figures, and a figure alone is a point', () => {
  const times = [START - 30, START - 20, START - 10, START];
  assert.equal(linePath(times, [0, 3, null, 3], x, y), 'M407 130L408 10M410 10h0');
  assert.equal(linePath(times, [null, null, null, null], x, y), '');
});

test('the nearest time is found', () => {
  assert.equal(nearest([], 5), -1);
  assert.equal(nearest([10, 20, 30], 0), 0);
  assert.equal(nearest([10, 20, 30], 24), 1);
  assert.equal(nearest([10, 20, 30], 99), 2);
});
