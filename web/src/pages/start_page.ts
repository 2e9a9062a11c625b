// The form that starts a run: of a module, or again with what is known of an earlier run.

import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';
import { property, query, state } from 'lit/decorators.js';

import { type Failure, failureOf, isAborted } from '../api/failure.js';
import { startRun } from '../api/start_run.js';
import type { PageContext } from '../app/context.js';
import { navigate } from '../app/navigate.js';
import { formatRoute, type Route } from '../app/route.js';
import type { ModuleInfo } from '../gen/ringfence/v1/module_pb.js';
import { formatBytes, shortDigest } from '../model/format.js';
import { moduleName } from '../model/module_list.js';
import { printable } from '../model/printable.js';
import {
  checkForm,
  chosenEntry,
  EMPTY_FORM,
  fieldOf,
  formFor,
  type FormErrors,
  formFromRun,
  formFromSpec,
  type RunForm,
} from '../model/run_form.js';
import { sayFailure } from '../model/sentences.js';
import { specOf } from '../model/started_specs.js';
import { tell } from '../ui/toast.js';
import { controls } from '../ui/styles.js';
import type { ModuleChooser } from './module_chooser.js';
import './module_chooser.js';
import type { RunFormFields } from './run_form.js';
import './run_form.js';

export class StartPage extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: block;
        padding: var(--space-4);
        max-width: 72rem;
      }
      .module {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: var(--space-2) var(--space-3);
        margin-block: var(--space-3);
        overflow-wrap: anywhere;
      }
      rf-module-chooser {
        display: block;
        max-width: 42rem;
        margin-block: var(--space-3);
      }
      .note {
        padding: var(--space-2) var(--space-3);
        border-inline-start: 4px solid var(--busy);
        background: var(--ground-2);
        overflow-wrap: anywhere;
      }
      .foot {
        position: sticky;
        inset-block-end: 0;
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: var(--space-2) var(--space-3);
        padding-block: var(--space-3);
        background: var(--ground);
        border-block-start: 1px solid var(--line);
        overflow-wrap: anywhere;
      }
    `,
  ];

  @property({ attribute: false }) context!: PageContext;
  @property({ attribute: false }) route!: Extract<Route, { page: 'start' }>;
  @state() private form: RunForm = EMPTY_FORM;
  @state() private module: ModuleInfo | undefined;
  @state() private errors: FormErrors = new Map();
  @state() private note: TemplateResult | undefined;
  /** What is said above the form: why it cannot be filled, or at its foot: why the run was refused. */
  @state() private loadFailure: Failure | undefined;
  @state() private startFailure: Failure | undefined;
  @state() private isStarting = false;
  @query('rf-run-form') private fields!: RunFormFields;
  @query('rf-module-chooser') private chooser!: ModuleChooser | null;
  #loading = new AbortController();
  #starting = new AbortController();
  /** Stands for one start: a second try of the same form, after a broken connection, starts no second run. */
  #key = newKey();
  /** Of the module that was asked for. */
  #digest = '';

  override disconnectedCallback(): void {
    this.#loading.abort();
    this.#starting.abort();
    super.disconnectedCallback();
  }

  protected override willUpdate(changed: PropertyValues<this>): void {
    if (!changed.has('route')) return;
    const { from, digest } = this.route;
    const isNewRun = changed.get('route')?.from !== from && from !== '';
    if (isNewRun || digest !== this.#digest) void this.#load(digest, isNewRun);
  }

  async #load(asked: string, fill: boolean): Promise<void> {
    this.#loading.abort();
    this.#loading = new AbortController();
    const { signal } = this.#loading;
    this.loadFailure = undefined;
    this.module = undefined;
    this.#digest = asked;
    let digest = asked;
    try {
      if (fill) digest = (await this.#fill(signal)) || digest;
      if (digest === '') return;
      const { module } = await this.context.daemon.modules.getModule({ digest }, { signal });
      this.module = module;
      if (module !== undefined) this.#edit(formFor(this.form, module));
    } catch (error) {
      if (!isAborted(error)) this.loadFailure = failureOf(error);
    }
  }

  /** Fills the form from an earlier run, says what could not be filled, and returns the run's module. */
  async #fill(signal: AbortSignal): Promise<string> {
    const { from } = this.route;
    const { run } = await this.context.daemon.runs.getRun({ runId: from }, { signal });
    if (run === undefined) return '';
    const link = html`<a href=${formatRoute({ page: 'run', id: from, at: undefined })}>run ${printable(from)}</a>`;
    const known = specOf(from);
    this.#edit(known === undefined ? formFromRun(run) : formFromSpec(known));
    this.note =
      known === undefined
        ? html`Filled from ${link}: its module, its labels and the limits that it got. The daemon does not keep its
          entry point, arguments, environment, input, time limit, mounts and permissions: fill in what it had.`
        : html`Filled as this tab started ${link}.`;
    return run.moduleDigest;
  }

  override render() {
    if (!this.context.mayChange) {
      return html`<h1>Start a run</h1><p>This daemon starts no runs for this page: it is read-only here.</p>`;
    }
    return html`
      <h1>Start a run</h1>
      ${this.note === undefined ? nothing : html`<p class="note">${this.note}</p>`}
      ${
        this.loadFailure === undefined ? nothing : html`<p class="bad" role="alert">${sayFailure(this.loadFailure)}</p>`
      }
      ${this.#chosen()} ${this.module === undefined ? nothing : this.#form()}
    `;
  }

  #form(): TemplateResult {
    return html`
      <form novalidate @submit=${this.#submit} @keydown=${this.#keyed}>
        <rf-run-form
          .form=${this.form}
          .module=${this.module}
          .errors=${this.errors}
          @edit=${(event: CustomEvent<RunForm>) => this.#edit(event.detail)}
        ></rf-run-form>
        <div class="foot">
          <button class="primary" ?disabled=${this.isStarting}>Start</button>
          <span role="status">
            ${this.isStarting ? 'It is compiled where that is needed, and waits for a slot …' : ''}
          </span>
          <span class="bad" role="alert">${this.#refusal()}</span>
        </div>
      </form>
    `;
  }

  #chosen(): TemplateResult {
    const { module } = this;
    // It is the same place for whoever reads it, who is not to be taken to its beginning.
    const choose = (digest: string) => {
      history.replaceState(history.state, '', formatRoute({ page: 'start', digest, from: this.route.from }));
      void this.#load(digest, false);
    };
    if (module === undefined) {
      return html`<rf-module-chooser
        .daemon=${this.context.daemon}
        @choose=${(event: CustomEvent<string>) => choose(event.detail)}
      ></rf-module-chooser>`;
    }
    const other = async () => {
      this.module = undefined;
      await this.updateComplete;
      this.chooser?.focus();
    };
    const { digest } = module;
    return html`<div class="module">
      <strong>${printable(moduleName(module)) || 'A module without a name'}</strong>
      <a class="mono" href=${formatRoute({ page: 'module', digest })}>${shortDigest(digest)}</a>
      <span class="dim">${formatBytes(module.size)}</span>
      <button type="button" @click=${() => void other()}>Choose another</button>
    </div>`;
  }

  #refusal(): string {
    if (this.startFailure !== undefined) return sayFailure(this.startFailure);
    return this.errors.size > 0 ? 'It is not started: see the fields that are marked.' : '';
  }

  #edit(form: RunForm): void {
    this.form = form;
    this.#key = newKey();
  }

  /** Enter in a field of one line starts the run, as in any form; its fields are in a component of their own. */
  readonly #keyed = (event: KeyboardEvent) => {
    const [target] = event.composedPath();
    const isField = target instanceof HTMLInputElement && target.type !== 'checkbox' && target.type !== 'file';
    if (event.key !== 'Enter' || event.isComposing || !isField) return;
    event.preventDefault();
    void this.#start();
  };

  readonly #submit = (event: SubmitEvent) => {
    event.preventDefault();
    void this.#start();
  };

  async #start(): Promise<void> {
    if (this.isStarting) return;
    const { form } = this;
    this.startFailure = undefined;
    this.errors = new Map();
    this.isStarting = true;
    this.#starting = new AbortController();
    try {
      const checked = checkForm(form, this.module, await stdinOf(form));
      if ('errors' in checked) {
        this.#mark(checked.errors);
        return;
      }
      const spec = { ...checked.spec, idempotencyKey: this.#key };
      const id = await startRun(this.context.daemon, spec, this.#starting.signal);
      navigate({ page: 'run', id, at: undefined });
    } catch (error) {
      if (!isAborted(error)) this.#refused(failureOf(error));
      else if (form.detach) tell('The run goes on if the daemon took it: see the list of runs.');
    } finally {
      this.isStarting = false;
    }
  }

  #refused(failure: Failure): void {
    this.startFailure = failure;
    const entry = chosenEntry(this.form, this.module);
    const errors = new Map(
      failure.fields.flatMap((path) => {
        const field = fieldOf(path, failure.reason, entry);
        return field === undefined ? [] : [[field, sayFailure(failure)] as const];
      }),
    );
    this.#mark(errors);
  }

  #mark(errors: FormErrors): void {
    this.errors = errors;
    // The fields have the errors once this page is drawn.
    void this.updateComplete.then(() => this.fields.focusError());
  }
}

async function stdinOf(form: RunForm): Promise<Uint8Array<ArrayBuffer>> {
  if (form.stdinFrom === 'text') return new TextEncoder().encode(form.stdinText);
  if (form.stdinFrom === 'none' || form.stdinFile === undefined) return new Uint8Array();
  return new Uint8Array(await form.stdinFile.arrayBuffer());
}

/** Makes a key that nobody else has; `crypto.randomUUID` is not there on pages without TLS. */
function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${[...bytes].map((it) => it.toString(16).padStart(2, '0')).join('')}`;
}

customElements.define('rf-start-page', StartPage);
