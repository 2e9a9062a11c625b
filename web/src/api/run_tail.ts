// The last of what a run wrote to standard error.

import type { RunInfo } from '../gen/ringfence/v1/run_pb.js';
import type { Daemon } from './client.js';

/** Events before the last one in which standard error is looked for. */
const MOST_EVENTS = 400n;
const TIMEOUT_MS = 3_000;

/** Reads the last lines of a run's standard error, or why they cannot be read. */
export async function stderrTail(daemon: Daemon, run: RunInfo, lines: number): Promise<string> {
  if (run.nextSeq === 0n) return '';
  const last = run.nextSeq - 1n;
  const pieces: Uint8Array[] = [];
  const done = new AbortController();
  const signal = AbortSignal.any([done.signal, AbortSignal.timeout(TIMEOUT_MS)]);
  const release = await daemon.slots.acquire(signal);
  try {
    const fromSeq = last > MOST_EVENTS ? last - MOST_EVENTS : 0n;
    for await (const { seq, event } of daemon.runs.attachRun({ runId: run.runId, fromSeq }, { signal })) {
      if (event.case === 'stderr') pieces.push(event.value);
      // What a live run writes later is no part of this.
      if (seq >= last) break;
    }
  } finally {
    done.abort();
    release();
  }
  const bytes = new Uint8Array(pieces.reduce((sum, it) => sum + it.length, 0));
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  const text = new TextDecoder().decode(bytes).replace(/\n$/, '');
  return text.split('\n').slice(-lines).join('\n');
}
