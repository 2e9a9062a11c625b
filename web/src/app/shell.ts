// The frame around every page: where one can go, how the daemon is, and who asks.

import { css, html, LitElement, nothing, type TemplateResult } from 'lit';
import { customElement, state } from 'lit/decorators.js';

import { mayChange } from '../api/access.js';
import { Daemon, pageBase } from '../api/client.js';
import { type Failure, failureOf, isAborted } from '../api/failure.js';
import { type HealthResponse, ServingStatus } from '../gen/ringfence/v1/sandbox_service_pb.js';
import { addShortcuts } from '../ui/shortcuts.js';
import { controls } from '../ui/styles.js';
import type { PageContext } from './context.js';
import { navigate } from './navigate.js';
import { formatRoute, HOME, parseRoute, type Route } from './route.js';
import { SettingsStore } from './settings.js';

const HEALTH_EVERY_MS = 10_000;

/** The places that the navigation leads to. */
const PLACES: ReadonlyArray<{ name: string; key: string; route: Route; pages: readonly Route['page'][] }> = [
  { name: 'Runs', key: 'r', route: HOME, pages: ['runs', 'run', 'together'] },
  { name: 'Modules', key: 'm', route: { page: 'modules', text: '' }, pages: ['modules', 'module', 'start'] },
  { name: 'Overview', key: 'o', route: { page: 'overview' }, pages: ['overview'] },
];

