// One run: in words above, and what it writes below.

import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';
import { property, state } from 'lit/decorators.js';

import { type Failure, failureOf, isAborted, isTransient } from '../api/failure.js';
import { ModuleNames } from '../api/module_names.js';
import type { PageContext } from '../app/context.js';
import { replaceRoute } from '../app/navigate.js';
import { formatRoute, HOME, type Route } from '../app/route.js';
import type { HealthResponse } from '../gen/ringfence/v1/sandbox_service_pb.js';
import { ArchiveState, type RunInfo, RunState } from '../gen/ringfence/v1/run_pb.js';
import type { LogLinkDetail, RunEventDetail } from '../log/events.js';
import '../log/ringfence_log.js';
import { instanceOf, shortDigest, shortRunId } from '../model/format.js';
import { printable } from '../model/printable.js';
import { isLive } from '../model/run_end.js';
import { clockLead, liveSince } from '../model/run_times.js';
import { sentence } from '../model/sentences.js';
import { specOf } from '../model/started_specs.js';
import { controls } from '../ui/styles.js';
import './run_actions.js';
import './run_head.js';
import './run_input.js';

/** What a live run uses is asked for this often; what happens to it, its output tells. */
const ASK_EVERY_MS = 2_000;
const TIMEOUT_MS = 10_000;

