// What the daemon's settings say to this page.

import { Code } from '@connectrpc/connect';

import { failureOf } from './failure.js';
import { type Daemon, send } from './client.js';

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

/** What `page.json` of the daemon says. */
export interface PageSettings {
  readonly traceUrl: string;
  readonly hasArchive: boolean;
}

/** Asks the daemon for the settings that concern its page. `undefined` where it does not say. */
export async function pageSettings({ base, token }: Daemon, signal: AbortSignal): Promise<PageSettings | undefined> {
  try {
    const headers = token.value === '' ? {} : { authorization: `Bearer ${token.value}` };
    const response = await send(new URL('page.json', base), { headers, signal });
    if (!response.ok) return undefined;
    const { trace_url: traceUrl, archive: hasArchive } = (await response.json()) as Record<string, unknown>;
    return { traceUrl: String(traceUrl), hasArchive: hasArchive === true };
  } catch {
    return undefined;
  }
}
