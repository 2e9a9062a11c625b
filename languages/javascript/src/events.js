// `EventEmitter` of Node. What happens when a program ends goes by it, so it calls nothing that a program can replace.

const { apply } = Reflect;
const { get, set, delete: remove, clear } = Map.prototype;

export class EventEmitter {
  #listeners = new Map();

  #list(name) {
    return apply(get, this.#listeners, [name]) ?? [];
  }

  // `emit` may be going through a list: what is added comes after the end that it has noted.
  #add(name, listener, isOnce) {
    const list = this.#list(name);
    list[list.length] = { listener, isOnce };
    if (list.length === 1) apply(set, this.#listeners, [name, list]);
    return this;
  }

  on(name, listener) {
    return this.#add(name, listener, false);
  }

  once(name, listener) {
    return this.#add(name, listener, true);
  }

  prependListener(name, listener) {
    const list = this.#list(name);
    const longer = [{ listener, isOnce: false }];
    for (let at = 0; at < list.length; at += 1) longer[at + 1] = list[at];
    apply(set, this.#listeners, [name, longer]);
    return this;
  }

  off(name, listener) {
    const list = this.#list(name);
    let last = list.length - 1;
    while (last >= 0 && list[last].listener !== listener) last -= 1;
    if (last < 0) return this;
    const shorter = [];
    for (let at = 0; at < list.length; at += 1) if (at !== last) shorter[shorter.length] = list[at];
    apply(set, this.#listeners, [name, shorter]);
    return this;
  }

  removeAllListeners(name) {
    if (name === undefined) apply(clear, this.#listeners, []);
    else apply(remove, this.#listeners, [name]);
    return this;
  }

  emit(name, ...values) {
    const list = this.#list(name);
    if (list.length === 0) {
      if (name !== 'error') return false;
      throw values[0] instanceof Error ? values[0] : new Error(`Unhandled error. (${String(values[0])})`);
    }
    const end = list.length;
    for (let at = 0; at < end; at += 1) {
      const { listener, isOnce } = list[at];
      if (isOnce) this.off(name, listener);
      apply(listener, this, values);
    }
    return true;
  }

  listeners(name) {
    const found = [];
    const list = this.#list(name);
    for (let at = 0; at < list.length; at += 1) found[found.length] = list[at].listener;
    return found;
  }

  listenerCount(name) {
    return this.#list(name).length;
  }

  eventNames() {
    return [...this.#listeners].filter(([, list]) => list.length > 0).map(([name]) => name);
  }

  setMaxListeners() {
    return this;
  }
}

const { prototype } = EventEmitter;
Object.assign(prototype, { addListener: prototype.on, removeListener: prototype.off });
EventEmitter.EventEmitter = EventEmitter;
EventEmitter.once = (emitter, name) => new Promise((resolve, reject) => {
  emitter.once(name, (...values) => resolve(values));
  if (name !== 'error') emitter.once('error', reject);
});
