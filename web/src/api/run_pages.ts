// The runs of a range of time, page by page: those that the daemon remembers, and those of its archive.

import type { MessageInitShape } from '@bufbuild/protobuf';

import type { RunInfo } from '../gen/ringfence/v1/run_pb.js';
import type { ListRunsRequestSchema } from '../gen/ringfence/v1/run_service_pb.js';
import type { Daemon } from './client.js';
import { type Failure, failureOf } from './failure.js';

const PAGE_SIZE = 1_000;
/** Pages that are asked for until one has a run that is new: a daemon may answer with none, and the token of others. */
const MOST_PAGES = 20;
/** An archive may be far away, and a page of it many objects. */
const TIMEOUT_MS = 60_000;

/** What runs are listed of, and whom to tell. */
export interface RunPagesOptions {
  readonly daemon: Pick<Daemon, 'runs'>;
  readonly request: MessageInitShape<typeof ListRunsRequestSchema>;
  readonly signal: AbortSignal;
  /** Takes a run, and returns whether it was not there yet. */
  readonly take: (run: RunInfo) => boolean;
  /** Is called when any of what stands here has changed. */
  readonly changed: () => void;
}

export class RunPages {
  isLoading = false;
  /** Whether there are no others. */
  isWhole = false;
  failure: Failure | undefined;
  /** Parts of the archive that cannot be read, each with the reason. */
  readonly damaged = new Set<string>();
  #token = '';

  constructor(private readonly options: RunPagesOptions) {}

  /** Loads the next page that has something new. After a failure, this tries the same page again. */
  async load(): Promise<void> {
    if (this.isLoading || this.isWhole) return;
    const { daemon, request, signal, take, changed } = this.options;
    this.isLoading = true;
    this.failure = undefined;
    changed();
    try {
      let isEnough = false;
      for (let pages = 0; !isEnough && !this.isWhole && pages < MOST_PAGES; pages += 1) {
        const isFirst = this.#token === '';
        const asked = { ...request, pageSize: PAGE_SIZE, pageToken: this.#token };
        const page = await daemon.runs.listRuns(asked, { signal, timeoutMs: TIMEOUT_MS });
        if (signal.aborted) return;
        let isNew = false;
        for (const run of page.runs) isNew = take(run) || isNew;
        // What is listed again after a break is known for the most part, and is not to be loaded whole.
        isEnough = isNew || (isFirst && page.runs.length > 0);
        for (const part of page.damaged) this.damaged.add(part);
        this.#token = page.nextPageToken;
        this.isWhole = this.#token === '';
      }
    } catch (error) {
      if (signal.aborted) return;
      this.failure = failureOf(error);
    }
    this.isLoading = false;
    changed();
  }
}
