// The frame around every page: where one can go, how the daemon is, and who asks.

import { Code } from '@connectrpc/connect';
import { html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';
import { query, state } from 'lit/decorators.js';
import { keyed } from 'lit/directives/keyed.js';

import { mayChange, pageSettings } from '../api/access.js';
import { Daemon, pageBase } from '../api/client.js';
import { failureOf, isTransient } from '../api/failure.js';
import { ServingStatus } from '../gen/ringfence/v1/sandbox_service_pb.js';
import { printable } from '../model/printable.js';
import { addShortcuts } from '../ui/shortcuts.js';
import { controls } from '../ui/styles.js';
import type { PageContext } from './context.js';
import { HealthWatch } from './health_watch.js';
import { navigate } from './navigate.js';
import { decode, formatRoute, HOME, parseRoute, placeOf, type Route } from './route.js';
import { SettingsStore, THEMES } from './settings.js';
import { shellStyles } from './shell_styles.js';
import type { SignInAttempt } from './sign_in.js';
import { nameOf, titleOf } from './titles.js';

/** The places that the navigation leads to. */
const PLACES: ReadonlyArray<{ name: string; key: string; route: Route; pages: readonly Route['page'][] }> = [
  { name: 'Runs', key: 'r', route: HOME, pages: ['runs', 'run', 'together'] },
  { name: 'Modules', key: 'm', route: { page: 'modules', text: '' }, pages: ['modules', 'module', 'start'] },
  { name: 'Overview', key: 'o', route: { page: 'overview' }, pages: ['overview'] },
];

/** How long to wait until a part of the page is fetched again. */
const FETCH_AGAIN_MS = 1_000;
/** How long the table of runs has the browser for itself, so that its rows are there sooner. */
const RUNS_FIRST_MS = 400;

const THEME_NAMES = { system: 'System theme', light: 'Light theme', dark: 'Dark theme' };

export class Shell extends LitElement {
  static override styles = [controls, shellStyles];

  @state() private route = parseRoute(location.hash);
  /** Whether the daemon wants to know first who asks, so that the form for that stands in the page's place. */
  @state() private isRefused = false;
  @state() private refusal = '';
  @state() private areShortcutsShown = false;
  /** Whether all elements are defined: those that come later would be without their properties when they begin. */
  @state() private isWhole = false;
  @state() private context: PageContext;
  @query('main') private main!: HTMLElement;
  readonly #daemon = new Daemon(pageBase());
  readonly #settings = new SettingsStore();
  #watch: HealthWatch | undefined;
  #gone = new AbortController();
  #removeShortcuts = () => {};
  /** Ends the wait until the rest of the page is fetched. */
  #wantRest = () => {};

  constructor() {
    super();
    const unknown = { mayChange: true, traceUrl: '', hasArchive: undefined };
    this.context = { daemon: this.#daemon, settings: this.#settings, ...unknown };
  }

  override connectedCallback(): void {
    super.connectedCallback();
    this.#gone = new AbortController();
    const { signal } = this.#gone;
    window.addEventListener('hashchange', this.#moved, { signal });
    this.#settings.addEventListener('change', this.#applyTheme, { signal });
    this.#applyTheme();
    this.#daemon.addEventListener('unauthenticated', this.#refused, { signal });
    this.#removeShortcuts = addShortcuts([
      ...PLACES.map(({ name, key, route }) => ({
        keys: `g ${key}`,
        says: `Go to ${name}`,
        run: () => navigate(route),
      })),
      { keys: '?', says: 'Show the keys', run: () => this.#showShortcuts() },
    ]);
    void this.#begin(signal);
  }

  /** Asks for what the frame shows, once the page inside of it has asked for what it shows. */
  async #begin(signal: AbortSignal): Promise<void> {
    await this.updateComplete;
    if (signal.aborted) return;
    this.#watch = new HealthWatch({
      daemon: this.#daemon,
      signal,
      changed: () => this.requestUpdate(),
      // It may have been started again with other settings.
      recovered: () => void this.#askAccess(signal),
    });
    void this.#askAccess(signal);
    void this.#fetchRest(signal);
  }

  override disconnectedCallback(): void {
    this.#gone.abort();
    this.#removeShortcuts();
    super.disconnectedCallback();
  }

  /** Fetches the pages that are not there from the beginning: at once where one is wanted, else after the runs. */
  async #fetchRest(signal: AbortSignal): Promise<void> {
    if (this.route.page === 'runs') {
      await new Promise<void>((resolve) => {
        this.#wantRest = resolve;
        setTimeout(resolve, RUNS_FIRST_MS);
      });
    }
    while (!signal.aborted) {
      try {
        await import('../more_pages.js');
        this.isWhole = true;
        return;
      } catch {
        // The daemon is away, which its state says. A browser tries a failed module again.
        await new Promise((resolve) => setTimeout(resolve, FETCH_AGAIN_MS));
      }
    }
  }

  readonly #moved = () => {
    const from = placeOf(this.route);
    this.route = parseRoute(location.hash);
    if (from === placeOf(this.route)) return;
    this.#wantRest();
    // Whoever reads by ear or goes by keys is at the new page's beginning.
    void this.updateComplete.then(() => this.#toMain());
  };

  #showShortcuts(): void {
    this.areShortcutsShown = true;
    this.#wantRest();
  }

  #toMain(): void {
    this.main.scrollTop = 0;
    this.main.focus();
  }

  readonly #applyTheme = () => {
    document.documentElement.dataset['theme'] = this.#settings.get('theme');
    this.requestUpdate();
  };

  readonly #refused = () => {
    if (this.isRefused) return;
    this.isRefused = true;
    this.refusal = this.#daemon.token.value === '' ? '' : 'The daemon does not accept the token of this tab any more.';
  };

  async #askAccess(signal: AbortSignal): Promise<void> {
    const isChanging = await mayChange(this.#daemon, signal);
    if (isChanging === undefined) return;
    const told = await pageSettings(this.#daemon, signal);
    const { context } = this;
    const next = { ...context, ...told, mayChange: isChanging };
    // The pages are not rendered anew where nothing has changed.
    const names = ['mayChange', 'traceUrl', 'hasArchive'] as const;
    if (names.some((it) => next[it] !== context[it])) this.context = next;
  }

  /** Asks what every known caller may ask, since the daemon may tell its health to anybody. */
  async #isKnown(): Promise<true | string> {
    try {
      await this.#daemon.runs.listRuns({ pageSize: 1 }, { signal: this.#gone.signal });
      return true;
    } catch (error) {
      const failure = failureOf(error);
      if (failure.code === Code.Unauthenticated) return `The daemon does not accept this token: ${failure.message}.`;
      // It says so to somebody whom it knows.
      return failure.reason !== '' || `Nobody could be asked: ${failure.message}.`;
    }
  }

  readonly #signIn: SignInAttempt = async (token, keep) => {
    this.#daemon.token.set(token, keep);
    const known = await this.#isKnown();
    if (known !== true) {
      this.#daemon.token.set('', false);
      return known;
    }
    this.isRefused = false;
    void this.#askAccess(this.#gone.signal);
    void this.updateComplete.then(() => this.#toMain());
    return undefined;
  };

  readonly #signOut = async () => {
    this.isRefused = true;
    this.refusal = '';
    this.#daemon.token.set('', false);
    // It may answer to everybody, also to those without a token.
    if ((await this.#isKnown()) === true) this.isRefused = false;
  };

  protected override updated(changed: PropertyValues): void {
    if (changed.has('route')) document.title = titleOf(this.route);
  }

  override render() {
    return html`
      <header>
        <button class="skip" @click=${() => this.#toMain()}>Skip to the page</button>
        <span class="brand">Ringfence</span>
        <nav aria-label="Pages">${PLACES.map((place) => this.#link(place))}</nav>
        <div class="rest">
          <span class=${this.#watch?.failure === undefined ? 'state' : 'state long'} role="status">
            ${this.#daemonState()}
          </span>
          ${this.#themeChoice()}
          <button aria-label="Show the keys" @click=${() => this.#showShortcuts()}>?</button>
          ${this.#daemon.token.value === '' ? nothing : html`<button @click=${this.#signOut}>Sign out</button>`}
        </div>
        ${
          this.context.mayChange
            ? nothing
            : html`<p class="notice">This page only shows: the daemon's listener is read-only (admin.read_only).</p>`
        }
      </header>
      <main tabindex="-1" aria-label=${nameOf(this.route) || 'No page'}>
        ${
          this.isRefused
            ? html`<rf-sign-in .attempt=${this.#signIn} .refusal=${this.refusal}></rf-sign-in>`
            : keyed(placeOf(this.route), this.#page())
        }
      </main>
      <rf-toasts></rf-toasts>
      ${
        this.areShortcutsShown && this.isWhole
          ? html`<rf-shortcut-list @close=${() => (this.areShortcutsShown = false)}></rf-shortcut-list>`
          : nothing
      }
    `;
  }

  #link({ name, route, pages }: (typeof PLACES)[number]): TemplateResult {
    const isHere = pages.includes(this.route.page);
    return html`<a href=${formatRoute(route)} aria-current=${isHere ? 'page' : nothing}>${name}</a>`;
  }

  #page(): TemplateResult | typeof nothing {
    const { route, context } = this;
    if (route.page === 'runs') return html`<rf-runs-page .context=${context} .route=${route}></rf-runs-page>`;
    if (!this.isWhole) return nothing;
    switch (route.page) {
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
        return html`<div class="unknown">
          <h1>There is no such page</h1>
          <p>Nothing is at <span class="mono">${printable(decode(route.path))}</span>.</p>
          <p><a href=${formatRoute(HOME)}>Show the runs</a></p>
        </div>`;
    }
  }

  #daemonState(): TemplateResult | typeof nothing {
    const { health, failure } = this.#watch ?? {};
    const says = (kind: string, text: string) =>
      html`<span class=${kind} aria-hidden="true">●</span> <span>${text}</span>`;
    if (failure !== undefined) {
      if (isTransient(failure)) return says('bad', 'The daemon does not answer. It is asked again every second.');
      return says('bad', printable(`The daemon refuses to say how it is: ${failure.message}`));
    }
    if (health === undefined) return nothing;
    const name = printable(health.instance);
    switch (health.status) {
      case ServingStatus.SERVING:
        return says('good', `${name} is serving`);
      case ServingStatus.DRAINING:
        return says('warn', `${name} is draining: it ends once its runs have ended`);
      case ServingStatus.NOT_SERVING:
      case ServingStatus.UNSPECIFIED:
        return says('bad', `${name} is not ready`);
    }
  }

  #themeChoice(): TemplateResult {
    const chosen = this.#settings.get('theme');
    const choose = (event: Event) => {
      const { value } = event.target as HTMLSelectElement;
      const theme = THEMES.find((it) => it === value);
      if (theme !== undefined) this.#settings.set('theme', theme);
    };
    return html`<select aria-label="Theme" @change=${choose}>
      ${THEMES.map((it) => html`<option value=${it} .selected=${it === chosen}>${THEME_NAMES[it]}</option>`)}
    </select>`;
  }
}

customElements.define('ringfence-page', Shell);
