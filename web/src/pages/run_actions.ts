// What one can do with a run.

import { css, html, LitElement, nothing, type TemplateResult } from 'lit';
import { property, state } from 'lit/decorators.js';

import { failureOf, isAborted } from '../api/failure.js';
import { stderrTail } from '../api/run_tail.js';
import { startRun } from '../api/start_run.js';
import type { PageContext } from '../app/context.js';
import { navigate } from '../app/navigate.js';
import { HOME } from '../app/route.js';
import type { HealthResponse } from '../gen/ringfence/v1/sandbox_service_pb.js';
import type { RunInfo } from '../gen/ringfence/v1/run_pb.js';
import { asGrpcurl, asRingfence, type Command, NOT_KEPT, specToRepeat, type Target } from '../model/commands.js';
import { diagnostics } from '../model/diagnostics.js';
import { printable } from '../model/printable.js';
import { isLive } from '../model/run_end.js';
import { specOf } from '../model/started_specs.js';
import { confirm } from '../ui/confirm.js';
import { copyText } from '../ui/copy.js';
import '../ui/menu_button.js';
import { addShortcuts } from '../ui/shortcuts.js';
import { controls } from '../ui/styles.js';
import { tell, tellFailure } from '../ui/toast.js';
import { deleteEach } from './delete_runs.js';
import { killEach } from './kill_runs.js';

/** Lines of standard error in a report. */
const TAIL_LINES = 20;
/** The port on which daemons listen for gRPC unless they are told otherwise. */
const GRPC_PORT = 50_051;

