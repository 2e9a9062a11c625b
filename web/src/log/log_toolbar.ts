// The controls of the log.

import { css, html, LitElement, type TemplateResult } from 'lit';
import { property, query, state } from 'lit/decorators.js';

import type { Settings } from '../app/settings.js';
import type { LineSource } from '../model/line_assembler.js';
import type { SearchQuery } from '../model/log_search.js';
import '../ui/menu_button.js';
import { controls } from '../ui/styles.js';
import type { SearchState } from './log_pane.js';
import type { LogSearchBar } from './log_search_bar.js';
import './log_search_bar.js';
import type { RawStreams } from './raw_download.js';

/** The choices of how lines are shown. */
export type LogChoice = Extract<keyof Settings, 'timestamps' | 'wrap' | 'lineNumbers'>;
/** What is chosen of each. */
export type LogChoices = Readonly<Pick<Settings, LogChoice>>;

/** What holds where no choice is remembered, as in the pages of others. */
export const DEFAULT_CHOICES: LogChoices = { timestamps: false, wrap: true, lineNumbers: true };

/** What the reader asks of the log, by a button or by a key. */
export type LogCommand =
  | { readonly do: 'follow' | 'pause' | 'first' | 'latest' | 'copy' | 'search' | 'link' }
  | { readonly do: 'choose'; readonly choice: LogChoice }
  | { readonly do: 'source'; readonly source: LineSource | 'both' }
  | { readonly do: 'step'; readonly step: 1 | -1 }
  | { readonly do: 'download'; readonly streams: RawStreams };

/** Keys of this page that ask something of the log. */
export const LOG_KEYS: ReadonlyArray<{ readonly keys: string; readonly says: string; readonly command: LogCommand }> = [
  { keys: 'f', says: 'Follow the output, or stop', command: { do: 'follow' } },
  { keys: 'p', says: 'Hold the output still, or go on', command: { do: 'pause' } },
  { keys: 'Home', says: 'Go to the first line', command: { do: 'first' } },
  { keys: 'End', says: 'Go to the latest line', command: { do: 'latest' } },
  { keys: '/', says: 'Search the output', command: { do: 'search' } },
  { keys: 'n', says: 'Go to the next match', command: { do: 'step', step: 1 } },
  { keys: 'N', says: 'Go to the previous match', command: { do: 'step', step: -1 } },
  { keys: 'w', says: 'Wrap long lines, or not', command: { do: 'choose', choice: 'wrap' } },
  { keys: 't', says: 'Show times, or not', command: { do: 'choose', choice: 'timestamps' } },
  { keys: '#', says: 'Show line numbers, or not', command: { do: 'choose', choice: 'lineNumbers' } },
  { keys: 'l', says: 'Link to the line that one is at', command: { do: 'link' } },
];

const CHOICES: ReadonlyArray<{ readonly choice: LogChoice; readonly face: string; readonly says: string }> = [
  { choice: 'timestamps', face: 'Times', says: 'Show when lines were written' },
  { choice: 'wrap', face: 'Wrap', says: 'Wrap long lines' },
  { choice: 'lineNumbers', face: 'Numbers', says: 'Show line numbers' },
];

const SOURCES: ReadonlyArray<readonly [LineSource | 'both', string]> = [
  ['both', 'Both streams'],
  ['stdout', 'stdout'],
  ['stderr', 'stderr'],
];

const DOWNLOADS: ReadonlyArray<readonly [RawStreams, string]> = [
  ['both', 'Both streams, in their order'],
  ['stdout', 'stdout'],
  ['stderr', 'stderr'],
];

/**
 * Buttons and fields for a log.
 *
 * @fires log-command - The reader asks something (`LogCommand`).
 * @fires log-search - What is looked for is another (`LogSearchDetail`).
 */
