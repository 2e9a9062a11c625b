// A duration that grows, and changes its own text only.

import { LitElement, type PropertyValues } from 'lit';
import { property } from 'lit/decorators.js';

import { formatDuration } from '../model/format.js';

const TICK_MS = 1_000;
const shown = new Set<Elapsed>();
let timer: ReturnType<typeof setInterval> | undefined;

/** Shows how long something lasts that began at `since`, up to now or to `until`, by whole seconds. */
export class Elapsed extends LitElement {
  /** In milliseconds of `Date.now()`. */
  @property({ attribute: false }) since = 0;
  /** Where the clock is held, such as in a table that is paused. */
  @property({ attribute: false }) until: number | undefined;

  override connectedCallback(): void {
    super.connectedCallback();
    shown.add(this);
    timer ??= setInterval(() => shown.forEach((it) => it.tick()), TICK_MS);
  }

  override disconnectedCallback(): void {
    shown.delete(this);
    if (shown.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
    super.disconnectedCallback();
  }

  protected override createRenderRoot(): HTMLElement {
    return this;
  }

  protected override shouldUpdate(_changed: PropertyValues): boolean {
    this.tick();
    return false;
  }

  tick(): void {
    const elapsed = Math.max(0, (this.until ?? Date.now()) - this.since);
    const text = formatDuration(Math.floor(elapsed / 1_000) * 1_000).replace(/^0 ms$/, '0 s');
    if (this.textContent !== text) this.textContent = text;
  }
}

customElements.define('rf-elapsed', Elapsed);
