import assert from 'node:assert/strict';
import { test } from 'node:test';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { durationFromMs, timestampFromMs } from '@bufbuild/protobuf/wkt';
import fc from 'fast-check';

import { Outcome } from '../src/gen/ringfence/v1/result_pb.js';
import { StatsSchema, type StatsSampleSchema } from '../src/gen/ringfence/v1/stats_service_pb.js';
import { chartsOf } from '../src/model/overview.js';
import { HOUR_MS, OUTCOMES, stack, StatsSeries } from '../src/model/stats_series.js';

const START = 1_800_000_000_000;
type Sample = MessageInitShape<typeof StatsSampleSchema>;

const sample = (at: number, more: Sample = {}): Sample => ({
  time: timestampFromMs(START + at * 10_000),
  span: durationFromMs(10_000),
  ...more,
});

const message = (at: number, samples: Sample[]) =>
  create(StatsSchema, { time: timestampFromMs(START + at * 10_000), history: samples });

test('samples of several messages become one series', () => {
  const series = new StatsSeries();
  assert.equal(series.missing(START), HOUR_MS);
  const outcomes = [
    { outcome: Outcome.EXITED, runs: 3n },
    { outcome: Outcome.TRAPPED, runs: 1n },
  ];
  assert.equal(series.take(message(2, [sample(1), sample(2, { outcomes, refused: 2n })]), START), true);
  assert.equal(series.take(message(2.2, []), START), false);
  assert.equal(
    series.take(message(3, [sample(2, { outcomes }), sample(3, { runsInFlight: 5, runsQueued: 2 })]), START),
    true,
  );
  const columns = series.columns();
  assert.deepEqual(
    columns.times.map((it) => it * 1_000 - START),
    [0, 10_000, 20_000, 30_000],
  );
  assert.deepEqual(columns.isSample, [false, true, true, true]);
  assert.deepEqual(columns.outcomes[OUTCOMES.indexOf(Outcome.EXITED)], [0, 0, 3, 0]);
  assert.deepEqual(columns.refused, [0, 0, 2, 0]);
  assert.deepEqual(columns.running, [null, 0, 0, 3]);
  assert.deepEqual(columns.queued, [null, 0, 0, 2]);
  assert.deepEqual(columns.waitHalf, [null, null, null, null]);
});

test('what the daemon has no samples of is a gap', () => {
  const series = new StatsSeries();
  series.take(message(10, [sample(1, { memoryReserved: 7n }), sample(6), sample(7)]), START);
  const { times, isSample, memory } = series.columns();
  assert.deepEqual(
    times.map((it) => it * 1_000 - START),
    [0, 10_000, 30_000, 50_000, 60_000, 70_000],
  );
  assert.deepEqual(isSample, [false, true, false, false, true, true]);
  assert.deepEqual(memory, [0, 7, null, 0, 0, 0]);
});

test('after a break only the past that is missing is asked for', () => {
  const series = new StatsSeries();
  series.take(message(5, [sample(5)]), START);
  assert.equal(series.missing(START + 60_000), 90_000);
  assert.equal(series.missing(START - HOUR_MS), 30_000);
  assert.equal(series.missing(START + 3 * HOUR_MS), HOUR_MS);
});

test('the series has an hour, in order and once, however the messages come', () => {
  const at = fc.integer({ min: 0, max: 1_000 });
  fc.assert(
    fc.property(fc.array(fc.array(at, { maxLength: 20 }), { maxLength: 20 }), (messages) => {
      const series = new StatsSeries();
      for (const ats of messages)
        series.take(
          message(
            Math.max(0, ...ats),
            ats.map((it) => sample(it)),
          ),
          START,
        );
      const { times } = series.columns();
      assert.ok(times.every((it, index) => index === 0 || it > (times[index - 1] ?? 0)));
      assert.ok(series.samples.length <= 360);
    }),
  );
});

test('stacked columns stand on each other', () => {
  assert.deepEqual(
    stack([
      [1, null, 2],
      [1, null, 0],
      [0, null, 5],
    ]),
    [
      [1, null, 2],
      [2, null, 2],
      [2, null, 7],
    ],
  );
  assert.deepEqual(stack([]), []);
});

test('charts name outcomes that runs had, and latencies where there were any', () => {
  const series = new StatsSeries();
  const run = { count: 1n, p50: durationFromMs(3), p99: durationFromMs(40) };
  series.take(message(2, [sample(1, { outcomes: [{ outcome: Outcome.TIMED_OUT, runs: 2n }], run }), sample(2)]), START);
  const charts = chartsOf(series.columns(), 1n << 30n);
  assert.deepEqual(
    charts.map((it) => it.series.length),
    [2, 1, 2, 2, 2, 1],
  );
  assert.deepEqual(
    charts[0]?.series.map((it) => it.name),
    ['exited', 'timed out'],
  );
  assert.deepEqual(
    charts[4]?.series.map((it) => it.values),
    [
      [null, 3, null],
      [null, 40, null],
    ],
  );
});
