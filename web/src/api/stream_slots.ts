// Browsers open six connections of HTTP/1.1 to an origin, for all of its tabs. So a page has few streams open at once,
// and each of them waits for a slot.

/** The most live streams of a page. */
export const MAX_STREAMS = 2;

/** A counting semaphore whose waiters are served in their order. */
export class StreamSlots {
  #free: number;
  #waiters: Array<() => void> = [];

  constructor(slots = MAX_STREAMS) {
    this.#free = slots;
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
