// Browsers open six connections of HTTP/1.1 to an origin, for all of its tabs. So a page has few streams open at once,
// and each of them waits for a slot.

/** The most live streams of a page. */
export const MAX_STREAMS = 2;

/** A counting semaphore whose waiters are served in their order. Fires `reopen` for the streams that have its slots. */
export class StreamSlots extends EventTarget {
  #free: number;
  #waiters: Array<() => void> = [];
  #distrustedUntil = -Infinity;

  constructor(slots = MAX_STREAMS) {
    super();
    this.#free = slots;
  }

  /**
   * Asks all streams that were opened before a time of `performance.now()` to be opened again: their connections may
   * be gone without anybody having been told, as after sleep.
   */
  reopen(openedBefore: number): void {
    this.#distrustedUntil = openedBefore;
    this.dispatchEvent(new Event('reopen'));
  }

  /** The time before which an opened stream is not to be trusted, for those who hear `reopen`. */
  get distrustedUntil(): number {
    return this.#distrustedUntil;
  }

  /** How many wait for a slot. */
  get waiting(): number {
    return this.#waiters.length;
  }

  /** Waits for a slot, and returns what gives it back, once. Rejects with the signal's reason when that aborts. */
  async acquire(signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.#free > 0) {
      this.#free -= 1;
    } else {
      await new Promise<void>((resolve, reject) => {
        const grant = () => {
          signal.removeEventListener('abort', leave);
          resolve();
        };
        const leave = () => {
          this.#waiters = this.#waiters.filter((it) => it !== grant);
          reject(signal.reason as Error);
        };
        signal.addEventListener('abort', leave, { once: true });
        this.#waiters.push(grant);
      });
    }
    let isHeld = true;
    return () => {
      if (!isHeld) return;
      isHeld = false;
      const next = this.#waiters.shift();
      if (next === undefined) this.#free += 1;
      else next();
    };
  }
}
