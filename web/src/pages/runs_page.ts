// All runs, as they come and go.

import { html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';
import { property, query, state } from 'lit/decorators.js';

import { LiveStream, type StreamState } from '../api/live_stream.js';
import { ModuleNames } from '../api/module_names.js';
import type { PageContext } from '../app/context.js';
import { navigate, replaceRoute } from '../app/navigate.js';
import type { Route } from '../app/route.js';
import { type RunInfo, RunState } from '../gen/ringfence/v1/run_pb.js';
import type { WatchRunsResponse } from '../gen/ringfence/v1/run_service_pb.js';
import { formatCount, plural } from '../model/format.js';
import { isLive } from '../model/run_end.js';
import { isDeletable, matcher, type RunFilter, runStates } from '../model/run_filter.js';
import { RunList } from '../model/run_list.js';
import { addShortcuts } from '../ui/shortcuts.js';
import '../ui/stream_status.js';
import { controls } from '../ui/styles.js';
import { deleteEach, deleteMatching, type Deletion } from './delete_runs.js';
import { killEach, killMatching } from './kill_runs.js';
import { RangeRuns } from './range_runs.js';
import './run_filters.js';
import type { RunFilters } from './run_filters.js';
import './run_table.js';
import type { RunTable, RunTableEvents } from './run_table.js';
import { runsStyles } from './runs_styles.js';

/** News are gathered for this long before they are shown. */
const SHOW_EVERY_MS = 100;
/** A watch does not tell what runs use while they execute, so that it is asked for. */
const USAGE_EVERY_MS = 2_000;
/** The most executing runs whose use is asked for, the newest first. */
const MOST_ASKED = 200;
/** Modules without a name are looked up for this many of the runs that are shown. */
const MOST_NAMED = 200;

/** A table that is held, as it was. */
interface Hold {
  readonly at: number;
  readonly runs: readonly RunInfo[];
  /** The ids of the runs that changed since. */
  readonly changed: Set<string>;
}

/** The run that was opened last, at which whoever comes back goes on. */
let lastOpened: string | undefined;

export class RunsPage extends LitElement {
  static override styles = [controls, runsStyles];

  @property({ attribute: false }) context!: PageContext;
  @property({ attribute: false }) route!: Extract<Route, { page: 'runs' }>;
  @state() private streamState: StreamState = { kind: 'connecting' };
  @state() private isSynced = false;
  @state() private runs: readonly RunInfo[] = [];
  @state() private chosen: ReadonlySet<string> = new Set();
  @state() private hold: Hold | undefined;
  @query('rf-run-filters') private filters!: RunFilters;
  @query('rf-run-table') private table!: RunTable;
  readonly #list = new RunList();
  #stream: LiveStream<WatchRunsResponse> | undefined;
  #names: ModuleNames | undefined;
  /** Lists the runs of a time, where one is chosen. */
  readonly #range = new RangeRuns(this.#list, () => {
    if (!this.#range.isLoading) this.#goOn();
    this.#show();
  });
  #shownAt = 0;
  #isShowing = false;
  #gone = new AbortController();
  #removeShortcuts = () => {};

  override connectedCallback(): void {
    super.connectedCallback();
    this.#gone = new AbortController();
    this.#removeShortcuts = addShortcuts([
      { keys: '/', says: 'Filter runs by words', run: () => this.filters.focusSearch() },
      { keys: 'p', says: 'Pause the table of runs, or go on', run: () => this.#togglePause() },
      {
        keys: 't',
        says: 'Go to the table of runs, where k kills, d deletes, Space chooses and Enter opens',
        run: () => this.table.focus(),
      },
    ]);
    if (this.hasUpdated) this.#begin();
  }

  override disconnectedCallback(): void {
    this.#gone.abort();
    this.#range.stop();
    this.#stream?.stop();
    this.#stream = undefined;
    this.#removeShortcuts();
    super.disconnectedCallback();
  }

  #begin(): void {
    const { signal } = this.#gone;
    this.#names = ModuleNames.of(this.context.daemon);
    this.#names.addEventListener('change', () => this.#show(), { signal });
    this.#watch();
    this.#listRange();
    void this.#askUsage(signal);
  }

  protected override willUpdate(changed: PropertyValues): void {
    // The daemon is asked before anything is rendered, so that the first row is there soon.
    if (!this.hasUpdated) this.#begin();
    const before = changed.get('route') as RunsPage['route'] | undefined;
    if (before === undefined) return;
    // The daemon selects by states and labels, so that what is beyond the bound of this page is found too.
    const selection = ({ states, labels }: RunFilter) => JSON.stringify([states, [...labels]]);
    const isOther = selection(before) !== selection(this.route);
    if (isOther) this.#watch();
    if (isOther || JSON.stringify(before.range) !== JSON.stringify(this.route.range)) {
      this.#list.forgetListed();
      // What is asked for is to be seen, also where the table was paused.
      this.hold = undefined;
      this.#listRange();
    }
    this.runs = this.#matching();
  }

  #watch(): void {
    this.#stream?.stop();
    this.isSynced = false;
    const { daemon } = this.context;
    const request = this.#selection();
    this.#stream = new LiveStream({
      slots: daemon.slots,
      open: (signal, opened) => {
        this.#list.begin();
        return daemon.runs.watchRuns(request, { signal, onHeader: opened });
      },
      take: ({ event }) => {
        if (event.case === 'run') this.#take(event.value);
        if (event.case === 'synced') {
          this.#list.synced();
          // What has ended during a break may be known to the archive alone.
          if (this.isSynced) this.#listRange();
          else this.#goOn();
          this.isSynced = true;
          this.#show();
          void this.#names?.list();
        }
        return false;
      },
      changed: (it) => (this.streamState = it),
    });
  }

  #selection(): { states: RunState[]; labels: Record<string, string> } {
    return { states: runStates(this.route.states), labels: Object.fromEntries(this.route.labels) };
  }

  #listRange(): void {
    this.#range.begin(this.context.daemon, this.route, this.#selection());
  }

  readonly #loadMore = () => {
    this.hold = undefined;
    this.#range.load();
  };

  /** Makes the run that was opened last the one that keys act on, once, unless the reader is elsewhere already. */
  #goOn(): void {
    const id = lastOpened;
    const isKnown = id !== undefined && this.#list.get(id) !== undefined;
    // It may be among those that are being loaded.
    if (!isKnown && this.#range.isLoading) return;
    lastOpened = undefined;
    if (!isKnown) return;
    this.table.activate(id);
    const { activeElement } = document;
    const focused = activeElement?.shadowRoot?.activeElement ?? activeElement;
    if (focused === document.body || focused?.localName === 'main') this.table.focus();
  }

  #take(run: RunInfo): void {
    this.#list.take(run, Date.now());
    if (this.isSynced) this.hold?.changed.add(run.runId);
    this.#show();
  }

  /** Shows what is new, soon: thousands of news may come at once. */
  #show(): void {
    if (this.#isShowing) return;
    this.#isShowing = true;
    const wait = Math.max(0, this.#shownAt + SHOW_EVERY_MS - performance.now());
    setTimeout(() => {
      this.#isShowing = false;
      this.#shownAt = performance.now();
      this.runs = this.#matching();
      if (this.isSynced) this.#names?.want(this.runs.slice(0, MOST_NAMED).map((it) => it.moduleDigest));
      // The number of changes and the names may have changed, where the rows have not.
      this.requestUpdate();
    }, wait);
  }

  #matching(): readonly RunInfo[] {
    const nameOf = this.#names?.nameOf ?? (() => '');
    const all = this.hold?.runs ?? this.#list.newest();
    return all.filter(matcher(this.route, nameOf, Date.now()));
  }

  async #askUsage(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await new Promise((resolve) => setTimeout(resolve, USAGE_EVERY_MS));
      if (this.streamState.kind !== 'live' || this.hold !== undefined) continue;
      if (!this.runs.some((it) => it.state === RunState.RUNNING)) continue;
      try {
        const request = {
          states: [RunState.RUNNING],
          labels: Object.fromEntries(this.route.labels),
          pageSize: MOST_ASKED,
        };
        const { runs } = await this.context.daemon.runs.listRuns(request, { signal, timeoutMs: 10_000 });
        for (const run of runs) this.#list.refresh(run, Date.now());
        this.#show();
      } catch {
        // The watch tells whether the daemon can be reached.
      }
    }
  }

  #togglePause(): void {
    this.hold = this.hold === undefined ? { at: Date.now(), runs: this.#list.newest(), changed: new Set() } : undefined;
    this.runs = this.#matching();
  }

  readonly #filtered = ({ detail }: CustomEvent<RunFilter>) => replaceRoute({ ...detail, page: 'runs' });

  readonly #labelled = ({ detail }: CustomEvent<RunTableEvents['filter-label']>) => {
    const labels = new Map([...this.route.labels, [detail.key, detail.value]]);
    replaceRoute({ ...this.route, labels });
  };

  readonly #choose = ({ detail }: CustomEvent<RunInfo>) => {
    const chosen = new Set(this.chosen);
    if (!chosen.delete(detail.runId)) chosen.add(detail.runId);
    this.chosen = chosen;
  };

  readonly #open = ({ detail }: CustomEvent<RunInfo>) => {
    lastOpened = detail.runId;
    navigate({ page: 'run', id: detail.runId, at: undefined });
  };

  readonly #kill = ({ detail }: CustomEvent<RunInfo>) => {
    void killEach(this.context.daemon, [detail], this.#nameOf);
  };

  readonly #killAll = () => {
    if (this.chosen.size === 0) {
      void killMatching(this.context.daemon, this.route, this.#stillThere(this.runs), this.#nameOf);
      return;
    }
    void killEach(this.context.daemon, this.#chosenRuns(), this.#nameOf);
  };

  readonly #delete = ({ detail }: CustomEvent<RunInfo>) =>
    this.#afterDeleting(deleteEach(this.context.daemon, [detail], this.#nameOf), [detail]);

  readonly #deleteAll = () => {
    const { daemon } = this.context;
    const chosen = this.#chosenRuns();
    if (this.chosen.size > 0) return this.#afterDeleting(deleteEach(daemon, chosen, this.#nameOf), chosen);
    return this.#afterDeleting(deleteMatching(daemon, this.route, this.#stillThere(this.runs), this.#nameOf), []);
  };

  /**
   * Asks for all runs again where some may be gone, since a watch does not tell of that. Of those that are chosen,
   * the ones stay that were not to be deleted, or had not ended.
   */
  async #afterDeleting(deleting: Promise<Deletion>, runs: readonly RunInfo[]): Promise<void> {
    const gone = new Set(runs.filter((it) => !isLive(it)).map((it) => it.runId));
    const deletion = await deleting;
    if (deletion === 'no' || this.#gone.signal.aborted) return;
    this.hold = undefined;
    if (deletion === 'done') this.chosen = new Set([...this.chosen].filter((id) => !gone.has(id)));
    this.#list.forgetListed();
    this.#watch();
    this.#listRange();
  }

  #chosenRuns(): RunInfo[] {
    return [...this.chosen].flatMap((id) => this.#list.get(id) ?? []);
  }

  /** Returns the runs as they are now, where the table shows how they were when it was paused. */
  #stillThere(runs: readonly RunInfo[]): RunInfo[] {
    return runs.flatMap((it) => this.#list.get(it.runId) ?? []);
  }

  readonly #nameOf = (digest: string): string => this.#names?.nameOf(digest) ?? '';

  readonly #together = () => {
    const isOfLabels = this.chosen.size === 0;
    navigate({
      page: 'together',
      labels: isOfLabels ? this.route.labels : new Map(),
      ids: [...this.chosen],
      layout: 'merged',
    });
  };

  override render(): TemplateResult {
    return html`
      <h1 class="visually-hidden">Runs</h1>
      <div class="bar">
        <rf-run-filters .filter=${this.route} @filter=${this.#filtered}></rf-run-filters>
        <div class="end">${this.#actions()}</div>
      </div>
      <div class="bar">
        <rf-stream-status
          .state=${this.streamState}
          ?isWaiting=${this.context.daemon.slots.waiting > 0}
          @retry=${() => this.#stream?.retry()}
        ></rf-stream-status>
        <span class="dim">${this.#counts()}</span>
        ${this.#pauseLine()} ${this.#range.line(this.context.hasArchive, this.#loadMore)}
      </div>
      <div class="table">
        <rf-run-table
          label="Runs, the newest first"
          .items=${this.runs}
          .nameOf=${this.#nameOf}
          .since=${(id: string) => this.#list.since(id)}
          .chosen=${this.chosen}
          .mayChange=${this.context.mayChange}
          .heldAt=${this.hold?.at}
          @open-run=${this.#open}
          @kill-run=${this.#kill}
          @delete-run=${this.#delete}
          @choose-run=${this.#choose}
          @filter-label=${this.#labelled}
        ></rf-run-table>
        ${this.runs.length === 0 && this.isSynced ? html`<p class="empty dim">${this.#nothingShown()}</p>` : nothing}
      </div>
    `;
  }

  #actions(): TemplateResult {
    const count = this.chosen.size;
    const isTogether = count > 1 || (count === 0 && this.route.labels.size > 0);
    const isLiveShown = count > 0 || this.route.labels.size > 0 || this.runs.some(isLive);
    const isEndedShown = count > 0 || isDeletable(this.route) || !this.runs.every(isLive);
    return html`
      <button aria-pressed=${this.hold !== undefined} @click=${() => this.#togglePause()}>Pause</button>
      ${count > 0 ? html`<button @click=${() => (this.chosen = new Set())}>Choose none</button>` : nothing}
      ${
        isTogether
          ? html`<button @click=${this.#together}>
            ${count > 1 ? `Open ${formatCount(count)} together` : 'Open these labels together'}
          </button>`
          : nothing
      }
      ${
        this.context.mayChange
          ? html`<button class="danger" ?disabled=${!isLiveShown} @click=${this.#killAll}>
              ${count > 0 ? `Kill ${formatCount(count)} chosen …` : 'Kill all that match …'}
            </button>
            <button class="danger" ?disabled=${!isEndedShown} @click=${this.#deleteAll}>
              ${count > 0 ? `Delete ${formatCount(count)} chosen …` : 'Delete all that match …'}
            </button>`
          : nothing
      }
    `;
  }

  #counts(): string {
    const live = this.runs.filter(isLive).length;
    const { dropped, limit } = this.#list;
    const bound = dropped > 0 ? ` The page keeps the newest ${formatCount(limit)}; the daemon may know more.` : '';
    const text = `${plural(this.runs.length, 'run')}, ${formatCount(live)} of them live.`;
    return this.isSynced || this.runs.length > 0 ? text + bound : '';
  }

  #pauseLine(): TemplateResult | typeof nothing {
    if (this.hold === undefined) return nothing;
    const changed = this.hold.changed.size;
    return html`<span class="warn" role="status">Paused: ${plural(changed, 'run')} changed meanwhile.</span>`;
  }

  #nothingShown(): string {
    const { text, states, labels, range } = this.route;
    if (range !== undefined || text !== '' || states.length > 0 || labels.size > 0) return 'No run matches the filter.';
    return 'There are no runs. Start one from Modules, or by: ringfence run --server HOST:PORT MODULE';
  }
}

customElements.define('rf-runs-page', RunsPage);
