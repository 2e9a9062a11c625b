// How the daemon is: what runs came to in the last hour, how busy it is, and what stands in its walls.

import { durationFromMs, durationMs, timestampMs } from '@bufbuild/protobuf/wkt';
import { css, html, LitElement, nothing, type TemplateResult } from 'lit';
import { property, state } from 'lit/decorators.js';

import { LiveStream, type StreamState } from '../api/live_stream.js';
import type { PageContext } from '../app/context.js';
import type { Route } from '../app/route.js';
import { Outcome } from '../gen/ringfence/v1/result_pb.js';
import type { DaemonLoad, Stats, WatchStatsResponse } from '../gen/ringfence/v1/stats_service_pb.js';
import type { ChartFigure } from '../model/chart_figure.js';
import { formatAbsolute, formatBytes, formatCount, formatDuration } from '../model/format.js';
import { chartsOf } from '../model/overview.js';
import { printable } from '../model/printable.js';
import { outcomeName } from '../model/run_end.js';
import { quantile, type StatsColumns, StatsSeries } from '../model/stats_series.js';
import '../ui/stream_status.js';
import { controls } from '../ui/styles.js';
import '../ui/time_chart.js';
import './walls.js';

const INTERVAL_MS = 2_000;

export class OverviewPage extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: block;
        padding: var(--space-4);
      }
      header {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: 0 var(--space-3);
      }
      h2 {
        margin-block: var(--space-6) var(--space-2);
      }
      .tiles,
      .charts,
      .lists {
        display: grid;
        gap: var(--space-3);
        margin: var(--space-3) 0;
      }
      .tiles {
        grid-template-columns: repeat(auto-fit, minmax(min(9rem, 100%), 1fr));
      }
      .charts {
        grid-template-columns: repeat(auto-fit, minmax(min(25rem, 100%), 1fr));
      }
      .lists {
        grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr));
        gap: var(--space-4) var(--space-6);
        align-items: start;
      }
      .tile {
        border: 1px solid var(--line);
        border-radius: var(--radius);
        background: var(--ground-2);
        padding: var(--space-2) var(--space-3);
      }
      dt {
        color: var(--ink-2);
        font-size: var(--text-s);
      }
      dd {
        margin: 0;
        font-variant-numeric: tabular-nums;
      }
      dd strong {
        font-size: 1.4rem;
        line-height: 1.3;
      }
      dd small {
        display: block;
        color: var(--ink-2);
        font-size: var(--text-s);
      }
      meter {
        width: 100%;
        height: 0.6rem;
      }
      table {
        border-collapse: collapse;
        width: 100%;
      }
      caption {
        text-align: start;
        font-weight: 600;
        padding-block-end: var(--space-1);
      }
      th,
      td {
        font-weight: 400;
        text-align: start;
        overflow-wrap: anywhere;
        border-block-start: 1px solid var(--line);
        padding: 0.15rem 0;
      }
      td {
        text-align: end;
        font-variant-numeric: tabular-nums;
      }
    `,
  ];

  @property({ attribute: false }) context!: PageContext;
  @property({ attribute: false }) route!: Extract<Route, { page: 'overview' }>;
  @state() private streamState: StreamState = { kind: 'connecting' };
  @state() private latest: Stats | undefined;
  @state() private columns: StatsColumns | undefined;
  @state() private charts: readonly ChartFigure[] = [];
  /** The time that the reader points at in one of the charts, which all of them show. */
  @state() private pointed: number | undefined;
  readonly #series = new StatsSeries();
  #stream: LiveStream<WatchStatsResponse> | undefined;
  #gone = new AbortController();

  override connectedCallback(): void {
    super.connectedCallback();
    this.#gone = new AbortController();
    if (this.hasUpdated) this.#begin();
  }

  protected override firstUpdated(): void {
    this.#begin();
  }

  override disconnectedCallback(): void {
    this.#gone.abort();
    this.#stream?.stop();
    super.disconnectedCallback();
  }

  #begin(): void {
    const { signal } = this.#gone;
    const { daemon } = this.context;
    daemon.token.addEventListener('change', () => this.#watch(), { signal });
    this.#watch();
  }

  #watch(): void {
    const { daemon } = this.context;
    this.#stream?.stop();
    this.#stream = new LiveStream<WatchStatsResponse>({
      slots: daemon.slots,
      open: (signal, opened) => {
        // The past since the last sample, so that nothing is missing after a break, or of when the tab was hidden.
        const history = durationFromMs(this.#series.missing(Date.now()));
        const request = { interval: durationFromMs(INTERVAL_MS), history };
        return daemon.stats.watchStats(request, { signal, onHeader: opened });
      },
      take: ({ stats }) => {
        if (stats !== undefined) this.#take(stats);
        return false;
      },
      changed: (state) => (this.streamState = state),
    });
  }

  #take(stats: Stats): void {
    if (this.#series.take(stats, Date.now()) || this.columns === undefined) {
      this.columns = this.#series.columns();
      this.charts = chartsOf(this.columns, stats.daemon?.memoryCapacity ?? 0n);
    }
    this.latest = stats;
  }

  override render() {
    const { latest, columns } = this;
    return html`
      <header>
        <h1>Overview</h1>
        <rf-stream-status .state=${this.streamState} @retry=${() => this.#stream?.retry()}></rf-stream-status>
      </header>
      ${latest === undefined ? nothing : this.#now(latest)}
      ${latest?.daemon === undefined ? nothing : this.#load(latest.daemon)}
      ${columns === undefined || latest === undefined ? nothing : this.#hour(latest, columns)}
      <h2>The daemon’s walls</h2>
      <rf-walls .daemon=${this.context.daemon}></rf-walls>
    `;
  }

  #now(stats: Stats): TemplateResult {
    const { lastMinute: minute } = stats;
    const latency = (summary: NonNullable<typeof minute>['wait']) => {
      const [half, most] = [quantile(summary, 'p50'), quantile(summary, 'p99')];
      return half === null || most === null
        ? ({ value: '–', more: 'There was none.' } as const)
        : ({ value: formatDuration(half), more: `p99 ${formatDuration(most)}` } as const);
    };
    const [wait, run] = [latency(minute?.wait), latency(minute?.run)];
    return html`<h2>Your runs now, and in the last minute</h2>
      <dl class="tiles">
        ${tile('Running', formatCount(stats.runsRunning), `${formatCount(stats.runsCompiling)} compiling`)}
        ${tile('Waiting for a slot', formatCount(stats.runsQueued))}
        ${tile('Ended a second', rate(minute?.runsPerSecond ?? 0), `${formatCount(minute?.runs ?? 0n)} in all`)}
        ${tile('Refused', formatCount(minute?.refused ?? 0n))} ${tile('Median wait', wait.value, wait.more)}
        ${tile('Median duration', run.value, run.more)}
      </dl>`;
  }

  #load(load: DaemonLoad): TemplateResult {
    return html`<h2>The daemon, with all of its tenants</h2>
      <dl class="tiles">
        ${gauge('Slots', load.runsInFlight, load.runCapacity, formatCount, `${formatCount(load.runsQueued)} runs wait`)}
        ${gauge('Reserved memory', load.memoryReserved, load.memoryCapacity, formatBytes)}
        ${gauge('Compiled code', load.cacheBytes, load.cacheCapacity, formatBytes)}
        ${gauge('Guest threads', load.guestThreadsBusy, load.guestThreads, formatCount)}
        ${tile('Compiling', formatCount(load.compilesInFlight), `${formatCount(load.compilesQueued)} wait`)}
      </dl>`;
  }

  #hour(stats: Stats, columns: StatsColumns): TemplateResult {
    const end = stats.time === undefined ? 0 : timestampMs(stats.time) / 1_000;
    // Charts move on when there is something new, or should have been.
    const edge = Math.max(columns.times.at(-1) ?? 0, end - 20);
    const since = stats.since === undefined ? '' : formatAbsolute(timestampMs(stats.since));
    const outcomes = stats.outcomes.map(
      (it) => [it.outcome === Outcome.UNSPECIFIED ? 'unknown' : outcomeName(it.outcome), it.runs] as const,
    );
    const refusals = stats.refusals.map((it) => [printable(it.reason), it.runs] as const);
    const used = [
      ['Processor time', stats.cpuTime === undefined ? '0 s' : formatDuration(durationMs(stats.cpuTime))],
      ['Fuel', formatCount(stats.fuelConsumed)],
      ['Read from stdin', formatBytes(stats.stdinBytes)],
      ['Written to stdout', formatBytes(stats.stdoutBytes)],
      ['Written to stderr', formatBytes(stats.stderrBytes)],
    ] as const;
    return html`
      <h2>The last hour</h2>
      <div class="charts">
        ${this.charts.map(
          (it) => html`<rf-time-chart
            .figure=${it}
            .times=${columns.times}
            .isSample=${columns.isSample}
            .end=${edge}
            .pointed=${this.pointed}
            @point=${(event: CustomEvent<number | null>) => (this.pointed = event.detail ?? undefined)}
          ></rf-time-chart>`,
        )}
      </div>
      <h2>Since the daemon started</h2>
      <p class="dim">Your runs that ended since ${since}. Runs of other tenants are not among them.</p>
      <div class="lists">
        ${list('Outcomes', outcomes, 'No run has ended.')}
        ${list('Refusals by reason', refusals, 'No run was refused.')}
        ${list('What they used', used, '')}
      </div>
    `;
  }
}

function tile(name: string, value: string, more = ''): TemplateResult {
  return html`<div class="tile">
    <dt>${name}</dt>
    <dd><strong>${value}</strong>${more === '' ? nothing : html`<small>${more}</small>`}</dd>
  </div>`;
}

function gauge<T extends number | bigint>(
  name: string,
  value: T,
  capacity: T,
  format: (value: T) => string,
  more = '',
): TemplateResult {
  return html`<div class="tile">
    <dt>${name}</dt>
    <dd>
      <strong>${format(value)}</strong> of ${format(capacity)}
      <meter min="0" max=${Number(capacity)} .value=${Number(value)} aria-label=${name}></meter>
      ${more === '' ? nothing : html`<small>${more}</small>`}
    </dd>
  </div>`;
}

function list(title: string, rows: ReadonlyArray<readonly [string, string | bigint]>, none: string): TemplateResult {
  return html`<table>
    <caption>
      ${title}
    </caption>
    ${
      rows.length === 0
        ? html`<tr><td>${none}</td></tr>`
        : rows.map(
            ([name, value]) => html`<tr>
            <th scope="row">${name}</th>
            <td>${typeof value === 'string' ? value : formatCount(value)}</td>
          </tr>`,
          )
    }
  </table>`;
}

function rate(value: number): string {
  return value === 0 || value >= 100 ? formatCount(Math.round(value)) : value.toPrecision(2);
}

customElements.define('rf-overview-page', OverviewPage);
