// The semaphore of streams.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import fc from 'fast-check';

import { MAX_STREAMS, StreamSlots } from '../src/api/stream_slots.js';

const never = new AbortController().signal;

/** Lets everything that can happen happen. */
async function settled(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

test('two streams have a slot, and the third waits for one of theirs', async () => {
  const slots = new StreamSlots();
  assert.equal(MAX_STREAMS, 2);
  const first = await slots.acquire(never);
  await slots.acquire(never);
  let isThere = false;
  const third = slots.acquire(never).then((release) => {
    isThere = true;
    return release;
  });
  await settled();
  assert.deepEqual([isThere, slots.waiting], [false, 1]);
  first();
  await third;
  assert.equal(slots.waiting, 0);
});

test('a slot is given back once, however often it is said', async () => {
  const slots = new StreamSlots(1);
  const release = await slots.acquire(never);
  release();
  release();
  await slots.acquire(never);
  void slots.acquire(never);
  await settled();
  assert.equal(slots.waiting, 1);
});

test('whoever leaves the line takes no slot with them', async () => {
  const slots = new StreamSlots(1);
  const release = await slots.acquire(never);
  const leaving = new AbortController();
  const left = slots.acquire(leaving.signal);
  const next = slots.acquire(never);
  leaving.abort(new Error('left'));
  await assert.rejects(left, /left/);
  release();
  await next;
  await assert.rejects(slots.acquire(leaving.signal), /left/);
});

test('whoever was asked to open again knows since when', () => {
  const slots = new StreamSlots();
  const heard: number[] = [];
  slots.addEventListener('reopen', () => heard.push(slots.distrustedUntil));
  slots.reopen(5);
  slots.reopen(7);
  assert.deepEqual(heard, [5, 7]);
});

/** Steps of a test: somebody comes, the oldest of those who hold a slot gives it back, or the n-th waiter leaves. */
const steps = fc.array(
  fc.oneof(
    fc.constant({ do: 'come' as const }),
    fc.constant({ do: 'release' as const }),
    fc.record({ do: fc.constant('leave' as const), who: fc.nat(5) }),
  ),
  { maxLength: 60 },
);

test('never more hold a slot than there are, none is lost, and they are served in order', async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 3 }), steps, async (size, todo) => {
      const slots = new StreamSlots(size);
      const holding: Array<() => void> = [];
      let waiting: Array<{ id: number; leave: AbortController }> = [];
      const served: number[] = [];
      let next = 0;
      for (const step of todo) {
        if (step.do === 'come') {
          const one = { id: next++, leave: new AbortController() };
          waiting.push(one);
          const granted = (release: () => void) => {
            waiting = waiting.filter((it) => it !== one);
            served.push(one.id);
            holding.push(release);
          };
          slots.acquire(one.leave.signal).then(granted, () => {});
        } else if (step.do === 'release') {
          holding.shift()?.();
        } else {
          const [one] = waiting.splice(step.who, 1);
          one?.leave.abort();
        }
        await settled();
        assert.ok(holding.length <= size);
        assert.ok(holding.length === size || waiting.length === 0, 'nobody waits while a slot is free');
        assert.equal(slots.waiting, waiting.length);
      }
      assert.deepEqual(
        served,
        [...served].sort((a, b) => a - b),
      );
    }),
    { numRuns: 60 },
  );
});
