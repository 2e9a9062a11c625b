// The list of keys.

import { css, html, LitElement } from 'lit';
import { query } from 'lit/decorators.js';

import { allShortcuts } from '../ui/shortcuts.js';
import { controls, dialogs } from '../ui/styles.js';

export class ShortcutList extends LitElement {
  static override styles = [
    controls,
    dialogs,
    css`
      dialog {
        padding: var(--space-4);
        min-width: min(22rem, 90vw);
        max-height: calc(100dvh - 2rem);
      }
      dialog::backdrop {
        background: rgb(0 0 0 / 45%);
      }
      dl {
        display: grid;
        grid-template-columns: auto 1fr;
        gap: var(--space-2) var(--space-4);
      }
      dd {
        margin: 0;
      }
      kbd {
        font-family: var(--mono);
        background: var(--ground-3);
        border-radius: 3px;
        padding: 0.05rem 0.35rem;
      }
    `,
  ];

  @query('dialog') private dialog!: HTMLDialogElement;

  protected override firstUpdated(): void {
    this.dialog.showModal();
  }

  override render() {
    return html`
      <dialog aria-labelledby="title" @close=${() => this.dispatchEvent(new Event('close'))}>
        <h2 id="title">Keys</h2>
        <dl>
          ${allShortcuts().map(
            ({ keys, says }) => html`<dt>${keys.split(' ').map((key) => html`<kbd>${nameOfKey(key)}</kbd> `)}</dt>
              <dd>${says}</dd>`,
          )}
        </dl>
        <form method="dialog"><button>Close</button></form>
      </dialog>
    `;
  }
}

const KEY_NAMES = new Map([
  ['ArrowUp', '↑'],
  ['ArrowDown', '↓'],
  ['ArrowLeft', '←'],
  ['ArrowRight', '→'],
  ['Escape', 'Esc'],
]);

/** Capitals are typed with another key, which the cap of the key does not tell. */
function nameOfKey(key: string): string {
  return KEY_NAMES.get(key) ?? (/^[A-Z]$/.test(key) ? `Shift+${key}` : key);
}

customElements.define('rf-shortcut-list', ShortcutList);
