// What the overview draws: its charts, from the last hour's figures.

import type { ChartColor, ChartFigure } from './chart_figure.js';
import { formatBytes, formatCount, formatDuration } from './format.js';
import { outcomeName } from './run_end.js';
import { type Column, OUTCOMES, stack, type StatsColumns } from './stats_series.js';

const COLORS: readonly ChartColor[] = ['green', 'red', 'amber', 'violet', 'orange', 'pink', 'teal', 'grey'];

/** Lays out all charts. Every chart has the same series at any time, but for outcomes that no run had. */
export function chartsOf(columns: StatsColumns, memoryCapacity: bigint): ChartFigure[] {
  const ofRuns = [outcomes(columns), refusals(columns), load(columns), waits(columns), times(columns)];
  return [...ofRuns, memory(columns, memoryCapacity)];
}

function outcomes(columns: StatsColumns): ChartFigure {
  const stacked = stack(columns.outcomes);
  const series = OUTCOMES.map((outcome, index) => ({
    name: outcomeName(outcome),
    color: COLORS[index] ?? 'grey',
    values: columns.outcomes[index] ?? [],
    drawn: stacked[index] ?? [],
  }));
  return {
    title: 'Runs that ended',
    hint: 'In each 10 seconds, by outcome.',
    shape: 'areas',
    axis: 'counts',
    format: formatCount,
    series: series.filter(({ values }, index) => index === 0 || isSeen(values)),
  };
}

function refusals({ refused }: StatsColumns): ChartFigure {
  return {
    title: 'Runs that were refused',
    hint: 'In each 10 seconds, for whichever reason.',
    shape: 'areas',
    axis: 'counts',
    format: formatCount,
    series: [{ name: 'refused', color: 'red', values: refused }],
  };
}

function load({ running, queued }: StatsColumns): ChartFigure {
  return {
    title: 'Runs in flight',
    hint: 'At the end of each 10 seconds.',
    shape: 'lines',
    axis: 'counts',
    format: formatCount,
    series: [
      { name: 'compiling or running', color: 'blue', values: running },
      { name: 'waiting for a slot', color: 'orange', values: queued, isDashed: true },
    ],
  };
}

function waits({ waitHalf, waitMost }: StatsColumns): ChartFigure {
  return latency('Wait for a slot', 'How long runs waited that got one.', waitHalf, waitMost);
}

function times({ runHalf, runMost }: StatsColumns): ChartFigure {
  return latency('Duration of runs', 'From instantiation to the end, of those that ended.', runHalf, runMost);
}

function latency(title: string, hint: string, half: Column, most: Column): ChartFigure {
  return {
    title,
    hint,
    shape: 'lines',
    axis: 'durations',
    format: formatDuration,
    series: [
      { name: 'median (p50)', color: 'blue', values: half },
      { name: 'p99', color: 'orange', values: most, isDashed: true },
    ],
  };
}

function memory({ memory: reserved }: StatsColumns, capacity: bigint): ChartFigure {
  return {
    title: 'Reserved memory',
    hint: `By the runs of all tenants, of ${formatBytes(capacity)}, at the end of each 10 seconds.`,
    shape: 'areas',
    axis: 'bytes',
    format: formatBytes,
    series: [{ name: 'reserved', color: 'teal', values: reserved }],
  };
}

function isSeen(values: Column): boolean {
  return values.some((it) => it !== null && it > 0);
}
