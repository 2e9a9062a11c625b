// The runs of a time that is chosen: they are listed beside what a watch tells, and the page says what is missing.

import { html, nothing, type TemplateResult } from 'lit';

import type { Daemon } from '../api/client.js';
import { RunPages } from '../api/run_pages.js';
import type { RunState } from '../gen/ringfence/v1/run_pb.js';
import { formatCount, plural } from '../model/format.js';
import { printable } from '../model/printable.js';
import type { RunFilter } from '../model/run_filter.js';
import type { RunList } from '../model/run_list.js';
import { boundsOf, isBackward, timesOf } from '../model/run_range.js';
import { sayFailure } from '../model/sentences.js';

/** What the daemon selects runs by, besides their time. */
interface Selection {
  readonly states: RunState[];
  readonly labels: Record<string, string>;
}

export class RangeRuns {
  #pages: RunPages | undefined;
  #stop = new AbortController();

  /** Creates what puts listed runs into `list`, and calls `changed` when there is something to show. */
  constructor(
    private readonly list: RunList,
    private readonly changed: () => void,
  ) {}

  get isLoading(): boolean {
    return this.#pages?.isLoading === true;
  }

  /** Lists the newest runs of the range of a filter, where it has one. Others are loaded as they are asked for. */
  begin(daemon: Daemon, { range }: RunFilter, selection: Selection): void {
    this.stop();
    const bounds = boundsOf(range, Date.now());
    if (range === undefined || isBackward(bounds)) return;
    this.#stop = new AbortController();
    this.#pages = new RunPages({
      daemon,
      // Without any bound, of which the beginning of 1970 is none, the archive would not be listed.
      request: { ...selection, ...timesOf({ ...bounds, since: bounds.since ?? 1 }) },
      signal: this.#stop.signal,
      take: (run) => this.list.takeListed(run),
      changed: this.changed,
    });
    this.load();
  }

  load(): void {
    void this.#pages?.load();
  }

  stop(): void {
    this.#stop.abort();
    this.#pages = undefined;
  }

  /**
   * Says what is loaded and what is missing, with buttons that call `load`. `hasArchive` is `undefined` where the
   * daemon does not say.
   */
  line(hasArchive: boolean | undefined, load: () => void): TemplateResult | typeof nothing {
    const pages = this.#pages;
    if (pages === undefined) return nothing;
    const { isLoading, isWhole, failure, damaged } = pages;
    const button = (text: string) => html`<button @click=${load}>${text}</button>`;
    const parts = plural(damaged.size, 'part of the archive is', 'parts of the archive are');
    const hasMore = !(isLoading || isWhole) && failure === undefined;
    return html`
      <span class="dim" role="status">${says(pages, hasArchive)}</span>
      ${
        failure === undefined
          ? nothing
          : html`<span class="bad" role="alert">
                Ended runs could not be listed: ${sayFailure(failure)} Runs that the daemon remembers are shown.
              </span>
              ${button('Try again')}`
      }
      ${
        damaged.size === 0
          ? nothing
          : html`<details class="warn">
              <summary>${parts} damaged, whose runs are missing.</summary>
              ${[...damaged].map((it) => html`<p class="mono">${printable(it)}</p>`)}
            </details>`
      }
      ${hasMore && !this.list.isFull ? button('Load more') : nothing}
      ${
        hasMore && this.list.isFull
          ? html`<span class="warn">
              The page keeps ${formatCount(this.list.limit)} runs of a time. Choose a shorter one to see others.
            </span>`
          : nothing
      }
    `;
  }
}

function says({ isLoading, isWhole }: RunPages, hasArchive: boolean | undefined): string {
  if (isLoading) return 'Runs of this time are being loaded …';
  if (!isWhole) return '';
  if (hasArchive !== false) return 'All runs of this time are loaded.';
  return 'This daemon has no archive (runs.archive): these are the runs that it remembers.';
}
