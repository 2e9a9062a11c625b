// Says whether what is shown is live, and why not.

import { css, html, LitElement, nothing, type TemplateResult } from 'lit';
import { property } from 'lit/decorators.js';

import type { StreamState } from '../api/live_stream.js';
import { printable } from '../model/printable.js';
import { controls } from './styles.js';

/** Fires `retry` where the reader does not want to wait for the next try. */
export class StreamStatus extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: inline-flex;
        align-items: center;
        gap: var(--space-2);
        min-height: 2rem;
      }
      span {
        overflow-wrap: anywhere;
      }
    `,
  ];

  @property({ attribute: false }) state: StreamState = { kind: 'connecting' };
  /** Whether the stream waits because this page has as many streams open as it may. */
  @property({ type: Boolean }) isWaiting = false;

  override connectedCallback(): void {
    super.connectedCallback();
    this.setAttribute('role', 'status');
  }

  override render() {
    const { state } = this;
    switch (state.kind) {
      case 'live':
        return html`<span class="good" aria-hidden="true">●</span> <span>Live</span>`;
      case 'connecting':
        return html`<span class="dim">
          ${this.isWaiting ? 'Waits until another stream of this page is closed.' : 'Connecting …'}
        </span>`;
      case 'hidden':
        return html`<span class="dim">Closed while this tab is hidden.</span>`;
      case 'ended':
        return html`<span class="dim">Ended.</span>`;
      case 'broken':
        return this.#failed(`Not live: ${state.failure.message}. It is tried again.`, true);
      case 'failed':
        return this.#failed(`Not live: ${state.failure.message}`, false, state.failure.reason);
    }
  }

  #failed(text: string, isRetried: boolean, reason = ''): TemplateResult {
    return html`<span class=${isRetried ? 'warn' : 'bad'}>
        <span aria-hidden="true">●</span> ${printable(text)}${reason === '' ? nothing : ` (${printable(reason)})`}
      </span>
      ${isRetried ? html`<button @click=${() => this.dispatchEvent(new Event('retry'))}>Try now</button>` : nothing}`;
  }
}

customElements.define('rf-stream-status', StreamStatus);
