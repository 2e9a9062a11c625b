// A line to type into the standard input of a run, where that is open.

import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';
import { property, query, state } from 'lit/decorators.js';

import type { Daemon } from '../api/client.js';
import { failureOf, isTransient } from '../api/failure.js';
import { formatBytes } from '../model/format.js';
import { type InputAnswer, type InputPiece, type InputRefusal, InputSender } from '../model/input_sender.js';
import { sentence } from '../model/sentences.js';
import { controls } from '../ui/styles.js';

const TIMEOUT_MS = 10_000;
/** How long it takes to ask once more whether the input is open, where nobody answered. */
const ASK_AGAIN_MS = 2_000;
const MOST_PROBES = 30;

/** Shows nothing where the run's input is not open. What was typed is forgotten with the page. */
export class RunInput extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: block;
      }
      form {
        display: flex;
        flex-wrap: wrap;
        gap: var(--space-2);
        align-items: center;
        padding: var(--space-2) var(--space-3);
        border-block-start: 1px solid var(--line);
        background: var(--ground-2);
      }
      textarea {
        flex: 1 1 14rem;
        min-height: 2rem;
        max-height: 8rem;
        field-sizing: content;
        resize: vertical;
        font-family: var(--mono);
        font-size: var(--text-s);
      }
      .status:empty {
        display: none;
      }
      .status {
        flex-basis: 100%;
        overflow-wrap: anywhere;
      }
      input[type='checkbox'] {
        min-height: 0;
      }
    `,
  ];

  @property({ attribute: false }) daemon!: Daemon;
  @property() run = '';
  @state() private sender: InputSender | undefined;
  @state() private isClosed = false;
  @state() private addsBreak = true;
  @query('textarea') private area!: HTMLTextAreaElement;
  #gone = new AbortController();

  override connectedCallback(): void {
    super.connectedCallback();
    if (this.hasUpdated) this.#begin();
  }

  override disconnectedCallback(): void {
    this.#end();
    super.disconnectedCallback();
  }

  protected override updated(changed: PropertyValues): void {
    if (changed.has('run')) this.#begin();
  }

  #end(): void {
    this.#gone.abort();
    this.sender?.stop();
    this.sender = undefined;
  }

  #begin(): void {
    this.#end();
    this.isClosed = false;
    this.#gone = new AbortController();
    if (this.run !== '') void this.#probe(this.#gone.signal);
  }

  /** Asks how much was sent, which tells whether the input is open. */
  async #probe(signal: AbortSignal): Promise<void> {
    for (let tries = 0; tries < MOST_PROBES && !signal.aborted; tries++) {
      try {
        const { nextOffset, closed } = await this.#send({ offset: 0n, data: new Uint8Array(), eof: false });
        if (signal.aborted) return;
        this.isClosed = closed;
        const options = {
          send: (piece: InputPiece) => this.#send(piece),
          wait: (ms: number) => waitFor(ms, signal),
          changed: () => this.requestUpdate(),
        };
        if (!closed) this.sender = new InputSender(options, nextOffset);
        return;
      } catch (error) {
        if (!(error as InputRefusal).isTransient) return;
        await waitFor(ASK_AGAIN_MS, signal);
      }
    }
  }

  async #send({ offset, data, eof }: InputPiece): Promise<InputAnswer> {
    try {
      const request = { runId: this.run, offset, data: new Uint8Array(data), eof };
      return await this.daemon.runs.sendInput(request, { signal: this.#gone.signal, timeoutMs: TIMEOUT_MS });
    } catch (error) {
      const failure = failureOf(error);
      const place = failure.metadata['expected'] ?? failure.metadata['next_offset'] ?? '';
      const refusal: InputRefusal = {
        reason: failure.reason,
        message: failure.message,
        expected: /^\d+$/.test(place) ? BigInt(place) : undefined,
        retryAfterMs: failure.retryAfterMs,
        isTransient: isTransient(failure),
      };
      throw refusal;
    }
  }

  readonly #submit = (event: Event) => {
    event.preventDefault();
    const text = this.area.value + (this.addsBreak ? '\n' : '');
    this.area.value = '';
    this.sender?.write(new TextEncoder().encode(text));
    this.requestUpdate();
  };

  readonly #pressed = (event: KeyboardEvent) => {
    // Enter sends, and Shift+Enter breaks the line. An input method takes Enter for itself while it composes.
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    this.#submit(event);
  };

  override render(): TemplateResult | typeof nothing {
    const { sender } = this;
    if (this.isClosed) return html`<form><span class="dim">The run's input has come to its end.</span></form>`;
    if (sender === undefined) return nothing;
    const { state: now } = sender;
    if (now.kind === 'closed') {
      const why = now.message === '' ? `The run's input has come to its end after ${formatBytes(sender.sent)}.` : '';
      return html`<form>
        <span class="dim" role="status">${why || closedBecause(now.reason, now.message)}</span>
      </form>`;
    }
    const isOver = sender.isEnding;
    return html`
      <form @submit=${this.#submit}>
        <textarea
          rows="1"
          aria-label="Standard input of the run"
          aria-description="Enter sends, Shift+Enter breaks the line"
          placeholder="Standard input: Enter sends"
          autocomplete="off"
          autocapitalize="off"
          spellcheck="false"
          ?disabled=${isOver}
          @keydown=${this.#pressed}
        ></textarea>
        <label>
          <input
            type="checkbox"
            .checked=${this.addsBreak}
            @change=${(event: Event) => (this.addsBreak = (event.target as HTMLInputElement).checked)}
          />
          Add a line break
        </label>
        <button class="primary" ?disabled=${isOver}>Send</button>
        <button type="button" ?disabled=${isOver} @click=${() => this.#endFile()}>End of file</button>
        <span class="status dim" role="status">${this.#status(sender)}</span>
      </form>
    `;
  }

  #endFile(): void {
    this.sender?.end();
    this.requestUpdate();
  }

  #status(sender: InputSender): TemplateResult | string {
    const { state: now } = sender;
    const sent = `${formatBytes(sender.sent)} sent in all.`;
    const rest = formatBytes(sender.waiting);
    switch (now.kind) {
      case 'idle':
        return sender.sent === 0n ? '' : sent;
      case 'sending':
        return sender.waiting === 0 ? sent : `${sent} Sending ${rest} …`;
      case 'full':
        return `${sent} ${rest} wait: the guest has yet to read what was sent before, or waits for its slot.`;
      case 'broken':
        return `${sent} ${rest} wait: ${sentence(now.message)} It is tried again.`;
      case 'conflict':
        return html`<span class="warn">
            Another writer sent input meanwhile, ${formatBytes(now.expected)} in all. ${rest} of yours are not sent.
          </span>
          <button type="button" @click=${() => sender.goOn()}>Send after theirs</button>
          <button type="button" @click=${() => sender.drop()}>Do not send</button>`;
      case 'closed':
        return '';
    }
  }
}

function closedBecause(reason: string, message: string): string {
  switch (reason) {
    case 'RUN_ENDED':
      return 'The run has ended, and takes no more input.';
    case 'INPUT_CLOSED':
      return "Another writer ended the run's input. What was not sent is left out.";
    default:
      return `No more can be sent: ${sentence(message)}`;
  }
}

async function waitFor(ms: number, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

customElements.define('rf-run-input', RunInput);
