// Whether this page may change anything, which `admin.read_only` of the daemon forbids.

import { Code } from '@connectrpc/connect';

import { failureOf } from './failure.js';
import type { Daemon } from './client.js';

/** A label that no run has: no run is touched by what is asked with it. */
const NOBODY = { 'ringfence-page': 'asks whether it may end runs' };

/**
 * Asks the daemon whether calls that change something are answered here. `undefined` where it does not say: it cannot
 * be reached, or wants to know first who asks.
 */
export async function mayChange(daemon: Daemon, signal: AbortSignal): Promise<boolean | undefined> {
  try {
    await daemon.runs.cancelRuns({ labels: NOBODY, dryRun: true }, { signal });
    return true;
  } catch (error) {
    const failure = failureOf(error);
    if (failure.code === Code.Unauthenticated || failure.reason === '') return undefined;
    return !(failure.reason === 'FORBIDDEN' && failure.metadata['limit'] === 'admin.read_only');
  }
}
