// Modules that this tab stores, one after the other, whichever page of it is shown.

import { durationMs } from '@bufbuild/protobuf/wkt';

import type { ModuleInfo } from '../gen/ringfence/v1/module_pb.js';
import type { LoadModuleResponse } from '../gen/ringfence/v1/sandbox_service_pb.js';
import { shortDigest } from '../model/format.js';
import { tell, tellFailure } from '../ui/toast.js';
import type { Daemon } from './client.js';
import { type Failure, failureOf, isAborted } from './failure.js';
import { StreamSlots } from './stream_slots.js';
import { type ModuleDescription, sendModule } from './upload.js';

/** How far a module is. */
export type UploadState =
  /** Its name and labels are being written. */
  | { readonly kind: 'draft' }
  /** Another is sent before it. */
  | { readonly kind: 'waiting' }
  | { readonly kind: 'sending'; readonly sent: number; readonly total: number }
  /** All of it is sent, or a registry sends it: the daemon checks and compiles it. */
  | { readonly kind: 'compiling' }
  | { readonly kind: 'done'; readonly module: ModuleInfo; readonly cached: boolean; readonly compileMs: number }
  | { readonly kind: 'failed'; readonly failure: Failure };

/** Where a module comes from: a file of this browser, or a registry's reference to it. */
export type UploadSource = File | string;

/** One module that is stored. */
export class Upload {
  state: UploadState = { kind: 'draft' };
  readonly stop = new AbortController();

  constructor(
    readonly id: number,
    readonly source: UploadSource,
  ) {}
}

/** All modules that this tab stores. It tells each `change`, and each `stored`. */
export class Uploads extends EventTarget {
  /** Whether the list is in sight: where it is not, the reader is told what became of a module. */
  isShown = false;
  #all: readonly Upload[] = [];
  #next = 1;
  readonly #turn = new StreamSlots(1);

  constructor(readonly daemon: Daemon) {
    super();
  }

  get all(): readonly Upload[] {
    return this.#all;
  }

  /** Adds a module, which is sent once it is started. */
  add(source: UploadSource): Upload {
    const upload = new Upload(this.#next, source);
    this.#next += 1;
    this.#all = [...this.#all, upload];
    this.dispatchEvent(new Event('change'));
    return upload;
  }

  /** Takes a module from the list, and ends its upload where it goes on. */
  remove(upload: Upload): void {
    upload.stop.abort();
    this.#all = this.#all.filter((it) => it !== upload);
    this.dispatchEvent(new Event('change'));
  }

  /** Stores a module, when it is its turn. */
  async start(upload: Upload, about: ModuleDescription): Promise<void> {
    const { signal } = upload.stop;
    let release: (() => void) | undefined;
    try {
      this.#change(upload, { kind: 'waiting' });
      release = await this.#turn.acquire(signal);
      const answer = await this.#send(upload, about);
      if (answer.module === undefined) throw new Error('the daemon does not say what it stored');
      const compileMs = answer.compileDuration === undefined ? 0 : durationMs(answer.compileDuration);
      this.#change(upload, { kind: 'done', module: answer.module, cached: answer.cached, compileMs });
      this.dispatchEvent(new Event('stored'));
      if (!this.isShown) tell(`Stored module ${shortDigest(answer.module.digest)}`);
    } catch (error) {
      if (isAborted(error)) return;
      this.#change(upload, { kind: 'failed', failure: failureOf(error) });
      if (!this.isShown) tellFailure('A module is not stored', error);
    } finally {
      release?.();
    }
  }

  async #send(upload: Upload, about: ModuleDescription): Promise<LoadModuleResponse> {
    const { signal } = upload.stop;
    const { source } = upload;
    if (typeof source === 'string') {
      this.#change(upload, { kind: 'compiling' });
      return this.daemon.sandbox.loadModule({ ...about, source: { case: 'oci', value: source } }, { signal });
    }
    this.#change(upload, { kind: 'sending', sent: 0, total: source.size });
    return sendModule(this.daemon, source, about, {
      signal,
      sent: (sent, total) =>
        this.#change(upload, sent < total ? { kind: 'sending', sent, total } : { kind: 'compiling' }),
    });
  }

  #change(upload: Upload, state: UploadState): void {
    upload.state = state;
    this.dispatchEvent(new Event('change'));
  }
}

const uploads = new WeakMap<Daemon, Uploads>();

/** Returns the modules that this tab stores at a daemon. */
export function uploadsOf(daemon: Daemon): Uploads {
  const known = uploads.get(daemon) ?? new Uploads(daemon);
  uploads.set(daemon, known);
  return known;
}
