// The stored modules: which there are, and how further ones are stored.

import { html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';
import { property, query, state } from 'lit/decorators.js';
import { repeat } from 'lit/directives/repeat.js';

import { allModules } from '../api/all_modules.js';
import { type Failure, failureOf, isAborted } from '../api/failure.js';
import { uploadsOf } from '../api/uploads.js';
import type { PageContext } from '../app/context.js';
import { replaceRoute } from '../app/navigate.js';
import { formatRoute, type Route } from '../app/route.js';
import type { ModuleInfo } from '../gen/ringfence/v1/module_pb.js';
import { formatAbsolute, formatBytes, formatRelative, plural, shortDigest } from '../model/format.js';
import { filterModules, lastUsed, moduleName, type ModuleOrder, sortModules } from '../model/module_list.js';
import { printable } from '../model/printable.js';
import { sayFailure } from '../model/sentences.js';
import { addShortcuts } from '../ui/shortcuts.js';
import { controls } from '../ui/styles.js';
import { askAndDelete, kindOf, memoryOf } from './module_parts.js';
import { watchDrops } from './drop_area.js';
import { moduleListStyles } from './modules_styles.js';
import './upload_list.js';

/** Rows that are shown before more are asked for. */
const ROWS = 200;
/** Columns, with how much room it takes until they are shown. */
const COLUMNS: ReadonlyArray<{ order: ModuleOrder | undefined; title: string; room: '' | 'mid' | 'wide' }> = [
  { order: 'name', title: 'Module', room: '' },
  { order: 'size', title: 'Size', room: '' },
  { order: undefined, title: 'Kind', room: 'wide' },
  { order: 'memory', title: 'Memory minimum', room: 'wide' },
  { order: undefined, title: 'Labels', room: 'wide' },
  { order: 'used', title: 'Last used', room: 'mid' },
  { order: undefined, title: 'Compiled in', room: 'wide' },
];

export class ModulesPage extends LitElement {
  static override styles = [controls, moduleListStyles];

  @property({ attribute: false }) context!: PageContext;
  @property({ attribute: false }) route!: Extract<Route, { page: 'modules' }>;
  @state() private modules: readonly ModuleInfo[] = [];
  @state() private isComplete = false;
  @state() private failure: Failure | undefined;
  @state() private order: ModuleOrder = 'used';
  @state() private isReversed = false;
  @state() private rows = ROWS;
  @state() private isDragging = false;
  @query('#files') private files!: HTMLInputElement;
  @query('#search') private search!: HTMLInputElement;
  #gone = new AbortController();
  #loading = new AbortController();

  override connectedCallback(): void {
    super.connectedCallback();
    this.#gone = new AbortController();
    const { signal } = this.#gone;
    const { daemon } = this.context;
    const reload = () => void this.#load();
    uploadsOf(daemon).addEventListener('stored', reload, { signal });
    daemon.token.addEventListener('change', reload, { signal });
    document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && reload(), { signal });
    watchDrops(signal, {
      dragging: (isDragging) => (this.isDragging = isDragging && this.context.mayChange),
      dropped: (files) => this.context.mayChange && this.#take(files),
    });
    const remove = addShortcuts([
      { keys: '/', says: 'Search the modules', run: () => this.search.focus() },
      { keys: 'u', says: 'Upload a module', run: () => this.context.mayChange && this.files.click() },
    ]);
    signal.addEventListener('abort', remove);
    void this.#load();
  }

  override disconnectedCallback(): void {
    this.#gone.abort();
    this.#loading.abort();
    super.disconnectedCallback();
  }

  protected override willUpdate(changed: PropertyValues<this>): void {
    if (changed.has('route')) this.rows = ROWS;
  }

  async #load(): Promise<void> {
    this.#loading.abort();
    this.#loading = new AbortController();
    const { signal } = this.#loading;
    try {
      for await (const { modules, isComplete } of allModules(this.context.daemon, signal)) {
        // The first time, what is there is shown while more comes. Later, rows stay until all are there.
        if (isComplete || !this.isComplete) this.modules = modules;
        this.isComplete ||= isComplete;
      }
      this.failure = undefined;
    } catch (error) {
      if (!isAborted(error)) this.failure = failureOf(error);
    }
  }

  #take(files: readonly File[]): void {
    for (const file of files) uploadsOf(this.context.daemon).add(file);
    this.shadowRoot?.querySelector('rf-upload-list')?.scrollIntoView({ block: 'nearest' });
  }

  override render() {
    const found = sortModules(filterModules(this.modules, this.route.text), this.order, this.isReversed);
    return html`
      <h1 class="visually-hidden">Modules</h1>
      ${this.#bar(found.length)}
      ${
        this.failure === undefined
          ? nothing
          : html`<p class="bad" role="alert">
            The modules cannot be listed. ${sayFailure(this.failure)}
            <button @click=${() => void this.#load()}>Try again</button>
          </p>`
      }
      <rf-upload-list .uploads=${uploadsOf(this.context.daemon)}></rf-upload-list>
      ${found.length > 0 ? this.#table(found) : this.#nothing()}
      ${
        found.length > this.rows
          ? html`<p>
            ${plural(found.length - this.rows, 'more module')}.
            <button @click=${() => (this.rows += 5 * ROWS)}>Show more</button>
          </p>`
          : nothing
      }
      ${this.isDragging ? html`<div class="drop">Drop WebAssembly modules to store them.</div>` : nothing}
    `;
  }

  #bar(found: number): TemplateResult {
    const typed = (event: InputEvent) => this.#filter((event.target as HTMLInputElement).value);
    const chosen = () => {
      this.#take([...(this.files.files ?? [])]);
      this.files.value = '';
    };
    const all = this.modules.length;
    const says = found === all ? plural(all, 'module') : `${found} of ${plural(all, 'module')}`;
    return html`
      <div class="bar">
        <input
          id="search"
          type="search"
          aria-label="Search"
          placeholder="Name, digest or label"
          .value=${this.route.text}
          @input=${typed}
        />
        <span role="status" class="dim">${this.isComplete ? says : 'Asking for the modules …'}</span>
        ${
          this.context.mayChange
            ? html`<input
                id="files"
                type="file"
                multiple
                hidden
                accept=".wasm,.wat,application/wasm"
                @change=${chosen}
              />
              <button class="primary" @click=${() => this.files.click()}>Upload a module</button>
              <details>
                <summary>Pull from a registry</summary>
                <form class="registry" @submit=${this.#pull}>
                  <input name="oci" required pattern="oci://.+" placeholder="oci://registry/repository:tag"
                    aria-label="Reference, such as oci://registry/repository:tag" spellcheck="false" />
                  <button>Pull</button>
                </form>
              </details>`
            : nothing
        }
      </div>
    `;
  }

  readonly #pull = (event: SubmitEvent) => {
    event.preventDefault();
    const form = event.target as HTMLFormElement;
    uploadsOf(this.context.daemon).add(String(new FormData(form).get('oci')).trim());
    form.reset();
  };

  #filter(text: string): void {
    replaceRoute({ page: 'modules', text });
  }

  #table(found: readonly ModuleInfo[]): TemplateResult {
    const header = ({ order, title, room }: (typeof COLUMNS)[number]) => {
      const isOrder = order !== undefined && order === this.order;
      const sorted = !isOrder ? nothing : (order === 'name') === this.isReversed ? 'descending' : 'ascending';
      const sort = () => {
        this.isReversed = isOrder && !this.isReversed;
        this.order = order ?? this.order;
      };
      const mark = sorted === nothing ? '' : sorted === 'ascending' ? ' ↑' : ' ↓';
      return html`<th scope="col" class=${room} aria-sort=${sorted}>
        ${
          order === undefined
            ? title
            : html`<button @click=${sort}>${title}<span aria-hidden="true">${mark}</span></button>`
        }
      </th>`;
    };
    return html`
      <div class="scroll" tabindex="0" role="region" aria-label="Modules">
        <table>
          <thead>
            <tr>
              ${COLUMNS.map(header)}
              <th scope="col"><span class="visually-hidden">Actions</span></th>
            </tr>
          </thead>
          <tbody>
            ${repeat(
              found.slice(0, this.rows),
              ({ digest }) => digest,
              (it) => this.#row(it),
            )}
          </tbody>
        </table>
      </div>
    `;
  }

  #row(module: ModuleInfo): TemplateResult {
    const { digest } = module;
    const name = printable(moduleName(module));
    const used = lastUsed(module);
    const start = formatRoute({ page: 'start', digest, from: '' });
    const labels = Object.entries(module.labels).sort(([a], [b]) => (a < b ? -1 : 1));
    return html`<tr>
      <th scope="row">
        <a href=${formatRoute({ page: 'module', digest })}>${name === '' ? 'Without a name' : name}</a>
        <div class="mono dim">${shortDigest(digest)}</div>
      </th>
      <td class="figure">${formatBytes(module.size)}</td>
      <td class="wide">${kindOf(module)}</td>
      <td class="wide figure">${memoryOf(module)}</td>
      <td class="wide">
        ${labels.map(([key, value]) => {
          const text = `${key}=${value}`;
          return html`<button class="label" @click=${() => this.#filter(text)}>${printable(text)}</button>`;
        })}
      </td>
      <td class="mid figure" title=${used === 0 ? nothing : formatAbsolute(used)}>
        ${used === 0 ? 'not known' : formatRelative(used, Date.now())}
      </td>
      <td class="wide">${module.cachedIn.map(printable).join(', ')}</td>
      <td class="actions">
        ${
          this.context.mayChange
            ? html`<a href=${start} aria-label="Run ${name || digest}">Run</a>
              <button
                class="mid danger"
                aria-label="Delete ${name || digest}"
                @click=${() => void this.#delete(module)}
              >
                Delete
              </button>`
            : nothing
        }
      </td>
    </tr>`;
  }

  #nothing(): TemplateResult | typeof nothing {
    if (!this.isComplete) return nothing;
    if (this.modules.length > 0) {
      return html`<p class="empty">
        No module matches. <button @click=${() => this.#filter('')}>Show all</button>
      </p>`;
    }
    if (!this.context.mayChange) return html`<p class="empty">No module is stored.</p>`;
    return html`<p class="empty">
      No module is stored. Drop a .wasm or .wat file anywhere on this page, or choose one.
    </p>`;
  }

  async #delete(module: ModuleInfo): Promise<void> {
    if (!(await askAndDelete(this.context.daemon, module))) return;
    await this.#load();
    await this.updateComplete;
    // The row had the focus, and is gone.
    (this.renderRoot.querySelector<HTMLElement>('.scroll') ?? this.search).focus();
  }
}

customElements.define('rf-modules-page', ModulesPage);
