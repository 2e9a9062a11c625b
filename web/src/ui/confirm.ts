// A question that has to be answered before something is done.

import { css, html, LitElement, nothing } from 'lit';
import { property, query } from 'lit/decorators.js';

import { controls, dialogs } from './styles.js';

/** What is asked. */
export interface Question {
  readonly title: string;
  /** Sentences below the title. Each is a paragraph, in which line breaks remain. */
  readonly text: string | readonly string[];
  /** What the button says that does it. */
  readonly action: string;
  /** Whether it cannot be undone. The button that leaves everything as it is has the focus then. */
  readonly isDanger?: boolean;
}

/** Asks the reader, and returns whether the answer is yes. */
export async function confirm(question: Question): Promise<boolean> {
  const dialog = new ConfirmDialog();
  dialog.question = question;
  document.body.append(dialog);
  const answer = await dialog.answer;
  dialog.remove();
  return answer;
}

export class ConfirmDialog extends LitElement {
  static override styles = [
    controls,
    dialogs,
    css`
      dialog {
        padding: var(--space-4);
        width: min(32rem, calc(100vw - 2rem));
        max-height: min(40rem, calc(100dvh - 2rem));
      }
      dialog::backdrop {
        background: rgb(0 0 0 / 45%);
      }
      p {
        margin: var(--space-3) 0;
        overflow-wrap: anywhere;
        white-space: pre-line;
      }
      form {
        display: flex;
        flex-wrap: wrap;
        justify-content: end;
        gap: var(--space-2);
        margin-block-start: var(--space-4);
      }
    `,
  ];

  @property({ attribute: false }) question!: Question;
  @query('dialog') private dialog!: HTMLDialogElement;
  #resolve: (answer: boolean) => void = () => {};
  /** Resolves once the dialog is closed. */
  readonly answer = new Promise<boolean>((resolve) => (this.#resolve = resolve));

  protected override firstUpdated(): void {
    this.dialog.showModal();
  }

  override disconnectedCallback(): void {
    // Whoever took the dialog away has not said yes.
    this.#resolve(false);
    super.disconnectedCallback();
  }

  override render() {
    const { title, text, action, isDanger = false } = this.question;
    return html`
      <dialog
        role="alertdialog"
        aria-labelledby="title"
        aria-describedby="text"
        @close=${() => this.#resolve(this.dialog.returnValue === 'yes')}
      >
        <h2 id="title">${title}</h2>
        <div id="text">${[text].flat().map((it) => (it === '' ? nothing : html`<p>${it}</p>`))}</div>
        <form method="dialog">
          <button value="" ?autofocus=${isDanger}>Cancel</button>
          <button value="yes" class=${isDanger ? 'danger' : 'primary'} ?autofocus=${!isDanger}>${action}</button>
        </form>
      </dialog>
    `;
  }
}

customElements.define('rf-confirm', ConfirmDialog);
