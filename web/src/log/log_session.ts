// The events of a run as they come, and what is known of them.

import type { Daemon } from '../api/client.js';
import { LiveStream, type StreamState } from '../api/live_stream.js';
import type { LogPosition } from '../app/route.js';
import type { StreamEvent } from '../gen/ringfence/v1/event_pb.js';
import { type LineChanges, LineAssembler } from '../model/line_assembler.js';
import { isMilestone, type MilestoneEvent } from './events.js';

/** How much output may wait for the end of a pause before the stream is closed until then. */
const MAX_HELD_BYTES = 16 << 20;

/** Who hears of a run. */
export interface SessionListener {
  /** There are lines to take. */
  readonly lines: () => void;
  readonly milestone: (event: MilestoneEvent) => void;
  readonly state: (state: StreamState) => void;
}

/** Follows a run to its end, however often the connection breaks. */
export class LogSession {
  #assembler = new LineAssembler();
  #stream: LiveStream<StreamEvent> | undefined;
  /** The number of the next event. */
  #next = 0n;
  #lost: Array<{ readonly first: bigint; readonly end: bigint }> = [];
  #waitingBytes = 0;
  #isEnded = false;
  #isHeld = false;
  #state: StreamState = { kind: 'connecting' };

  constructor(
    private readonly daemon: Daemon,
    private readonly run: string,
    private readonly listener: SessionListener,
  ) {
    this.#open();
  }

  get state(): StreamState {
    return this.#state;
  }

  /** Whether the run has ended, and all of its output has come. */
  get isEnded(): boolean {
    return this.#isEnded;
  }

  /** How many lines have come that nobody took. */
  get waiting(): number {
    return this.#assembler.waiting;
  }

  /** Whether more output waits at the daemon than this page has: it is read when the pause ends. */
  get isHeld(): boolean {
    return this.#isHeld;
  }

  /** Returns the lines that have come since. */
  drain(): LineChanges {
    this.#waitingBytes = 0;
    if (this.#isHeld) {
      this.#isHeld = false;
      this.#open();
    }
    return this.#assembler.drain();
  }

  /** Tries to connect now. */
  retry(): void {
    if (this.#state.kind === 'failed') this.#open();
    else this.#stream?.retry();
  }

  stop(): void {
    this.#stream?.stop();
  }

  /** Tells whether the output at a position has come, cannot come any more, or may come yet. */
  whereIs({ seq }: LogPosition): 'here' | 'lost' | 'never' | 'unknown' {
    if (this.#lost.some((it) => it.first <= seq && seq < it.end)) return 'lost';
    if (seq < this.#next) return 'here';
    return this.#isEnded ? 'never' : 'unknown';
  }

  #open(): void {
    this.#stream?.stop();
    this.#stream = new LiveStream<StreamEvent>({
      slots: this.daemon.slots,
      open: (signal, opened) =>
        this.daemon.runs.attachRun({ runId: this.run, fromSeq: this.#next }, { signal, onHeader: opened }),
      take: (event) => this.#take(event),
      changed: (state) => {
        this.#state = state;
        this.listener.state(state);
      },
    });
  }

  /** Takes an event. Returns whether it is the last. */
  #take(event: StreamEvent): boolean {
    const { event: what } = event;
    if (what.case === 'lost') {
      const { firstSeq, count } = what.value;
      this.#lost.push({ first: firstSeq, end: firstSeq + count });
      if (firstSeq + count > this.#next) this.#next = firstSeq + count;
    } else if (what.case !== 'stdinDemand') {
      // What came already comes again where the connection broke before its end was seen.
      if (event.seq < this.#next) return false;
      this.#next = event.seq + 1n;
    }
    this.#assembler.take(event);
    this.#isEnded = what.case === 'exit' || what.case === 'error';
    if (what.case === 'stdout' || what.case === 'stderr') this.#waitingBytes += what.value.length;
    if (isMilestone(event)) this.listener.milestone(event);
    this.listener.lines();
    if (this.#waitingBytes > MAX_HELD_BYTES && !this.#isEnded) this.#hold();
    return this.#isEnded;
  }

  /** Closes the stream: what it has is enough for now. */
  #hold(): void {
    this.#isHeld = true;
    this.#stream?.stop();
  }
}
