// A real daemon for a test, and a client of it in Node.

import { type ChildProcess, spawn } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import readline from 'node:readline';

import type { MessageInitShape } from '@bufbuild/protobuf';
import { type Client, createClient, type Interceptor } from '@connectrpc/connect';
import { createGrpcWebTransport } from '@connectrpc/connect-web';

import { ModuleService } from '../../src/gen/ringfence/v1/module_service_pb.js';
import { type RunInfo, RunState } from '../../src/gen/ringfence/v1/run_pb.js';
import { RunService } from '../../src/gen/ringfence/v1/run_service_pb.js';
import { SandboxService } from '../../src/gen/ringfence/v1/sandbox_service_pb.js';
import type { RunSpecSchema } from '../../src/gen/ringfence/v1/spec_pb.js';
import { StatsService } from '../../src/gen/ringfence/v1/stats_service_pb.js';
import { WEB } from './guests.js';

/** Longer than anything takes that is waited for. */
export const PATIENCE_MS = 30_000;

/** What a daemon is started with. */
export interface DaemonOptions {
  /** Settings over the defaults, with values as `--set` takes them: `{ 'admission.slots': '1' }`. */
  readonly set?: Readonly<Record<string, string>>;
  /** Where modules are kept: in memory, or in a folder that outlives `restart`. */
  readonly store?: 'memory' | 'file';
  /** Has ended runs written to `archive`, a folder that outlives `restart`. */
  readonly hasArchive?: boolean;
  /** Names of tenants. Each has the token that `tokenOf` gives, and calls without one are refused. */
  readonly tenants?: readonly string[];
}

/** The token of a tenant of a test. */
export function tokenOf(tenant: string): string {
  return `token-of-${tenant}-which-nobody-guesses`;
}

type Spec = MessageInitShape<typeof RunSpecSchema>;

/** The clients of a daemon's services. */
export interface Clients {
  readonly sandbox: Client<typeof SandboxService>;
  readonly runs: Client<typeof RunService>;
  readonly modules: Client<typeof ModuleService>;
  readonly stats: Client<typeof StatsService>;
}

const living = new Set<ChildProcess>();
process.on('exit', () => living.forEach((it) => it.kill('SIGKILL')));
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => process.exit(1));

/** A daemon that a test started, which ends with it. */
export class TestDaemon {
  /** Of the gRPC listener, as `127.0.0.1:PORT`. */
  grpc = '127.0.0.1:0';
  /** Of the admin listener, as `http://127.0.0.1:PORT`. */
  admin = 'http://127.0.0.1:0';
  /** A folder of the daemon's own, which is removed in the end. */
  readonly folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ringfence-page-'));
  /** Where ended runs are, with `hasArchive`. */
  readonly archive = path.join(this.folder, 'archive');
  /** Its log, as lines of JSON. */
  readonly log: string[] = [];
  readonly #options: DaemonOptions;
  #clients: Clients | undefined;
  #process: ChildProcess | undefined;

  private constructor(options: DaemonOptions) {
    this.#options = options;
  }

  static async start(options: DaemonOptions = {}): Promise<TestDaemon> {
    const daemon = new TestDaemon(options);
    try {
      await daemon.restart();
    } catch (error) {
      await daemon.end();
      throw error;
    }
    return daemon;
  }

  /** Calls the daemon as its first tenant, or without a token where there are no tenants. */
  get client(): Clients {
    this.#clients ??= this.clientOf(this.#options.tenants?.[0]);
    return this.#clients;
  }

  /** Calls the daemon as a tenant. */
  clientOf(tenant: string | undefined): Clients {
    const authorize: Interceptor = (next) => (request) => {
      if (tenant !== undefined) request.header.set('authorization', `Bearer ${tokenOf(tenant)}`);
      return next(request);
    };
    const transport = createGrpcWebTransport({ baseUrl: this.admin, useBinaryFormat: true, interceptors: [authorize] });
    return {
      sandbox: createClient(SandboxService, transport),
      runs: createClient(RunService, transport),
      modules: createClient(ModuleService, transport),
      stats: createClient(StatsService, transport),
    };
  }

