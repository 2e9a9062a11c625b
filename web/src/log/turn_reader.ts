// Reads the output of several runs by turns: a page has few streams at once. Whose run has nothing to say for a moment
// makes room for the next; where there are streams for all, they stay.

import type { Daemon } from '../api/client.js';
import { type Failure, failureOf, isTransient } from '../api/failure.js';
import type { StreamState } from '../api/live_stream.js';
import { MAX_STREAMS } from '../api/stream_slots.js';
import type { StreamEvent } from '../gen/ringfence/v1/event_pb.js';
import { LineAssembler } from '../model/line_assembler.js';

/** Nothing came for so long: it is another's turn. */
const IDLE_MS = 150;
/** The longest turn of a run that always has something to say, while others wait. */
const LONGEST_TURN_MS = 1_000;
/** How long the daemon may take to begin to answer. */
const OPENING_MS = 10_000;
const RETRY_MS = 1_000;
/** How much output may wait to be shown before no more is read. */
const MAX_WAITING_BYTES = 16 << 20;

/** A run that is read. */
export interface ReadRun {
  readonly id: string;
  readonly assembler: LineAssembler;
  /** Why it is not read any more, where it did not end. */
  failure: Failure | undefined;
  isEnded: boolean;
}

interface Turn extends ReadRun {
  next: bigint;
  isBusy: boolean;
  /** When its last turn was over, and before which it is not to be tried again. */
  readAt: number;
  retryAt: number;
}

/** Reads runs until all of them have ended. */
export class TurnReader {
  readonly #turns: Turn[] = [];
  readonly #stop = new AbortController();
  #waitingBytes = 0;
  #wake: Array<() => void> = [];
  /** The last failure of the connection, until something comes again. */
  #broken: { readonly failure: Failure; readonly retryAt: number } | undefined;
  #isOpened = false;

