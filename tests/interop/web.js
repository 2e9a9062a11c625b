// Drives a daemon by gRPC-Web with the clients of connect: connect-web over HTTP/1.1, as a browser has it, and
// connect-node over HTTP/2. They get the types of messages from a file of descriptors.
// Usage: web.js URL DESCRIPTORS KIT ADMIN_URL

'use strict';

const assert = require('node:assert');
const { createHash } = require('node:crypto');
const fs = require('node:fs');
const { createFileRegistry, fromBinary } = require('@bufbuild/protobuf');
const { FileDescriptorSetSchema } = require('@bufbuild/protobuf/wkt');
const { createClient, Code, ConnectError } = require('@connectrpc/connect');
const web = require('@connectrpc/connect-web');
const node = require('@connectrpc/connect-node');

const [url, descriptors, kit, admin] = process.argv.slice(2);
const files = fromBinary(FileDescriptorSetSchema, fs.readFileSync(descriptors));
const registry = createFileRegistry(files);
const LINES = 100000;
// Several times what sockets and clients take without being read.
const WIDTH = 767;
const BYTES = LINES * (WIDTH + 1);
// How much is read between two pauses.
const SIP = 8 << 20;
// How far a guest may get ahead of its caller (runs.log_bytes), and with what events cost.
const LOG = 1 << 20;
const MOST_OWED = LOG + (256 << 10);
const MOST_UNWRITTEN = 256 << 10;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function gauge(metrics, name) {
  const line = metrics.split('\n').find((it) => it.startsWith(`${name} `));
  assert(line, `there is no ${name}`);
  return Number(line.split(' ')[1]);
}

const expected = createHash('sha256');
for (let i = 0; i < LINES; i++) expected.update(`line ${i}`.padEnd(WIDTH) + '\n');
const EXPECTED = expected.digest('hex');

// Reads more lines than a dashboard will ever show, and is slow all the time: the guest waits for it.
async function readSlowly(transport, digest) {
  const sandbox = createClient(registry.getService('ringfence.v1.SandboxService'), transport);
  const runs = createClient(registry.getService('ringfence.v1.RunService'), transport);
  const spec = {
    module: { case: 'digest', value: digest },
    args: ['kit', 'count', String(LINES), String(WIDTH)],
    timeout: { seconds: 100n },
  };
  const hash = createHash('sha256');
  let [seq, bytes, sips, owed] = [0n, 0, 0, 0];
  let halfway;
  let exit;
  for await (const event of sandbox.runStream({ spec })) {
    assert.strictEqual(event.seq, seq, 'no gaps');
    seq += 1n;
    if (event.event.case === 'stdout') {
      hash.update(event.event.value);
      bytes += event.event.value.length;
    }
    if (event.event.case === 'exit') exit = event.event.value;
    if (bytes >= (sips + 1) * SIP) {
      sips += 1;
      await pause(150);
      const metrics = await (await fetch(`${admin}/metrics`)).text();
      owed = Math.max(owed, gauge(metrics, 'ringfence_event_log_owed_bytes'));
      const unwritten = gauge(metrics, 'ringfence_answers_unwritten_bytes');
      assert(owed <= MOST_OWED && unwritten <= MOST_UNWRITTEN, `${owed} and ${unwritten} bytes are held`);
    }
    if (!halfway && bytes >= BYTES / 2) halfway = (await runs.getRun({ runId: event.runId })).run;
  }
  assert.strictEqual(exit.exitCode, 0);
  assert.strictEqual(bytes, BYTES);
  assert.strictEqual(hash.digest('hex'), EXPECTED);
  // The daemon held back the guest, and did not take all of its output at once.
  assert.strictEqual(halfway.end.case, undefined, 'the guest goes on');
  const written = Number(halfway.usage.stdoutBytes);
  assert(written <= BYTES * 0.9, `${written} of ${BYTES} bytes are written when half of them are read`);
  assert(owed > LOG / 2, `${owed} bytes were owed at the most`);
}

async function drive(transport) {
  const sandbox = createClient(registry.getService('ringfence.v1.SandboxService'), transport);
  const runs = createClient(registry.getService('ringfence.v1.RunService'), transport);
  const wasm = fs.readFileSync(kit);
  const { module } = await sandbox.loadModule({ source: { case: 'wasm', value: wasm } });
  const spec = (...args) => ({
    module: { case: 'digest', value: module.digest },
    args: ['kit', ...args],
    labels: { from: 'the web' },
  });

  const { result, stdout } = await sandbox.run({ spec: spec('hello') });
  assert.strictEqual(Buffer.from(stdout).toString(), 'hello\n');
  assert.strictEqual(result.exitCode, 0);

  // Refusals have their code, their reason and what is allowed.
  const refused = async (call, code, reason) => {
    const error = ConnectError.from(await call().then(() => assert.fail('it is refused'), (error) => error));
    assert.strictEqual(error.code, code, error);
    const info = error.details.find((it) => it.type === 'google.rpc.ErrorInfo');
    assert(info && Buffer.from(info.value).includes(reason), `${reason}: ${error}`);
    return error;
  };
  const large = { ...spec('hello'), resources: { memoryPages: 70000 } };
  await refused(() => sandbox.run({ spec: large }), Code.InvalidArgument, 'LIMIT_ABOVE_MAXIMUM');
  const first = async () => {
    for await (const event of sandbox.runStream({ spec: large })) assert.fail(event);
  };
  const error = await refused(first, Code.InvalidArgument, 'LIMIT_ABOVE_MAXIMUM');
  assert(error.rawMessage.startsWith('spec.resources.memory_pages: 70000'), error.rawMessage);
  await refused(() => runs.getRun({ runId: 'no id' }), Code.InvalidArgument, 'SPEC_INVALID');

  const listed = await runs.listRuns({ labels: { from: 'the web' } });
  assert(listed.runs.length >= 1);
  return module.digest;
}

async function main() {
  const browser = web.createGrpcWebTransport({ baseUrl: url, useBinaryFormat: true });
  const [http1, http2] = ['1.1', '2'].map((httpVersion) => node.createGrpcWebTransport({ baseUrl: url, httpVersion }));
  for (const transport of [browser, http1]) await drive(transport);
  const digest = await drive(http2);
  for (const transport of [browser, http2]) await readSlowly(transport, digest);
  console.log('interop ok');
  process.exit(0);
}

main();
