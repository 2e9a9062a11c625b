// Short messages at the edge of the page: what was done, and what failed.

import { css, html, LitElement } from 'lit';
import { customElement, state } from 'lit/decorators.js';

import { failureOf } from '../api/failure.js';

const SHOWN_MS = 6_000;

interface Toast {
  readonly id: number;
  readonly kind: 'done' | 'failed';
  readonly text: string;
}

/** Tells the reader something for a moment, from anywhere in the page. */
export function tell(text: string, kind: 'done' | 'failed' = 'done'): void {
  window.dispatchEvent(new CustomEvent('ringfence-toast', { detail: { text, kind } }));
}

/** Tells the reader what a call failed by. */
export function tellFailure(what: string, error: unknown): void {
  const failure = failureOf(error);
  tell(`${what}: ${failure.message}${failure.reason === '' ? '' : ` (${failure.reason})`}`, 'failed');
}

@customElement('rf-toasts')
export class Toasts extends LitElement {
  static override styles = css`
    :host {
      position: fixed;
      inset-block-end: var(--space-4);
      inset-inline-end: var(--space-4);
      z-index: 10;
      display: grid;
      gap: var(--space-2);
      max-width: min(28rem, calc(100vw - 2rem));
    }
    div {
      background: var(--ground-3);
      border: 1px solid var(--line);
      border-inline-start: 4px solid var(--good);
      border-radius: var(--radius);
      padding: var(--space-2) var(--space-3);
      overflow-wrap: anywhere;
    }
    .failed {
      border-inline-start-color: var(--bad);
    }
  `;

  @state() private toasts: readonly Toast[] = [];
  #next = 0;

  readonly #take = (event: Event) => {
    const { text, kind } = (event as CustomEvent<{ text: string; kind: Toast['kind'] }>).detail;
    const id = this.#next++;
    this.toasts = [...this.toasts.slice(-3), { id, text, kind }];
    setTimeout(() => {
      this.toasts = this.toasts.filter((it) => it.id !== id);
    }, SHOWN_MS);
  };

  override connectedCallback(): void {
    super.connectedCallback();
    this.setAttribute('role', 'status');
    window.addEventListener('ringfence-toast', this.#take);
  }

  override disconnectedCallback(): void {
    window.removeEventListener('ringfence-toast', this.#take);
    super.disconnectedCallback();
  }

  override render() {
    return this.toasts.map((it) => html`<div class=${it.kind}>${it.text}</div>`);
  }
}
