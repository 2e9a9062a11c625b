// A small bar that shows how much was used of what there was.

import { css, html, LitElement, nothing, type TemplateResult } from 'lit';
import { property } from 'lit/decorators.js';

import { controls } from './styles.js';

export class MeterBar extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: grid;
        gap: 0.15rem;
        align-content: start;
        font-size: var(--text-s);
        min-width: 0;
      }
      .name {
        color: var(--ink-2);
      }
      .text {
        font-variant-numeric: tabular-nums;
        overflow-wrap: anywhere;
      }
      [role='meter'] {
        height: 0.4rem;
        border-radius: 0.2rem;
        background: var(--ground-3);
        overflow: hidden;
      }
      .used {
        height: 100%;
        width: var(--used, 0%);
        background: var(--accent);
      }
      .over {
        background: var(--bad);
      }
    `,
  ];

  @property() name = '';
  @property() text = '';
  @property({ attribute: false }) used = 0;
  /** The most that may be used; without it there are words and no bar. */
  @property({ attribute: false }) allowed: number | undefined;
  @property({ type: Boolean }) isOver = false;

  get #percent(): number {
    const { used, allowed = 0 } = this;
    if (this.isOver) return 100;
    return allowed > 0 ? Math.min(100, Math.max(0, (used / allowed) * 100)) : 0;
  }

  protected override updated(): void {
    // The page's policy forbids style attributes, and not this.
    this.style.setProperty('--used', `${this.#percent}%`);
  }

  override render(): TemplateResult {
    return html`
      <span class="name">${this.name}</span>
      ${
        this.allowed === undefined
          ? nothing
          : html`<div
            role="meter"
            aria-label=${this.name}
            aria-valuemin="0"
            aria-valuemax="100"
            aria-valuenow=${Math.round(this.#percent)}
            aria-valuetext=${this.text}
          >
            <div class=${this.isOver ? 'used over' : 'used'}></div>
          </div>`
      }
      <span class=${this.isOver ? 'text bad' : 'text'}>${this.text}</span>
    `;
  }
}

customElements.define('rf-meter-bar', MeterBar);
