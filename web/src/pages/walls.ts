// What stands between guests and the host of a daemon, as its health tells it.

import { durationMs } from '@bufbuild/protobuf/wkt';
import { css, html, LitElement, nothing, type TemplateResult } from 'lit';
import { property, state } from 'lit/decorators.js';

import type { Daemon } from '../api/client.js';
import { type Failure, failureOf, isAborted } from '../api/failure.js';
import type { HealthResponse } from '../gen/ringfence/v1/sandbox_service_pb.js';
import { formatCount, formatDuration, plural } from '../model/format.js';
import { printable } from '../model/printable.js';
import { sayFailure } from '../model/sentences.js';
import { compileWalls, featureWalls, hardeningWalls, poolWalls, type Wall } from '../model/walls.js';
import { controls } from '../ui/styles.js';

const EVERY_MS = 30_000;

export class Walls extends LitElement {
  static override styles = [
    controls,
    css`
      dl {
        display: grid;
        grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
        gap: var(--space-4);
        margin: 0;
      }
      dt {
        font-weight: 600;
      }
      dd {
        margin: 0;
        overflow-wrap: anywhere;
      }
      ul {
        list-style: none;
        margin: 0;
        padding: 0;
      }
      li {
        margin-block-end: var(--space-1);
      }
    `,
  ];

  @property({ attribute: false }) daemon!: Daemon;
  @state() private health: HealthResponse | undefined;
  @state() private failure: Failure | undefined;
  #gone = new AbortController();

  override connectedCallback(): void {
    super.connectedCallback();
    this.#gone = new AbortController();
    if (this.hasUpdated) void this.#follow(this.#gone.signal);
  }

  protected override firstUpdated(): void {
    void this.#follow(this.#gone.signal);
  }

  override disconnectedCallback(): void {
    this.#gone.abort();
    super.disconnectedCallback();
  }

  async #follow(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      if (document.visibilityState === 'visible') await this.#ask(signal);
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  }

  async #ask(signal: AbortSignal): Promise<void> {
    try {
      this.health = await this.daemon.sandbox.health({}, { signal, timeoutMs: EVERY_MS });
      this.failure = undefined;
    } catch (error) {
      if (!isAborted(error)) this.failure = failureOf(error);
    }
  }

  override render() {
    const { health, failure } = this;
    if (health === undefined) return failure === undefined ? nothing : html`<p class="bad">${sayFailure(failure)}</p>`;
    const { runtime } = health;
    const uptime = health.uptime === undefined ? '' : formatDuration(durationMs(health.uptime));
    const facts: readonly Wall[] = [
      { name: `ringfence ${health.version}`, says: `It is called ${health.instance}, and is up for ${uptime}.` },
      { name: `${runtime?.name ?? ''} ${runtime?.version ?? ''}`, says: 'It executes the guests.' },
      { name: plural(health.runCapacity, 'slot'), says: 'So many runs execute at once.' },
      {
        name: `${formatCount(health.uploadsInFlight)} of ${plural(health.uploadCapacity, 'module')}`,
        says: 'So many arrive now, of those that may at once.',
      },
    ];
    return html`<dl>
      ${this.#group('The daemon', facts)} ${this.#group('What confines the daemon', hardeningWalls(health.hardening))}
      ${this.#group('Where modules are compiled', compileWalls(health.compileMode))}
      ${this.#group('Where guests have their memory', poolWalls(health.poolMode))}
      ${this.#group('What it can do', featureWalls(runtime?.features ?? []))}
    </dl>`;
  }

  #group(title: string, walls: readonly Wall[]): TemplateResult {
    return html`<div>
      <dt>${title}</dt>
      <dd>
        <ul>
          ${walls.map(
            ({ name, says }) => html`<li><span class="mono">${printable(name)}</span> ${printable(says)}</li>`,
          )}
        </ul>
      </dd>
    </div>`;
  }
}

customElements.define('rf-walls', Walls);
