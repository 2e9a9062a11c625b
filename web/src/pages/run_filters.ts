// What runs are filtered by: words, states, labels and time.

import { css, html, LitElement, nothing, type TemplateResult } from 'lit';
import { property, query, state } from 'lit/decorators.js';

import { STATE_FILTERS, type StateFilter } from '../app/route.js';
import { printable } from '../model/printable.js';
import { parseLabel, type RunFilter } from '../model/run_filter.js';
import { type Bounds, boundsOf, fieldTime, isBackward, LAST_RANGES, readTime } from '../model/run_range.js';
import { controls } from '../ui/styles.js';

/** Fires `filter` with the new filter as its `detail`. */
export class RunFilters extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: flex;
        flex-wrap: wrap;
        gap: var(--space-2);
        align-items: center;
      }
      [type='search'] {
        width: min(20rem, 100%);
      }
      .group {
        display: flex;
        flex-wrap: wrap;
        gap: var(--space-1);
        align-items: center;
      }
      form input {
        width: 10rem;
      }
      .chip {
        font-family: var(--mono);
        font-size: var(--text-s);
        max-width: 100%;
        overflow: hidden;
        text-overflow: ellipsis;
      }
    `,
  ];

  @property({ attribute: false }) filter!: RunFilter;
  @state() private wrong = '';
  @query('[type="search"]') private search!: HTMLInputElement;
  @query('[name="label"]') private label!: HTMLInputElement;

  /** Puts the caret into the field for words. */
  focusSearch(): void {
    this.search.focus();
    this.search.select();
  }

  #change(changes: Partial<RunFilter>): void {
    this.dispatchEvent(new CustomEvent<RunFilter>('filter', { detail: { ...this.filter, ...changes } }));
  }

  #toggle(name: StateFilter): void {
    const { states } = this.filter;
    const next = states.includes(name) ? states.filter((it) => it !== name) : [...states, name];
    this.#change({ states: STATE_FILTERS.filter((it) => next.includes(it)) });
  }

  #without(key: string): void {
    this.#change({ labels: new Map([...this.filter.labels].filter(([it]) => it !== key)) });
  }

  readonly #add = (event: Event) => {
    event.preventDefault();
    const read = parseLabel(this.label.value);
    this.wrong = typeof read === 'string' ? read : '';
    if (typeof read === 'string') return;
    this.label.value = '';
    this.#change({ labels: new Map([...this.filter.labels, [read.key, read.value]]) });
  };

  readonly #chooseRange = (event: Event) => {
    const { value } = event.target as HTMLSelectElement;
    const day = boundsOf('day', Date.now());
    this.#change({ range: value === 'between' ? day : LAST_RANGES.find((it) => it === value) });
  };

  #range(): TemplateResult {
    const { range } = this.filter;
    const chosen = typeof range === 'object' ? 'between' : range;
    const option = (value: string, text: string) =>
      html`<option value=${value} .selected=${value === (chosen ?? '')}>${text}</option>`;
    return html`<div class="group" role="group" aria-label="Time">
      <select aria-label="When runs were requested" @change=${this.#chooseRange}>
        ${option('', 'All that is remembered')} ${LAST_RANGES.map((it) => option(it, `The last ${it}`))}
        ${option('between', 'Between two times')}
      </select>
      ${typeof range === 'object' ? this.#bounds(range) : nothing}
    </div>`;
  }

  #bounds(bounds: Bounds): TemplateResult {
    const isWrong = isBackward(bounds);
    const field = (name: keyof Bounds, label: string) =>
      html`<label
        >${label}
        <input
          type="datetime-local"
          aria-invalid=${isWrong ? 'true' : nothing}
          .value=${fieldTime(bounds[name])}
          @change=${(event: Event) =>
            this.#change({ range: { ...bounds, [name]: readTime((event.target as HTMLInputElement).value) } })}
      /></label>`;
    return html`${field('since', 'From')} ${field('until', 'Before')}
    ${isWrong ? html`<span class="bad" role="alert">The second time is not after the first.</span>` : nothing}`;
  }

  override render(): TemplateResult {
    const { text, states, labels } = this.filter;
    return html`
      <input
        type="search"
        aria-label="Filter by words"
        placeholder="Filter: id, module, label, end"
        autocomplete="off"
        spellcheck="false"
        .value=${text}
        @input=${() => this.#change({ text: this.search.value })}
      />
      <div class="group" role="group" aria-label="States">
        ${STATE_FILTERS.map(
          (name) =>
            html`<button aria-pressed=${states.includes(name)} @click=${() => this.#toggle(name)}>${name}</button>`,
        )}
      </div>
      ${this.#range()}
      <div class="group" role="group" aria-label="Labels">
        ${[...labels].map(
          ([key, value]) => html`<button
            class="chip"
            aria-label="Filter no longer by label ${printable(`${key}=${value}`)}"
            @click=${() => this.#without(key)}
          >
            ${printable(`${key}=${value}`)} ✕
          </button>`,
        )}
        <form @submit=${this.#add}>
          <input
            name="label"
            aria-label="Filter by a label, as KEY=VALUE"
            placeholder="key=value"
            autocomplete="off"
            spellcheck="false"
            aria-invalid=${this.wrong === '' ? nothing : 'true'}
            @input=${() => (this.wrong = '')}
          />
          <button>Add label</button>
        </form>
        ${this.wrong === '' ? nothing : html`<span class="bad" role="alert">${this.wrong}</span>`}
      </div>
    `;
  }
}

customElements.define('rf-run-filters', RunFilters);
