// The daemon's services, called by gRPC-Web.

import { Code, createClient, type Client, type Interceptor, type Transport } from '@connectrpc/connect';
import { createGrpcWebTransport } from '@connectrpc/connect-web';

import { ModuleService } from '../gen/ringfence/v1/module_service_pb.js';
import { RunService } from '../gen/ringfence/v1/run_service_pb.js';
import { SandboxService } from '../gen/ringfence/v1/sandbox_service_pb.js';
import { StatsService } from '../gen/ringfence/v1/stats_service_pb.js';
import { failureOf, isTransient } from './failure.js';
import { StreamSlots } from './stream_slots.js';
import { TokenStore } from './token.js';

/**
 * A daemon, and who calls it. It fires `unauthenticated` where a call was refused because nobody knows who asks,
 * `unreachable` where one got no answer, and `answered` after any other.
 */
export class Daemon extends EventTarget {
  readonly token: TokenStore;
  readonly sandbox: Client<typeof SandboxService>;
  readonly runs: Client<typeof RunService>;
  readonly modules: Client<typeof ModuleService>;
  readonly stats: Client<typeof StatsService>;
  /** The streams that this page may have open at once. */
  readonly slots = new StreamSlots();

  /** Creates the client of the daemon whose admin listener is at `base`. */
  constructor(
    readonly base: string,
    token = new TokenStore(),
  ) {
    super();
    this.token = token;
    const transport = this.transport(send);
    this.sandbox = createClient(SandboxService, transport);
    this.runs = createClient(RunService, transport);
    this.modules = createClient(ModuleService, transport);
    this.stats = createClient(StatsService, transport);
  }

  /** Creates what calls the daemon as whoever is signed in, and sends its requests by `sender`. */
  transport(sender: typeof fetch): Transport {
    const authorize: Interceptor = (next) => async (request) => {
      const sent = this.token.value;
      if (sent !== '') request.header.set('authorization', `Bearer ${sent}`);
      try {
        const response = await next(request);
        this.#tell('answered');
        return response;
      } catch (error) {
        const failure = failureOf(error);
        // Another token may have been given meanwhile.
        const isRefused = failure.code === Code.Unauthenticated && sent === this.token.value;
        if (isRefused) this.#tell('unauthenticated');
        else if (failure.reason !== '') this.#tell('answered');
        else if (isTransient(failure)) this.#tell('unreachable');
        throw error;
      }
    };
    return createGrpcWebTransport({
      baseUrl: this.base.replace(/\/$/, ''),
      useBinaryFormat: true,
      interceptors: [authorize],
      fetch: sender,
    });
  }

  #tell(type: 'answered' | 'unauthenticated' | 'unreachable'): void {
    this.dispatchEvent(new Event(type));
  }
}

/**
 * Sends a request with what the page itself was fetched with, such as a certificate or the cookie of a proxy, which
 * others than the page's own origin never get.
 */
export const send: typeof fetch = (input, init) =>
  fetch(input, { ...init, credentials: 'same-origin', cache: 'no-store', redirect: 'error' });

/** Returns the address of the daemon that this page came from, under whichever path a proxy has it. */
export function pageBase(): string {
  return new URL('.', document.baseURI).href;
}
