// The output of several runs at once: merged in time, or side by side.

import { html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';
import { property, query, state } from 'lit/decorators.js';

import { ModuleNames } from '../api/module_names.js';
import type { PageContext } from '../app/context.js';
import { navigate, replaceRoute } from '../app/navigate.js';
import { formatRoute, type Route } from '../app/route.js';
import { copyLines } from '../log/copy_lines.js';
import type { LogTag } from '../log/log_extensions.js';
import { LogGroup } from '../log/log_group.js';
import { logLayout } from '../log/log_layout.js';
import type { LineInput } from '../log/log_pane.js';
import type { LogSearchDetail } from '../log/log_search_bar.js';
import { LOG_KEYS, type LogChoice, type LogCommand, type LogToolbar } from '../log/log_toolbar.js';
import '../log/log_toolbar.js';
import type { LogLineDetail, LogView } from '../log/log_view.js';
import '../log/log_view.js';
import { TurnReader } from '../log/turn_reader.js';
import { formatCount, plural, shortDigest, shortRunId } from '../model/format.js';
import { printable } from '../model/printable.js';
import { standing } from '../model/run_end.js';
import { sayFailure } from '../model/sentences.js';
import { addShortcuts } from '../ui/shortcuts.js';
import '../ui/stream_status.js';
import { controls } from '../ui/styles.js';
import { tell } from '../ui/toast.js';
import { findRuns, type FoundRuns, MOST_TOGETHER } from './together_runs.js';
import { togetherStyles } from './together_styles.js';

type Together = Extract<Route, { page: 'together' }>;
type Choices = Readonly<Record<LogChoice, boolean>>;

const NOTHING_FOUND: FoundRuns = { runs: new Map(), more: 0, isMore: false, failure: undefined };
/** Keys that ask something of one run. */
const KEYS = LOG_KEYS.filter(({ command }) => command.do !== 'link');

/** Shows the output of several runs, and finds more of them as they start. */
export class TogetherPage extends LitElement {
  static override styles = [controls, logLayout, togetherStyles];

  @property({ attribute: false }) context!: PageContext;
  @property({ attribute: false }) route!: Together;
  @state() private found = NOTHING_FOUND;
  @state() private isAsked = false;
  @query('rf-log-toolbar') private toolbar!: LogToolbar;
  #reader: TurnReader | undefined;
  #group: LogGroup | undefined;
  #tags: readonly LogTag[] = [];
  #names: ModuleNames | undefined;
  #gone = new AbortController();
  #removeShortcuts = () => {};

  override connectedCallback(): void {
    super.connectedCallback();
    if (this.hasUpdated) this.#begin();
  }

  override disconnectedCallback(): void {
    this.#end();
    super.disconnectedCallback();
  }

  protected override willUpdate(changed: PropertyValues): void {
    const before = changed.get('route') as Together | undefined;
    if (!changed.has('route') || (before !== undefined && keyOf(before) === keyOf(this.route))) return;
    this.#begin();
  }

  /** Looks for the runs anew. */
  #begin(): void {
    this.#end();
    this.#gone = new AbortController();
    const { signal } = this.#gone;
    const { daemon, settings } = this.context;
    this.found = NOTHING_FOUND;
    this.isAsked = false;
    this.#tags = [];
    this.#names = ModuleNames.of(daemon);
    this.#names.addEventListener('change', () => this.requestUpdate(), { signal });
    settings.addEventListener('change', () => this.requestUpdate(), { signal });
    this.#removeShortcuts = addShortcuts(
      KEYS.map(({ keys, says, command }) => ({ keys, says, run: () => this.#do(command) })),
    );
    this.#reader = new TurnReader(daemon, () => {
      this.#group?.schedule();
      this.requestUpdate();
    });
    this.#group = new LogGroup((tag) => this.#inputOf(tag), () => this.requestUpdate());
    void findRuns(daemon, this.route, signal, (found) => this.#take(found));
  }

  #end(): void {
    this.#gone.abort();
    this.#removeShortcuts();
    this.#removeShortcuts = () => {};
    this.#reader?.stop();
    this.#group?.stop();
  }

  /** Where the lines of a run come from, or those of all of them. */
  #inputOf(tag: number | undefined): LineInput {
    const reader = this.#reader;
    const assemblers = () => {
      const runs = reader?.runs ?? [];
      return (tag === undefined ? runs : runs.slice(tag, tag + 1)).map((it) => it.assembler);
    };
    return {
      drain: () => {
        const all = assemblers().map((it) => it.drain());
        reader?.drained();
        return { added: all.flatMap((it) => it.added), changed: all.flatMap((it) => it.changed) };
      },
      waiting: () => assemblers().reduce((sum, it) => sum + it.waiting, 0),
    };
  }

  #take(found: FoundRuns): void {
    this.found = found;
    this.isAsked = true;
    const known = new Set(this.#reader?.runs.map((it) => it.id));
    for (const id of found.runs.keys()) if (!known.has(id)) this.#reader?.add(id);
    const ids = [...found.runs.keys()];
    if (this.#tags.length !== ids.length) this.#tags = ids.map((id) => ({ name: shortRunId(id) }));
    this.#names?.want([...found.runs.values()].map((it) => it?.moduleDigest ?? ''));
  }

  protected override updated(): void {
    const views = [...this.renderRoot.querySelectorAll('rf-log-view')];
    const isMerged = this.route.layout === 'merged';
    this.#group?.setViews(views.map((view, i) => ({ view, tag: isMerged ? undefined : i })));
  }

  override render(): TemplateResult {
    const group = this.#group;
    const { settings } = this.context;
    const choices = {
      timestamps: settings.get('timestamps'),
      wrap: settings.get('wrap'),
      lineNumbers: settings.get('lineNumbers'),
    };
    return html`
      ${this.#head()}
      <rf-log-toolbar
        .canDownload=${false}
        .isFollowing=${group?.isFollowing ?? true}
        .isPaused=${group?.isPaused ?? false}
        .source=${group?.source ?? 'both'}
        .choices=${choices}
        .search=${group?.query ?? { text: '', isRegex: false, isCaseSensitive: false }}
        .isFiltering=${group?.isFiltering ?? false}
        .found=${group?.found}
        @log-command=${(event: CustomEvent<LogCommand>) => this.#do(event.detail)}
        @log-search=${({ detail }: CustomEvent<LogSearchDetail>) => group?.search(detail.query, detail.isFiltering)}
        @log-leave=${() => group?.activeView?.focus()}
      ></rf-log-toolbar>
      <div class="lines">
        ${this.route.layout === 'merged' ? this.#view(undefined, choices) : this.#columns(choices)} ${this.#newLines()}
      </div>
      ${this.#stateLine()}
    `;
  }

  #head(): TemplateResult {
    const { route, found } = this;
    const labels = [...route.labels].map(([key, value]) => printable(`${key}=${value}`)).join(', ');
    const title = route.ids.length > 0 ? 'Runs together' : `Runs with ${labels === '' ? 'any labels' : labels}`;
    return html`<div class="head">
      <div class="title">
        <h1>${title}</h1>
        ${this.#more()}
        <div class="layouts" role="group" aria-label="Layout">
          ${(['merged', 'columns'] as const).map(
            (layout) => html`<button
              aria-pressed=${route.layout === layout ? 'true' : 'false'}
              @click=${() => replaceRoute({ ...route, layout })}
            >
              ${layout === 'merged' ? 'Merged' : 'Side by side'}
            </button>`,
          )}
        </div>
      </div>
      ${found.failure === undefined ? nothing : html`<p class="bad" role="status">${sayFailure(found.failure)}</p>`}
      ${route.layout === 'merged' ? html`<ul class="runs">${this.#runs((it) => html`<li>${it}</li>`)}</ul>` : nothing}
    </div>`;
  }

  #more(): TemplateResult | typeof nothing {
    const { more, isMore } = this.found;
    if (more === 0 && !isMore) return nothing;
    const count = `${isMore ? 'More than ' : ''}${formatCount(more)} more ${more === 1 ? 'matches' : 'match'}.`;
    if (this.route.ids.length > 0) return html`<span class="dim">${count} At most ${MOST_TOGETHER} are shown.</span>`;
    return html`<span class="dim">${count}</span>
      <button @click=${() => this.#begin()}>Show the newest ${MOST_TOGETHER}</button>`;
  }

  /** Shows each run by its name, as a link to it, and how it stands. */
  #runs(around: (run: TemplateResult, tag: number) => TemplateResult): TemplateResult[] {
    return [...this.found.runs].map(([id, info], tag) => {
      const name = info === undefined ? '' : this.#names?.nameOf(info.moduleDigest) || shortDigest(info.moduleDigest);
      const failure = this.#reader?.runs[tag]?.failure;
      const stands =
        failure !== undefined ? { tone: 'bad', text: printable(failure.message) } : info && standing(info);
      const link = formatRoute({ page: 'run', id, at: undefined });
      return around(
        html`<span class=${`swatch tag-${tag % 8}`} aria-hidden="true"></span>
          <a href=${link} class="mono">${shortRunId(id)}</a> ${name}
          <span class=${stands?.tone ?? 'dim'}>${stands?.text ?? '…'}</span>`,
        tag,
      );
    });
  }

  #columns(choices: Choices): TemplateResult {
    const columns = this.#runs((run, tag) => {
      return html`<section><div class="run">${run}</div><div class="lines">${this.#view(tag, choices)}</div></section>`;
    });
    return html`<div class="columns">${columns}</div>`;
  }

  #view(tag: number | undefined, { wrap, timestamps, lineNumbers }: Choices): TemplateResult {
    const name = tag === undefined ? '' : this.#tags[tag]?.name;
    return html`<rf-log-view
      label=${name === '' ? 'Output of the runs' : `Output of run ${name}`}
      .wrap=${wrap}
      .times=${timestamps}
      .numbers=${lineNumbers}
      .tags=${tag === undefined ? this.#tags : undefined}
      @log-line=${this.#link}
      @log-follow=${this.#followChanged}
    ></rf-log-view>`;
  }

  #newLines(): TemplateResult | typeof nothing {
    const group = this.#group;
    if (group === undefined || group.newLines === 0) return nothing;
    const says = `${this.#reader?.isHeld === true ? 'More than ' : ''}${plural(group.newLines, 'new line')}`;
    return html`<button class="new primary" @click=${() => this.#do({ do: 'latest' })}>
      ${says}. ${group.isPaused ? 'Go on' : 'Jump to the latest'} ↓
    </button>`;
  }

  #stateLine(): TemplateResult {
    const { runs } = this.found;
    const says = runs.size === 0 ? (this.isAsked ? 'No run matches.' : 'Asking …') : `${plural(runs.size, 'run')}, `;
    return html`<div class="state">
      <rf-stream-status
        .state=${runs.size === 0 ? { kind: 'connecting' } : (this.#reader?.state ?? { kind: 'connecting' })}
        ?hidden=${runs.size === 0}
        @retry=${() => this.#reader?.retry()}
      ></rf-stream-status>
      <span class="dim">
        ${says}${runs.size === 0 ? nothing : plural(this.#group?.lineCount ?? 0, 'line')}
        ${this.#group?.isPaused === true ? ', held still' : ''}
      </span>
    </div>`;
  }

  readonly #followChanged = (event: Event) => {
    const view = event.target as LogView;
    if (view.isFollowing) this.#group?.caughtUp(view);
    this.requestUpdate();
  };

  /** Goes to a line in the page of its run. */
  readonly #link = ({ detail }: CustomEvent<LogLineDetail>) => {
    const { tag, at } = detail.line;
    const run = tag === undefined ? undefined : this.#reader?.runs[tag];
    if (run !== undefined) navigate({ page: 'run', id: run.id, at });
  };

  /** Does what a button or a key asks for. */
  #do(command: LogCommand): void {
    const group = this.#group;
    if (group === undefined) return;
    switch (command.do) {
      case 'follow':
        group.isFollowing = !group.isFollowing;
        break;
      case 'pause':
        group.isPaused = !group.isPaused;
        break;
      case 'first':
        group.toFirst();
        break;
      case 'latest':
        group.isPaused = false;
        group.isFollowing = true;
        break;
      case 'choose':
        this.context.settings.set(command.choice, !this.context.settings.get(command.choice));
        break;
      case 'source':
        group.source = command.source;
        break;
      case 'search':
        this.toolbar.focusSearch();
        break;
      case 'step':
        group.step(command.step);
        break;
      case 'copy':
        if (group.activeView !== undefined) void copyLines(group.activeView).then((it) => tell(it));
        break;
      case 'link':
      case 'download':
        break;
    }
    this.requestUpdate();
  }
}

/** What tells runs that are to be found from others. */
function keyOf({ ids, labels }: Together): string {
  return JSON.stringify([ids, [...labels]]);
}

customElements.define('rf-together-page', TogetherPage);
