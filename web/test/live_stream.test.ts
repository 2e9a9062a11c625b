// A stream that goes on.

import assert from 'node:assert/strict';
import { beforeEach, mock, test } from 'node:test';

import { Code, ConnectError } from '@connectrpc/connect';

import { LiveStream, type StreamState } from '../src/api/live_stream.js';
import { StreamSlots } from '../src/api/stream_slots.js';
import { ErrorInfoSchema, RetryInfoSchema } from '../src/gen/google/rpc/error_details_pb.js';

/** The tab, as far as a stream can tell. */
class Tab extends EventTarget {
  visibilityState: DocumentVisibilityState = 'visible';

  show(state: DocumentVisibilityState): void {
    this.visibilityState = state;
    this.dispatchEvent(new Event('visibilitychange'));
  }
}

let tab = new Tab();

beforeEach(() => {
  tab = new Tab();
  Object.assign(globalThis, { document: tab, window: new EventTarget() });
  mock.timers.reset();
  mock.timers.enable({ apis: ['setTimeout', 'Date'] });
});

/** Lets everything happen that waits for no timer. */
async function settled(): Promise<void> {
  for (let i = 0; i < 20; i += 1) await new Promise((resolve) => setImmediate(resolve));
}

/** A connection that the test hands messages to. */
class Connection {
  #queue: string[] = [];
  #failure: unknown;
  #isClosed = false;
  #wake = () => {};

  constructor(
    readonly signal: AbortSignal,
    readonly accept: () => void,
  ) {
    signal.addEventListener('abort', () => this.fail(new ConnectError('aborted', Code.Canceled)));
  }

  send(message: string): void {
    this.#queue.push(message);
    this.#wake();
  }

  fail(error: unknown): void {
    this.#failure ??= error;
    this.#wake();
  }

  close(): void {
    this.#isClosed = true;
    this.#wake();
  }

