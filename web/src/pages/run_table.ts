// The table of runs.

import { css, html, nothing, type TemplateResult } from 'lit';
import { property } from 'lit/decorators.js';

import { formatRoute } from '../app/route.js';
import { type RunInfo, RunState } from '../gen/ringfence/v1/run_pb.js';
import { formatBytes, formatDuration, formatRoughCount, shortDigest, shortRunId } from '../model/format.js';
import { printable } from '../model/printable.js';
import { askedAt, isLive, standing, stateName, type Tone } from '../model/run_end.js';
import { ranFor } from '../model/run_times.js';
import '../ui/elapsed.js';
import { VirtualRows } from '../ui/virtual_rows.js';

/** Labels of a run that a row shows. */
const MOST_LABELS = 4;

const COLUMNS = [
  '',
  'State',
  'Module',
  'Run',
  'Labels',
  'Asked',
  'Elapsed',
  'Memory',
  'Fuel',
  'Output',
  'End',
  '',
] as const;

/** What the table tells of by events whose `detail` it is. */
export interface RunTableEvents {
  'open-run': RunInfo;
  'kill-run': RunInfo;
  'delete-run': RunInfo;
  'choose-run': RunInfo;
  'filter-label': { readonly key: string; readonly value: string };
}

export class RunTable extends VirtualRows<RunInfo> {
  static override styles = [
    ...VirtualRows.styles,
    css`
      [role='row'] {
        display: grid;
        grid-template-columns:
          2rem 6.5rem minmax(7rem, 0.8fr) 6.5rem minmax(6rem, 1.2fr) 5.5rem 6.5rem 5.5rem 7rem 5.5rem
          minmax(9rem, 1.8fr) 4rem;
        align-items: center;
        gap: 0 var(--space-3);
        padding-inline: var(--space-3);
      }
      .head [role='row'] {
        min-height: 2rem;
      }
      [role='gridcell'],
      [role='columnheader'] {
        overflow: hidden;
        text-overflow: ellipsis;
        white-space: nowrap;
      }
      .number {
        text-align: end;
        font-variant-numeric: tabular-nums;
      }
      a {
        text-decoration: none;
      }
      a:hover {
        text-decoration: underline;
      }
      button {
        min-height: 1.5rem;
        padding: 0 0.45rem;
      }
      .label {
        font-family: var(--mono);
        font-size: 0.75rem;
        border-radius: 3px;
        padding: 0 0.3rem;
        max-width: 14rem;
        overflow: hidden;
        text-overflow: ellipsis;
        vertical-align: middle;
      }
      input[type='checkbox'] {
        min-height: 0;
        vertical-align: middle;
      }
      @container (max-width: 82rem) {
        [role='row'] {
          grid-template-columns:
            2rem 6.5rem minmax(7rem, 0.8fr) 6.5rem minmax(6rem, 1.2fr) 6.5rem 5.5rem 5.5rem
            minmax(9rem, 1.8fr) 4rem;
        }
        .asked,
        .fuel {
          display: none;
        }
      }
      @container (max-width: 62rem) {
        [role='row'] {
          grid-template-columns: 2rem 6.5rem minmax(6rem, 1fr) minmax(5rem, 0.8fr) 6rem 5rem minmax(8rem, 1.4fr) 4rem;
        }
        .run,
        .output {
          display: none;
        }
      }
      .narrow [role='row'] {
        grid-template-columns: 1.75rem 5.5rem minmax(0, 1fr) auto auto;
        grid-template-areas: 'choose state module elapsed kill' 'choose end end memory kill';
        padding-inline: var(--space-2);
        align-content: center;
      }
      .narrow .labels:not(.instead),
      .narrow .end:empty,
      .narrow .asked,
      .narrow .run,
      .narrow .fuel,
      .narrow .output {
        display: none;
      }
      .narrow .choose {
        grid-area: choose;
      }
      .narrow .state {
        grid-area: state;
      }
      .narrow .module {
        grid-area: module;
      }
      .narrow .elapsed {
        grid-area: elapsed;
      }
      .narrow .memory {
        grid-area: memory;
      }
      .narrow .end,
      .narrow .labels {
        grid-area: end;
      }
      .narrow .kill {
        grid-area: kill;
        justify-self: end;
      }
      .narrow .head {
        position: absolute;
        width: 1px;
        height: 1px;
        overflow: hidden;
        clip-path: inset(50%);
      }
    `,
  ];

  @property({ attribute: false }) nameOf: (digest: string) => string = () => '';
  /** Since when a run executes or waits. */
  @property({ attribute: false }) since: (id: string) => number | undefined = () => undefined;
  @property({ attribute: false }) chosen: ReadonlySet<string> = new Set();
  @property({ attribute: false }) mayChange = false;
  /** When the table was paused, whose clocks then stand. */
  @property({ attribute: false }) heldAt: number | undefined;

  protected override keyOf(run: RunInfo): string {
    return run.runId;
  }

  protected override isChosen(run: RunInfo): boolean {
    return this.chosen.has(run.runId);
  }

  protected override open(run: RunInfo): void {
    this.#tell('open-run', run);
  }

