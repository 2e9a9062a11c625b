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

  /** Creates a stream that begins to open as soon as its creator has returned. */
  constructor(options: LiveStreamOptions<T>) {
    this.#options = options;
    queueMicrotask(() => void this.#keepOpen());
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
      if (ended === 'again') continue;
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

  /** Opens the stream and follows it to its end, to a failure, or until it is to be opened again. */
  async #once(opened: () => void): Promise<'ended' | 'again' | Failure> {
    const { slots, open } = this.#options;
    const attempt = new AbortController();
    const signal = AbortSignal.any([this.#stop.signal, attempt.signal]);
    const listening = { signal: attempt.signal };
    let openedAt = Infinity;
    const hide = () => {
      if (document.visibilityState === 'hidden') attempt.abort();
    };
    const reopen = () => {
      if (openedAt < slots.distrustedUntil) attempt.abort();
    };
    document.addEventListener('visibilitychange', hide, listening);
    slots.addEventListener('reopen', reopen, listening);
    let release: (() => void) | undefined;
    try {
      this.#change({ kind: 'connecting' });
      release = await slots.acquire(signal);
      // As long as nobody answers, it cannot be trusted.
      openedAt = -Infinity;
      const live = () => {
        if (this.#state.kind === 'live') return;
        openedAt = performance.now();
        opened();
        this.#change({ kind: 'live' });
      };
      for await (const message of open(signal, live)) {
        // What was on its way when the stream was stopped is nobody's.
        if (signal.aborted) break;
        live();
        if (this.#take(message)) return 'ended';
      }
      // Each stream ends with a message that says so, or breaks off.
      return attempt.signal.aborted ? 'again' : failureOf(new Error('the connection to the daemon broke off'));
    } catch (error) {
      if (error instanceof TakeError) {
        this.#change({ kind: 'failed', failure: failureOf(error.cause) });
        throw error.cause;
      }
      return attempt.signal.aborted ? 'again' : failureOf(error);
    } finally {
      attempt.abort();
      release?.();
    }
  }

  /** Hands a message on. An error there is none of the connection, which would be opened again and again. */
  #take(message: T): boolean {
    try {
      return this.#options.take(message);
    } catch (error) {
      throw new TakeError('a message was not taken', { cause: error });
    }
  }

  async #sleep(ms: number): Promise<void> {
    const awake = new AbortController();
    const { signal } = awake;
    const wake = () => awake.abort();
    const timer = setTimeout(wake, ms);
    await new Promise<void>((resolve) => {
      this.#wake = wake;
      signal.addEventListener('abort', () => resolve(), { once: true });
      this.#stop.signal.addEventListener('abort', wake, { signal });
      this.#options.slots.addEventListener('reopen', wake, { signal });
      window.addEventListener('online', wake, { signal });
      document.addEventListener('visibilitychange', wake, { signal });
    });
    clearTimeout(timer);
  }
}

class TakeError extends Error {}

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
