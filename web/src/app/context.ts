// What every page of the application is given.

import type { Daemon } from '../api/client.js';
import type { SettingsStore } from './settings.js';

export interface PageContext {
  readonly daemon: Daemon;
  readonly settings: SettingsStore;
  /** Whether calls that change something are answered here: where not, their controls are not shown. */
  readonly mayChange: boolean;
  /** Where a trace is shown, with `{trace_id}` in place of its id; empty for nowhere. */
  readonly traceUrl: string;
  /** Whether ended runs are archived; `undefined` where the daemon does not say. */
  readonly hasArchive: boolean | undefined;
}
