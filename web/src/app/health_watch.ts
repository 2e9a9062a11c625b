// Asks the daemon again and again how it is, and finds out when it was away.

import { Code } from '@connectrpc/connect';

import type { Daemon } from '../api/client.js';
import { type Failure, failureOf, isAborted } from '../api/failure.js';
import type { HealthResponse } from '../gen/ringfence/v1/sandbox_service_pb.js';

const EVERY_MS = 10_000;
/** How often it is asked while it does not answer. */
const EVERY_MS_AWAY = 1_000;
const PATIENCE_MS = 10_000;
/** A timer that is later than this was stopped, with the whole machine. */
const ASLEEP_MS = 5_000;

/** What the watch tells. */
export interface HealthWatchOptions {
  readonly daemon: Daemon;
  /** Ends the watch. */
  readonly signal: AbortSignal;
  /** The daemon's health is another than before, or it does not answer. */
  readonly changed: () => void;
  /** The daemon answers again after it did not, or the machine was asleep. */
  readonly recovered: () => void;
}

/** Watches the daemon's health while the tab is shown. */
export class HealthWatch {
  /** The last answer; remains while the daemon does not answer. */
  health: HealthResponse | undefined;
  /** Why the last question was not answered. */
  failure: Failure | undefined;
  readonly #options: HealthWatchOptions;
  /** When it was first found not to answer, as `performance.now()`. */
  #awaySince = 0;
  #wake: () => void = () => {};

  constructor(options: HealthWatchOptions) {
    this.#options = options;
    const { daemon, signal } = options;
    const wake = () => this.#wake();
    // Other calls notice sooner than the next question is due.
    daemon.addEventListener('unreachable', () => this.failure === undefined && wake(), { signal });
    daemon.addEventListener('answered', () => this.failure !== undefined && wake(), { signal });
    daemon.token.addEventListener('change', wake, { signal });
    document.addEventListener('visibilitychange', wake, { signal });
    window.addEventListener('online', wake, { signal });
    signal.addEventListener('abort', wake);
    void this.#watch();
  }

  async #watch(): Promise<void> {
    const { signal } = this.#options;
    while (!signal.aborted) {
      if (document.visibilityState === 'visible') await this.#ask();
      const wait = this.failure === undefined ? EVERY_MS : EVERY_MS_AWAY;
      const before = Date.now();
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, wait);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#wake = () => {};
      // A hidden tab's timers are late too, but it has no stream open.
      const isLate = Date.now() - before > wait + ASLEEP_MS;
      if (isLate && document.visibilityState === 'visible') this.#recover(performance.now());
    }
  }

  async #ask(): Promise<void> {
    const { daemon, signal, changed } = this.#options;
    const wasAway = this.failure !== undefined;
    try {
      this.health = await daemon.sandbox.health({}, { signal, timeoutMs: PATIENCE_MS });
      this.failure = undefined;
    } catch (error) {
      if (isAborted(error)) return;
      const failure = failureOf(error);
      // Who asks is another question than whether it answers.
      this.failure = failure.code === Code.Unauthenticated ? undefined : failure;
      if (!wasAway) this.#awaySince = performance.now();
    }
    changed();
    // Of what was opened before it was away, nobody knows whether it is still there.
    if (wasAway && this.failure === undefined) this.#recover(this.#awaySince);
  }

  #recover(openedBefore: number): void {
    this.#options.daemon.slots.reopen(openedBefore);
    this.#options.recovered();
  }
}
