// Which runs are shown together: those that are named, or the newest with some labels.

import type { Daemon } from '../api/client.js';
import { type Failure, failureOf } from '../api/failure.js';
import type { Route } from '../app/route.js';
import { type RunInfo, RunState } from '../gen/ringfence/v1/run_pb.js';

/** The most runs that are shown together. */
export const MOST_TOGETHER = 20;
const PAGE = 100;
const ASK_EVERY_MS = 3_000;
const TIMEOUT_MS = 10_000;

type Together = Extract<Route, { page: 'together' }>;

/** What was found out last. */
export interface FoundRuns {
  /** The runs to show by their ids, with what is known of them. None is taken away again. */
  readonly runs: ReadonlyMap<string, RunInfo | undefined>;
  /** How many more match. */
  readonly more: number;
  /** Whether there are more than were counted. */
  readonly isMore: boolean;
  readonly failure: Failure | undefined;
}

/** Finds runs again and again until the signal aborts. */
export async function findRuns(
  daemon: Daemon,
  { ids, labels }: Together,
  signal: AbortSignal,
  found: (runs: FoundRuns) => void,
): Promise<void> {
  const runs = new Map<string, RunInfo | undefined>(ids.slice(0, MOST_TOGETHER).map((id) => [id, undefined]));
  while (!signal.aborted) {
    if (document.visibilityState === 'visible') {
      let others = { more: Math.max(ids.length - MOST_TOGETHER, 0), isMore: false };
      let failure: Failure | undefined;
      try {
        if (ids.length > 0) await askEach(daemon, runs, signal);
        else others = await askLabelled(daemon, labels, runs, signal);
      } catch (error) {
        failure = failureOf(error);
      }
      if (signal.aborted) return;
      found({ runs: new Map(runs), ...others, failure });
    }
    await new Promise((resolve) => setTimeout(resolve, ASK_EVERY_MS));
  }
}

/** Asks for each run that may have changed. One that is not known is told by who reads its output. */
async function askEach(daemon: Daemon, runs: Map<string, RunInfo | undefined>, signal: AbortSignal): Promise<void> {
  const isOpen = ([, info]: [string, RunInfo | undefined]) => info?.state !== RunState.ENDED;
  const asked = [...runs].filter(isOpen).map(async ([id]) => {
    const { run } = await daemon.runs.getRun({ runId: id }, { signal, timeoutMs: TIMEOUT_MS });
    runs.set(id, run);
  });
  await Promise.allSettled(asked);
}

/** Asks for the newest runs, and shows those that there is room for. */
async function askLabelled(
  daemon: Daemon,
  labels: ReadonlyMap<string, string>,
  runs: Map<string, RunInfo | undefined>,
  signal: AbortSignal,
): Promise<{ more: number; isMore: boolean }> {
  const request = { pageSize: PAGE, labels: Object.fromEntries(labels) };
  const answer = await daemon.runs.listRuns(request, { signal, timeoutMs: TIMEOUT_MS });
  const isNew = (run: RunInfo) => !runs.has(run.runId);
  const room = MOST_TOGETHER - runs.size;
  const added = answer.runs.filter(isNew).slice(0, room).reverse();
  for (const run of answer.runs) if (!isNew(run)) runs.set(run.runId, run);
  for (const run of added) runs.set(run.runId, run);
  return { more: answer.runs.filter(isNew).length, isMore: answer.nextPageToken !== '' };
}
