// Timers as Node has them, over one timer of the engine, since each of the engine's takes a handle of the run. The program
// has ended when none is left.

const { setTimeout: start, clearTimeout: stop, Promise: NativePromise } = globalThis;
const { apply } = Reflect;
const { then } = Promise.prototype;
const { ceil, max, trunc } = Math;
const now = performance.now.bind(performance);

// The timers that are set, as a binary heap by the time at which they are due.
const heap = [];

// How many timers keep the program running.
let referenced = 0;
let made = 0;
// The timer whose callback runs at this moment: it is not among those that are set.
let firing;
let wake;
let onError;

// The timer of the engine: its number, and the entry for which it was started.
let engine;
let awaited;

// The timer of the engine that comes after what is queued.
let turn;

const isBefore = (one, other) => one.due < other.due || (one.due === other.due && one.order < other.order);

function put(entry, place) {
  heap[place] = entry;
  entry.place = place;
}

// Moves an entry from its place to where it belongs: towards the top, or else away from it.
function settle(entry) {
  let { place } = entry;
  for (let above = (place - 1) >> 1; place > 0 && isBefore(entry, heap[above]); above = (place - 1) >> 1) {
    put(heap[above], place);
    place = above;
  }
  for (;;) {
    let below = 2 * place + 1;
    if (below + 1 < heap.length && isBefore(heap[below + 1], heap[below])) below += 1;
    if (below >= heap.length || isBefore(entry, heap[below])) break;
    put(heap[below], place);
    place = below;
  }
  put(entry, place);
}

function insert(entry, delay) {
  made += 1;
  entry.order = made;
  entry.due = now() + delay;
  put(entry, heap.length);
  settle(entry);
  arm();
}

function take(entry) {
  const { place } = entry;
  if (place < 0) return;
  const last = heap[heap.length - 1];
  heap.length -= 1;
  if (last !== entry) {
    put(last, place);
    settle(last);
  }
  entry.place = -1;
  arm();
}

// Has the engine wait for the timer that is due first, unless one is fired at this moment.
function arm() {
  const first = heap[0];
  if (firing !== undefined || first === awaited) return;
  if (engine !== undefined) stop(engine);
  awaited = first;
  engine = first === undefined ? undefined : start(fireFirst, max(ceil(first.due - now()), 0));
}

// Fires one timer. Those that are due at the same time have a turn of the engine's each, with what is queued before it.
function fireFirst() {
  const { timer } = awaited;
  engine = undefined;
  awaited = undefined;
  firing = timer;
  try {
    timer.fire();
  } finally {
    firing = undefined;
    arm();
  }
  if (referenced === 0) wake?.();
}

// A timer, as `setTimeout` and `setInterval` return it.
class Timeout {
  #callback;
  #values;
  #isRepeated;
  #isEnded = false;
  #isReferenced = true;
  #isCounted = false;
  #entry = { timer: this, due: 0, order: 0, place: -1 };

  constructor(callback, delay, values, isRepeated) {
    this.#callback = callback;
    this.#values = values;
    this.#isRepeated = isRepeated;
    this.delay = delay >= 1 && delay <= 0x7fffffff ? trunc(delay) : 1;
    this.refresh();
    this.id = this.#entry.order;
  }

  // Counts this among what keeps the program running, if it does.
  #count() {
    const counts = this.#isReferenced && this.#entry.place >= 0;
    if (counts !== this.#isCounted) referenced += counts ? 1 : -1;
    this.#isCounted = counts;
    return this;
  }

  fire() {
    take(this.#entry);
    try {
      // Nobody else waits for what an asynchronous callback promises.
      const result = apply(this.#callback, undefined, this.#values);
      if (result instanceof NativePromise) apply(then, result, [undefined, onError]);
    } catch (error) {
      onError(error);
    }
    if (this.#isRepeated && !this.#isEnded) this.refresh();
    else this.#count();
  }

  end() {
    this.#isEnded = true;
    take(this.#entry);
    this.#count();
  }

  ref() {
    this.#isReferenced = true;
    return this.#count();
  }

  unref() {
    this.#isReferenced = false;
    return this.#count();
  }

  hasRef() {
    return this.#isReferenced;
  }

  refresh() {
    take(this.#entry);
    insert(this.#entry, this.delay);
    return this.#count();
  }

  [Symbol.toPrimitive]() {
    return this.id;
  }

  [Symbol.dispose]() {
    this.end();
  }
}

function checked(callback) {
  if (typeof callback === 'function') return callback;
  throw Object.assign(new TypeError('The "callback" argument must be of type function.'), { code: 'ERR_INVALID_ARG_TYPE' });
}

// Ends a timer, which is given itself or by its number.
function clear(asked) {
  let timer = asked instanceof Timeout ? asked : undefined;
  if (timer === undefined) {
    const id = Number(asked);
    if (firing?.id === id) timer = firing;
    for (let at = 0; timer === undefined && at < heap.length; at += 1) if (heap[at].timer.id === id) timer = heap[at].timer;
  }
  timer?.end();
  if (referenced === 0) wake?.();
}

export const timers = {
  setTimeout: (callback, delay, ...values) => new Timeout(checked(callback), delay, values, false),
  setInterval: (callback, delay, ...values) => new Timeout(checked(callback), delay, values, true),
  setImmediate: (callback, ...values) => new Timeout(checked(callback), 0, values, false),
  clearTimeout: clear,
  clearInterval: clear,
  clearImmediate: clear,
};

// Puts these timers in place of the engine's, and takes what is told of errors in their callbacks.
export function installTimers(report) {
  onError = report;
  Object.assign(globalThis, timers);
}

// Executes an action when all that is queued has run and no timer is left.
export function whenIdle(action) {
  wake = undefined;
  whenQueueIsEmpty(() => {
    if (referenced > 0) wake = () => whenIdle(action);
    else action();
  });
}

// Executes an action when all that is queued has run.
export function whenQueueIsEmpty(action) {
  // The engine runs a timer after everything that is queued.
  turn = start(action, 0);
}

// Ends all timers, and no longer executes an action that waits for their end.
export function endTimers() {
  firing?.end();
  while (heap.length > 0) heap[heap.length - 1].timer.end();
  wake = undefined;
  if (turn !== undefined) stop(turn);
}
