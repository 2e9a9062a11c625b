import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { type InputAnswer, type InputPiece, type InputRefusal, InputSender } from '../src/model/input_sender.js';

const NO_REFUSAL = { message: '', expected: undefined, retryAfterMs: undefined, isTransient: false };

function refusal(reason: string, more: Partial<InputRefusal> = {}): InputRefusal {
  return { ...NO_REFUSAL, reason, ...more };
}

/** A run's input as the daemon keeps it, with room for some bytes at a time, and with answers that get lost. */
class Input {
  readonly bytes: number[] = [];
  isClosed = false;
  /** How many bytes fit until the guest reads. */
  room = Infinity;
  /** Tells of each call whether it is lost before it arrives, or its answer is. */
  fate: () => 'arrives' | 'lost' | 'answer lost' = () => 'arrives';
  calls = 0;

  readonly take = async ({ offset, data, eof }: InputPiece): Promise<InputAnswer> => {
    this.calls += 1;
    const fate = this.fate();
    if (fate === 'lost') throw refusal('', { isTransient: true, message: 'the connection broke off' });
    const at = Number(offset);
    if (at > this.bytes.length) throw refusal('INPUT_GAP', { expected: BigInt(this.bytes.length) });
    const known = this.bytes.slice(at, at + data.length);
    if (known.some((byte, index) => byte !== data[index])) {
      throw refusal('INPUT_CONFLICT', { expected: BigInt(this.bytes.length) });
    }
    const fresh = [...data.slice(known.length)];
    if (this.isClosed && fresh.length > 0) throw refusal('INPUT_CLOSED');
    const taken = fresh.slice(0, this.room);
    if (fresh.length > 0 && taken.length === 0) throw refusal('INPUT_FULL', { retryAfterMs: 1 });
    this.room -= taken.length;
    this.bytes.push(...taken);
    const accepted = known.length + taken.length;
    if (eof && accepted === data.length) this.isClosed = true;
    if (fate === 'answer lost') throw refusal('', { isTransient: true, message: 'the connection broke off' });
    return { accepted: BigInt(accepted), nextOffset: BigInt(this.bytes.length), closed: this.isClosed };
  };
}

function senderOf(input: Input, wait = async () => {}) {
  const settled = { check: () => {} };
  const sender: InputSender = new InputSender({ send: input.take, wait, changed: () => settled.check() }, 0n);
  const until = async (kind: string) =>
    new Promise<void>((resolve) => {
      settled.check = () => {
        if (sender.state.kind === kind) resolve();
      };
      settled.check();
    });
  return { sender, until };
}

const bytes = (text: string) => new TextEncoder().encode(text);

test('all that is written arrives once and in its order, whatever gets lost and however little fits', async () => {
  const fates = fc.array(fc.constantFrom('arrives', 'lost', 'answer lost' as const), { maxLength: 30 });
  const pieces = fc.array(fc.uint8Array({ maxLength: 20 }), { maxLength: 8 });
  await fc.assert(
    fc.asyncProperty(pieces, fates, fc.integer({ min: 1, max: 7 }), async (written, fate, room) => {
      const input = new Input();
      input.room = room;
      input.fate = () => (fate.shift() ?? 'arrives') as 'arrives';
      const { sender, until } = senderOf(input, async () => {
        input.room = room;
      });
      written.forEach((it) => sender.write(it));
      sender.end();
      await until('closed');
      assert.deepEqual(
        input.bytes,
        written.flatMap((it) => [...it]),
      );
      assert.equal(input.isClosed, true);
      assert.equal(sender.waiting, 0);
    }),
  );
});

test('more than a call takes is sent in several', async () => {
  const input = new Input();
  const { sender, until } = senderOf(input);
  sender.write(new Uint8Array(150_000));
  await until('idle');
  assert.deepEqual([input.bytes.length, input.calls, sender.sent], [150_000, 3, 150_000n]);
});

test('another writer is told of, and the rest goes behind what it sent, or nowhere', async () => {
  const input = new Input();
  const { sender, until } = senderOf(input);
  input.bytes.push(...bytes('theirs'));
  sender.write(bytes('mine'));
  await until('conflict');
  assert.deepEqual(sender.state, { kind: 'conflict', expected: 6n, message: '' });
  sender.goOn();
  await until('idle');
  assert.equal(new TextDecoder().decode(new Uint8Array(input.bytes)), 'theirsmine');
  input.bytes.push(...bytes('!'));
  sender.write(bytes('?'));
  await until('conflict');
  sender.drop();
  await until('idle');
  assert.deepEqual([sender.waiting, sender.sent, input.bytes.length], [0, 11n, 11]);
});

test('nothing is sent after the end, and a run that ended takes nothing', async () => {
  const input = new Input();
  const { sender, until } = senderOf(input);
  sender.write(bytes('a'));
  sender.end();
  sender.write(bytes('b'));
  await until('closed');
  assert.deepEqual([input.bytes.length, sender.isEnding], [1, true]);
  const gone = new InputSender(
    {
      send: () => Promise.reject(refusal('RUN_ENDED', { message: 'it has ended' })),
      wait: async () => {},
      changed: () => {},
    },
    0n,
  );
  gone.write(bytes('a'));
  await new Promise((resolve) => setTimeout(resolve));
  assert.deepEqual(gone.state, { kind: 'closed', reason: 'RUN_ENDED', message: 'it has ended' });
});

test('a sender that is stopped tries no more', async () => {
  const input = new Input();
  input.room = 0;
  let waits = 0;
  const { sender } = senderOf(input, async () => {
    waits += 1;
    if (waits === 3) sender.stop();
  });
  sender.write(bytes('a'));
  while (waits < 3) await new Promise((resolve) => setTimeout(resolve));
  await new Promise((resolve) => setTimeout(resolve));
  assert.equal(input.calls, 3);
});