  protected override takeKey(event: KeyboardEvent, run: RunInfo): boolean {
    if (event.key === ' ') this.#tell('choose-run', run);
    else if (event.key === 'k' && this.mayChange) this.#tell('kill-run', run);
    else if (event.key === 'd' && this.mayChange) this.#tell('delete-run', run);
    else return false;
    return true;
  }

  #tell<K extends keyof RunTableEvents>(name: K, detail: RunTableEvents[K]): void {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  protected override renderHead(): TemplateResult {
    const classes = [
      'choose',
      'state',
      'module',
      'run',
      'labels',
      'asked',
      'elapsed',
      'memory',
      'fuel',
      'output',
      'end',
      'kill',
    ];
    return html`${COLUMNS.map((name, index) => {
      const isNumber = index >= 6 && index <= 9;
      const hidden = index === 0 ? 'Chosen' : index === 11 ? 'Kill' : '';
      return html`<span role="columnheader" class="${classes[index]} ${isNumber ? 'number' : ''}"
        >${name}${hidden === '' ? nothing : html`<span class="visually-hidden">${hidden}</span>`}</span
      >`;
    })}`;
  }

  protected override renderRow(run: RunInfo): TemplateResult {
    const { usage } = run;
    const how = standing(run);
    // Its state says all. On a narrow page, its labels take the place of its end.
    const isRunning = run.state === RunState.RUNNING;
    const id = shortRunId(run.runId);
    const name =
      this.nameOf(run.moduleDigest) || shortDigest(run.moduleDigest) || (isLive(run) ? 'not known yet' : 'not known');
    const open = (event: MouseEvent) => {
      // With a key held, the browser opens a tab or a window.
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      this.open(run);
    };
    const href = formatRoute({ page: 'run', id: run.runId, at: undefined });
    return html`
      <span role="gridcell" class="choose">
        <input
          type="checkbox"
          tabindex="-1"
          aria-label="Choose run ${id}"
          .checked=${this.isChosen(run)}
          @change=${() => this.#tell('choose-run', run)}
        />
      </span>
      <span role="gridcell" class="state ${toneOfState(run, how.tone)}"
        ><span aria-hidden="true">●</span> ${stateName(run.state)}</span
      >
      <span role="gridcell" class="module"><a href=${href} tabindex="-1" @click=${open}>${name}</a></span>
      <span role="gridcell" class="run mono"><a href=${href} tabindex="-1" @click=${open}>${id}</a></span>
      <span role="gridcell" class=${isRunning ? 'labels instead' : 'labels'}>${this.#labels(run)}</span>
      <span role="gridcell" class="asked dim">${clockTime(askedAt(run))}</span>
      <span role="gridcell" class="elapsed number">${this.#elapsed(run)}</span>
      <span role="gridcell" class="memory number">${usage === undefined ? '' : formatBytes(usage.memoryUsed)}</span>
      <span role="gridcell" class="fuel number"
        >${usage?.fuelConsumed === undefined ? '' : formatRoughCount(usage.fuelConsumed)}</span
      >
      <span role="gridcell" class="output number"
        >${usage === undefined ? '' : formatBytes(usage.stdoutBytes + usage.stderrBytes)}</span
      >
      <span role="gridcell" class="end ${how.tone}">${isRunning ? '' : how.text}</span>
      <span role="gridcell" class="kill">
        ${
          this.mayChange && isLive(run)
            ? html`<button class="danger" tabindex="-1" @click=${() => this.#tell('kill-run', run)}>
              Kill<span class="visually-hidden"> run ${id}</span>
            </button>`
            : nothing
        }
      </span>
    `;
  }

  #labels(run: RunInfo): TemplateResult {
    const labels = Object.entries(run.labels).sort(([a], [b]) => (a < b ? -1 : 1));
    return html`${labels.slice(0, MOST_LABELS).map(
      ([key, value]) =>
        html`<button
            class="label"
            tabindex="-1"
            aria-label="Show only ${printable(`${key}=${value}`)}"
            @click=${() => this.#tell('filter-label', { key, value })}
            >${printable(`${key}=${value}`)}</button
          > `,
    )}${labels.length > MOST_LABELS ? html`<span class="dim">and ${labels.length - MOST_LABELS}</span>` : nothing}`;
  }

  #elapsed(run: RunInfo): TemplateResult | string {
    const since = this.since(run.runId);
    if (!isLive(run)) {
      const ran = ranFor(run);
      return ran === undefined ? '' : formatDuration(ran);
    }
    return html`<rf-elapsed .since=${since ?? Date.now()} .until=${this.heldAt}></rf-elapsed>`;
  }
}

function toneOfState(run: RunInfo, tone: Tone): Tone {
  return isLive(run) ? tone : tone === 'good' ? 'dim' : tone;
}

/** Shows the time of day, which is enough for what a daemon remembers; of another day, month and day before it. */
function clockTime(time: number | undefined): string {
  if (time === undefined) return '';
  const two = (value: number) => String(value).padStart(2, '0');
  const date = new Date(time);
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}`;
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? `${clock}:${two(date.getSeconds())}` : `${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock}`;
}

customElements.define('rf-run-table', RunTable);
