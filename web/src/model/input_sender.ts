// Sends standard input to a run, piece after piece, each at its place: so that nothing is sent twice or left out,
// whatever becomes of a call.

/** Most bytes of one call. */
const MOST_BYTES = 65_536;
const SHORTEST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 5_000;

/** A piece of input at its place. */
export interface InputPiece {
  readonly offset: bigint;
  readonly data: Uint8Array;
  readonly eof: boolean;
}

/** What the daemon says of a piece. */
export interface InputAnswer {
  readonly accepted: bigint;
  readonly nextOffset: bigint;
  readonly closed: boolean;
}

/** Why the daemon did not take a piece. */
export interface InputRefusal {
  readonly reason: string;
  readonly message: string;
  /** The place that the daemon names, as `expected` or `next_offset`. */
  readonly expected: bigint | undefined;
  readonly retryAfterMs: number | undefined;
  /** Whether nobody answered, so that nobody knows whether the piece arrived. */
  readonly isTransient: boolean;
}

/** Where the sender is. */
export type InputState =
  /** All that was written was sent. */
  | { readonly kind: 'idle' }
  | { readonly kind: 'sending' }
  /** The guest has yet to read what was sent before, or has yet to start: it is tried again. */
  | { readonly kind: 'full' }
  /** Nobody answers: it is tried again. */
  | { readonly kind: 'broken'; readonly message: string }
  /** Another writer was faster: the reader says whether the rest is still to be sent. */
  | { readonly kind: 'conflict'; readonly expected: bigint; readonly message: string }
  /** Nothing more can be sent. */
  | { readonly kind: 'closed'; readonly reason: string; readonly message: string };

/** What a sender is given. */
export interface InputSenderOptions {
  /** Calls the daemon. Rejects with an [`InputRefusal`]. */
  readonly send: (piece: InputPiece) => Promise<InputAnswer>;
  /** Waits, or is done sooner where the sender was stopped. */
  readonly wait: (ms: number) => Promise<void>;
  readonly changed: () => void;
}

/** The queue of what was written, and the place where it goes. */
export class InputSender {
  #pending = new Uint8Array();
  #isEnding = false;
  #isEnded = false;
  #isBusy = false;
  #isStopped = false;
  #tries = 0;
  #state: InputState = { kind: 'idle' };

  /** Creates a sender whose next byte goes to `offset`. */
  constructor(
    readonly options: InputSenderOptions,
    private offset: bigint,
  ) {}

  get state(): InputState {
    return this.#state;
  }

  /** How many bytes all writers together have sent, as far as this one knows. */
  get sent(): bigint {
    return this.offset;
  }

  /** How many bytes wait to be sent. */
  get waiting(): number {
    return this.#pending.length;
  }

  /** Whether the end of file was sent or is to be. */
  get isEnding(): boolean {
    return this.#isEnding;
  }

  /** Adds bytes to what is sent. */
  write(bytes: Uint8Array): void {
    if (this.#isEnding || this.#state.kind === 'closed') return;
    const joined = new Uint8Array(this.#pending.length + bytes.length);
    joined.set(this.#pending);
    joined.set(bytes, this.#pending.length);
    this.#pending = joined;
    void this.#work();
  }

  /** Sends the end of file after what was written. */
  end(): void {
    this.#isEnding = true;
    void this.#work();
  }

  /** Sends what waits behind what another writer sent. */
  goOn(): void {
    if (this.#state.kind !== 'conflict') return;
    this.offset = this.#state.expected;
    this.#change({ kind: 'idle' });
    void this.#work();
  }

  /** Forgets what waits, and goes on behind what another writer sent. */
  drop(): void {
    this.#pending = new Uint8Array();
    this.#isEnding = false;
    this.goOn();
  }

  /** Ends all tries. */
  stop(): void {
    this.#isStopped = true;
  }

  #change(state: InputState): void {
    this.#state = state;
    if (!this.#isStopped) this.options.changed();
  }

  get #hasWork(): boolean {
    return this.#pending.length > 0 || (this.#isEnding && !this.#isEnded);
  }

  async #work(): Promise<void> {
    if (this.#isBusy) return;
    this.#isBusy = true;
    while (this.#hasWork && !this.#isStopped && this.#state.kind !== 'conflict' && this.#state.kind !== 'closed') {
      if (this.#state.kind === 'idle') this.#change({ kind: 'sending' });
      await this.#once();
    }
    this.#isBusy = false;
    if (this.#state.kind === 'sending') this.#change({ kind: 'idle' });
  }

  async #once(): Promise<void> {
    const data = this.#pending.slice(0, MOST_BYTES);
    // The end goes with the last piece, and takes effect only if all of it was taken.
    const eof = this.#isEnding && data.length === this.#pending.length;
    try {
      const answer = await this.options.send({ offset: this.offset, data, eof });
      this.#tries = 0;
      const accepted = Number(answer.accepted);
      this.#pending = this.#pending.slice(accepted);
      this.offset += answer.accepted;
      if (answer.closed) {
        this.#isEnded = true;
        this.#change({ kind: 'closed', reason: '', message: '' });
      } else if (accepted < data.length) {
        await this.#wait({ kind: 'full' }, undefined);
      } else {
        this.#change({ kind: 'sending' });
      }
    } catch (error) {
      await this.#refused(error as InputRefusal);
    }
  }

  async #refused(refusal: InputRefusal): Promise<void> {
    const { reason, message, expected, retryAfterMs } = refusal;
    if (reason === 'INPUT_FULL') await this.#wait({ kind: 'full' }, retryAfterMs);
    else if (reason === 'INPUT_GAP' || reason === 'INPUT_CONFLICT') {
      this.#change({ kind: 'conflict', expected: expected ?? this.offset, message });
    } else if (refusal.isTransient) await this.#wait({ kind: 'broken', message }, retryAfterMs);
    else this.#change({ kind: 'closed', reason, message });
  }

  async #wait(state: InputState, retryAfterMs: number | undefined): Promise<void> {
    this.#change(state);
    const longer = Math.min(SHORTEST_WAIT_MS * 2 ** this.#tries, LONGEST_WAIT_MS);
    this.#tries += 1;
    await this.options.wait(Math.min(Math.max(retryAfterMs ?? longer, SHORTEST_WAIT_MS), LONGEST_WAIT_MS));
  }
}