export class RunPage extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: grid;
        grid-template-rows: fit-content(50%) minmax(10rem, 1fr) auto;
        height: 100%;
        min-height: 26rem;
      }
      .above {
        display: grid;
        grid-template-rows: auto minmax(0, 1fr);
        min-height: 0;
        max-height: 50dvh;
        border-block-end: 1px solid var(--line);
      }
      .scroller {
        overflow: auto;
        display: grid;
        align-content: start;
        gap: var(--space-3);
        padding: 0 var(--space-3) var(--space-3);
      }
      /* A phone has no room for two areas that scroll: the page itself does. */
      @media (max-width: 40rem), (max-height: 34rem) {
        :host {
          grid-template-rows: auto minmax(22rem, 1fr) auto;
          height: auto;
          min-height: 100%;
        }
        .above {
          max-height: none;
        }
      }
      .bar {
        /* Its menus open over what is below. */
        position: relative;
        z-index: 3;
        display: flex;
        flex-wrap: wrap;
        gap: var(--space-2) var(--space-4);
        align-items: center;
        padding: var(--space-3);
      }
      rf-run-actions {
        margin-inline-start: auto;
      }
      h1 {
        overflow-wrap: anywhere;
      }
      ringfence-log {
        min-height: 0;
        min-width: 0;
      }
      .notice {
        margin: 0;
        padding: var(--space-2) var(--space-3);
        background: var(--ground-3);
        border-radius: var(--radius);
        overflow-wrap: anywhere;
      }
      .gone {
        padding: var(--space-4);
        max-width: 48rem;
        overflow-wrap: anywhere;
      }
    `,
  ];

  @property({ attribute: false }) context!: PageContext;
  @property({ attribute: false }) route!: Extract<Route, { page: 'run' }>;
  @state() private info: RunInfo | undefined;
  @state() private failure: Failure | undefined;
  @state() private health: HealthResponse | undefined;
  #names: ModuleNames | undefined;
  #since = 0;
  #gone = new AbortController();

  override connectedCallback(): void {
    super.connectedCallback();
    if (this.hasUpdated) this.#begin();
  }

  override disconnectedCallback(): void {
    this.#gone.abort();
    super.disconnectedCallback();
  }

  protected override willUpdate(changed: PropertyValues): void {
    const before = changed.get('route') as RunPage['route'] | undefined;
    if (changed.has('route') && before?.id !== this.route.id) this.#begin();
  }

  #begin(): void {
    this.#gone.abort();
    this.#gone = new AbortController();
    const { signal } = this.#gone;
    this.info = undefined;
    this.failure = undefined;
    this.#names = ModuleNames.of(this.context.daemon);
    this.#names.addEventListener('change', () => this.requestUpdate(), { signal });
    void this.#follow(signal);
    void this.#askHealth(signal);
  }

  /** Asks for the run until it has ended and is in the archive, or is not known. */
  async #follow(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      if (document.visibilityState === 'visible') await this.#ask(signal);
      // What waits for the archive becomes something else soon.
      const isOver = this.info !== undefined && !isLive(this.info) && this.info.archive !== ArchiveState.QUEUED;
      if (isOver || (this.failure !== undefined && !isTransient(this.failure))) return;
      await new Promise((resolve) => setTimeout(resolve, ASK_EVERY_MS));
    }
  }

  async #ask(signal: AbortSignal): Promise<void> {
    try {
      const { run } = await this.context.daemon.runs.getRun(
        { runId: this.route.id },
        { signal, timeoutMs: TIMEOUT_MS },
      );
      if (signal.aborted || run === undefined) return;
      this.failure = undefined;
      // Answers may overtake each other: nothing follows the end.
      if (this.info !== undefined && !isLive(this.info) && isLive(run)) return;
      const now = Date.now();
      const isSame = this.info?.state === run.state && run.state !== RunState.RUNNING;
      if (!isSame) this.#since = liveSince(run, now, clockLead(run, now) ?? 0);
      this.info = run;
      this.#names?.want([run.moduleDigest]);
    } catch (error) {
      if (!isAborted(error) && !signal.aborted) this.failure = failureOf(error);
    }
  }

  async #askHealth(signal: AbortSignal): Promise<void> {
    try {
      this.health = await this.context.daemon.sandbox.health({}, { signal, timeoutMs: TIMEOUT_MS });
    } catch {
      // Reports are made without the version then.
    }
  }

  readonly #happened = ({ detail }: CustomEvent<RunEventDetail>) => {
    if (detail.run === this.route.id && detail.event.event.case !== 'lost') void this.#ask(this.#gone.signal);
  };

  readonly #linked = ({ detail }: CustomEvent<LogLinkDetail>) => {
    if (detail.run === this.route.id) replaceRoute({ ...this.route, at: detail.at });
  };

  override render(): TemplateResult {
    const { info, failure } = this;
    if (info === undefined && failure !== undefined) return this.#notThere(failure);
    const { daemon, settings, mayChange, traceUrl } = this.context;
    const name = this.#name();
    const shownName = name || shortDigest(info?.moduleDigest ?? '') || 'Run';
    return html`
      <div class="above">
        <div class="bar">
          <h1>${shownName} <span class="mono dim">${shortRunId(this.route.id)}</span></h1>
          ${
            info === undefined
              ? nothing
              : html`<rf-run-actions
                .context=${this.context}
                .info=${info}
                .moduleName=${name}
                .health=${this.health}
              ></rf-run-actions>`
          }
        </div>
        <div class="scroller">
          ${failure === undefined ? nothing : html`<p class="notice" role="status">${whyStale(failure)}</p>`}
          ${
            info === undefined
              ? html`<p class="dim">Asking for the run …</p>`
              : html`<rf-run-head
                .info=${info}
                .moduleName=${name}
                .asked=${specOf(info.runId)}
                .traceUrl=${traceUrl}
                .since=${this.#since}
              ></rf-run-head>`
          }
        </div>
      </div>
      <ringfence-log
        .daemon=${daemon}
        .settings=${settings}
        .run=${this.route.id}
        .at=${this.route.at}
        @ringfence-run-event=${this.#happened}
        @ringfence-link=${this.#linked}
      ></ringfence-log>
      ${
        info !== undefined && isLive(info) && mayChange
          ? html`<rf-run-input .daemon=${daemon} .run=${info.runId}></rf-run-input>`
          : nothing
      }
    `;
  }

  #name(): string {
    return this.#names?.nameOf(this.info?.moduleDigest ?? '') ?? '';
  }

  #notThere(failure: Failure): TemplateResult {
    const [title, ...sentences] = whyNotThere(failure, this.route.id);
    return html`<div class="gone">
      <h1>${title}</h1>
      ${sentences.map((it) => html`<p>${it}</p>`)}
      <p><a href=${formatRoute(HOME)}>All runs</a></p>
    </div>`;
  }
}

/** Says why a run cannot be shown: a title, and sentences. */
function whyNotThere(failure: Failure, id: string): string[] {
  const instance = failure.metadata['instance'] ?? instanceOf(id);
  switch (failure.reason) {
    case 'RUN_NOT_FOUND':
      return [
        'This run is not known here',
        'The daemon has no such run, or no longer: it was deleted, or it ended too long ago. A daemon remembers ended ' +
          'runs for a while (runs.history, runs.history_age), and the archive keeps them longer (runs.archive_age).',
        'It may also be a run of another tenant.',
      ];
    case 'RUN_ELSEWHERE':
      return [
        `This run is on another daemon, ${printable(instance)}`,
        'It is in no archive that this daemon reads. Open the page of that daemon, with the same address behind the #.',
      ];
    case 'ARCHIVE_UNAVAILABLE':
      return ['The archive does not answer', `${sentence(failure.message)} It is asked again.`];
    case 'SPEC_INVALID':
      return ['This is not the id of a run', sentence(failure.message)];
    default:
      return isTransient(failure)
        ? ['The daemon does not answer', `${sentence(failure.message)} It is asked again.`]
        : ['The run cannot be shown', sentence(failure.message)];
  }
}

/** Says why what is shown of a run may be old. */
function whyStale(failure: Failure): string {
  if (failure.reason === 'RUN_NOT_FOUND') {
    return 'The daemon does not know this run any more: it was started again, or forgot it. This is what it knew.';
  }
  return `The daemon does not answer: ${sentence(failure.message)} This is what was known of the run.`;
}

customElements.define('rf-run-page', RunPage);
