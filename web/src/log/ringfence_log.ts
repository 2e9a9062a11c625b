// `<ringfence-log server run>`: the output of a run as it comes, in this page and in the pages of others.

import { html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';
import { property, query, state } from 'lit/decorators.js';

import type { Daemon } from '../api/client.js';
import type { StreamState } from '../api/live_stream.js';
import type { LogPosition } from '../app/route.js';
import type { SettingsStore } from '../app/settings.js';
import { plural } from '../model/format.js';
import type { LogLine } from '../model/line_assembler.js';
import { lineAt, placeOf } from '../model/log_store.js';
import { addShortcuts } from '../ui/shortcuts.js';
import '../ui/stream_status.js';
import { controls } from '../ui/styles.js';
import { copyLines } from './copy_lines.js';
import { daemonOf } from './daemon_of.js';
import type { LogLinkDetail, LogStateDetail, MilestoneEvent, RunEventDetail } from './events.js';
import { LogPane } from './log_pane.js';
import type { LogSearchDetail } from './log_search_bar.js';
import { LogSession } from './log_session.js';
import { hostTheme } from './log_theme.js';
import { DEFAULT_CHOICES, LOG_KEYS, type LogChoice, type LogChoices, type LogCommand } from './log_toolbar.js';
import type { LogToolbar } from './log_toolbar.js';
import type { LogLineDetail, LogView } from './log_view.js';
import './log_view.js';
import { downloadRaw, type RawStreams } from './raw_download.js';
import { logLayout } from './log_layout.js';

/**
 * The output of a run.
 *
 * @fires ringfence-run-event - The run started or ended, or output was missed (`RunEventDetail` of events.ts).
 * @fires ringfence-state - The connection is another than before (`LogStateDetail`).
 * @fires ringfence-link - The reader asked for the address of a line (`LogLinkDetail`).
 */
export class RingfenceLog extends LitElement {
  static override styles = [controls, hostTheme, logLayout];

  /** The address of the daemon's admin listener, where no `daemon` is given. */
  @property() server = '';
  /** The id of the run. */
  @property() run = '';
  /** The bearer token for `server`, where it asks for one. */
  @property({ attribute: false }) token = '';
  /** The daemon of this page, whose streams are shared with the page. Keys of the page work only with it. */
  @property({ attribute: false }) daemon: Daemon | undefined;
  /** Where the reader's choices are remembered. */
  @property({ attribute: false }) settings: SettingsStore | undefined;
  /** The line to show and to mark. */
  @property({ attribute: false }) at: LogPosition | undefined;

  @state() private stream: StreamState = { kind: 'connecting' };
  /** What is to be said of the line that is linked to; empty where nothing is. */
  @state() private linkNotice = '';
  /** What is to be said of what was copied or saved. */
  @state() private notice = '';
  @query('rf-log-view') private view!: LogView;
  @query('rf-log-toolbar') private toolbar!: LogToolbar;
  #ownChoices = DEFAULT_CHOICES;
  #source: Daemon | undefined;
  #session: LogSession | undefined;
  #pane: LogPane | undefined;
  /** The position that is to be shown as soon as its line is here. */
  #sought: LogPosition | undefined;
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

  protected override updated(changed: PropertyValues): void {
    const isOther = (['server', 'run', 'token', 'daemon'] as const).some((it) => changed.has(it));
    if (isOther && this.isConnected) this.#begin();
    else if (changed.has('settings')) this.#listen();
    if (changed.has('at') || isOther) this.#seek();
  }

  /** Shows the run anew, from its beginning. */
  #begin(): void {
    this.#end();
    this.linkNotice = '';
    this.notice = '';
    this.#source = this.daemon ?? (this.server === '' ? undefined : daemonOf(this.server, this.token));
    this.view.mark(undefined);
    if (this.#source === undefined || this.run === '') return;
    this.#listen();
    const { run } = this;
    const session = new LogSession(this.#source, run, {
      lines: () => pane.schedule(),
      milestone: (event: MilestoneEvent) => this.#tell<RunEventDetail>('ringfence-run-event', { run, event }),
      state: (state) => {
        this.stream = state;
        this.#tell<LogStateDetail>('ringfence-state', { run, state });
        this.#findSought();
      },
    });
    const input = { drain: () => session.drain(), waiting: () => session.waiting };
    const pane = new LogPane(this.view, input, () => this.#changed());
    this.#session = session;
    this.#pane = pane;
    this.view.isFollowing = true;
  }

  #end(): void {
    this.#gone.abort();
    this.#removeShortcuts();
    this.#removeShortcuts = () => {};
    this.#session?.stop();
    this.#pane?.stop();
    this.#session = undefined;
    this.#pane = undefined;
  }

  #listen(): void {
    this.#gone.abort();
    this.#gone = new AbortController();
    this.settings?.addEventListener('change', () => this.requestUpdate(), { signal: this.#gone.signal });
    this.#removeShortcuts();
    if (this.daemon === undefined) return;
    this.#removeShortcuts = addShortcuts(
      LOG_KEYS.map(({ keys, says, command }) => ({ keys, says, run: () => this.#do(command) })),
    );
  }

  #tell<T>(name: string, detail: T): void {
    this.dispatchEvent(new CustomEvent<T>(name, { detail, bubbles: true, composed: true }));
  }

  #changed(): void {
    this.#findSought();
    this.requestUpdate();
  }

  #seek(): void {
    this.linkNotice = '';
    this.#sought = this.at;
    if (this.at === undefined) this.view.mark(undefined);
    else this.#findSought();
  }

  /** Shows the line that is linked to, or says why it cannot be shown. */
  #findSought(): void {
    const [at, session, pane] = [this.#sought, this.#session, this.#pane];
    if (at === undefined || session === undefined || pane === undefined) return;
    const where = session.whereIs(at);
    if (where === 'unknown') {
      if (session.state.kind === 'failed') this.#sought = undefined;
      return;
    }
    const line = where === 'here' ? lineAt(pane.store.lines, at) : undefined;
    // Its event has come, and is shown in the next frame.
    if (where === 'here' && line === undefined && session.waiting > 0) return;
    this.#sought = undefined;
    this.view.mark(line);
    if (line !== undefined) this.#show(line);
    else if (where === 'never') this.linkNotice = 'This run has not written the line that the link is to.';
    else this.linkNotice = 'The line that the link is to is no longer kept.';
  }

  /** Brings a line into sight, where it is not, and stays there. */
  #show(line: LogLine): void {
    const place = placeOf(this.#pane?.lines ?? [], line);
    if (this.view.isInSight(place)) this.view.isFollowing = false;
    else this.view.reveal(place);
  }

  get #choices(): LogChoices {
    const { settings } = this;
    if (settings === undefined) return this.#ownChoices;
    return {
      timestamps: settings.get('timestamps'),
      wrap: settings.get('wrap'),
      lineNumbers: settings.get('lineNumbers'),
    };
  }

  override render(): TemplateResult {
    const { timestamps, wrap, lineNumbers } = this.#choices;
    const pane = this.#pane;
    return html`
      <rf-log-toolbar
        .isFollowing=${this.view?.isFollowing ?? true}
        .isPaused=${pane?.isPaused ?? false}
        .source=${pane?.source ?? 'both'}
        .choices=${this.#choices}
        .search=${pane?.query ?? { text: '', isRegex: false, isCaseSensitive: false }}
        .isFiltering=${pane?.isFiltering ?? false}
        .found=${pane?.found}
        @log-command=${(event: CustomEvent<LogCommand>) => this.#do(event.detail)}
        @log-search=${this.#search}
        @log-leave=${() => this.view.focus()}
      ></rf-log-toolbar>
      ${this.linkNotice === '' ? nothing : html`<p class="notice" role="status">${this.linkNotice}</p>`}
      <div class="lines">
        <rf-log-view
          label="Output of the run"
          .wrap=${wrap}
          .times=${timestamps}
          .numbers=${lineNumbers}
          @log-line=${(event: CustomEvent<LogLineDetail>) => this.#link(event.detail.line.at)}
          @log-follow=${this.#followChanged}
        ></rf-log-view>
        ${this.#emptiness()} ${this.#newLines()}
      </div>
      ${this.#stateLine()}
    `;
  }

  #emptiness(): TemplateResult | typeof nothing {
    const pane = this.#pane;
    if (pane === undefined) return html`<p class="empty dim">No run is chosen.</p>`;
    if (pane.lines.length > 0) return nothing;
    const isEnded = this.#session?.isEnded === true && this.#session.waiting === 0;
    if (pane.store.lines.length > 0) return html`<p class="empty dim">No line is one of those to show.</p>`;
    return html`<p class="empty dim">${isEnded ? 'The run wrote nothing.' : 'Nothing was written yet.'}</p>`;
  }

  #newLines(): TemplateResult | typeof nothing {
    const pane = this.#pane;
    if (pane === undefined || pane.newLines === 0) return nothing;
    const more = this.#session?.isHeld === true ? 'More than ' : '';
    const says = `${more}${plural(pane.newLines, 'new line')}`;
    const goes = pane.isPaused ? 'Go on' : 'Jump to the latest';
    return html`<button class="new primary" @click=${() => this.#do({ do: 'latest' })}>${says}. ${goes} ↓</button>`;
  }

  #stateLine(): TemplateResult {
    const pane = this.#pane;
    const [shown, all] = [pane?.lines.length ?? 0, pane?.store.lines.length ?? 0];
    const count = shown === all ? plural(all, 'line') : `${plural(shown, 'line')} of ${plural(all, 'line')}`;
    return html`<div class="state">
      <rf-stream-status
        .state=${this.stream}
        .isWaiting=${this.stream.kind === 'connecting' && (this.#source?.slots.waiting ?? 0) > 0}
        @retry=${() => this.#session?.retry()}
      ></rf-stream-status>
      <span class="dim">${count}${pane?.isPaused === true ? ', held still' : ''}</span>
      <span role="status">${this.notice}</span>
    </div>`;
  }

  readonly #search = ({ detail }: CustomEvent<LogSearchDetail>) => {
    this.#pane?.search(detail.query, detail.isFiltering);
  };

  readonly #followChanged = () => {
    if (this.view.isFollowing) this.#pane?.caughtUp();
    this.requestUpdate();
  };

  /** Does what a button or a key asks for. */
  #do(command: LogCommand): void {
    const pane = this.#pane;
    if (pane === undefined) return;
    switch (command.do) {
      case 'follow':
        this.view.isFollowing = !this.view.isFollowing;
        break;
      case 'pause':
        pane.isPaused = !pane.isPaused;
        break;
      case 'first':
        this.view.reveal(0);
        break;
      case 'latest':
        pane.isPaused = false;
        this.view.isFollowing = true;
        break;
      case 'choose':
        this.#choose(command.choice);
        break;
      case 'source':
        pane.source = command.source;
        break;
      case 'search':
        this.toolbar.focusSearch();
        break;
      case 'step':
        pane.step(command.step);
        break;
      case 'link':
        this.#linkHere();
        break;
      case 'copy':
        void this.#say(copyLines(this.view));
        break;
      case 'download':
        void this.#download(command.streams);
        break;
    }
  }

  #choose(choice: LogChoice): void {
    if (this.settings !== undefined) this.settings.set(choice, !this.settings.get(choice));
    else this.#ownChoices = { ...this.#ownChoices, [choice]: !this.#ownChoices[choice] };
    this.requestUpdate();
  }

  #link(at: LogPosition): void {
    // The page may answer with the same position, which it then has already.
    this.at = at;
    this.#tell<LogLinkDetail>('ringfence-link', { run: this.run, at });
  }

  #linkHere(): void {
    const line = this.#pane?.lines[this.view.isInSight(this.view.here) ? this.view.here : this.view.firstInSight];
    if (line !== undefined && line.source !== 'note') this.#link(line.at);
  }

  async #download(streams: RawStreams): Promise<void> {
    if (this.#source === undefined) return;
    this.notice = 'Reading the output …';
    await this.#say(downloadRaw(this.#source, this.run, streams, this.#gone.signal));
  }

  async #say(done: Promise<string>): Promise<void> {
    const { run } = this;
    const notice = await done;
    if (run === this.run) this.notice = notice;
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'ringfence-log': RingfenceLog;
  }
}

customElements.define('ringfence-log', RingfenceLog);
