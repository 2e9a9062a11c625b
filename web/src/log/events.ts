// What `<ringfence-log>` tells the page that it stands in. All of these events bubble, and leave shadow roots.

import type { StreamState } from '../api/live_stream.js';
import type { LogPosition } from '../app/route.js';
import type { StreamEvent } from '../gen/ringfence/v1/event_pb.js';

/** The events of a run that are not its output. */
export type MilestoneCase = 'started' | 'lost' | 'exit' | 'error';

/** An event of a run that is one of its milestones. */
export type MilestoneEvent = StreamEvent & { event: Extract<StreamEvent['event'], { case: MilestoneCase }> };

/** The detail of `ringfence-run-event`: the run has started or ended, or output of it was missed. */
export interface RunEventDetail {
  readonly run: string;
  /** The event as it came, such as `event.event.case === 'exit'` with `event.event.value` its result. */
  readonly event: MilestoneEvent;
}

/** The detail of `ringfence-state`: the connection is another than before. */
export interface LogStateDetail {
  readonly run: string;
  /** `failed` with the reason `RUN_NOT_FOUND` means that the daemon does not know the run (any more). */
  readonly state: StreamState;
}

/** The detail of `ringfence-link`: the reader asked for an address of a line, whose first byte is at `at`. */
export interface LogLinkDetail {
  readonly run: string;
  readonly at: LogPosition;
}

declare global {
  interface HTMLElementEventMap {
    'ringfence-run-event': CustomEvent<RunEventDetail>;
    'ringfence-state': CustomEvent<LogStateDetail>;
    'ringfence-link': CustomEvent<LogLinkDetail>;
  }
}

/** Tells whether an event is none of output. */
export function isMilestone(event: StreamEvent): event is MilestoneEvent {
  const { case: kind } = event.event;
  return kind === 'started' || kind === 'lost' || kind === 'exit' || kind === 'error';
}
