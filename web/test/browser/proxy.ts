// A proxy between browser and daemon: it counts what is open, can be cut, and may have the page under a path.

import http from 'node:http';
import type { AddressInfo, Socket } from 'node:net';

import { passOn } from './scripts.js';

const SETTLED_MS = 250;

/** A flag and a length stand before each message. */
const GRPC_PREFIX = 5;

/** Passes requests on from a port of its own. */
export class TestProxy {
  /** Requests that are open now, by the last part of their path, such as `WatchRuns`. */
  readonly open = new Map<string, number>();
  /** All requests so far, by the same. */
  readonly seen = new Map<string, number>();
  readonly #bodies: Array<{ name: string; chunks: Buffer[] }> = [];
  /** Requests for what is not under the prefix. */
  misses = 0;
  /**
   * The most streams (`Watch…`, `AttachRun`, `Interact`, `RunStream`) that were open at once, each for so long that
   * none of them can be one that the browser had closed already.
   */
  mostStreams = 0;
  readonly #streams = new Map<http.ServerResponse, number>();
  readonly #server: http.Server;
  readonly #sockets = new Set<Socket>();
  #isCut = false;

  private constructor(
    private readonly upstream: URL,
    private readonly prefix: string,
  ) {
    this.#server = http.createServer((request, response) => this.#pass(request, response));
    this.#server.on('connection', (socket) => {
      if (this.#isCut) {
        socket.destroy();
        return;
      }
      this.#sockets.add(socket);
      socket.on('close', () => this.#sockets.delete(socket));
    });
  }

  /** Starts a proxy of `upstream` that has it under `prefix`, such as `/some/prefix`; nothing else is there. */
  static async start(upstream: string, prefix = ''): Promise<TestProxy> {
    const proxy = new TestProxy(new URL(upstream), prefix);
    await new Promise<void>((resolve) => proxy.#server.listen(0, '127.0.0.1', resolve));
    return proxy;
  }

  /** Where the page is. */
  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}${this.prefix}/`;
  }

  /** How many streams are open now. */
  get streams(): number {
    return [...this.open].reduce((sum, [name, count]) => (isStream(name) ? sum + count : sum), 0);
  }

  /** The messages of all requests so far that opened a stream by a method. */
  requests(name: string): Uint8Array[] {
    const bodies = this.#bodies.filter((it) => it.name === name);
    return bodies.map(({ chunks }) => new Uint8Array(Buffer.concat(chunks).subarray(GRPC_PREFIX)));
  }

  /** Breaks all connections, and each new one, until `mend`. */
  cut(): void {
    this.#isCut = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  mend(): void {
    this.#isCut = false;
  }

  #countStream(response: http.ServerResponse): void {
    this.#streams.set(response, performance.now());
    const timer = setTimeout(() => {
      const settledBefore = performance.now() - SETTLED_MS + 1;
      const settled = [...this.#streams.values()].filter((openedAt) => openedAt <= settledBefore);
      this.mostStreams = Math.max(this.mostStreams, settled.length);
    }, SETTLED_MS);
    response.on('close', () => {
      clearTimeout(timer);
      this.#streams.delete(response);
    });
  }

  async end(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #pass(request: http.IncomingMessage, response: http.ServerResponse): void {
    const url = request.url ?? '/';
    if (!url.startsWith(`${this.prefix}/`)) {
      this.misses += 1;
      response.writeHead(404).end();
      return;
    }
    const path = url.slice(this.prefix.length);
    const name = path.slice(path.lastIndexOf('/') + 1);
    add(this.open, name, 1);
    add(this.seen, name, 1);
    response.on('close', () => add(this.open, name, -1));
    const chunks: Buffer[] = [];
    if (isStream(name)) {
      this.#bodies.push({ name, chunks });
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      this.#countStream(response);
    }
    passOn(request, response, this.upstream, path);
  }
}

function add(counts: Map<string, number>, name: string, by: number): void {
  counts.set(name, (counts.get(name) ?? 0) + by);
}

function isStream(name: string): boolean {
  return name.startsWith('Watch') || ['AttachRun', 'Interact', 'RunStream'].includes(name);
}
