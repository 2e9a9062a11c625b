// Short messages at the edge of the page: what was done, and what failed.

import { css, html, LitElement, type TemplateResult } from 'lit';
import { state } from 'lit/decorators.js';
import { repeat } from 'lit/directives/repeat.js';

import { failureOf } from '../api/failure.js';
import { printable } from '../model/printable.js';
import { controls } from './styles.js';

const SHOWN_MS = 6_000;
/** What failed stays longer, since it is longer, and says what to do. */
const FAILED_SHOWN_MS = 20_000;
const MOST = 4;

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

export class Toasts extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        position: fixed;
        inset-block-end: var(--space-4);
        inset-inline-end: var(--space-4);
        z-index: 10;
        display: grid;
        gap: var(--space-2);
        max-width: min(28rem, calc(100vw - 2rem));
      }
      .toast {
        display: flex;
        align-items: center;
        gap: var(--space-2);
        background: var(--ground-3);
        border: 1px solid var(--line);
        border-inline-start: 4px solid var(--good);
        border-radius: var(--radius);
        padding: var(--space-2) var(--space-3);
      }
      .failed {
        border-inline-start-color: var(--bad);
      }
      span {
        flex: 1;
        overflow-wrap: anywhere;
        max-height: 30vh;
        overflow: auto;
      }
    `,
  ];

  @state() private toasts: readonly Toast[] = [];
  #next = 0;
  readonly #timers = new Map<number, ReturnType<typeof setTimeout>>();

  readonly #take = (event: Event) => {
    const { text, kind } = (event as CustomEvent<Omit<Toast, 'id'>>).detail;
    const toast = { id: this.#next++, text, kind };
    for (const { id } of this.toasts.slice(0, Math.max(0, this.toasts.length - MOST + 1))) this.#close(id);
    this.toasts = [...this.toasts, toast];
    this.#startTimer(toast);
  };

  override connectedCallback(): void {
    super.connectedCallback();
    window.addEventListener('ringfence-toast', this.#take);
  }

  override disconnectedCallback(): void {
    window.removeEventListener('ringfence-toast', this.#take);
    for (const { id } of this.toasts) this.#close(id);
    super.disconnectedCallback();
  }

  override render() {
    const of = (kind: Toast['kind']) => this.toasts.filter((it) => it.kind === kind);
    // Both places are there before anything stands in them: else it would not be read out.
    return html`
      <div role="status">${repeat(
        of('done'),
        ({ id }) => id,
        (it) => this.#toast(it),
      )}</div>
      <div role="alert">${repeat(
        of('failed'),
        ({ id }) => id,
        (it) => this.#toast(it),
      )}</div>
    `;
  }

  #toast(toast: Toast): TemplateResult {
    const { id, kind, text } = toast;
    const stay = () => this.#stopTimer(id);
    const leave = () => this.#startTimer(toast);
    return html`<div
      class=${kind === 'failed' ? 'toast failed' : 'toast'}
      @pointerenter=${stay}
      @pointerleave=${leave}
      @focusin=${stay}
      @focusout=${leave}
    >
      <span>${printable(text)}</span>
      <button aria-label="Close this message" @click=${() => this.#close(id)}>✕</button>
    </div>`;
  }

  #startTimer({ id, kind }: Toast): void {
    this.#stopTimer(id);
    this.#timers.set(
      id,
      setTimeout(() => this.#close(id), kind === 'failed' ? FAILED_SHOWN_MS : SHOWN_MS),
    );
  }

  #stopTimer(id: number): void {
    clearTimeout(this.#timers.get(id));
    this.#timers.delete(id);
  }

  #close(id: number): void {
    this.#stopTimer(id);
    this.toasts = this.toasts.filter((it) => it.id !== id);
  }
}

customElements.define('rf-toasts', Toasts);
