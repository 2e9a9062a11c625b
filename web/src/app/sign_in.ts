// The form for the token of whoever is not known to the daemon.

import { css, html, LitElement, nothing } from 'lit';
import { property, query, state } from 'lit/decorators.js';

import { printable } from '../model/printable.js';
import { controls } from '../ui/styles.js';

/** Tries a token; returns why it is not taken, as a sentence, or `undefined` where it is. */
export type SignInAttempt = (token: string, keep: boolean) => Promise<string | undefined>;

/** Asks for a token until one is taken. */
export class SignIn extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: grid;
        place-items: center;
        min-height: 60vh;
        padding: var(--space-4);
      }
      form {
        display: grid;
        gap: var(--space-3);
        width: min(26rem, 100%);
      }
      p {
        margin: 0;
      }
      label.field {
        display: grid;
        gap: var(--space-1);
      }
      label.choice {
        display: flex;
        align-items: center;
        gap: var(--space-2);
      }
      input[type='checkbox'] {
        min-height: 0;
        margin: 0;
      }
      #refusal {
        overflow-wrap: anywhere;
      }
    `,
  ];

  @property({ attribute: false }) attempt!: SignInAttempt;
  /** Why the token that was kept is not taken any more; empty where there was none. */
  @property({ attribute: false }) refusal = '';
  @state() private isBusy = false;
  @query('#token') private field!: HTMLInputElement;

  protected override firstUpdated(): void {
    this.field.focus();
  }

  override render() {
    const { refusal } = this;
    return html`
      <form @submit=${this.#submit} aria-labelledby="title">
        <h1 id="title">Sign in</h1>
        <p class="dim">
          This daemon answers to known callers. The token goes to the daemon in a header of each call, and is kept
          nowhere else than in this tab.
        </p>
        <label class="field">
          Token
          <input
            id="token"
            name="token"
            type="password"
            autocomplete="off"
            autocapitalize="off"
            spellcheck="false"
            required
            aria-describedby="refusal"
            aria-invalid=${refusal === '' ? nothing : 'true'}
          />
        </label>
        <p id="refusal" class="bad" role="alert">${printable(refusal)}</p>
        <label class="choice"><input name="keep" type="checkbox" checked /> Keep it until this tab is closed</label>
        <button class="primary" ?disabled=${this.isBusy}>${this.isBusy ? 'Signing in …' : 'Sign in'}</button>
      </form>
    `;
  }

  readonly #submit = async (event: SubmitEvent) => {
    event.preventDefault();
    if (this.isBusy) return;
    const form = new FormData(event.target as HTMLFormElement);
    this.isBusy = true;
    this.refusal = '';
    this.refusal = (await this.attempt(String(form.get('token') ?? '').trim(), form.get('keep') !== null)) ?? '';
    this.isBusy = false;
    // The next one is typed over this one.
    this.field.select();
  };
}

customElements.define('rf-sign-in', SignIn);
