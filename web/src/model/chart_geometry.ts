// Where things of a chart are: its scales, their marks, and the paths of its figures.

import type { ChartFigure } from './chart_figure.js';
import type { Column } from './stats_series.js';

/** A scale from figures to pixels, with the figures at which it has marks. */
export interface Scale {
  readonly place: (value: number) => number;
  readonly marks: readonly number[];
}

/** The place of a chart's figures in its picture, in pixels. */
export interface Frame {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

/** Durations are drawn by their orders of magnitude, of which there is none below this one (milliseconds). */
const LEAST_DURATION = 0.01;
/** Room that the text of a mark needs. */
const MARK_HEIGHT = 30;
const MARK_WIDTH = 64;
const TIME_STEPS = [300, 600, 900, 1_800, 3_600];

/** Makes the scale of times, in seconds, with marks at whole minutes of the clock, whose time zone has an offset. */
export function timeScale(start: number, end: number, frame: Frame, offset: number): Scale {
  const width = frame.right - frame.left;
  const room = (MARK_WIDTH * (end - start)) / Math.max(1, width);
  const step = TIME_STEPS.find((it) => it >= room) ?? 3_600;
  const first = Math.ceil((start + offset) / step) * step - offset;
  const count = Math.max(0, Math.floor((end - first) / step) + 1);
  return {
    place: (time) => frame.left + ((time - start) / (end - start)) * width,
    marks: Array.from({ length: count }, (_, index) => first + index * step),
  };
}

/** Makes the scale of figures, which has room for all of them. */
export function valueScale(axis: ChartFigure['axis'], columns: readonly Column[], frame: Frame): Scale {
  const values = columns.flatMap((column) => column.filter((it) => it !== null));
  const most = values.reduce((a, b) => Math.max(a, b), 0);
  if (axis === 'durations') {
    if (values.length === 0) return magnitudeScale(1, 100, frame);
    const least = values.reduce((a, b) => Math.min(a, b), most);
    return magnitudeScale(Math.max(LEAST_DURATION, least), Math.max(LEAST_DURATION, most), frame);
  }
  const marks = Math.max(1, Math.floor((frame.bottom - frame.top) / MARK_HEIGHT));
  const step = stepOf(
    most / marks,
    axis === 'bytes' ? [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] : [1, 2, 5],
    axis === 'bytes' ? 1024 : 10,
  );
  const top = Math.max(step, Math.ceil(most / step) * step);
  return linear(
    top,
    Array.from({ length: Math.round(top / step) + 1 }, (_, index) => index * step),
    frame,
  );
}

/** Returns the smallest step that is a factor times a power of the base, and at least `least`; at least one. */
function stepOf(least: number, factors: readonly number[], base: number): number {
  for (let power = 1; ; power *= base) {
    const factor = factors.find((it) => it * power >= least);
    if (factor !== undefined) return factor * power;
  }
}

function linear(top: number, marks: readonly number[], { top: high, bottom: low }: Frame): Scale {
  return { place: (value) => low - (value / top) * (low - high), marks };
}

function magnitudeScale(least: number, most: number, { top: high, bottom: low }: Frame): Scale {
  const first = Math.floor(Math.log10(least) + 1e-9);
  const last = Math.max(first + 1, Math.ceil(Math.log10(most) - 1e-9));
  const every = Math.ceil(((last - first) * MARK_HEIGHT) / (low - high));
  const powers = Array.from({ length: last - first + 1 }, (_, index) => first + index);
  return {
    place: (value) => {
      const power = Math.log10(Math.max(LEAST_DURATION, value));
      return low - ((power - first) / (last - first)) * (low - high);
    },
    marks: powers.filter((power) => (power - first) % every === 0).map((power) => 10 ** power),
  };
}

/** Draws figures as an area by steps. Each holds from the time before it, and so does the first one after a gap. */
export function areaPath(times: readonly number[], values: Column, x: Scale, y: Scale): string {
  const ground = round(y.place(0));
  let path = '';
  let isOpen = false;
  for (const [index, value] of values.entries()) {
    const at = round(x.place(times[index] ?? 0));
    if (value === null) {
      if (isOpen) path += `V${ground}Z`;
      isOpen = false;
    } else {
      path += isOpen ? `V${round(y.place(value))}H${at}` : `M${at} ${ground}`;
      isOpen = true;
    }
  }
  return isOpen ? `${path}V${ground}Z` : path;
}

/** Draws figures as a line that is broken where there are none. A figure that stands alone is a point. */
export function linePath(times: readonly number[], values: Column, x: Scale, y: Scale): string {
  let path = '';
  let before: number | null = null;
  for (const [index, value] of values.entries()) {
    if (value !== null) {
      const place = `${round(x.place(times[index] ?? 0))} ${round(y.place(value))}`;
      path += before === null ? `M${place}${(values[index + 1] ?? null) === null ? 'h0' : ''}` : `L${place}`;
    }
    before = value;
  }
  return path;
}

/** Returns the index of the time that is nearest; -1 where there are none. */
export function nearest(times: readonly number[], time: number): number {
  let best = -1;
  for (const [index, it] of times.entries()) {
    if (best < 0 || Math.abs(it - time) < Math.abs((times[best] ?? 0) - time)) best = index;
  }
  return best;
}

function round(pixels: number): number {
  return Math.round(pixels * 10) / 10;
}
