// A chart of figures over the last hour, with a legend and a table of the same figures as text.

import { css, html, LitElement, nothing, type PropertyValues, svg, type TemplateResult } from 'lit';
import { property, query, state } from 'lit/decorators.js';

import type { ChartFigure, ChartSeries } from '../model/chart_figure.js';
import { areaPath, type Frame, linePath, nearest, type Scale, timeScale, valueScale } from '../model/chart_geometry.js';
import { controls } from './styles.js';

const HEIGHT = 150;
const SPAN = 3_600;
const KEYS: Readonly<Record<string, number>> = {
  ArrowLeft: -1,
  ArrowRight: 1,
  PageUp: -30,
  PageDown: 30,
  Home: -Infinity,
  End: Infinity,
};

/** Tells the time that the reader points at, in seconds, as the `detail` of its event `point`; `null` for none. */
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
        height: 100%;
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
      }
      i {
        display: inline-block;
        width: 0.75em;
        height: 0.75em;
        margin-inline-end: 0.25em;
        border-radius: 2px;
        background: currentColor;
      }
      i.dashed {
        height: 0.3em;
        vertical-align: middle;
      }
      .green {
        color: var(--green);
      }
      .red {
        color: var(--red);
      }
      .amber {
        color: var(--amber);
      }
      .violet {
        color: var(--violet);
      }
      .orange {
        color: var(--orange);
      }
      .pink {
        color: var(--pink);
      }
      .teal {
        color: var(--teal);
      }
      .grey {
        color: var(--grey);
      }
      .blue {
        color: var(--blue);
      }
      .plot {
        height: ${HEIGHT}px;
        overflow: hidden;
      }
      svg {
        display: block;
        font-size: 11px;
        fill: var(--ink-2);
      }
      path {
        fill: none;
        stroke: currentColor;
        stroke-width: 1.5;
        stroke-linejoin: round;
        stroke-linecap: round;
      }
      path.dashed {
        stroke-dasharray: 5 4;
      }
      path.area {
        fill: currentColor;
        stroke: none;
        shape-rendering: crispEdges;
      }
      path.marks {
        stroke: var(--ground-3);
        stroke-width: 1;
        shape-rendering: crispEdges;
      }
      path.cursor {
        stroke: var(--ink-2);
        stroke-width: 1;
        stroke-dasharray: 3 3;
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
    `,
  ];

  @property({ attribute: false }) figure!: ChartFigure;
  /** Seconds, as all columns have them. */
  @property({ attribute: false }) times: readonly number[] = [];
  /** Whether there are figures at a time, or only the edge of a gap. */
  @property({ attribute: false }) isSample: readonly boolean[] = [];
  /** The time at the right edge, in seconds. */
  @property({ attribute: false }) end = 0;
  /** The time that the reader points at, in this chart or another. */
  @property({ attribute: false }) pointed: number | undefined;
  @state() private width = 0;
  @state() private isTableOpen = false;
  @query('.plot') private plot!: HTMLElement;
  readonly #resize = new ResizeObserver(() => (this.width = Math.floor(this.plot.clientWidth)));

  override connectedCallback(): void {
    super.connectedCallback();
    if (this.hasUpdated) this.#resize.observe(this.plot);
  }

  override disconnectedCallback(): void {
    this.#resize.disconnect();
    super.disconnectedCallback();
  }

  protected override firstUpdated(_changed: PropertyValues): void {
    this.#resize.observe(this.plot);
  }

  override render() {
    const { title, hint, series } = this.figure;
    const at = this.#at;
    const time = this.times[at];
    const says = time === undefined ? 'There are no figures yet.' : clockOf(time);
    const told = series.map((it) => `${it.name}: ${this.#show(it.values[at])}`);
    return html`
      <figure aria-labelledby="title">
        <figcaption>
          <h3 id="title">${title}</h3>
          <p>${hint}</p>
        </figcaption>
        <ul aria-label="Figures at ${says}">
          <li class="dim">${says}</li>
          ${series.map((it, index) => html`<li><i class="${it.color} ${dashed(it)}"></i>${told[index]}</li>`)}
        </ul>
        <div
          class="plot"
          tabindex="0"
          role="slider"
          aria-label="Time in “${title}”"
          aria-valuemin="0"
          aria-valuemax=${Math.max(0, this.times.length - 1)}
          aria-valuenow=${Math.max(0, at)}
          aria-valuetext="${says}. ${told.join('. ')}"
          @pointermove=${this.#hovered}
          @pointerleave=${() => this.#point(undefined)}
          @blur=${() => this.#point(undefined)}
          @keydown=${this.#keyed}
        >
          ${this.width > 0 ? this.#picture(this.width) : nothing}
        </div>
        <details @toggle=${(event: Event) => (this.isTableOpen = (event.target as HTMLDetailsElement).open)}>
          <summary>All figures as a table</summary>
          ${this.isTableOpen ? this.#table() : nothing}
        </details>
      </figure>
    `;
  }

  /** The index of the time that the legend tells of. */
  get #at(): number {
    return this.pointed === undefined ? this.times.length - 1 : nearest(this.times, this.pointed);
  }

  #frame(width: number): Frame {
    return { left: 62, right: width - 8, top: 8, bottom: HEIGHT - 22 };
  }

  #timeScale(width: number): Scale {
    const offset = -60 * new Date(this.end * 1_000).getTimezoneOffset();
    return timeScale(this.end - SPAN, this.end, this.#frame(width), offset);
  }

  #picture(width: number): TemplateResult {
    const { axis, shape, series, format } = this.figure;
    const frame = this.#frame(width);
    const x = this.#timeScale(width);
    const y = valueScale(axis, series.map(drawnOf), frame);
    // Of areas, those behind come first.
    const ordered = shape === 'areas' ? series.toReversed() : series;
    const lines = [
      ...y.marks.map((mark) => `M${frame.left} ${y.place(mark)}H${frame.right}`),
      ...x.marks.map((mark) => `M${x.place(mark)} ${frame.top}V${frame.bottom}`),
    ];
    const draw = (it: ChartSeries) => {
      const path = shape === 'areas' ? areaPath : linePath;
      return svg`<path class="${it.color} ${shape === 'areas' ? 'area' : dashed(it)}"
        d=${path(this.times, drawnOf(it), x, y)}></path>`;
    };
    const time = this.pointed === undefined ? undefined : this.times[this.#at];
    return html`<svg width=${width} height=${HEIGHT} aria-hidden="true">
      <clipPath id="frame">
        <rect x=${frame.left} y="0" width=${frame.right - frame.left} height=${HEIGHT}></rect>
      </clipPath>
      <path class="marks" d=${lines.join('')}></path>
      <g clip-path="url(#frame)">${ordered.map(draw)}</g>
      ${
        time === undefined
          ? nothing
          : svg`<path class="cursor" d="M${x.place(time)} ${frame.top}V${frame.bottom}"></path>`
      }
      ${y.marks.map((it) => svg`<text x=${frame.left - 6} y=${y.place(it) + 4} text-anchor="end">${format(it)}</text>`)}
      ${x.marks.map((it) => svg`<text x=${x.place(it)} y=${HEIGHT - 6} text-anchor="middle">${clockOf(it)}</text>`)}
    </svg>`;
  }

  readonly #hovered = (event: PointerEvent) => {
    const { left, right } = this.#frame(this.width);
    const x = event.clientX - this.plot.getBoundingClientRect().left;
    this.#point(this.end - SPAN + (SPAN * (x - left)) / (right - left));
  };

  readonly #keyed = (event: KeyboardEvent) => {
    const by = KEYS[event.key];
    if (by === undefined || this.times.length === 0) return;
    event.preventDefault();
    const at = Math.max(0, Math.min(this.times.length - 1, this.#at + by));
    this.#point(this.times[at]);
  };

  #point(time: number | undefined): void {
    const snapped = time === undefined ? undefined : this.times[nearest(this.times, time)];
    if (snapped === this.pointed) return;
    this.dispatchEvent(new CustomEvent<number | null>('point', { detail: snapped ?? null }));
  }

  #show(value: number | null | undefined): string {
    return value === null || value === undefined ? '–' : this.figure.format(value);
  }

  #table(): TemplateResult {
    const { title, series } = this.figure;
    const rows = [...this.times.keys()].filter((index) => this.isSample[index] === true).reverse();
    return html`<div class="scroll" tabindex="0" role="region" aria-label="${title}, as a table">
      <table>
        <thead>
          <tr>
            <th scope="col">Until</th>
            ${series.map((it) => html`<th scope="col">${it.name}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${rows.map(
            (index) => html`<tr>
              <th scope="row">${clockOf(this.times[index] ?? 0, true)}</th>
              ${series.map((it) => html`<td>${this.#show(it.values[index])}</td>`)}
            </tr>`,
          )}
        </tbody>
      </table>
    </div>`;
  }
}

function drawnOf({ drawn, values }: ChartSeries) {
  return drawn ?? values;
}

function dashed({ isDashed }: ChartSeries): string {
  return isDashed === true ? 'dashed' : '';
}

function clockOf(seconds: number, withSeconds = false): string {
  const time = new Date(seconds * 1_000);
  const parts = [time.getHours(), time.getMinutes(), ...(withSeconds ? [time.getSeconds()] : [])];
  return parts.map((it) => String(it).padStart(2, '0')).join(':');
}

customElements.define('rf-time-chart', TimeChart);
