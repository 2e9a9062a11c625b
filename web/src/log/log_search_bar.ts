// The field to search the log with.

import { css, html, LitElement, type TemplateResult } from 'lit';
import { property, query } from 'lit/decorators.js';

import { formatCount } from '../model/format.js';
import type { SearchQuery } from '../model/log_search.js';
import { printable } from '../model/printable.js';
import { controls } from '../ui/styles.js';
import type { SearchState } from './log_pane.js';

/** The detail of `log-search`. */
export interface LogSearchDetail {
  readonly query: SearchQuery;
  readonly isFiltering: boolean;
}

/**
 * Asks what to look for.
 *
 * @fires log-search - What is looked for is another (`LogSearchDetail`).
 * @fires log-step - Go to the next match (detail 1), or to the one before (-1).
 */
export class LogSearchBar extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: var(--space-1);
        min-width: 0;
      }
      input {
        width: 14rem;
        flex: 1 1 8rem;
        min-width: 6rem;
      }
      input[aria-invalid='true'] {
        border-color: var(--bad);
      }
      .found {
        min-width: 6ch;
        font-variant-numeric: tabular-nums;
        overflow-wrap: anywhere;
      }
      .mono {
        font-family: var(--mono);
      }
    `,
  ];

  @property({ attribute: false }) search: SearchQuery = { text: '', isRegex: false, isCaseSensitive: false };
  @property({ attribute: false }) isFiltering = false;
  @property({ attribute: false }) found: SearchState = { total: 0, current: 0, isComplete: true, error: '' };
  @query('input') private field!: HTMLInputElement;

  override focus(): void {
    this.field.focus();
    this.field.select();
  }

  override render(): TemplateResult {
    const { search, isFiltering, found } = this;
    const isWrong = found.error !== '';
    return html`
      <input
        type="search"
        aria-label="Search the log"
        placeholder="Search"
        autocomplete="off"
        spellcheck="false"
        aria-invalid=${isWrong ? 'true' : 'false'}
        aria-describedby="found"
        .value=${search.text}
        @input=${() => this.#change({ text: this.field.value })}
        @keydown=${this.#pressed}
      />
      ${this.#toggle('.*', 'Regular expression', search.isRegex, () => this.#change({ isRegex: !search.isRegex }))}
      ${this.#toggle('Aa', 'Match case', search.isCaseSensitive, () =>
        this.#change({ isCaseSensitive: !search.isCaseSensitive }),
      )}
      ${this.#step('↑', 'Previous match', -1)} ${this.#step('↓', 'Next match', 1)}
      <button
        aria-pressed=${isFiltering ? 'true' : 'false'}
        title="Show only lines that match"
        @click=${() => this.#tell(search, !isFiltering)}
      >
        Filter
      </button>
      <span id="found" class=${isWrong ? 'found bad' : 'found dim'} role="status">${this.#says()}</span>
    `;
  }

  #toggle(face: string, name: string, isOn: boolean, press: () => void): TemplateResult {
    return html`<button
      class="mono"
      aria-label=${name}
      title=${name}
      aria-pressed=${isOn ? 'true' : 'false'}
      @click=${press}
    >
      ${face}
    </button>`;
  }

  #step(face: string, name: string, step: 1 | -1): TemplateResult {
    const press = () => this.dispatchEvent(new CustomEvent('log-step', { detail: step }));
    return html`<button aria-label=${name} title=${name} ?disabled=${this.found.total === 0} @click=${press}>
      ${face}
    </button>`;
  }

  #says(): string {
    const { search, found } = this;
    if (found.error !== '') return `${printable(found.error)}.`;
    if (search.text === '') return '';
    const total = `${formatCount(found.total)}${found.isComplete ? '' : ' …'}`;
    if (found.total === 0) return found.isComplete ? 'Nothing matches.' : 'Searching …';
    if (found.current > 0) return `${formatCount(found.current)} of ${total}`;
    return `${total} ${found.total === 1 ? 'match' : 'matches'}`;
  }

  #change(change: Partial<SearchQuery>): void {
    this.#tell({ ...this.search, ...change }, this.isFiltering);
  }

  #tell(query: SearchQuery, isFiltering: boolean): void {
    this.dispatchEvent(new CustomEvent<LogSearchDetail>('log-search', { detail: { query, isFiltering } }));
  }

  readonly #pressed = (event: KeyboardEvent) => {
    if (event.key === 'Enter') {
      this.dispatchEvent(new CustomEvent('log-step', { detail: event.shiftKey ? -1 : 1 }));
      event.preventDefault();
    } else if (event.key === 'Escape') {
      if (this.search.text !== '') this.#change({ text: '' });
      this.dispatchEvent(new Event('log-leave'));
      event.preventDefault();
    }
  };
}

customElements.define('rf-log-search', LogSearchBar);
