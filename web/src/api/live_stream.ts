// A stream that goes on: it is opened again after a break, closed while its tab is hidden, and waits for a slot.

import { failureOf, isTransient, type Failure } from './failure.js';
import type { StreamSlots } from './stream_slots.js';

/** Where a stream is. */
export type StreamState =
  /** It is being opened, or waits for a slot. */
  | { readonly kind: 'connecting' }
  | { readonly kind: 'live' }
  /** Its tab is hidden, so that it is closed until the tab is shown. */
  | { readonly kind: 'hidden' }
  /** It broke off, and is opened again at a time (milliseconds of `Date.now()`). */
  | { readonly kind: 'broken'; readonly failure: Failure; readonly retryAt: number }
  /** It was refused for good. */
  | { readonly kind: 'failed'; readonly failure: Failure }
  /** It has come to its end. */
  | { readonly kind: 'ended' };

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5_000;

/** What a stream does and who hears of it. */
export interface LiveStreamOptions<T> {
  readonly slots: StreamSlots;
  /** Opens the stream from where it was. `opened` is to be called when the daemon has begun to answer (`onHeader`). */
  readonly open: (signal: AbortSignal, opened: () => void) => AsyncIterable<T>;
  /** Takes a message. Returns whether it was the last: the stream has then ended. */
  readonly take: (message: T) => boolean;
  readonly changed: (state: StreamState) => void;
}

/** Keeps a stream open until it ends, is refused for good, or is stopped. */
export class LiveStream<T> {
  readonly #options: LiveStreamOptions<T>;
  readonly #stop = new AbortController();
  #state: StreamState = { kind: 'connecting' };
  /** Wakes the wait for the next try. */
  #wake: () => void = () => {};

  constructor(options: LiveStreamOptions<T>) {
    this.#options = options;
    void this.#keepOpen();
  }

  get state(): StreamState {
    return this.#state;
  }

  /** Ends the stream for good. */
  stop(): void {
    this.#stop.abort();
  }

  /** Tries again now, where the stream is broken. */
  retry(): void {
    this.#wake();
  }

  #change(state: StreamState): void {
    this.#state = state;
    if (!this.#stop.signal.aborted) this.#options.changed(state);
  }

  async #keepOpen(): Promise<void> {
    const stopped = this.#stop.signal;
    let wait = FIRST_WAIT_MS;
    while (!stopped.aborted) {
      if (document.visibilityState === 'hidden') {
        this.#change({ kind: 'hidden' });
        await shown(stopped);
        continue;
      }
      const ended = await this.#once(() => {
        wait = FIRST_WAIT_MS;
      });
      if (stopped.aborted || ended === 'ended') break;
      if (ended === 'hidden') continue;
      if (!isTransient(ended)) {
        this.#change({ kind: 'failed', failure: ended });
        return;
      }
      const delay = Math.max(wait, Math.min(ended.retryAfterMs ?? 0, LONGEST_WAIT_MS));
      this.#change({ kind: 'broken', failure: ended, retryAt: Date.now() + delay });
      wait = Math.min(wait * 2, LONGEST_WAIT_MS);
      await this.#sleep(delay);
    }
    if (!stopped.aborted) this.#change({ kind: 'ended' });
  }

  /** Opens the stream and follows it to its end, to a failure, or until the tab is hidden. */
  async #once(opened: () => void): Promise<'ended' | 'hidden' | Failure> {
    const attempt = new AbortController();
    const signal = AbortSignal.any([this.#stop.signal, attempt.signal]);
    const hide = () => {
      if (document.visibilityState === 'hidden') attempt.abort();
    };
    document.addEventListener('visibilitychange', hide);
    let release: (() => void) | undefined;
    try {
      this.#change({ kind: 'connecting' });
      release = await this.#options.slots.acquire(signal);
      const live = () => {
        if (this.#state.kind === 'live') return;
        opened();
        this.#change({ kind: 'live' });
      };
      for await (const message of this.#options.open(signal, live)) {
        live();
        if (this.#options.take(message)) return 'ended';
      }
      // Each stream ends with a message that says so, or breaks off.
      return failureOf(new Error('the connection broke off'));
    } catch (error) {
      return attempt.signal.aborted ? 'hidden' : failureOf(error);
    } finally {
      attempt.abort();
      release?.();
      document.removeEventListener('visibilitychange', hide);
    }
  }

  async #sleep(ms: number): Promise<void> {
    const awake = new AbortController();
    const { signal } = awake;
    const timer = setTimeout(() => awake.abort(), ms);
    await new Promise<void>((resolve) => {
      this.#wake = () => awake.abort();
      signal.addEventListener('abort', () => resolve(), { once: true });
      this.#stop.signal.addEventListener('abort', this.#wake, { signal });
      window.addEventListener('online', this.#wake, { signal });
    });
    clearTimeout(timer);
  }
}

/** Waits until the tab is shown, or the signal aborts. */
async function shown(signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const done = () => {
      if (document.visibilityState === 'hidden' && !signal.aborted) return;
      document.removeEventListener('visibilitychange', done);
      signal.removeEventListener('abort', done);
      resolve();
    };
    document.addEventListener('visibilitychange', done);
    signal.addEventListener('abort', done);
  });
}
