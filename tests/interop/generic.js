// Drives a daemon with grpc-js and no file of its own: it learns the types of an error's details by reflection.
// Usage: generic.js TARGET

'use strict';

const assert = require('node:assert');
const grpc = require('@grpc/grpc-js');
const protobuf = require('protobufjs');
require('protobufjs/ext/descriptor');

const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure());
const asIs = (it) => it;

// The file that has a symbol, as reflection's answer has it: field 4 of the answer, and of that field 1.
function fileWith(symbol) {
  const request = protobuf.Writer.create().uint32(34).string(symbol).finish();
  const path = '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo';
  const call = client.makeBidiStreamRequest(path, asIs, asIs);
  return new Promise((resolve, reject) => {
    call.on('error', reject);
    call.on('data', (answer) => {
      const [described] = fields(answer, 4);
      resolve(fields(described, 1)[0]);
      call.end();
    });
    call.write(Buffer.from(request));
  });
}

// The values of a field whose values have a length.
function fields(bytes, number) {
  const reader = protobuf.Reader.create(bytes);
  const found = [];
  while (reader.pos < reader.len) {
    const key = reader.uint32();
    if (key === ((number << 3) | 2)) found.push(reader.bytes());
    else reader.skipType(key & 7);
  }
  return found;
}

function call(path, request) {
  return new Promise((resolve) => {
    const done = (error, answer) => resolve({ error, answer });
    client.makeUnaryRequest(path, asIs, asIs, request, { deadline: Date.now() + 30000 }, done);
  });
}

async function main() {
  const health = await call('/grpc.health.v1.Health/List', Buffer.alloc(0));
  assert(health.answer.includes('ringfence.v1.RunService'), health.error);

  const { error } = await call('/ringfence.v1.SandboxService/Run', Buffer.alloc(0));
  assert.strictEqual(error.code, grpc.status.INVALID_ARGUMENT);
  const [details] = error.metadata.get('grpc-status-details-bin');

  const symbols = ['google.rpc.Status', 'google.rpc.ErrorInfo', 'google.protobuf.Any', 'google.protobuf.Duration'];
  const set = protobuf.Writer.create();
  for (const file of await Promise.all(symbols.map(fileWith))) set.uint32(10).bytes(file);
  const root = protobuf.Root.fromDescriptor(set.finish());
  const known = {};
  for (const detail of root.lookupType('google.rpc.Status').decode(details).details) {
    const name = detail.type_url.split('/')[1];
    known[name] = root.lookupType(name).decode(detail.value);
  }
  const info = known['google.rpc.ErrorInfo'];
  assert.deepStrictEqual([info.domain, info.reason], ['ringfence', 'SPEC_INVALID']);
  // Of a map, what was described is its entries.
  const metadata = info.metadata.map((entry) => [entry.key, entry.value]);
  assert.deepStrictEqual(metadata, [['field', 'spec']]);
  console.log('interop ok');
  client.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
