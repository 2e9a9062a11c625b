// What a chart draws.

import type { Column } from './stats_series.js';

/** The colours that series may have. */
export type ChartColor = 'green' | 'red' | 'amber' | 'violet' | 'orange' | 'pink' | 'teal' | 'grey' | 'blue';

export interface ChartSeries {
  readonly name: string;
  readonly color: ChartColor;
  /** What the legend and the table say. */
  readonly values: Column;
  /** What is drawn; the values themselves where it is left out. */
  readonly drawn?: Column;
  readonly isDashed?: boolean;
}

/** What is drawn, and how. */
export interface ChartFigure {
  readonly title: string;
  readonly hint: string;
  /** Areas by steps, each before the ones after it, or lines. */
  readonly shape: 'areas' | 'lines';
  readonly axis: 'counts' | 'bytes' | 'durations';
  readonly series: readonly ChartSeries[];
  readonly format: (value: number) => string;
}
