// A chart of figures over the last hour, drawn by uPlot, with a legend and a table of the same figures as text.

import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';
import { customElement, property, query, state } from 'lit/decorators.js';
import uPlot from 'uplot';

import type { ChartFigure, ChartSeries } from '../model/chart_figure.js';
import { controls } from './styles.js';

const HEIGHT = 150;
/** Durations are drawn by their orders of magnitude, of which there is none below this one (milliseconds). */
const LEAST_DURATION = 0.01;
const COUNT_STEPS = powers(10, 16).flatMap((power) => [power, 2 * power, 5 * power]);
const BYTE_STEPS = powers(2, 50);

@customElement('rf-time-chart')
export class TimeChart extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: block;
        min-width: 0;
        --green: light-dark(#2f8f4e, #4fbf7b);
        --red: light-dark(#c0392b, #ff7b6e);
        --amber: light-dark(#9a6700, #e8b339);
        --violet: light-dark(#7d4fc4, #b592f0);
        --orange: light-dark(#b8520f, #f59556);
        --pink: light-dark(#b5337d, #f283bd);
        --teal: light-dark(#0b7a83, #4cc4cd);
        --grey: light-dark(#66727f, #93a0ad);
        --blue: light-dark(#1f6fc9, #6db3ff);
      }
      figure {
        margin: 0;
        padding: var(--space-3);
        border: 1px solid var(--line);
        border-radius: var(--radius);
      }
      h3 {
        font-size: var(--text-m);
      }
      figcaption p {
        margin: 0;
        font-size: var(--text-s);
        color: var(--ink-2);
      }
      ul {
        display: flex;
        flex-wrap: wrap;
        gap: 0 var(--space-3);
        list-style: none;
        margin: var(--space-2) 0;
        padding: 0;
        font-size: var(--text-s);
        min-height: 1.5em;
      }
      i {
        display: inline-block;
        width: 0.75em;
        height: 0.75em;
        margin-inline-end: 0.25em;
        border-radius: 2px;
      }
      i.dashed {
        height: 0.3em;
        vertical-align: middle;
      }
      .green {
        background: var(--green);
      }
      .red {
        background: var(--red);
      }
      .amber {
        background: var(--amber);
      }
      .violet {
        background: var(--violet);
      }
      .orange {
        background: var(--orange);
      }
      .pink {
        background: var(--pink);
      }
      .teal {
        background: var(--teal);
      }
      .grey {
        background: var(--grey);
      }
      .blue {
        background: var(--blue);
      }
      .plot {
        height: ${HEIGHT}px;
        overflow: hidden;
        color: var(--ink-2);
      }
      .grid {
        color: var(--ground-3);
      }
      details {
        font-size: var(--text-s);
        margin-block-start: var(--space-2);
      }
      .scroll {
        overflow: auto;
        max-height: 16rem;
      }
      table {
        border-collapse: collapse;
        font-variant-numeric: tabular-nums;
      }
      th,
      td {
        text-align: end;
        font-weight: 400;
        padding: 0.1rem 0.6rem;
        white-space: nowrap;
      }
      thead th {
        position: sticky;
        inset-block-start: 0;
        background: var(--ground-2);
        font-weight: 600;
      }
      .u-wrap {
        position: relative;
        user-select: none;
      }
      .u-over,
      .u-under,
      .u-axis {
        position: absolute;
      }
      .u-under {
        overflow: hidden;
      }
      .uplot canvas {
        display: block;
        position: relative;
        width: 100%;
        height: 100%;
      }
      .u-cursor-x,
      .u-cursor-pt {
        position: absolute;
        left: 0;
        top: 0;
        pointer-events: none;
        will-change: transform;
      }
      .u-cursor-x {
        height: 100%;
        border-inline-end: 1px dashed var(--ink-2);
      }
      .u-cursor-pt {
        border-radius: 50%;
        border: 0 solid;
        background-clip: padding-box !important;
      }
      .u-cursor-y,
      .u-select,
      .u-off {
        display: none;
      }
    `,
  ];

  @property({ attribute: false }) figure!: ChartFigure;
  /** Seconds, as all columns have them. */
  @property({ attribute: false }) times: readonly number[] = [];
  /** Whether there are figures at a time, or only the edge of a gap. */
  @property({ attribute: false }) isSample: readonly boolean[] = [];
  /** The time at the right edge, in seconds. */
  @property({ attribute: false }) end = 0;
  @state() private pointed: number | undefined;
  @state() private isTableOpen = false;
  @query('.plot') private plot!: HTMLElement;
  #chart: uPlot | undefined;
  /** The series that the chart was made for. */
  #drawn = '';
  #resize = new ResizeObserver(() => this.#fit());
  #scheme = matchMedia('(prefers-color-scheme: dark)');

  override connectedCallback(): void {
    super.connectedCallback();
    this.#scheme.addEventListener('change', this.#recolor);
    if (this.hasUpdated) this.requestUpdate('times');
  }

  override disconnectedCallback(): void {
    this.#scheme.removeEventListener('change', this.#recolor);
    this.#resize.disconnect();
    this.#chart?.destroy();
    this.#chart = undefined;
    super.disconnectedCallback();
  }

  /** Draws anew in the colours of the theme that is there now. */
  recolor(): void {
    this.#chart?.redraw(false, true);
  }

  readonly #recolor = () => this.recolor();

  protected override updated(changed: PropertyValues<this>): void {
    if (!changed.has('figure') && !changed.has('times') && !changed.has('end')) return;
    const drawn = this.figure.series.map((it) => it.name).join();
    if (this.#chart === undefined || this.#drawn !== drawn) {
      this.#drawn = drawn;
      this.#chart?.destroy();
      this.#chart = new uPlot(this.#options(), this.#data(), this.plot);
      this.#resize.observe(this.plot);
    } else {
      this.#chart.setData(this.#data(), false);
    }
    this.#chart.setScale('x', { min: this.end - 3_600, max: this.end });
  }

  #fit(): void {
    const width = Math.floor(this.plot.clientWidth);
    if (width > 0 && width !== this.#chart?.width) this.#chart?.setSize({ width, height: HEIGHT });
  }

  /** The series in the order in which they are drawn: of areas, those behind come first. */
  get #order(): readonly ChartSeries[] {
    return this.figure.shape === 'areas' ? this.figure.series.toReversed() : this.figure.series;
  }

  #data(): uPlot.AlignedData {
    const least = this.figure.axis === 'durations' ? LEAST_DURATION : 0;
    const drawn = this.#order.map((it) =>
      (it.drawn ?? it.values).map((value) => (value === null ? null : Math.max(least, value))),
    );
    return [[...this.times], ...drawn];
  }

  #options(): uPlot.Options {
    const { axis, format } = this.figure;
    const font = '11px system-ui, sans-serif';
    const colors = {
      stroke: () => this.#colorOf('.plot', 'color'),
      grid: { stroke: () => this.#colorOf('.grid', 'color'), width: 1 },
      ticks: { show: false },
      font,
    };
    const steps = axis === 'counts' ? COUNT_STEPS : BYTE_STEPS;
    return {
      width: Math.max(100, Math.floor(this.plot.clientWidth)),
      height: HEIGHT,
      padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: {
        y: false,
        drag: { x: false, y: false },
        points: { show: this.figure.shape === 'lines', size: 6 },
        sync: { key: 'ringfence', scales: ['x', null] },
      },
      scales: {
        x: { time: true, auto: false },
        y: axis === 'durations' ? { distr: 3, range: magnitudes } : { range: fromZero },
      },
      axes: [
        { ...colors, size: 24, space: 60, values: (_, splits) => splits.map((it) => clockOf(it)) },
        {
          ...colors,
          size: 62,
          space: 28,
          values: (_, splits) => splits.map((it) => (it === null ? '' : format(it))),
          ...(axis === 'durations' ? { splits: magnitudesBetween } : { incrs: steps }),
        },
      ],
      series: [{}, ...this.#order.map((it) => this.#lineOf(it))],
      hooks: {
        setCursor: [
          (chart) => {
            this.pointed = chart.cursor.idx ?? undefined;
          },
        ],
      },
    };
  }

  #lineOf(series: ChartSeries): uPlot.Series {
    const color = () => this.#colorOf(`i.${series.color}`, 'background-color');
    const stepped = uPlot.paths.stepped?.({ align: -1 });
    const area = { fill: color, width: 0, ...(stepped === undefined ? {} : { paths: stepped }) };
    const line = { stroke: color, width: 1.5, ...(series.isDashed === true ? { dash: [5, 4] } : {}) };
    if (this.figure.shape === 'areas') return { points: { show: false }, ...area };
    return { points: { show: false, filter: isolated, size: 4, fill: color, stroke: color }, ...line };
  }

  /** Reads a colour where the theme has it, since a canvas knows no variables. */
  #colorOf(selector: string, name: 'color' | 'background-color'): string {
    const element = this.renderRoot.querySelector(selector);
    return element === null ? 'grey' : getComputedStyle(element).getPropertyValue(name);
  }

  override render() {
    const { title, hint, series } = this.figure;
    const at = this.pointed ?? this.times.length - 1;
    const time = this.times[at];
    const says = time === undefined ? 'There are no figures yet.' : clockOf(time);
    return html`
      <figure aria-labelledby="title">
        <figcaption>
          <h3 id="title">${title}</h3>
          <p>${hint}</p>
        </figcaption>
        <ul aria-label="Figures at ${says}">
          <li class="dim">${says}</li>
          ${series.map((it) => this.#legend(it, at))}
        </ul>
        <div class="plot" aria-hidden="true"></div>
        <span class="grid" hidden></span>
        <details @toggle=${(event: Event) => (this.isTableOpen = (event.target as HTMLDetailsElement).open)}>
          <summary>All figures as a table</summary>
          ${this.isTableOpen ? this.#table() : nothing}
        </details>
      </figure>
    `;
  }

  #legend({ name, color, values, isDashed }: ChartSeries, at: number): TemplateResult {
    const value = values[at];
    return html`<li>
      <i class="${color} ${isDashed === true ? 'dashed' : ''}"></i>${name}: ${this.#show(value)}
    </li>`;
  }

  #show(value: number | null | undefined): string {
    return value === null || value === undefined ? '–' : this.figure.format(value);
  }

  #table(): TemplateResult {
    const { title, series } = this.figure;
    const rows = this.times.map((time, index) => ({ time, index })).toReversed();
    return html`<div class="scroll" tabindex="0" role="region" aria-label="${title}, as a table">
      <table>
        <thead>
          <tr>
            <th scope="col">Until</th>
            ${series.map((it) => html`<th scope="col">${it.name}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${rows
            .filter(({ index }) => this.isSample[index] === true)
            .map(
              ({ time, index }) => html`<tr>
                <th scope="row">${clockOf(time, true)}</th>
                ${series.map((it) => html`<td>${this.#show(it.values[index])}</td>`)}
              </tr>`,
            )}
        </tbody>
      </table>
    </div>`;
  }
}

/** Returns the figures that no line leads to, which are drawn as points. */
function isolated(chart: uPlot, series: number): number[] {
  const values = chart.data[series] ?? [];
  const isThere = (index: number) => typeof values[index] === 'number';
  return [...values.keys()].filter((it) => isThere(it) && !isThere(it - 1) && !isThere(it + 1));
}

/** The whole orders of magnitude that have all durations. */
function magnitudes(_: uPlot, least: number | null, most: number | null): [number, number] {
  const power = (value: number, round: (log: number) => number) => 10 ** round(Math.log10(value));
  const low = power(least ?? 1, Math.floor);
  return [low, Math.max(low * 10, power(most ?? 100, Math.ceil))];
}

function magnitudesBetween(_: uPlot, __: number, low: number, high: number): number[] {
  const first = Math.round(Math.log10(low));
  return Array.from({ length: Math.round(Math.log10(high)) - first + 1 }, (_it, index) => 10 ** (first + index));
}

function fromZero(_: uPlot, __: number | null, most: number | null): [number, number] {
  return [0, Math.max(1, (most ?? 0) * 1.1)];
}

function clockOf(seconds: number, withSeconds = false): string {
  const time = new Date(seconds * 1_000);
  const parts = [time.getHours(), time.getMinutes(), ...(withSeconds ? [time.getSeconds()] : [])];
  return parts.map((it) => String(it).padStart(2, '0')).join(':');
}

function powers(base: number, most: number): number[] {
  return Array.from({ length: most }, (_, index) => base ** index);
}
