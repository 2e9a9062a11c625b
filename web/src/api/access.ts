// Whether this page may change anything, which `admin.read_only` of the daemon forbids.

import { failureOf } from './failure.js';
import type { Daemon } from './client.js';

/** A label that no run has: no run is touched by what is asked with it. */
const NOBODY = { 'ringfence-page': 'asks whether it may end runs' };

/** Asks the daemon whether calls that change something are answered here. */
export async function mayChange(daemon: Daemon, signal: AbortSignal): Promise<boolean> {
  try {
    await daemon.runs.cancelRuns({ labels: NOBODY, dryRun: true }, { signal });
    return true;
  } catch (error) {
    const failure = failureOf(error);
    return !(failure.reason === 'FORBIDDEN' && failure.metadata['limit'] === 'admin.read_only');
  }
}
