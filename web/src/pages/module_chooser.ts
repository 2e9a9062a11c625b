// Chooses a stored module: by words of its name, its digest or its labels.

import { css, html, LitElement, nothing, type PropertyValues } from 'lit';
import { property, query, state } from 'lit/decorators.js';

import { allModules } from '../api/all_modules.js';
import type { Daemon } from '../api/client.js';
import { type Failure, failureOf, isAborted } from '../api/failure.js';
import type { ModuleInfo } from '../gen/ringfence/v1/module_pb.js';
import { formatBytes, plural, shortDigest } from '../model/format.js';
import { filterModules, moduleName, sortModules } from '../model/module_list.js';
import { printable } from '../model/printable.js';
import { sayFailure } from '../model/sentences.js';
import { controls } from '../ui/styles.js';

const ROWS = 30;

/** Tells the digest that was chosen as the `detail` of its event `choose`. */
export class ModuleChooser extends LitElement {
  static override styles = [
    controls,
    css`
      input {
        width: 100%;
      }
      ul {
        list-style: none;
        margin: var(--space-2) 0 0;
        padding: 0;
        max-height: 18rem;
        overflow: auto;
        border: 1px solid var(--line);
        border-radius: var(--radius);
      }
      li button {
        display: flex;
        flex-wrap: wrap;
        gap: 0 var(--space-3);
        width: 100%;
        border: 0;
        border-radius: 0;
        text-align: start;
        white-space: normal;
        overflow-wrap: anywhere;
        background: none;
      }
      p {
        margin: var(--space-2) 0 0;
      }
    `,
  ];

  @property({ attribute: false }) daemon!: Daemon;
  @state() private modules: readonly ModuleInfo[] | undefined;
  @state() private failure: Failure | undefined;
  @state() private text = '';
  @query('input') private input!: HTMLInputElement;
  #gone = new AbortController();

  override connectedCallback(): void {
    super.connectedCallback();
    this.#gone = new AbortController();
  }

  override disconnectedCallback(): void {
    this.#gone.abort();
    super.disconnectedCallback();
  }

  override focus(): void {
    this.input.focus();
  }

  protected override willUpdate(changed: PropertyValues<this>): void {
    if (changed.has('daemon')) void this.#load(this.#gone.signal);
  }

  async #load(signal: AbortSignal): Promise<void> {
    try {
      for await (const { modules } of allModules(this.daemon, signal))
        this.modules = sortModules(modules, 'used', false);
    } catch (error) {
      if (!isAborted(error)) this.failure = failureOf(error);
    }
  }

  override render() {
    const found = filterModules(this.modules ?? [], this.text);
    const typed = (event: InputEvent) => (this.text = (event.target as HTMLInputElement).value);
    return html`
      <input type="search" aria-label="Search for a module" placeholder="Name, digest or label" @input=${typed} />
      ${
        this.failure === undefined
          ? nothing
          : html`<p class="bad" role="alert">The modules cannot be listed. ${sayFailure(this.failure)}</p>`
      }
      <p role="status" class="dim">${this.#says(found.length)}</p>
      ${
        found.length === 0
          ? nothing
          : html`<ul aria-label="Modules">${found.slice(0, ROWS).map((it) => this.#row(it))}</ul>`
      }
    `;
  }

  #says(found: number): string {
    if (this.modules === undefined) return this.failure === undefined ? 'Asking for the modules …' : '';
    if (this.modules.length === 0) return 'No module is stored. Upload one first, on the page Modules.';
    return found <= ROWS ? plural(found, 'module') : `The ${ROWS} that were used last, of ${plural(found, 'module')}`;
  }

  #row(module: ModuleInfo) {
    const labels = Object.entries(module.labels).map(([key, value]) => printable(`${key}=${value}`));
    const choose = () => this.dispatchEvent(new CustomEvent('choose', { detail: module.digest }));
    return html`<li>
      <button type="button" @click=${choose}>
        <span>${printable(moduleName(module)) || 'Without a name'}</span>
        <span class="mono dim">${shortDigest(module.digest)}</span>
        <span class="dim">${formatBytes(module.size)} ${labels.join(' ')}</span>
      </button>
    </li>`;
  }
}

customElements.define('rf-module-chooser', ModuleChooser);