  async *messages(): AsyncGenerator<string> {
    for (;;) {
      for (const message of this.#queue.splice(0)) yield message;
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#isClosed) return;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}

/** A stream whose last message is `end`, with all that became of it. */
function opened(slots = new StreamSlots()) {
  const connections: Connection[] = [];
  const taken: string[] = [];
  const states: StreamState[] = [];
  const stream = new LiveStream<string>({
    slots,
    open: (signal, accept) => {
      const connection = new Connection(signal, accept);
      connections.push(connection);
      return connection.messages();
    },
    take: (message) => {
      taken.push(message);
      return message === 'end';
    },
    changed: (state) => states.push(state),
  });
  return { stream, connections, taken, states, kinds: () => states.map((it) => it.kind) };
}

const broken = () => new TypeError('Failed to fetch');

test('nothing happens before its creator has returned', () => {
  const { states, connections } = opened();
  assert.deepEqual([states.length, connections.length], [0, 0]);
});

test('it is live once the daemon begins to answer, and ends with the last message', async () => {
  const { connections, taken, kinds } = opened();
  await settled();
  assert.deepEqual(kinds(), ['connecting']);
  connections[0]!.accept();
  assert.deepEqual(kinds(), ['connecting', 'live']);
  connections[0]!.send('one');
  connections[0]!.send('end');
  connections[0]!.send('what comes after the end');
  await settled();
  assert.deepEqual(taken, ['one', 'end']);
  assert.deepEqual(kinds(), ['connecting', 'live', 'ended']);
  assert.ok(connections[0]!.signal.aborted);
});

test('after a break it is opened again, later each time, and soon once it was live', async () => {
  const { connections, states } = opened();
  const waits: number[] = [];
  for (let i = 0; i < 7; i += 1) {
    await settled();
    if (i === 5) connections[i]!.accept();
    connections[i]!.fail(broken());
    await settled();
    const state = states.at(-1)!;
    assert.equal(state.kind, 'broken');
    waits.push(state.kind === 'broken' ? state.retryAt - Date.now() : 0);
    mock.timers.tick(waits.at(-1)! - 1);
    await settled();
    assert.equal(connections.length, i + 1);
    mock.timers.tick(1);
  }
  assert.deepEqual(waits, [250, 500, 1_000, 2_000, 4_000, 250, 500]);
});

test('a stream that ends without saying so has broken off', async () => {
  const { connections, states } = opened();
  await settled();
  connections[0]!.accept();
  connections[0]!.close();
  await settled();
  assert.equal(states.at(-1)!.kind, 'broken');
});

test('a busy daemon says when to come again, and is not waited for longer than it takes to lose patience', async () => {
  for (const [seconds, wait] of [
    [2, 2_000],
    [60, 5_000],
  ] as const) {
    const { connections, states, stream } = opened();
    await settled();
    const info = { desc: ErrorInfoSchema, value: { reason: 'QUEUE_FULL' } };
    const retry = { desc: RetryInfoSchema, value: { retryDelay: { seconds: BigInt(seconds) } } };
    connections[0]!.fail(new ConnectError('full', Code.ResourceExhausted, undefined, [info, retry]));
    await settled();
    const state = states.at(-1)!;
    assert.equal(state.kind === 'broken' && state.retryAt - Date.now(), wait);
    stream.stop();
  }
});

test('a refusal is the end of it', async () => {
  const { connections, states } = opened();
  await settled();
  const info = { desc: ErrorInfoSchema, value: { reason: 'RUN_NOT_FOUND' } };
  connections[0]!.fail(new ConnectError('no such run', Code.NotFound, undefined, [info]));
  await settled();
  mock.timers.tick(60_000);
  await settled();
  const state = states.at(-1)!;
  assert.equal(state.kind === 'failed' && state.failure.reason, 'RUN_NOT_FOUND');
  assert.equal(connections.length, 1);
});

test('the reader, the network and the daemon each end the wait for the next try', async () => {
  const slots = new StreamSlots();
  const { connections, stream } = opened(slots);
  const wakes = [
    () => stream.retry(),
    () => window.dispatchEvent(new Event('online')),
    () => slots.reopen(performance.now()),
    () => tab.show('visible'),
  ];
  for (const [i, wake] of wakes.entries()) {
    await settled();
    connections[i]!.fail(broken());
    await settled();
    wake();
    await settled();
    assert.equal(connections.length, i + 2);
  }
});

test('it is closed while its tab is hidden, gives its slot away, and goes on where it was', async () => {
  const slots = new StreamSlots(1);
  const { connections, taken, kinds } = opened(slots);
  await settled();
  connections[0]!.accept();
  connections[0]!.send('one');
  await settled();
  tab.show('hidden');
  // It was on its way, and will come again.
  connections[0]!.send('two');
  await settled();
  assert.ok(connections[0]!.signal.aborted);
  (await slots.acquire(new AbortController().signal))();
  assert.deepEqual(taken, ['one']);
  tab.show('visible');
  await settled();
  connections[1]!.send('two');
  await settled();
  assert.deepEqual(taken, ['one', 'two']);
  assert.deepEqual(kinds(), ['connecting', 'live', 'hidden', 'connecting', 'live']);
});

test('a tab that is hidden from the start opens nothing, and one that was hidden for a moment stays open', async () => {
  tab.visibilityState = 'hidden';
  const { connections, kinds } = opened();
  await settled();
  assert.deepEqual([kinds(), connections.length], [['hidden'], 0]);
  tab.show('visible');
  await settled();
  tab.show('hidden');
  tab.show('visible');
  await settled();
  assert.equal(connections.filter((it) => !it.signal.aborted).length, 1);
});

test('where the daemon was away, what was open before is opened again, and what was opened since is not', async () => {
  const slots = new StreamSlots();
  const { connections } = opened(slots);
  await settled();
  connections[0]!.accept();
  const away = performance.now() + 1;
  await new Promise((resolve) => setImmediate(resolve));
  slots.reopen(away);
  await settled();
  assert.equal(connections.length, 2);
  while (performance.now() < away) await settled();
  connections[1]!.accept();
  slots.reopen(away);
  await settled();
  assert.equal(connections.length, 2);
  assert.ok(!connections[1]!.signal.aborted);
});

test('what does not answer is not waited for once the daemon is back', async () => {
  const slots = new StreamSlots();
  const { connections } = opened(slots);
  await settled();
  slots.reopen(0);
  await settled();
  assert.deepEqual(
    connections.map((it) => it.signal.aborted),
    [true, false],
  );
});

test('a stream that waits for a slot is opened once there is one', async () => {
  const slots = new StreamSlots(1);
  const release = await slots.acquire(new AbortController().signal);
  const { connections } = opened(slots);
  await settled();
  slots.reopen(performance.now());
  assert.deepEqual([connections.length, slots.waiting], [0, 1]);
  release();
  await settled();
  assert.equal(connections.length, 1);
});

test('once it is stopped nothing is told, wherever it was', async () => {
  const ways: Array<(connection: Connection) => void> = [
    () => {},
    (it) => it.accept(),
    (it) => it.fail(broken()),
    () => tab.show('hidden'),
  ];
  for (const [i, way] of ways.entries()) {
    tab.show('visible');
    const slots = new StreamSlots(1);
    const { stream, connections, kinds } = opened(slots);
    await settled();
    way(connections[0]!);
    await settled();
    const told = kinds();
    stream.stop();
    tab.show('visible');
    mock.timers.tick(60_000);
    await settled();
    assert.deepEqual(kinds(), told, `way ${i}`);
    assert.equal(connections.length, 1);
    (await slots.acquire(new AbortController().signal))();
  }
});

test('a message that is not taken is an error of the page, not one of the connection', async () => {
  const thrown: unknown[] = [];
  const listeners = process.listeners('unhandledRejection');
  process.removeAllListeners('unhandledRejection');
  process.once('unhandledRejection', (error) => thrown.push(error));
  const slots = new StreamSlots(1);
  const states: StreamState[] = [];
  let opens = 0;
  new LiveStream<string>({
    slots,
    open: async function* () {
      opens += 1;
      yield 'one';
    },
    take: () => {
      throw new Error('as asked');
    },
    changed: (state) => states.push(state),
  });
  await settled();
  mock.timers.tick(60_000);
  await settled();
  for (const listener of listeners) process.on('unhandledRejection', listener);
  assert.match(String(thrown[0]), /as asked/);
  assert.deepEqual([states.at(-1)!.kind, opens], ['failed', 1]);
  (await slots.acquire(new AbortController().signal))();
});
