// Drives a daemon by gRPC-Web with the clients of connect: connect-web over HTTP/1.1, as a browser has it, and
// connect-node over HTTP/2. They get the types of messages from a file of descriptors.
// Usage: web.js URL DESCRIPTORS KIT

'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const { createFileRegistry, fromBinary } = require('@bufbuild/protobuf');
const { FileDescriptorSetSchema } = require('@bufbuild/protobuf/wkt');
const { createClient, Code, ConnectError } = require('@connectrpc/connect');
const web = require('@connectrpc/connect-web');
const node = require('@connectrpc/connect-node');

const [url, descriptors, kit] = process.argv.slice(2);
const files = fromBinary(FileDescriptorSetSchema, fs.readFileSync(descriptors));
const registry = createFileRegistry(files);
const LINES = 100000;

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

  // As many lines as a dashboard may have to show, to a reader that is slow at first.
  let text = '';
  let exit;
  let seq = 0n;
  for await (const event of sandbox.runStream({ spec: spec('count', String(LINES)) })) {
    assert.strictEqual(event.seq, seq, 'no gaps');
    seq += 1n;
    if (event.event.case === 'stdout') text += Buffer.from(event.event.value).toString();
    if (event.event.case === 'exit') exit = event.event.value;
    if (seq < 20n) await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.strictEqual(exit.exitCode, 0);
  const lines = text.trimEnd().split('\n');
  assert.strictEqual(lines.length, LINES);

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
  assert(listed.runs.length >= 2);
}

async function main() {
  await drive(web.createGrpcWebTransport({ baseUrl: url, useBinaryFormat: true }));
  await drive(node.createGrpcWebTransport({ baseUrl: url, httpVersion: '2' }));
  await drive(node.createGrpcWebTransport({ baseUrl: url, httpVersion: '1.1' }));
  console.log('interop ok');
  process.exit(0);
}

main();
