// What stands above the output of a run: what it was, how it stands or ended, and what it used.

import { timestampMs, type Timestamp } from '@bufbuild/protobuf/wkt';
import { css, html, LitElement, nothing, type TemplateResult } from 'lit';
import { property } from 'lit/decorators.js';

import { navigate } from '../app/navigate.js';
import { ArchiveState, type RunInfo } from '../gen/ringfence/v1/run_pb.js';
import type { RunSpec } from '../gen/ringfence/v1/spec_pb.js';
import { formatAbsolute, formatRelative } from '../model/format.js';
import { printable } from '../model/printable.js';
import { isLive, stateName } from '../model/run_end.js';
import { askedFor, type Fact, limitsOf, type RunSummary, summarise, type TrapSummary } from '../model/run_summary.js';
import { traceLink } from '../model/trace_link.js';
import { copyText } from '../ui/copy.js';
import '../ui/elapsed.js';
import '../ui/meter_bar.js';
import { controls } from '../ui/styles.js';

/** Calls on the guest's stack that are shown at once. */
const FIRST_FRAMES = 5;

export class RunHead extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: grid;
        gap: var(--space-3);
        overflow-wrap: anywhere;
      }
      p,
      pre,
      dl,
      ul {
        margin: 0;
      }
      .says {
        border-inline-start: 4px solid var(--tone);
        padding-inline-start: var(--space-3);
      }
      .says p:first-child {
        font-size: var(--text-l);
        font-weight: 600;
      }
      .uses {
        display: grid;
        grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
        gap: var(--space-2) var(--space-4);
      }
      .labels {
        display: flex;
        flex-wrap: wrap;
        gap: var(--space-1);
      }
      .labels button {
        font-family: var(--mono);
        font-size: var(--text-s);
        min-height: 1.5rem;
        padding: 0 0.45rem;
        max-width: 100%;
        overflow: hidden;
        text-overflow: ellipsis;
      }
      dl {
        display: grid;
        grid-template-columns: max-content minmax(0, 1fr);
        gap: 0.15rem var(--space-3);
      }
      dt {
        color: var(--ink-2);
      }
      dd {
        margin: 0;
      }
      summary {
        cursor: pointer;
        color: var(--ink-2);
      }
      details[open] summary {
        margin-block-end: var(--space-2);
      }
      ol {
        margin: var(--space-1) 0 0;
        padding-inline-start: 2rem;
        font-family: var(--mono);
        font-size: var(--text-s);
      }
    `,
  ];

  @property({ attribute: false }) info!: RunInfo;
  @property({ attribute: false }) moduleName = '';
  /** What this page asked for, where it started the run. */
  @property({ attribute: false }) asked: RunSpec | undefined;
  /** Where a trace is shown, with `{trace_id}` in place of its id; empty for nowhere. */
  @property({ attribute: false }) traceUrl = '';
  /** Since when the run executes or waits, by this browser's clock. */
  @property({ attribute: false }) since = 0;

  override render(): TemplateResult {
    const summary = summarise(this.info, this.asked);
    return html`
      <div class="says">${this.#sentences(summary)}</div>
      ${this.#facts(summary.refusal)}
      ${
        summary.uses.length === 0
          ? nothing
          : html`<div class="uses" role="group" aria-label="What it used">
            ${summary.uses.map(
              (it) =>
                html`<rf-meter-bar
                  .name=${it.name}
                  .text=${it.text}
                  .used=${it.used}
                  .allowed=${it.allowed}
                  .isOver=${it.isOver}
                ></rf-meter-bar>`,
            )}
          </div>`
      }
      ${summary.trap === undefined ? nothing : this.#trap(summary.trap)} ${this.#labels()}
      <details>
        <summary>What it was</summary>
        ${this.#facts(this.#about())} ${this.#trace()}
      </details>
    `;
  }

  protected override updated(): void {
    const { tone } = summarise(this.info, this.asked);
    this.style.setProperty('--tone', `var(--${tone === 'dim' ? 'ink-2' : tone})`);
  }

  #sentences({ sentences }: RunSummary): TemplateResult {
    const [first = '', ...rest] = sentences;
    const lasts = isLive(this.info)
      ? html` <span class="dim">For <rf-elapsed .since=${this.since}></rf-elapsed>.</span>`
      : nothing;
    return html`<p>${first}${lasts}</p>
      ${rest.length === 0 ? nothing : html`<p>${rest.join(' ')}</p>`}`;
  }

  #trap({ code, frames }: TrapSummary): TemplateResult {
    if (frames.length === 0) return html`<p class="dim">Trap ${code}</p>`;
    const list = (from: number, to?: number) =>
      html`<ol start=${from}>
        ${frames.slice(from, to).map((it) => html`<li>${it}</li>`)}
      </ol>`;
    const rest = frames.length - FIRST_FRAMES;
    return html`<section aria-label="Trap">
      <p class="dim">Trap ${code}, and the calls that led there, the innermost first:</p>
      ${list(0, rest > 1 ? FIRST_FRAMES : undefined)}
      ${
        rest > 1
          ? html`<details>
            <summary>${rest} more calls</summary>
            ${list(FIRST_FRAMES)}
          </details>`
          : nothing
      }
    </section>`;
  }

  #labels(): TemplateResult | typeof nothing {
    const labels = Object.entries(this.info.labels).sort(([a], [b]) => (a < b ? -1 : 1));
    if (labels.length === 0) return nothing;
    const show = (key: string, value: string) =>
      navigate({ page: 'runs', text: '', states: [], labels: new Map([[key, value]]) });
    return html`<div class="labels" role="group" aria-label="Labels">
      ${labels.map(
        ([key, value]) =>
          html`<button
            aria-label="Show runs with the label ${printable(`${key}=${value}`)}"
            @click=${() => show(key, value)}
          >
            ${printable(`${key}=${value}`)}
          </button>`,
      )}
    </div>`;
  }

  #about(): Fact[] {
    const { info } = this;
    const now = Date.now();
    const at = (time: Timestamp | undefined) =>
      time === undefined ? '' : `${formatAbsolute(timestampMs(time))}, ${formatRelative(timestampMs(time), now)}`;
    const called = `by ${info.method} from ${info.caller}`;
    const facts: Fact[] = [
      { name: 'Id', value: printable(info.runId) },
      { name: 'State', value: stateName(info.state) },
      { name: 'Module', value: [this.moduleName, printable(info.moduleDigest)].filter((it) => it !== '').join(', ') },
      { name: 'Requested', value: printable(called) },
      { name: 'Goes on', value: info.detached ? 'without its caller (detached)' : 'as long as its caller stays' },
      { name: 'Requested at', value: at(info.asked) },
      { name: 'Started at', value: at(info.started) },
      { name: 'Ended at', value: at(info.ended) },
      { name: 'Archive', value: archiveSays(info.archive) },
      ...(this.asked === undefined ? [] : askedFor(this.asked)),
      ...limitsOf(info.granted),
    ];
    if (this.asked === undefined) {
      facts.push({
        name: 'Not known',
        value: 'The daemon does not keep entry point, arguments, environment and input.',
      });
    }
    return facts.filter((it) => it.value !== '');
  }

  #trace(): TemplateResult | typeof nothing {
    const { traceId } = this.info;
    if (traceId === '') return nothing;
    const link = traceLink(this.traceUrl, traceId);
    const id = html`<span class="mono">${printable(traceId)}</span>`;
    return html`<p>
      Trace ${link === undefined ? id : html`<a href=${link} target="_blank" rel="noopener noreferrer">${id}</a>`}
      <button @click=${() => void copyText(traceId, 'The id of the trace')}>Copy the id of the trace</button>
    </p>`;
  }

  #facts(facts: readonly Fact[]): TemplateResult | typeof nothing {
    if (facts.length === 0) return nothing;
    return html`<dl>
      ${facts.map(
        ({ name, value }) =>
          html`<dt>${name}</dt>
            <dd>${value}</dd>`,
      )}
    </dl>`;
  }
}

/** Says whether the archive has an ended run. */
function archiveSays(state: ArchiveState): string {
  switch (state) {
    case ArchiveState.UNSPECIFIED:
      return '';
    case ArchiveState.QUEUED:
      return 'waits to be written';
    case ArchiveState.WRITTEN:
      return 'written, so that the run outlives the daemon';
    case ArchiveState.DROPPED:
      return 'dropped, since it could not be written: the run is forgotten with the daemon';
  }
}

customElements.define('rf-run-head', RunHead);