@customElement('ringfence-page')
export class Shell extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: grid;
        grid-template-rows: auto minmax(0, 1fr);
        height: 100dvh;
      }
      header {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: var(--space-2) var(--space-4);
        padding: var(--space-2) var(--space-4);
        background: var(--ground-2);
        border-block-end: 1px solid var(--line);
      }
      .brand {
        font-weight: 700;
      }
      nav {
        display: flex;
        gap: var(--space-1);
      }
      nav a {
        padding: 0.25rem 0.6rem;
        border-radius: var(--radius);
        color: var(--ink);
        text-decoration: none;
      }
      nav a:hover {
        background: var(--ground-3);
      }
      nav a[aria-current='page'] {
        background: var(--ground-3);
        box-shadow: inset 0 -2px var(--accent);
      }
      .rest {
        margin-inline-start: auto;
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: var(--space-2) var(--space-3);
      }
      main {
        min-height: 0;
        overflow: auto;
      }
      main:focus {
        outline: none;
      }
      .notice {
        padding: var(--space-2) var(--space-4);
        background: var(--ground-3);
        border-block-end: 1px solid var(--line);
      }
    `,
  ];

  @state() private route = parseRoute(location.hash);
  @state() private health: HealthResponse | undefined;
  @state() private failure: Failure | undefined;
  @state() private isRefused = false;
  @state() private mayChange = true;
  @state() private areShortcutsShown = false;
  readonly #daemon = new Daemon(pageBase());
  readonly #settings = new SettingsStore();
  #context: PageContext = { daemon: this.#daemon, settings: this.#settings, mayChange: true };
  #gone = new AbortController();
  #removeShortcuts = () => {};

  override connectedCallback(): void {
    super.connectedCallback();
    this.#gone = new AbortController();
    const { signal } = this.#gone;
    window.addEventListener('hashchange', this.#moved, { signal });
    this.#settings.addEventListener('change', this.#applyTheme, { signal });
    this.#applyTheme();
    this.#daemon.addEventListener('unauthenticated', () => (this.isRefused = true), { signal });
    this.#daemon.token.addEventListener('change', this.#signedIn, { signal });
    this.#removeShortcuts = addShortcuts([
      ...PLACES.map(({ name, key, route }) => ({ keys: `g ${key}`, says: `Go to ${name}`, run: () => navigate(route) })),
      { keys: '?', says: 'Show the keys', run: () => (this.areShortcutsShown = true) },
    ]);
    void this.#watchHealth(signal);
    void this.#askAccess(signal);
  }

  override disconnectedCallback(): void {
    this.#gone.abort();
    this.#removeShortcuts();
    super.disconnectedCallback();
  }

  readonly #moved = () => {
    const from = this.route;
    this.route = parseRoute(location.hash);
    if (from.page === this.route.page) return;
    // Whoever reads by ear or goes by keys is at the new page's beginning.
    void this.updateComplete.then(() => this.renderRoot.querySelector('main')?.focus());
  };

  readonly #applyTheme = () => {
    document.documentElement.dataset['theme'] = this.#settings.get('theme');
    this.requestUpdate();
  };

  readonly #signedIn = () => {
    this.isRefused = false;
    void this.#ask(this.#gone.signal);
    void this.#askAccess(this.#gone.signal);
  };

  async #askAccess(signal: AbortSignal): Promise<void> {
    this.mayChange = await mayChange(this.#daemon, signal);
    this.#context = { ...this.#context, mayChange: this.mayChange };
    this.requestUpdate();
  }

  async #watchHealth(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      if (document.visibilityState === 'visible' && !this.isRefused) await this.#ask(signal);
      await new Promise((resolve) => setTimeout(resolve, HEALTH_EVERY_MS));
    }
  }

  async #ask(signal: AbortSignal): Promise<void> {
    try {
      this.health = await this.#daemon.sandbox.health({}, { signal, timeoutMs: HEALTH_EVERY_MS });
      this.failure = undefined;
    } catch (error) {
      if (!isAborted(error)) this.failure = failureOf(error);
    }
  }

  protected override updated(): void {
    document.title = titleOf(this.route);
  }

  override render() {
    const isHere = (pages: readonly Route['page'][]) => (pages.includes(this.route.page) ? 'page' : nothing);
    return html`
      <header>
        <span class="brand">Ringfence</span>
        <nav aria-label="Pages">
          ${PLACES.map(
            ({ name, route, pages }) =>
              html`<a href=${formatRoute(route)} aria-current=${isHere(pages)}>${name}</a>`,
          )}
        </nav>
        <div class="rest">${this.#daemonState()} ${this.#themeChoice()} ${this.#signOut()}</div>
      </header>
      <main tabindex="-1" aria-label=${titleOf(this.route)}>
        ${this.mayChange
          ? nothing
          : html`<p class="notice">This page only shows: the daemon's listener is read-only (admin.read_only).</p>`}
        ${this.isRefused ? html`<rf-sign-in .token=${this.#daemon.token}></rf-sign-in>` : this.#page()}
      </main>
      <rf-toasts></rf-toasts>
      ${this.areShortcutsShown
        ? html`<rf-shortcut-list @close=${() => (this.areShortcutsShown = false)}></rf-shortcut-list>`
        : nothing}
    `;
  }

  #page(): TemplateResult {
    const { route } = this;
    const context = this.#context;
    switch (route.page) {
      case 'runs':
        return html`<rf-runs-page .context=${context} .route=${route}></rf-runs-page>`;
      case 'run':
        return html`<rf-run-page .context=${context} .route=${route}></rf-run-page>`;
      case 'together':
        return html`<rf-together-page .context=${context} .route=${route}></rf-together-page>`;
      case 'modules':
        return html`<rf-modules-page .context=${context} .route=${route}></rf-modules-page>`;
      case 'module':
        return html`<rf-module-page .context=${context} .route=${route}></rf-module-page>`;
      case 'start':
        return html`<rf-start-page .context=${context} .route=${route}></rf-start-page>`;
      case 'overview':
        return html`<rf-overview-page .context=${context} .route=${route}></rf-overview-page>`;
      case 'unknown':
        return html`<p class="notice">There is no page at ${route.path}. <a href=${formatRoute(HOME)}>Runs</a></p>`;
    }
  }

  #daemonState(): TemplateResult {
    if (this.failure !== undefined && !this.isRefused) {
      return html`<span class="bad" role="status">The daemon does not answer: ${this.failure.message}</span>`;
    }
    if (this.health === undefined) return html``;
    const { status, instance, version } = this.health;
    const [kind, says] =
      status === ServingStatus.SERVING
        ? ['good', 'serving']
        : status === ServingStatus.DRAINING
          ? ['warn', 'draining: it takes no new runs soon, and ends']
          : ['bad', 'not ready'];
    return html`<span title="Version ${version}"><span class=${kind}>●</span> ${instance} is ${says}</span>`;
  }

  #themeChoice(): TemplateResult {
    const chosen = this.#settings.get('theme');
    const choose = (event: Event) => {
      const { value } = event.target as HTMLSelectElement;
      if (value === 'system' || value === 'light' || value === 'dark') this.#settings.set('theme', value);
    };
    return html`<select aria-label="Theme" .value=${chosen} @change=${choose}>
      ${(['system', 'light', 'dark'] as const).map(
        (it) => html`<option value=${it} ?selected=${it === chosen}>${it}</option>`,
      )}
    </select>`;
  }

  #signOut(): TemplateResult | typeof nothing {
    if (this.#daemon.token.value === '') return nothing;
    const leave = () => {
      this.#daemon.token.set('', false);
      this.isRefused = true;
    };
    return html`<button @click=${leave}>Sign out</button>`;
  }
}

function titleOf(route: Route): string {
  switch (route.page) {
    case 'runs':
      return 'Runs · Ringfence';
    case 'run':
      return `Run ${route.id.slice(0, 13)} · Ringfence`;
    case 'together':
      return 'Runs together · Ringfence';
    case 'modules':
      return 'Modules · Ringfence';
    case 'module':
      return 'Module · Ringfence';
    case 'start':
      return 'Start a run · Ringfence';
    case 'overview':
      return 'Overview · Ringfence';
    case 'unknown':
      return 'Ringfence';
  }
}
