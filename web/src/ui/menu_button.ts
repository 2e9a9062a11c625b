// A button that opens a few others.

import { css, html, LitElement, type TemplateResult } from 'lit';
import { property, query } from 'lit/decorators.js';

import { controls } from './styles.js';

/** Shows its children, which are buttons, below itself until one is pressed, Escape is, or the focus leaves. */
export class MenuButton extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        position: relative;
        display: inline-block;
      }
      details[open] .items {
        position: absolute;
        inset-block-start: calc(100% + 2px);
        inset-inline-end: 0;
        z-index: 5;
        display: grid;
        gap: var(--space-1);
        width: max-content;
        max-width: min(20rem, 90vw);
        padding: var(--space-2);
        background: var(--ground);
        border: 1px solid var(--line);
        border-radius: var(--radius);
        box-shadow: 0 4px 16px rgb(0 0 0 / 25%);
      }
      details[open] .items.start {
        inset-inline: 0 auto;
      }
      summary {
        list-style: none;
        cursor: pointer;
        background: var(--ground-2);
        border: 1px solid var(--line);
        border-radius: var(--radius);
        padding: 0.25rem 0.6rem;
        min-height: 2rem;
        white-space: nowrap;
      }
      summary::-webkit-details-marker {
        display: none;
      }
      summary:hover {
        background: var(--ground-3);
      }
    `,
  ];

  @property() label = '';
  @query('details') private details!: HTMLDetailsElement;
  @query('summary') private summary!: HTMLElement;

  @query('.items') private items!: HTMLElement;

  /** Opens to the other side where there is no room. */
  readonly #toggled = () => {
    if (!this.details.open) this.items.classList.remove('start');
    else if (this.items.getBoundingClientRect().left < 0) this.items.classList.add('start');
  };

  #close(): void {
    this.details.open = false;
  }

  readonly #left = (event: FocusEvent) => {
    if (!(event.relatedTarget instanceof Node && this.contains(event.relatedTarget))) this.#close();
  };

  readonly #pressed = (event: KeyboardEvent) => {
    if (event.key !== 'Escape' || !this.details.open) return;
    this.#close();
    this.summary.focus();
    event.stopPropagation();
  };

  override connectedCallback(): void {
    super.connectedCallback();
    this.addEventListener('focusout', this.#left);
    this.addEventListener('keydown', this.#pressed);
  }

  override disconnectedCallback(): void {
    this.removeEventListener('focusout', this.#left);
    this.removeEventListener('keydown', this.#pressed);
    super.disconnectedCallback();
  }

  override render(): TemplateResult {
    return html`
      <details @toggle=${this.#toggled}>
        <summary>${this.label} <span aria-hidden="true">▾</span></summary>
        <div class="items" @click=${() => this.#close()}><slot></slot></div>
      </details>
    `;
  }
}

customElements.define('rf-menu-button', MenuButton);