export class RunActions extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: flex;
        flex-wrap: wrap;
        gap: var(--space-2);
        align-items: center;
      }
      .label {
        overflow: hidden;
        text-overflow: ellipsis;
        font-family: var(--mono);
        font-size: var(--text-s);
      }
    `,
  ];

  @property({ attribute: false }) context!: PageContext;
  @property({ attribute: false }) info!: RunInfo;
  @property({ attribute: false }) moduleName = '';
  @property({ attribute: false }) health: HealthResponse | undefined;
  @state() private isStarting = false;
  #gone = new AbortController();
  #removeShortcuts = () => {};

  override connectedCallback(): void {
    super.connectedCallback();
    this.#gone = new AbortController();
    this.#removeShortcuts = addShortcuts([
      { keys: 'K', says: 'Kill the run that is shown', run: () => this.#kill() },
      { keys: 'D', says: 'Delete the run that is shown', run: () => void this.#delete() },
      { keys: 'R', says: 'Run it again', run: () => void this.#again() },
      { keys: 'E', says: 'Edit and run it again', run: () => this.#edit() },
    ]);
  }

  override disconnectedCallback(): void {
    this.#gone.abort();
    this.#removeShortcuts();
    super.disconnectedCallback();
  }

  #kill(): void {
    if (!this.context.mayChange || !isLive(this.info)) return;
    void killEach(this.context.daemon, [this.info], () => this.moduleName);
  }

  async #delete(): Promise<void> {
    if (!this.context.mayChange || isLive(this.info)) return;
    const deletion = await deleteEach(this.context.daemon, [this.info], () => this.moduleName);
    // Whoever has gone to another page meanwhile stays there.
    if (deletion === 'done' && this.isConnected) navigate(HOME);
  }

  #edit(): void {
    if (!this.context.mayChange || this.info.moduleDigest === '') return;
    navigate({ page: 'start', digest: this.info.moduleDigest, from: this.info.runId });
  }

  async #again(): Promise<void> {
    const known = specToRepeat(this.info, specOf(this.info.runId));
    if (!this.context.mayChange || this.isStarting || known === undefined) return;
    if (!known.isWhole) {
      const text =
        `The daemon keeps the module of a run, its labels and its limits. It does not keep ${NOT_KEPT}: ` +
        'the new run gets the defaults. "Edit and run again" lets you give them.';
      if (!(await confirm({ title: 'Run it again?', text, action: 'Run again' }))) return;
    }
    const { signal } = this.#gone;
    this.isStarting = true;
    try {
      const id = await startRun(this.context.daemon, known.spec, signal);
      tell('It runs again. This is the new run.');
      navigate({ page: 'run', id, at: undefined });
    } catch (error) {
      // Whoever leaves the page meanwhile lets the run start all the same, since it is detached.
      if (!isAborted(error)) tellFailure('It could not be run again', error);
    } finally {
      this.isStarting = false;
    }
  }

  #target(): Target {
    const { hostname, protocol } = new URL(this.context.daemon.base);
    return {
      server: `${hostname}:${GRPC_PORT}`,
      isSecure: protocol === 'https:',
      needsToken: this.context.daemon.token.value !== '',
    };
  }

  #copy(write: typeof asRingfence, what: string): void {
    const known = specToRepeat(this.info, specOf(this.info.runId));
    if (known === undefined) return;
    const command: Command = write(known, this.#target());
    const without = command.leavesOut.length === 0 ? '' : `It leaves out ${command.leavesOut.join(', and ')}. `;
    void copyText(
      command.text,
      what,
      `${without}Its port is the default one of gRPC: this page does not know another.`,
    );
  }

  async #report(): Promise<void> {
    const { info, health, moduleName } = this;
    const stderr = await stderrTail(this.context.daemon, info, TAIL_LINES).then(
      (text) => ({ text }),
      (error: unknown) => ({ error: failureOf(error).message }),
    );
    const runtime = health?.runtime;
    const daemon =
      health === undefined
        ? ''
        : `ringfence ${health.version}, ${runtime?.name ?? ''} ${runtime?.version ?? ''}`.trim();
    const text = diagnostics(info, { moduleName, daemon, asked: specOf(info.runId), stderr });
    await copyText(text, 'A report of the run');
  }

  #together(labels: ReadonlyMap<string, string>): void {
    navigate({ page: 'together', labels, ids: [], layout: 'merged' });
  }

  override render(): TemplateResult {
    const { mayChange } = this.context;
    const hasModule = this.info.moduleDigest !== '';
    return html`
      ${
        mayChange && isLive(this.info)
          ? html`<button class="danger" @click=${() => this.#kill()}>Kill</button>`
          : nothing
      }
      ${
        mayChange && !isLive(this.info)
          ? html`<button class="danger" @click=${() => void this.#delete()}>Delete</button>`
          : nothing
      }
      ${
        mayChange && hasModule
          ? html`<button ?disabled=${this.isStarting} @click=${() => void this.#again()}>
              ${this.isStarting ? 'Waits for its start …' : 'Run again'}
            </button>
            <button @click=${() => this.#edit()}>Edit and run again</button>`
          : nothing
      }
      ${this.#labelMenu()}
      <rf-menu-button label="Copy as">
        ${
          hasModule
            ? html`<button @click=${() => this.#copy(asRingfence, 'The command')}>ringfence run …</button>
              <button @click=${() => this.#copy(asGrpcurl, 'The call')}>grpcurl …</button>`
            : nothing
        }
        <button @click=${() => void this.#report()}>Report of what happened</button>
        <button @click=${() => void copyText(this.info.runId, 'The id of the run')}>Id of the run</button>
      </rf-menu-button>
    `;
  }

  #labelMenu(): TemplateResult | typeof nothing {
    const labels = Object.entries(this.info.labels).sort(([a], [b]) => (a < b ? -1 : 1));
    if (labels.length === 0) return nothing;
    return html`<rf-menu-button label="Together">
      ${labels.map(
        ([key, value]) =>
          html`<button class="label" @click=${() => this.#together(new Map([[key, value]]))}>
            ${printable(`${key}=${value}`)}
          </button>`,
      )}
      ${
        labels.length > 1
          ? html`<button @click=${() => this.#together(new Map(labels))}>All of these labels</button>`
          : nothing
      }
    </rf-menu-button>`;
  }
}

customElements.define('rf-run-actions', RunActions);
