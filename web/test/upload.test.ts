import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fromBinary } from '@bufbuild/protobuf';
import fc from 'fast-check';

import { moduleHead } from '../src/api/upload.js';
import { LoadModuleRequestSchema } from '../src/gen/ringfence/v1/sandbox_service_pb.js';

test('a head and the bytes of a module are one message', () => {
  const about = fc.record({
    name: fc.string(),
    metered: fc.boolean(),
    labels: fc.dictionary(
      fc.string().filter((it) => it !== '__proto__'),
      fc.string(),
      { noNullPrototype: true },
    ),
  });
  fc.assert(
    fc.property(about, fc.uint8Array({ maxLength: 40_000, size: 'max' }), (described, wasm) => {
      const head = moduleHead(described, wasm.length);
      const whole = new Uint8Array(head.length + wasm.length);
      whole.set(head);
      whole.set(wasm, head.length);
      assert.equal(whole[0], 0);
      assert.equal(new DataView(whole.buffer).getUint32(1), whole.length - 5);
      const message = fromBinary(LoadModuleRequestSchema, whole.subarray(5));
      assert.equal(message.name, described.name);
      assert.equal(message.metered, described.metered);
      assert.deepEqual({ ...message.labels }, { ...described.labels });
      assert.equal(message.source.case, 'wasm');
      assert.deepEqual(Buffer.from(message.source.value as Uint8Array), Buffer.from(wasm));
    }),
    { numRuns: 50 },
  );
});

test('what no message can hold is refused', () => {
  assert.throws(() => moduleHead({ name: '', labels: {}, metered: false }, 2 ** 32), /4 GiB/);
});
