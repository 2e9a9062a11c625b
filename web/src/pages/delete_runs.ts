// Deletes runs that have ended, after having asked.

import type { MessageInitShape } from '@bufbuild/protobuf';

import type { Daemon } from '../api/client.js';
import type { RunInfo } from '../gen/ringfence/v1/run_pb.js';
import type { DeleteRunsRequestSchema } from '../gen/ringfence/v1/run_service_pb.js';
import { plural } from '../model/format.js';
import { namesOfTargets } from '../model/kill_words.js';
import { isLive } from '../model/run_end.js';
import { isDeletable, type RunFilter } from '../model/run_filter.js';
import { boundsOf, timesOf } from '../model/run_range.js';
import { confirm } from '../ui/confirm.js';
import { tell, tellFailure } from '../ui/toast.js';

/** An archive may be far away, and each of its parts that has one of the runs is written anew. */
const TIMEOUT_MS = 120_000;
/** The most ids of a call. */
const MOST_IDS = 1_000;

/** What came of it: nothing was asked or the answer was no, not all could be deleted, or all are gone. */
export type Deletion = 'no' | 'failed' | 'done';

type Selection = MessageInitShape<typeof DeleteRunsRequestSchema>;
type NameOf = (digest: string) => string;

/** Deletes those of some runs that have ended. */
export async function deleteEach(daemon: Daemon, runs: readonly RunInfo[], nameOf: NameOf): Promise<Deletion> {
  const ids = runs.filter((it) => !isLive(it)).map((it) => it.runId);
  const selections: Selection[] = [];
  for (let at = 0; at < ids.length; at += MOST_IDS) selections.push({ runIds: ids.slice(at, at + MOST_IDS) });
  return remove(daemon, selections, namesOf(runs, nameOf), '');
}

/** Deletes all runs that a filter selects: by one call where the daemon can select them, else those of `shown`. */
export async function deleteMatching(
  daemon: Daemon,
  filter: RunFilter,
  shown: readonly RunInfo[],
  nameOf: NameOf,
): Promise<Deletion> {
  if (!isDeletable(filter)) return deleteEach(daemon, shown, nameOf);
  const now = Date.now();
  const { since, until } = boundsOf(filter.range, now);
  // What is selected by time alone needs an end.
  const times = timesOf({ since, until: until ?? (filter.range && now) });
  const selection = { labels: Object.fromEntries(filter.labels), ...times };
  const all = 'Among them are all that have ended and match, also those that the table does not show.';
  return remove(daemon, [selection], namesOf(shown, nameOf), all);
}

function namesOf(runs: readonly RunInfo[], nameOf: NameOf): NameOf {
  const digests = new Map(runs.map((it) => [it.runId, it.moduleDigest]));
  return (id) => nameOf(digests.get(id) ?? '');
}

async function remove(
  daemon: Daemon,
  selections: readonly Selection[],
  nameOfRun: NameOf,
  more: string,
): Promise<Deletion> {
  let isAsked = false;
  try {
    const found = await callEach(daemon, selections, true);
    if (found.deleted === 0) {
      tell('No run that has ended is there to delete.');
      return 'no';
    }
    const runs = plural(found.deleted, 'run');
    const targets = found.ids.map((id) => ({ id, name: nameOfRun(id) }));
    isAsked = await confirm({
      title: found.deleted === 1 ? 'Delete this run?' : `Delete ${runs}?`,
      text: [
        namesOfTargets(targets, found.deleted),
        more,
        'The output is deleted too, also from the archive. This cannot be undone.',
      ],
      action: found.deleted === 1 ? 'Delete' : `Delete ${runs}`,
      isDanger: true,
    });
    if (!isAsked) return 'no';
    const gone = await callEach(daemon, selections, false);
    tell(`${plural(gone.deleted, 'run')} deleted.`);
    return 'done';
  } catch (error) {
    tellFailure(isAsked ? 'Not all of the runs could be deleted' : 'The runs could not be counted', error);
  }
  return isAsked ? 'failed' : 'no';
}

/** Calls for each selection. Returns how many runs are gone or would be, and the ids of the first. */
async function callEach(
  daemon: Daemon,
  selections: readonly Selection[],
  dryRun: boolean,
): Promise<{ deleted: number; ids: string[] }> {
  const all = { deleted: 0, ids: [] as string[] };
  for (const selection of selections) {
    const { deleted, runIds } = await daemon.runs.deleteRuns({ ...selection, dryRun }, { timeoutMs: TIMEOUT_MS });
    all.deleted += Number(deleted);
    all.ids.push(...runIds);
  }
  return all;
}
