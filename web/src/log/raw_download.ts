// The bytes of a run's output as the guest wrote them, in a file.

import type { Daemon } from '../api/client.js';
import { failureOf, isAborted } from '../api/failure.js';
import { RunState } from '../gen/ringfence/v1/run_pb.js';
import { formatBytes, plural } from '../model/format.js';
import { printable } from '../model/printable.js';

/** Which bytes: those of a stream, or of both in the order of their events. */
export type RawStreams = 'stdout' | 'stderr' | 'both';

/** What was read of a run's output. */
export interface RawOutput {
  readonly blob: Blob;
  /** How many events are missing in it, because the daemon no longer keeps them. */
  readonly lost: bigint;
  /** Whether the run goes on, so that this is its output up to now. */
  readonly isLive: boolean;
}

/** So much is gathered before it is handed to the browser, which may keep it on disk. */
const CHUNK_BYTES = 4 << 20;

/** Reads the output of a run from its beginning to its end, or to where it is now. */
export async function readRaw(
  daemon: Daemon,
  run: string,
  streams: RawStreams,
  signal: AbortSignal,
): Promise<RawOutput> {
  const release = await daemon.slots.acquire(signal);
  const enough = new AbortController();
  try {
    const { run: info } = await daemon.runs.getRun({ runId: run }, { signal });
    const end = info?.nextSeq ?? 0n;
    const isLive = info?.state !== RunState.ENDED;
    const gathered = new Gathered();
    let lost = 0n;
    if (end === 0n) return { blob: gathered.finish(), lost, isLive };
    const events = daemon.runs.attachRun({ runId: run }, { signal: AbortSignal.any([signal, enough.signal]) });
    for await (const { seq, event } of events) {
      if (event.case === 'lost') lost += event.value.count;
      const isWanted = event.case === 'stdout' || event.case === 'stderr';
      if (isWanted && seq < end && (streams === 'both' || streams === event.case)) gathered.add(event.value);
      const last = event.case === 'lost' ? event.value.firstSeq + event.value.count - 1n : seq;
      if (event.case === 'exit' || event.case === 'error' || last >= end - 1n) break;
    }
    return { blob: gathered.finish(), lost, isLive };
  } finally {
    enough.abort();
    release();
  }
}

/** Bytes on their way into a blob. */
class Gathered {
  #blob = new Blob();
  #parts: Uint8Array<ArrayBuffer>[] = [];
  #size = 0;

  add(bytes: Uint8Array): void {
    this.#parts.push(bytes as Uint8Array<ArrayBuffer>);
    this.#size += bytes.length;
    if (this.#size >= CHUNK_BYTES) this.finish();
  }

  finish(): Blob {
    this.#blob = new Blob([this.#blob, ...this.#parts], { type: 'application/octet-stream' });
    this.#parts = [];
    this.#size = 0;
    return this.#blob;
  }
}

/** Has the browser save a blob. */
export function saveBlob(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  const link = document.createElement('a');
  link.href = url;
  link.download = name;
  link.click();
  // The browser has begun to read it by then.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

const FILES: Readonly<Record<RawStreams, string>> = { both: 'log', stdout: 'stdout', stderr: 'stderr' };

/** Saves the output of a run. Returns what there is to say about it. */
export async function downloadRaw(
  daemon: Daemon,
  run: string,
  streams: RawStreams,
  signal: AbortSignal,
): Promise<string> {
  try {
    const { blob, lost, isLive } = await readRaw(daemon, run, streams, signal);
    const name = `${run.replace(/[^\w.-]/g, '_')}.${FILES[streams]}`;
    saveBlob(blob, name);
    const size = `${name} has ${formatBytes(blob.size)}${isLive ? ' so far' : ''}.`;
    const gap = `${plural(lost, 'event')} of the run ${lost === 1n ? 'is' : 'are'} no longer kept.`;
    return lost === 0n ? size : `${size} ${gap}`;
  } catch (error) {
    return isAborted(error) ? '' : `The output was not read: ${printable(failureOf(error).message)}`;
  }
}
