// Ends runs, after having asked.

import type { Daemon } from '../api/client.js';
import { failureOf } from '../api/failure.js';
import type { RunInfo } from '../gen/ringfence/v1/run_pb.js';
import { plural } from '../model/format.js';
import { type KillCounts, killResult, namesOfTargets, type Target } from '../model/kill_words.js';
import { printable } from '../model/printable.js';
import { isLive } from '../model/run_end.js';
import { isOfLabels, type RunFilter, runStates } from '../model/run_filter.js';
import { confirm } from '../ui/confirm.js';
import { tell, tellFailure } from '../ui/toast.js';

/** How long the daemon may take to end runs. */
const TIMEOUT_MS = 30_000;
/** Calls at once: a browser opens six connections, of which live streams have two. */
const CALLS = 3;

type NameOf = (digest: string) => string;

/** Ends some runs, each by a call of its own. Returns whether the answer was yes. */
export async function killEach(daemon: Daemon, runs: readonly RunInfo[], nameOf: NameOf): Promise<boolean> {
  const live = runs.filter(isLive);
  if (live.length === 0) {
    tell('All of these runs have ended.');
    return false;
  }
  const targets = live.map((it) => ({ id: it.runId, name: nameOf(it.moduleDigest) }));
  if (!(await asked(targets, targets.length))) return false;
  told(await cancelEach(daemon, targets));
  return true;
}

/** Ends all runs that a filter selects: by one call where the daemon can select them, else those of `shown`. */
export async function killMatching(
  daemon: Daemon,
  filter: RunFilter,
  shown: readonly RunInfo[],
  nameOf: NameOf,
): Promise<void> {
  const states = runStates(filter.states.filter((it) => it !== 'ended'));
  const isNone = filter.states.length > 0 && states.length === 0;
  if (!isOfLabels(filter) || isNone) {
    await killEach(daemon, shown, nameOf);
    return;
  }
  const selection = { labels: Object.fromEntries(filter.labels), states };
  try {
    const found = await daemon.runs.cancelRuns({ ...selection, dryRun: true }, { timeoutMs: TIMEOUT_MS });
    const count = found.runs.length + found.unfinished;
    if (count === 0) {
      tell('No run that matches is there to end.');
      return;
    }
    const known = new Map(shown.map((it) => [it.runId, nameOf(it.moduleDigest)]));
    const targets = found.runs.map(({ runId }) => ({ id: runId, name: known.get(runId) ?? '' }));
    if (!(await asked(targets, count))) return;
    const ended = await daemon.runs.cancelRuns(selection, { timeoutMs: TIMEOUT_MS });
    const cancelled = ended.runs.filter((it) => it.cancelled).length;
    told({ cancelled, alone: ended.runs.length - cancelled, unfinished: ended.unfinished, failures: [] });
  } catch (error) {
    tellFailure('The runs could not be ended', error);
  }
}

async function asked(targets: readonly Target[], count: number): Promise<boolean> {
  return confirm({
    title: count === 1 ? 'End this run?' : `End ${plural(count, 'run')}?`,
    text: [namesOfTargets(targets, count), 'What they wrote so far remains. They cannot be continued.'],
    action: count === 1 ? 'Kill' : `Kill ${plural(count, 'run')}`,
    isDanger: true,
  });
}

async function cancelEach(daemon: Daemon, targets: readonly Target[]): Promise<KillCounts> {
  const waiting = [...targets];
  const counts = { cancelled: 0, alone: 0, unfinished: 0, failures: [] as string[] };
  const work = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      try {
        const { cancelled } = await daemon.runs.cancelRun({ runId: next.id }, { timeoutMs: TIMEOUT_MS });
        counts[cancelled ? 'cancelled' : 'alone'] += 1;
      } catch (error) {
        const { reason, message } = failureOf(error);
        if (reason === 'NOT_STARTED') counts.unfinished += 1;
        else counts.failures.push(printable(message));
      }
    }
  };
  await Promise.all(Array.from({ length: CALLS }, work));
  return counts;
}

function told(counts: KillCounts): void {
  tell(killResult(counts), counts.failures.length > 0 ? 'failed' : 'done');
}
