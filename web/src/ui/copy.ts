// Copies text, or shows it to be copied by hand where the browser does not let a page do so.

import { css, html, LitElement, nothing, type TemplateResult } from 'lit';
import { property, query } from 'lit/decorators.js';

import { controls, dialogs } from './styles.js';
import { tell } from './toast.js';

/** Copies text and says so: `what` names it, and `note` is a sentence about it. */
export async function copyText(text: string, what: string, note = ''): Promise<void> {
  try {
    // Browsers let pages copy only where they came by HTTPS or from this machine.
    await navigator.clipboard.writeText(text);
    tell(`${what} is copied.${note === '' ? '' : ` ${note}`}`);
  } catch {
    const dialog = new CopyDialog();
    Object.assign(dialog, { text, what, note });
    document.body.append(dialog);
  }
}

export class CopyDialog extends LitElement {
  static override styles = [
    controls,
    dialogs,
    css`
      dialog {
        width: min(44rem, calc(100vw - 2rem));
      }
      textarea {
        width: 100%;
        height: 14rem;
        font-family: var(--mono);
        font-size: var(--text-s);
      }
    `,
  ];

  @property({ attribute: false }) text = '';
  @property({ attribute: false }) what = '';
  @property({ attribute: false }) note = '';
  @query('dialog') private dialog!: HTMLDialogElement;
  @query('textarea') private area!: HTMLTextAreaElement;

  protected override firstUpdated(): void {
    this.dialog.showModal();
    this.area.select();
  }

  override render(): TemplateResult {
    return html`
      <dialog aria-labelledby="title" @close=${() => this.remove()}>
        <h2 id="title">${this.what}</h2>
        <p>This browser does not let the page copy. Copy it from here.</p>
        ${this.note === '' ? nothing : html`<p>${this.note}</p>`}
        <textarea readonly aria-labelledby="title" .value=${this.text}></textarea>
        <form method="dialog"><button>Close</button></form>
      </dialog>
    `;
  }
}

customElements.define('rf-copy', CopyDialog);
