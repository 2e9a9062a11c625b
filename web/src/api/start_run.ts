// Starts a run, and tells its id as soon as the daemon does.

import { create } from '@bufbuild/protobuf';
import { Code, ConnectError } from '@connectrpc/connect';

import { RunSpecSchema } from '../gen/ringfence/v1/spec_pb.js';
import type { Spec } from '../model/run_form.js';
import { forgetSpecs, rememberSpec } from '../model/started_specs.js';
import type { Daemon } from './client.js';

const RUN_ID = 'ringfence-run-id';

/**
 * Starts a run and returns its id. A detached run goes on by itself. Any other is held by this tab: its output is read
 * to the end, so that the run does not wait, and it ends when the tab does.
 */
export async function startRun(daemon: Daemon, spec: Spec, signal: AbortSignal): Promise<string> {
  const left = new AbortController();
  const leave = () => left.abort(signal.reason);
  signal.addEventListener('abort', leave);
  const release = await daemon.slots.acquire(signal);
  const isDetached = spec.detach === true;
  return new Promise<string>((resolve, reject) => {
    const told = (id: string | null | undefined) => {
      if (id === null || id === undefined || id === '') return;
      signal.removeEventListener('abort', leave);
      // The daemon keeps less of it, and the run may be wanted once more.
      rememberSpec(id, create(RunSpecSchema, spec));
      daemon.token.addEventListener('change', forgetSpecs);
      resolve(id);
      if (isDetached) left.abort();
    };
    const follow = async () => {
      const events = daemon.sandbox.runStream(
        { spec },
        { signal: left.signal, onHeader: (it) => told(it.get(RUN_ID)) },
      );
      for await (const event of events) told(event.runId);
      throw new ConnectError('the daemon does not say which run it started', Code.Unknown);
    };
    // Once the id is known, nothing that follows matters here.
    follow().catch(reject).finally(release);
  });
}
