// Asking the daemon how it is.

import assert from 'node:assert/strict';
import { beforeEach, mock, test } from 'node:test';

import { Code, ConnectError } from '@connectrpc/connect';

import type { Daemon } from '../src/api/client.js';
import { StreamSlots } from '../src/api/stream_slots.js';
import { HealthWatch } from '../src/app/health_watch.js';

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

async function settled(): Promise<void> {
  for (let i = 0; i < 10; i += 1) await new Promise((resolve) => setImmediate(resolve));
}

async function pass(ms: number): Promise<void> {
  mock.timers.tick(ms);
  await settled();
}

/** A daemon that answers as the test says, with what it was asked. */
class FakeDaemon extends EventTarget {
  readonly token = new EventTarget();
  readonly slots = new StreamSlots();
  error: unknown;
  asked = 0;
  readonly sandbox = {
    health: async () => {
      this.asked += 1;
      if (this.error !== undefined) throw this.error;
      return { instance: 'test' };
    },
  };
}

function watched() {
  const daemon = new FakeDaemon();
  const gone = new AbortController();
  const told = { recovered: 0, reopened: 0 };
  daemon.slots.addEventListener('reopen', () => (told.reopened += 1));
  const watch = new HealthWatch({
    daemon: daemon as unknown as Daemon,
    signal: gone.signal,
    changed: () => {},
    recovered: () => (told.recovered += 1),
  });
  return { daemon, gone, told, watch };
}

const away = new TypeError('Failed to fetch');

test('it asks every ten seconds, and every second while nobody answers', async () => {
  const { daemon, watch, told } = watched();
  await settled();
  assert.equal(daemon.asked, 1);
  await pass(9_999);
  assert.equal(daemon.asked, 1);
  await pass(1);
  assert.equal(daemon.asked, 2);
  daemon.error = away;
  await pass(10_000);
  assert.notEqual(watch.failure, undefined);
  assert.equal(watch.health?.instance, 'test');
  for (let i = 0; i < 3; i += 1) await pass(1_000);
  assert.equal(daemon.asked, 6);
  assert.deepEqual(told, { recovered: 0, reopened: 0 });
  daemon.error = undefined;
  await pass(1_000);
  assert.equal(watch.failure, undefined);
  assert.deepEqual(told, { recovered: 1, reopened: 1 });
});

test('it asks at once where another call finds that the daemon is away, or back', async () => {
  const { daemon, watch } = watched();
  await settled();
  daemon.dispatchEvent(new Event('answered'));
  await settled();
  assert.equal(daemon.asked, 1);
  daemon.error = away;
  daemon.dispatchEvent(new Event('unreachable'));
  await settled();
  assert.notEqual(watch.failure, undefined);
  daemon.dispatchEvent(new Event('unreachable'));
  await settled();
  assert.equal(daemon.asked, 2);
  daemon.error = undefined;
  daemon.dispatchEvent(new Event('answered'));
  await settled();
  assert.equal(watch.failure, undefined);
});

test('a hidden tab asks nothing, and one that is shown asks at once', async () => {
  const { daemon } = watched();
  await settled();
  tab.show('hidden');
  await settled();
  await pass(60_000);
  assert.equal(daemon.asked, 1);
  tab.show('visible');
  await settled();
  assert.equal(daemon.asked, 2);
});

test('who asks is no question of whether it answers', async () => {
  const { daemon, watch } = watched();
  daemon.error = new ConnectError('no token', Code.Unauthenticated);
  await settled();
  await pass(10_000);
  assert.equal(watch.failure, undefined);
});

test('after the machine was asleep, what was open is opened again', async () => {
  const { told } = watched();
  await settled();
  mock.timers.setTime(Date.now() + 3_600_000);
  await pass(10_000);
  assert.deepEqual(told, { recovered: 1, reopened: 1 });
  await pass(10_000);
  assert.deepEqual(told, { recovered: 1, reopened: 1 });
});

test('once it is over, nobody is asked', async () => {
  const { daemon, gone } = watched();
  await settled();
  gone.abort();
  await settled();
  await pass(60_000);
  daemon.dispatchEvent(new Event('unreachable'));
  tab.show('visible');
  await settled();
  assert.equal(daemon.asked, 1);
});
