// Sends a module, which may be large, and tells how much of it is sent. A browser tells that of an XMLHttpRequest only,
// and sends a file as it reads it, so that the page never holds all of it.

import { create, toBinary } from '@bufbuild/protobuf';
import { Code, ConnectError, createClient } from '@connectrpc/connect';

import {
  LoadModuleRequestSchema,
  type LoadModuleResponse,
  SandboxService,
} from '../gen/ringfence/v1/sandbox_service_pb.js';
import { type Daemon, send } from './client.js';
import { failureOf } from './failure.js';

/** What is said of a module that is sent. */
export interface ModuleDescription {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly metered: boolean;
}

/** Who hears how far it is, and may end it. */
export interface UploadOptions {
  readonly signal: AbortSignal;
  /** Bytes that left the browser, of how many. Once all have, the daemon compiles. */
  readonly sent: (bytes: number, total: number) => void;
}

/** A prefix of gRPC's framing: a flag and a length. */
const PREFIX = 5;
/** What is smaller is not asked about before. */
const ASK_FROM = 256 << 10;
/** The tag of `LoadModuleRequest.wasm`: field 1, with a length. */
const WASM_TAG = 0x0a;

/** Stores a module that this browser sends. */
export async function sendModule(
  daemon: Daemon,
  file: Blob,
  about: ModuleDescription,
  options: UploadOptions,
): Promise<LoadModuleResponse> {
  const head = moduleHead(about, file.size);
  await checkReadable(file);
  if (file.size >= ASK_FROM) await askWhetherTaken(daemon, head, options.signal);
  const body = new Blob([head, file]);
  const client = createClient(
    SandboxService,
    daemon.transport((url, init) => sendByXhr(url, init, body, options)),
  );
  return client.loadModule({}, { signal: options.signal });
}

/** Encodes all of a request but the module's bytes, which follow it, with the prefix of the whole message. */
export function moduleHead(about: ModuleDescription, size: number): Uint8Array<ArrayBuffer> {
  const rest = toBinary(LoadModuleRequestSchema, create(LoadModuleRequestSchema, { ...about }));
  const field = [WASM_TAG, ...varint(size)];
  const head = new Uint8Array(PREFIX + rest.length + field.length);
  const length = rest.length + field.length + size;
  if (length > 0xffff_ffff) throw new ConnectError('no message of the API has 4 GiB', Code.InvalidArgument);
  new DataView(head.buffer).setUint32(1, length);
  head.set(rest, PREFIX);
  head.set(field, PREFIX + rest.length);
  return head;
}

function varint(value: number): number[] {
  return value < 0x80 ? [value] : [(value % 0x80) | 0x80, ...varint(Math.floor(value / 0x80))];
}

/** A folder that was dropped, or a file that is gone, is told from a connection that broke. */
async function checkReadable(file: Blob): Promise<void> {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new ConnectError('the browser cannot read this file', Code.InvalidArgument);
  }
}

/**
 * Asks the daemon by the first bytes of a message whether it takes one of that length from this caller. It refuses what
 * is too large, or may not be, as soon as it has read the length; else it finds that the rest is missing.
 */
async function askWhetherTaken(daemon: Daemon, head: Uint8Array<ArrayBuffer>, signal: AbortSignal): Promise<void> {
  const transport = daemon.transport((url, init) => send(url, { ...init, body: head.slice(0, PREFIX) }));
  try {
    await createClient(SandboxService, transport).loadModule({}, { signal });
  } catch (error) {
    if (failureOf(error).reason !== 'MALFORMED_REQUEST') throw error;
  }
}

/** Sends a request as `fetch` does, but with another body, of which it tells how much is sent. */
async function sendByXhr(
  url: RequestInfo | URL,
  init: RequestInit | undefined,
  body: Blob,
  { signal, sent }: UploadOptions,
): Promise<Response> {
  const xhr = new XMLHttpRequest();
  xhr.open('POST', String(url));
  xhr.responseType = 'arraybuffer';
  // The browser would add the type of the file.
  new Headers(init?.headers).forEach((value, name) => xhr.setRequestHeader(name, value));
  xhr.upload.onprogress = ({ loaded, total }) => sent(loaded, total);
  xhr.upload.onload = ({ total }) => sent(total, total);
  const abort = () => xhr.abort();
  signal.addEventListener('abort', abort);
  try {
    return await new Promise<Response>((resolve, reject) => {
      xhr.onload = () => {
        resolve(new Response(xhr.response as ArrayBuffer, { status: xhr.status, headers: headersOf(xhr) }));
      };
      xhr.onabort = () => reject(new ConnectError('the upload was ended', Code.Canceled));
      xhr.onerror = () => reject(new ConnectError('the connection broke off', Code.Unavailable));
      signal.throwIfAborted();
      xhr.send(body);
    });
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

function headersOf(xhr: XMLHttpRequest): Headers {
  const lines = xhr.getAllResponseHeaders().trim().split(/\r?\n/);
  const pairs = lines.map((line) => line.split(/:\s*(.*)/, 2) as [string, string]);
  return new Headers(pairs.filter(([name]) => name !== ''));
}
