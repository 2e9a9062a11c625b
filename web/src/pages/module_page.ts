// One stored module: what it is, what it can be asked for, and what it needs.

import { timestampMs } from '@bufbuild/protobuf/wkt';
import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';
import { property, state } from 'lit/decorators.js';

import { type Failure, failureOf, isAborted } from '../api/failure.js';
import type { PageContext } from '../app/context.js';
import { navigate } from '../app/navigate.js';
import { formatRoute, type Route } from '../app/route.js';
import { type ModuleInfo, ModuleKind } from '../gen/ringfence/v1/module_pb.js';
import { entryPoints, showSignature } from '../model/entry_points.js';
import { formatAbsolute, formatBytes, formatCount, formatRelative } from '../model/format.js';
import { moduleName } from '../model/module_list.js';
import { printable } from '../model/printable.js';
import { sayFailure } from '../model/sentences.js';
import { controls } from '../ui/styles.js';
import { askAndDelete, kindOf, memoryOf } from './module_parts.js';

/** The most exports, and imports, that the daemon tells. */
const LISTED = 1_000;

export class ModulePage extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: block;
        padding: var(--space-4);
        max-width: 72rem;
      }
      h1,
      td,
      dd {
        overflow-wrap: anywhere;
      }
      h2 {
        margin-block: var(--space-6) var(--space-2);
      }
      .actions {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: var(--space-3);
        margin-block: var(--space-3);
      }
      dl {
        display: grid;
        grid-template-columns: minmax(7rem, auto) minmax(0, 1fr);
        gap: var(--space-1) var(--space-4);
        margin: 0;
      }
      dt {
        color: var(--ink-2);
      }
      dd {
        margin: 0;
      }
      .scroll {
        overflow-x: auto;
        max-height: 32rem;
        border: 1px solid var(--line);
        border-radius: var(--radius);
      }
      table {
        width: 100%;
        border-collapse: collapse;
      }
      th,
      td {
        text-align: start;
        padding: var(--space-1) var(--space-3);
        border-block-end: 1px solid var(--line);
      }
      th {
        position: sticky;
        inset-block-start: 0;
        background: var(--ground-2);
      }
    `,
  ];

  @property({ attribute: false }) context!: PageContext;
  @property({ attribute: false }) route!: Extract<Route, { page: 'module' }>;
  @state() private module: ModuleInfo | undefined;
  @state() private failure: Failure | undefined;
  #loading = new AbortController();

  protected override willUpdate(changed: PropertyValues<this>): void {
    const digest = changed.get('route')?.digest;
    if (changed.has('route') && digest !== this.route.digest) void this.#load();
  }

  override disconnectedCallback(): void {
    this.#loading.abort();
    super.disconnectedCallback();
  }

  async #load(): Promise<void> {
    this.#loading.abort();
    this.#loading = new AbortController();
    const { signal } = this.#loading;
    this.module = undefined;
    this.failure = undefined;
    try {
      const { module } = await this.context.daemon.modules.getModule({ digest: this.route.digest }, { signal });
      this.module = module;
    } catch (error) {
      if (!isAborted(error)) this.failure = failureOf(error);
    }
  }

  override render() {
    const back = html`<a href=${formatRoute({ page: 'modules', text: '' })}>Modules</a>`;
    if (this.failure !== undefined) {
      return html`<h1>Module</h1>
        <p class="mono">${printable(this.route.digest)}</p>
        <p class="bad" role="alert">${sayFailure(this.failure)}</p>
        <p><button @click=${() => void this.#load()}>Try again</button> ${back}</p>`;
    }
    const { module } = this;
    if (module === undefined) return html`<p role="status">Asking for the module …</p>`;
    return html`
      ${back}
      <h1>${printable(moduleName(module)) || 'A module without a name'}</h1>
      ${this.#actions(module)} ${this.#facts(module)} ${this.#callable(module)} ${this.#exports(module)}
      ${this.#imports(module)}
    `;
  }

  #actions(module: ModuleInfo): TemplateResult {
    const { digest } = module;
    const runs = formatRoute({ page: 'runs', text: digest, states: [], labels: new Map() });
    const start = () => navigate({ page: 'start', digest, from: '' });
    const remove = async () => {
      if (await askAndDelete(this.context.daemon, module)) navigate({ page: 'modules', text: '' });
    };
    return html`<div class="actions">
      ${this.context.mayChange ? html`<button class="primary" @click=${start}>Start a run</button>` : nothing}
      <a href=${runs}>Its runs</a>
      ${this.context.mayChange ? html`<button class="danger" @click=${() => void remove()}>Delete</button>` : nothing}
    </div>`;
  }

  #facts(module: ModuleInfo): TemplateResult {
    const labels = Object.entries(module.labels).map(([key, value]) => printable(`${key}=${value}`));
    const used = module.lastUsed === undefined ? undefined : timestampMs(module.lastUsed);
    const facts: ReadonlyArray<readonly [string, string]> = [
      ['Digest', module.digest],
      ['Name', printable(module.name) || 'none was given'],
      ['Own name', printable(module.nameSection) || 'it has none'],
      ['Kind', kindOf(module)],
      ['Size', `${formatBytes(module.size)} (${formatCount(module.size)} bytes)`],
      ['Memory minimum', `${memoryOf(module)} (${formatCount(module.memoryMinimumPages)} pages)`],
      ['Labels', labels.join(', ') || 'none'],
      ['Last used', used === undefined ? 'not known' : `${formatRelative(used, Date.now())}, ${formatAbsolute(used)}`],
      ['Compiled in', module.cachedIn.map(printable).join(', ') || 'not told, or nowhere now'],
    ];
    return html`<dl>
      ${facts.map(([name, value]) => html`<dt>${name}</dt><dd class=${name === 'Digest' ? 'mono' : ''}>${value}</dd>`)}
    </dl>`;
  }

  #callable(module: ModuleInfo): TemplateResult {
    const points = entryPoints(module);
    const command = module.kind === ModuleKind.COMPONENT ? 'wasi:cli/run' : '_start';
    return html`<h2>What a run can call</h2>
      ${
        points.length === 0
          ? html`<p>
            Nothing: a run calls ${command}, or a function whose parameters and results are numbers, and this module
            exports neither.
          </p>`
          : html`<ul>
            ${points.map((it) =>
              it.name === ''
                ? html`<li><span class="mono">${command}</span>, the module’s command</li>`
                : html`<li class="mono">${printable(it.name)}${showSignature(it)}</li>`,
            )}
          </ul>`
      }`;
  }

  #exports(module: ModuleInfo): TemplateResult {
    const rows = module.exports.map((it) => [it.name, it.kind, it.type]);
    return this.#table('Exports', ['Name', 'Kind', 'Type'], rows);
  }

  #imports(module: ModuleInfo): TemplateResult {
    const isCore = module.kind !== ModuleKind.COMPONENT;
    const rows = module.imports.map((it) => (isCore ? [it.module, it.name, it.kind] : [it.name, it.kind]));
    return this.#table('Imports', isCore ? ['Module', 'Name', 'Kind'] : ['Name', 'Kind'], rows);
  }

  #table(title: string, heads: readonly string[], rows: ReadonlyArray<readonly string[]>): TemplateResult {
    const count = rows.length >= LISTED ? `the first ${formatCount(LISTED)}` : formatCount(rows.length);
    if (rows.length === 0) return html`<h2>${title}</h2><p>None.</p>`;
    return html`<h2>${title} <span class="dim">(${count})</span></h2>
      <div class="scroll" tabindex="0" role="region" aria-label=${title}>
        <table>
          <thead>
            <tr>
              ${heads.map((it) => html`<th scope="col">${it}</th>`)}
            </tr>
          </thead>
          <tbody class="mono">
            ${rows.map((row) => html`<tr>${row.map((it) => html`<td>${printable(it)}</td>`)}</tr>`)}
          </tbody>
        </table>
      </div>`;
  }
}

customElements.define('rf-module-page', ModulePage);
