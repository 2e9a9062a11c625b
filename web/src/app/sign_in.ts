// The form for the token of whoever is not known to the daemon.

import { css, html, LitElement } from 'lit';
import { customElement, property } from 'lit/decorators.js';

import type { TokenStore } from '../api/token.js';
import { controls } from '../ui/styles.js';

@customElement('rf-sign-in')
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
      label.field {
        display: grid;
        gap: var(--space-1);
      }
    `,
  ];

  @property({ attribute: false }) token!: TokenStore;

  override render() {
    const again = this.token.value !== '';
    return html`
      <form @submit=${this.#submit}>
        <h1>${again ? 'This token is not accepted' : 'Who asks?'}</h1>
        <p class="dim">
          This daemon answers to known callers. The token goes to the daemon in a header of each call, and is kept
          nowhere else than in this tab.
        </p>
        <label class="field">
          Token
          <input name="token" type="password" autocomplete="off" spellcheck="false" required autofocus />
        </label>
        <label><input name="keep" type="checkbox" checked /> Keep it until this tab is closed</label>
        <button class="primary">Sign in</button>
      </form>
    `;
  }

  readonly #submit = (event: SubmitEvent) => {
    event.preventDefault();
    const form = new FormData(event.target as HTMLFormElement);
    this.token.set(String(form.get('token') ?? '').trim(), form.get('keep') !== null);
  };
}