  /** `told` is called when there are lines to take, or a run is in another state. */
  constructor(
    private readonly daemon: Daemon,
    private readonly told: () => void,
  ) {
    document.addEventListener('visibilitychange', () => this.#wakeAll(), { signal: this.#stop.signal });
    for (let i = 0; i < MAX_STREAMS; i++) void this.#work();
  }

  get runs(): readonly ReadRun[] {
    return this.#turns;
  }

  /** Reads a run as well. Its lines have its place as their tag. */
  add(id: string): void {
    const assembler = new LineAssembler(this.#turns.length);
    const rest = { next: 0n, isBusy: false, readAt: -Infinity, retryAt: -Infinity };
    this.#turns.push({ id, assembler, failure: undefined, isEnded: false, ...rest });
    this.#wakeAll();
  }

  /** Says that all lines were taken. */
  drained(): void {
    if (this.#waitingBytes > MAX_WAITING_BYTES) this.#wakeAll();
    this.#waitingBytes = 0;
  }

  /** Whether more waits at the daemon than is read, because nobody takes it. */
  get isHeld(): boolean {
    return this.#waitingBytes > MAX_WAITING_BYTES;
  }

  get state(): StreamState {
    if (this.#turns.length > 0 && this.#turns.every((it) => isOver(it))) return { kind: 'ended' };
    if (document.visibilityState === 'hidden') return { kind: 'hidden' };
    if (this.#broken !== undefined) return { kind: 'broken', ...this.#broken };
    return { kind: this.#isOpened ? 'live' : 'connecting' };
  }

  retry(): void {
    for (const turn of this.#turns) turn.retryAt = -Infinity;
    this.#wakeAll();
  }

  stop(): void {
    this.#stop.abort();
    this.#wakeAll();
  }

  #wakeAll(): void {
    for (const wake of this.#wake.splice(0)) wake();
  }

  /** Reads one run after the other. */
  async #work(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const turn = this.#choose();
      if (turn === undefined) {
        await this.#news();
        continue;
      }
      turn.isBusy = true;
      try {
        await this.#read(turn);
      } finally {
        turn.isBusy = false;
        turn.readAt = performance.now();
        this.told();
      }
    }
  }

  /** Chooses the run whose last turn is the longest ago. */
  #choose(): Turn | undefined {
    if (document.visibilityState === 'hidden' || this.isHeld) return undefined;
    const now = performance.now();
    const ready = this.#turns.filter((it) => !it.isBusy && !isOver(it) && it.retryAt <= now);
    return ready.reduce<Turn | undefined>((a, b) => (a === undefined || b.readAt < a.readAt ? b : a), undefined);
  }

  /** Waits until there may be a run to read. */
  async #news(): Promise<void> {
    const now = performance.now();
    const soonest = Math.min(...this.#turns.filter((it) => !it.isBusy && !isOver(it)).map((it) => it.retryAt));
    const isIdle = soonest === Infinity || document.visibilityState === 'hidden' || this.isHeld;
    await new Promise<void>((resolve) => {
      const timer = isIdle ? undefined : setTimeout(resolve, Math.max(soonest - now, 10));
      this.#wake.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  /** Whether there is a run that nobody reads. */
  #othersWait(): boolean {
    return this.#turns.some((it) => !it.isBusy && !isOver(it));
  }

  /** Reads a run until its turn is over. */
  async #read(turn: Turn): Promise<void> {
    const over = new AbortController();
    const signal = AbortSignal.any([this.#stop.signal, over.signal]);
    const { slots } = this.daemon;
    let release: (() => void) | undefined;
    try {
      release = await slots.acquire(signal);
      // After sleep, a connection may be gone without anybody having been told.
      slots.addEventListener('reopen', () => over.abort(), { signal: over.signal });
      await this.#readEvents(turn, signal);
      this.#broken = undefined;
    } catch (error) {
      if (!signal.aborted) this.#failed(turn, failureOf(error));
    } finally {
      over.abort();
      release?.();
    }
  }

  async #readEvents(turn: Turn, signal: AbortSignal): Promise<void> {
    let isOpen = false;
    const onHeader = () => {
      isOpen = true;
      this.#isOpened = true;
    };
    const begun = performance.now();
    const request = { runId: turn.id, fromSeq: turn.next };
    const events = this.daemon.runs.attachRun(request, { signal, onHeader })[Symbol.asyncIterator]();
    let next = events.next();
    for (;;) {
      const result = await unlessIdle(next);
      if (this.#stop.signal.aborted) return;
      if (result === undefined) {
        const isLate = !isOpen && performance.now() - begun > OPENING_MS;
        if (!isLate && !this.#mustEnd(isOpen)) continue;
        // What is aborted now is nobody's.
        next.catch(() => {});
        if (isLate) throw new Error('the daemon does not answer');
        return;
      }
      if (result.done === true) throw new Error('the connection broke off');
      this.#take(turn, result.value);
      if (turn.isEnded) return;
      if (this.isHeld || (this.#othersWait() && performance.now() - begun > LONGEST_TURN_MS)) return;
      next = events.next();
    }
  }

  /** Tells whether a run that says nothing is to make room. */
  #mustEnd(isOpen: boolean): boolean {
    return document.visibilityState === 'hidden' || (isOpen && this.#othersWait());
  }

  #take(turn: Turn, event: StreamEvent): void {
    const { event: what } = event;
    if (what.case === 'lost') {
      const end = what.value.firstSeq + what.value.count;
      if (end > turn.next) turn.next = end;
    } else if (what.case !== 'stdinDemand') {
      if (event.seq < turn.next) return;
      turn.next = event.seq + 1n;
    }
    turn.assembler.take(event);
    if (what.case === 'stdout' || what.case === 'stderr') this.#waitingBytes += what.value.length;
    if (what.case === 'exit' || what.case === 'error') turn.isEnded = true;
    this.told();
  }

  #failed(turn: Turn, failure: Failure): void {
    if (!isTransient(failure)) {
      turn.failure = failure;
      return;
    }
    turn.retryAt = performance.now() + RETRY_MS;
    this.#broken = { failure, retryAt: Date.now() + RETRY_MS };
  }
}

function isOver(run: ReadRun): boolean {
  return run.isEnded || run.failure !== undefined;
}

/** Waits for a promise, but not longer than a run may say nothing. */
async function unlessIdle<T>(next: Promise<T>): Promise<T | undefined> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const idle = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), IDLE_MS);
  });
  try {
    return await Promise.race([next, idle]);
  } finally {
    clearTimeout(timer);
  }
}