export class LogToolbar extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: var(--space-1) var(--space-2);
        padding: var(--space-2);
        container-type: inline-size;
      }
      .group {
        display: flex;
        flex-wrap: wrap;
        gap: var(--space-1);
        align-items: center;
      }
      .more {
        display: none;
      }
      rf-log-search {
        flex: 1 1 22rem;
      }
      @container (max-width: 40rem) {
        .more {
          display: inline-block;
        }
        .options:not(.open) {
          display: none;
        }
        rf-log-search {
          flex-basis: 100%;
        }
      }
    `,
  ];

  @property({ attribute: false }) isFollowing = true;
  @property({ attribute: false }) isPaused = false;
  @property({ attribute: false }) source: LineSource | 'both' = 'both';
  @property({ attribute: false }) choices: LogChoices = DEFAULT_CHOICES;
  @property({ attribute: false }) search: SearchQuery = { text: '', isRegex: false, isCaseSensitive: false };
  @property({ attribute: false }) isFiltering = false;
  @property({ attribute: false }) found: SearchState | undefined;
  /** Whether the output can be saved as it was written. */
  @property({ attribute: false }) canDownload = true;
  @state() private isOpen = false;
  @query('rf-log-search') private searchBar!: LogSearchBar;

  /** Moves the focus to the field to search with. */
  focusSearch(): void {
    this.searchBar.focus();
  }

  override render(): TemplateResult {
    return html`
      <div class="group" role="group" aria-label="Output">
        ${this.#button('Follow', 'Keep the latest line in sight', { do: 'follow' }, this.isFollowing)}
        ${this.#button('Pause', 'Hold the output still', { do: 'pause' }, this.isPaused)}
        ${this.#button('First', 'Go to the first line', { do: 'first' })}
        ${this.#button('Latest', 'Go to the latest line', { do: 'latest' })}
        <button
          class="more"
          aria-expanded=${this.isOpen ? 'true' : 'false'}
          @click=${() => (this.isOpen = !this.isOpen)}
        >
          Options
        </button>
      </div>
      <div class=${this.isOpen ? 'group options open' : 'group options'} role="group" aria-label="Options">
        <select aria-label="Streams" .value=${this.source} @change=${this.#chooseSource}>
          ${SOURCES.map(
            ([value, name]) => html`<option value=${value} ?selected=${value === this.source}>${name}</option>`,
          )}
        </select>
        ${CHOICES.map(({ choice, face, says }) => {
          return this.#button(face, says, { do: 'choose', choice }, this.choices[choice]);
        })}
        ${this.#button('Copy', 'Copy what is selected, or all lines', { do: 'copy' })}
        ${this.canDownload ? this.#downloads() : ''}
      </div>
      <rf-log-search
        .search=${this.search}
        .isFiltering=${this.isFiltering}
        .found=${this.found ?? { total: 0, current: 0, isComplete: true, error: '' }}
        @log-search=${(event: CustomEvent) => this.#tell('log-search', event.detail)}
        @log-step=${(event: CustomEvent<1 | -1>) => this.#ask({ do: 'step', step: event.detail })}
        @log-leave=${() => this.#tell('log-leave', null)}
      ></rf-log-search>
    `;
  }

  #button(face: string, says: string, command: LogCommand, isOn?: boolean): TemplateResult {
    const press = () => this.#ask(command);
    return isOn === undefined
      ? html`<button title=${says} @click=${press}>${face}</button>`
      : html`<button title=${says} aria-pressed=${isOn ? 'true' : 'false'} @click=${press}>${face}</button>`;
  }

  #downloads(): TemplateResult {
    return html`<rf-menu-button label="Download">
      ${DOWNLOADS.map(
        ([streams, name]) => html`<button @click=${() => this.#ask({ do: 'download', streams })}>${name}</button>`,
      )}
    </rf-menu-button>`;
  }

  readonly #chooseSource = (event: Event) => {
    const { value } = event.target as HTMLSelectElement;
    const [source] = SOURCES.find(([it]) => it === value) ?? [];
    if (source !== undefined) this.#ask({ do: 'source', source });
  };

  #ask(command: LogCommand): void {
    this.#tell('log-command', command);
  }

  #tell(name: string, detail: unknown): void {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'rf-log-toolbar': LogToolbar;
  }
}

customElements.define('rf-log-toolbar', LogToolbar);