  /** Starts the daemon anew, at the same ports. */
  async restart(): Promise<void> {
    const { store = 'memory', hasArchive = false, tenants = [], set = {} } = this.#options;
    const settings: Record<string, string> = {
      'admin.listen': JSON.stringify([this.admin.replace('http://', '')]),
      'store.url': JSON.stringify(store === 'memory' ? 'memory:' : `file://${this.folder}/store`),
      'server.instance': 'test',
      'telemetry.log_format': 'json',
      'hardening.mode': 'off',
      ...(hasArchive ? { 'runs.archive': JSON.stringify(`file://${this.archive}`) } : {}),
      ...(tenants.length > 0 ? this.#tenantSettings(tenants) : {}),
      ...set,
    };
    if (store === 'file') fs.mkdirSync(path.join(this.folder, 'store'), { recursive: true });
    const flags = Object.entries(settings).flatMap(([key, value]) => ['--set', `${key}=${value}`]);
    // The daemon takes each variable that begins with RINGFENCE_ for one of its settings.
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('RINGFENCE_')));
    const args = ['serve', '--listen', this.grpc, ...flags];
    const child = spawn(binary(), args, { env, stdio: ['ignore', 'inherit', 'pipe'] });
    living.add(child);
    this.#process = child;
    await this.#untilServing(child);
  }

  #tenantSettings(tenants: readonly string[]): Record<string, string> {
    const file = path.join(this.folder, 'tokens');
    const hash = (name: string) => crypto.createHash('sha256').update(tokenOf(name)).digest('hex');
    fs.writeFileSync(file, tenants.map((name) => `${name} sha256:${hash(name)}\n`).join(''));
    const tables = tenants.map((name) => `{ name = ${JSON.stringify(name)} }`);
    return { tenants: `[${tables.join(', ')}]`, 'auth.tokens_file': file };
  }

  /** Reads the log until it says that the daemon serves; it names the ports before. */
  async #untilServing(child: ChildProcess): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const late = setTimeout(
        () => reject(new Error(`the daemon does not serve:\n${this.log.join('\n')}`)),
        PATIENCE_MS,
      );
      child.once('error', reject);
      child.once('exit', (code, signal) => {
        living.delete(child);
        clearTimeout(late);
        reject(new Error(`the daemon ended (${code ?? signal}):\n${this.log.join('\n')}`));
      });
      readline.createInterface({ input: child.stderr! }).on('line', (line) => {
        this.log.push(line);
        const fields = fieldsOf(line);
        if (fields['admin'] !== undefined) this.admin = `http://${fields['admin']}`;
        if (fields['message'] === 'listening') this.grpc = fields['address'] ?? this.grpc;
        if (fields['message'] !== 'serving') return;
        clearTimeout(late);
        resolve();
      });
    });
  }

  /** Ends the daemon at once, as a crash would. */
  async kill(): Promise<void> {
    await this.#signal('SIGKILL');
  }

  /** Asks the daemon to drain, and waits for nothing. */
  drain(): void {
    this.#process?.kill('SIGTERM');
  }

  async #signal(signal: NodeJS.Signals): Promise<void> {
    const child = this.#process;
    if (child === undefined || !living.has(child)) return;
    const ended = new Promise((resolve) => child.once('exit', resolve));
    child.kill(signal);
    await ended;
  }

  /** Ends the daemon and removes its folder. */
  async end(): Promise<void> {
    await this.kill();
    fs.rmSync(this.folder, { recursive: true, force: true });
  }

  /** Stores a module and returns its digest. */
  async load(wasm: Uint8Array, name = '', labels: Record<string, string> = {}): Promise<string> {
    const { module } = await this.client.sandbox.loadModule({ source: { case: 'wasm', value: wasm }, name, labels });
    return module!.digest;
  }

  /** Runs a module to its end, and returns the answer. */
  async run(digest: string, args: readonly string[], more: Spec = {}) {
    return this.client.sandbox.run({ spec: { module: { case: 'digest', value: digest }, args: [...args], ...more } });
  }

  /** Starts a run that goes on by itself, and returns its id once the daemon tells it. */
  async start(digest: string, args: readonly string[], more: Spec = {}): Promise<string> {
    const left = new AbortController();
    const spec: Spec = { module: { case: 'digest', value: digest }, args: [...args], detach: true, ...more };
    return new Promise<string>((resolve, reject) => {
      const told = (headers: Headers) => {
        const id = headers.get('ringfence-run-id');
        if (id === null) reject(new Error('the daemon tells no id'));
        else resolve(id);
      };
      const follow = async () => {
        for await (const _ of this.client.sandbox.runStream({ spec }, { signal: left.signal, onHeader: told }))
          left.abort();
      };
      follow().catch(reject);
    });
  }

  /** Waits until a run is as `holds` says. */
  async untilRun(id: string, holds: (run: RunInfo) => boolean): Promise<RunInfo> {
    return until(`run ${id} comes to be as it should`, async () => {
      const { run } = await this.client.runs.getRun({ runId: id });
      return run !== undefined && holds(run) ? run : undefined;
    });
  }

  /** Waits until a run has ended. */
  async untilEnded(id: string): Promise<RunInfo> {
    return this.untilRun(id, (run) => run.state === RunState.ENDED);
  }
}

/** Asks again and again until there is an answer other than `undefined` and `false`. */
export async function until<T>(
  what: string,
  ask: () => Promise<T | undefined | false>,
  patienceMs = PATIENCE_MS,
): Promise<T> {
  const start = Date.now();
  for (;;) {
    const answer = await ask();
    if (answer !== undefined && answer !== false) return answer;
    if (Date.now() - start > patienceMs) throw new Error(`it does not happen that ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

function fieldsOf(line: string): Record<string, string> {
  try {
    return (JSON.parse(line) as { fields: Record<string, string> }).fields;
  } catch {
    return {};
  }
}

/** The program under test. */
export function binary(): string {
  const places = [
    process.env['RINGFENCE_BINARY'],
    path.join(WEB, '../target/release/ringfence'),
    path.join(process.env['CARGO_TARGET_DIR'] ?? '', 'release/ringfence'),
  ];
  const found = places.find((it) => it !== undefined && fs.existsSync(it));
  if (found === undefined) throw new Error(`there is no ringfence to test; looked at ${places.join(', ')}`);
  return found;
}
