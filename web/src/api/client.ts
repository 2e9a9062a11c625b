// The daemon's services, called by gRPC-Web.

import { Code, ConnectError, createClient, type Client, type Interceptor, type Transport } from '@connectrpc/connect';
import { createGrpcWebTransport } from '@connectrpc/connect-web';

import { ModuleService } from '../gen/ringfence/v1/module_service_pb.js';
import { RunService } from '../gen/ringfence/v1/run_service_pb.js';
import { SandboxService } from '../gen/ringfence/v1/sandbox_service_pb.js';
import { StatsService } from '../gen/ringfence/v1/stats_service_pb.js';
import { StreamSlots } from './stream_slots.js';
import { TokenStore } from './token.js';

/** A daemon, and who calls it. */
export class Daemon extends EventTarget {
  readonly token: TokenStore;
  readonly sandbox: Client<typeof SandboxService>;
  readonly runs: Client<typeof RunService>;
  readonly modules: Client<typeof ModuleService>;
  readonly stats: Client<typeof StatsService>;
  /** The streams that this page may have open at once. */
  readonly slots = new StreamSlots();

  /** Creates the client of the daemon whose admin listener is at `base`. */
  constructor(readonly base: string, token = new TokenStore()) {
    super();
    this.token = token;
    // The daemon is asked by this page alone: nothing that a browser would add of itself is wanted.
    const transport = this.transport((input, init) =>
      fetch(input, { ...init, credentials: 'omit', cache: 'no-store', redirect: 'error' }),
    );
    this.sandbox = createClient(SandboxService, transport);
    this.runs = createClient(RunService, transport);
    this.modules = createClient(ModuleService, transport);
    this.stats = createClient(StatsService, transport);
  }

  /** Creates what calls the daemon as whoever is signed in, and sends its requests by `send`. */
  transport(send: typeof fetch): Transport {
    const authorize: Interceptor = (next) => async (request) => {
      const sent = this.token.value;
      if (sent !== '') request.header.set('authorization', `Bearer ${sent}`);
      try {
        return await next(request);
      } catch (error) {
        // Another token may have been given meanwhile.
        if (ConnectError.from(error).code === Code.Unauthenticated && sent === this.token.value) {
          this.dispatchEvent(new Event('unauthenticated'));
        }
        throw error;
      }
    };
    return createGrpcWebTransport({
      baseUrl: this.base.replace(/\/$/, ''),
      useBinaryFormat: true,
      interceptors: [authorize],
      fetch: send,
    });
  }
}

/** Returns the address of the daemon that this page came from, under whichever path a proxy has it. */
export function pageBase(): string {
  return new URL('.', document.baseURI).href;
}
