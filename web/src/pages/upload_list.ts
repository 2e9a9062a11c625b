// The modules that this tab stores: what they are called, and how far they are.

import { css, html, LitElement, nothing, type TemplateResult } from 'lit';
import { property, state } from 'lit/decorators.js';
import { repeat } from 'lit/directives/repeat.js';

import { type Upload, type Uploads } from '../api/uploads.js';
import { formatRoute } from '../app/route.js';
import { formatBytes, formatDuration, shortDigest } from '../model/format.js';
import { byteLength, parseLabels } from '../model/pairs.js';
import { printable } from '../model/printable.js';
import { nameOfFile, sayUploadFailure } from '../model/sentences.js';
import { described, fieldStyles, type FieldText, formField, invalid } from '../ui/form_field.js';
import { controls } from '../ui/styles.js';

/** One module: a form before it is sent, its progress, and what became of it. */
export class UploadCard extends LitElement {
  static override styles = [
    controls,
    fieldStyles,
    css`
      :host {
        display: block;
        border: 1px solid var(--line);
        border-radius: var(--radius);
        padding: var(--space-3);
        background: var(--ground-2);
      }
      h3 {
        overflow-wrap: anywhere;
      }
      form {
        display: grid;
        grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr));
        gap: var(--space-3);
        margin-block-start: var(--space-3);
      }
      .row {
        grid-column: 1 / -1;
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: var(--space-3);
      }
      progress {
        width: min(24rem, 100%);
        accent-color: var(--accent);
      }
      p {
        margin: var(--space-2) 0 0;
        overflow-wrap: anywhere;
      }
    `,
  ];

  @property({ attribute: false }) uploads!: Uploads;
  @property({ attribute: false }) upload!: Upload;
  @state() private errors: ReadonlyMap<string, string> = new Map();
  #name: string | undefined;
  #labels = '';
  #metered = false;

  override connectedCallback(): void {
    super.connectedCallback();
    this.uploads.addEventListener('change', this.#changed);
  }

  override disconnectedCallback(): void {
    this.uploads.removeEventListener('change', this.#changed);
    super.disconnectedCallback();
  }

  readonly #changed = () => this.requestUpdate();

  override render() {
    const { source } = this.upload;
    const title = typeof source === 'string' ? source : `${source.name} (${formatBytes(source.size)})`;
    return html`<h3>${printable(title)}</h3>
      <div aria-live="polite">${this.#progress()}</div>`;
  }

  #progress(): TemplateResult {
    const { state, source } = this.upload;
    const remove = (says: string) => html`<button @click=${() => this.uploads.remove(this.upload)}>${says}</button>`;
    switch (state.kind) {
      case 'draft':
        return this.#form();
      case 'waiting':
        return html`<p>It waits until the one before it is stored. ${remove('Cancel')}</p>`;
      case 'sending': {
        const says = `${formatBytes(state.sent)} of ${formatBytes(state.total)} are sent.`;
        return html`<p aria-live="off">
            <progress max=${state.total} .value=${state.sent} aria-label="Sent bytes"></progress> ${says}
          </p>
          ${remove('Cancel')}`;
      }
      case 'compiling': {
        const says =
          typeof source === 'string' ? 'The daemon pulls and compiles it.' : 'All is sent. The daemon compiles it.';
        return html`<p><progress aria-label="Compiling"></progress> ${says}</p>
          ${remove('Cancel')}`;
      }
      case 'done': {
        const { module, cached, compileMs } = state;
        const route = { page: 'module', digest: module.digest } as const;
        const took = cached ? 'It was compiled already.' : `Compiling took ${formatDuration(compileMs)}.`;
        return html`<p>
            <span class="good">✓</span> Stored as
            <a class="mono" href=${formatRoute(route)}>${shortDigest(module.digest)}</a>. ${took}
          </p>
          <div class="row">
            <a href=${formatRoute({ page: 'start', digest: module.digest, from: '' })}>Run it</a> ${remove('Dismiss')}
          </div>`;
      }
      case 'failed': {
        const size = typeof source === 'string' ? undefined : source.size;
        return html`<p class="bad">${sayUploadFailure(state.failure, size)}</p>
          ${this.#form()}`;
      }
    }
  }

  #form(): TemplateResult {
    const { source } = this.upload;
    this.#name ??= typeof source === 'string' ? '' : nameOfFile(source.name);
    const name: FieldText = {
      id: 'name',
      label: 'Name',
      hint: 'For people. It may be empty.',
      error: this.errors.get('name'),
    };
    const labels: FieldText = {
      id: 'labels',
      label: 'Labels',
      hint: 'A line each: KEY=value.',
      error: this.errors.get('labels'),
    };
    return html`
      <form @submit=${this.#submit}>
        ${formField(
          name,
          html`<input
            id="name"
            .value=${this.#name}
            autocomplete="off"
            spellcheck="false"
            aria-describedby=${described(name)}
            aria-invalid=${invalid(name)}
            @input=${(event: InputEvent) => (this.#name = (event.target as HTMLInputElement).value)}
          />`,
        )}
        ${formField(
          labels,
          html`<textarea
            id="labels"
            rows="2"
            .value=${this.#labels}
            aria-describedby=${described(labels)}
            aria-invalid=${invalid(labels)}
            @input=${(event: InputEvent) => (this.#labels = (event.target as HTMLTextAreaElement).value)}
          ></textarea>`,
        )}
        <label class="row">
          <span>
            <input
              type="checkbox"
              .checked=${this.#metered}
              @change=${(event: Event) => (this.#metered = (event.target as HTMLInputElement).checked)}
            />
            Compile it for runs with a fuel limit too
          </span>
        </label>
        <div class="row">
          <button class="primary">${typeof source === 'string' ? 'Pull' : 'Upload'}</button>
          <button type="button" @click=${() => this.uploads.remove(this.upload)}>Cancel</button>
        </div>
      </form>
    `;
  }

  readonly #submit = (event: SubmitEvent) => {
    event.preventDefault();
    const errors = new Map<string, string>();
    const name = (this.#name ?? '').trim();
    const labels = parseLabels(this.#labels);
    if (byteLength(name) > 128) errors.set('name', 'A name has at most 128 bytes.');
    if (/\p{Cc}/u.test(name)) errors.set('name', 'A name has no control characters.');
    if ('error' in labels) errors.set('labels', labels.error);
    this.errors = errors;
    if ('error' in labels || errors.size > 0) return;
    const { uploads, upload } = this;
    void uploads.start(upload, { name, labels: Object.fromEntries(labels.pairs), metered: this.#metered });
  };
}

/** All modules that this tab stores. */
export class UploadList extends LitElement {
  static override styles = css`
    section {
      display: grid;
      gap: var(--space-3);
      margin-block-end: var(--space-4);
    }
  `;

  @property({ attribute: false }) uploads!: Uploads;

  override connectedCallback(): void {
    super.connectedCallback();
    this.uploads.addEventListener('change', this.#changed);
    this.uploads.isShown = true;
  }

  override disconnectedCallback(): void {
    this.uploads.removeEventListener('change', this.#changed);
    this.uploads.isShown = false;
    super.disconnectedCallback();
  }

  readonly #changed = () => this.requestUpdate();

  override render() {
    const { all } = this.uploads;
    if (all.length === 0) return nothing;
    return html`<section aria-label="Uploads">
      ${repeat(
        all,
        ({ id }) => id,
        (it) => html`<rf-upload .uploads=${this.uploads} .upload=${it}></rf-upload>`,
      )}
    </section>`;
  }
}

customElements.define('rf-upload', UploadCard);

customElements.define('rf-upload-list', UploadList);
