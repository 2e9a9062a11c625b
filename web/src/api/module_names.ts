// The names of modules, which runs tell only by digest.

import type { Daemon } from './client.js';
import { printable } from '../model/printable.js';
import type { ModuleInfo } from '../gen/ringfence/v1/module_pb.js';

const PAGE = 1_000;
/** Names beyond these are not listed, and asked for one by one. */
const MOST_PAGES = 5;
/** The most modules that are asked for one by one: runs of modules that are not stored may be of any number. */
const MOST_ASKED = 500;
/** Another may have stored a module since the names were listed. */
const FRESH_MS = 60_000;

const ofDaemon = new WeakMap<Daemon, ModuleNames>();

/** Finds out names in the background, and fires `change` where some are new. */
export class ModuleNames extends EventTarget {
  readonly #names = new Map<string, string>();
  readonly #asked = new Set<string>();
  #waiting: string[] = [];
  #isAsking = false;
  #listedAt = 0;
  #listing: Promise<void> | undefined;

  private constructor(readonly daemon: Daemon) {
    super();
    // Another tenant has other modules.
    daemon.token.addEventListener('change', () => this.#forget());
  }

  /** Returns the names that all of the page share. */
  static of(daemon: Daemon): ModuleNames {
    const names = ofDaemon.get(daemon) ?? new ModuleNames(daemon);
    ofDaemon.set(daemon, names);
    return names;
  }

  /** The name of a module, fit to be shown; empty where it has none or it is not known yet. */
  readonly nameOf = (digest: string): string => this.#names.get(digest) ?? '';

  /** Lists the names of all stored modules, unless that was done a moment ago. */
  async list(): Promise<void> {
    if (Date.now() - this.#listedAt < FRESH_MS) return;
    this.#listing ??= this.#list().finally(() => (this.#listing = undefined));
    await this.#listing;
  }

  /** Finds out the names of modules that were not listed. */
  want(digests: Iterable<string>): void {
    for (const digest of digests) {
      if (digest === '' || this.#names.has(digest) || this.#asked.has(digest) || this.#asked.size >= MOST_ASKED)
        continue;
      this.#asked.add(digest);
      this.#waiting.push(digest);
    }
    if (!this.#isAsking && this.#waiting.length > 0) void this.#ask();
  }

  #forget(): void {
    this.#names.clear();
    this.#asked.clear();
    this.#waiting = [];
    this.#listedAt = 0;
  }

  async #list(): Promise<void> {
    let pageToken = '';
    try {
      for (let page = 0; page < MOST_PAGES; page++) {
        const listed = await this.daemon.modules.listModules({ pageSize: PAGE, pageToken });
        listed.modules.forEach((it) => this.#take(it));
        pageToken = listed.nextPageToken;
        if (pageToken === '') break;
      }
      this.#listedAt = Date.now();
      this.dispatchEvent(new Event('change'));
    } catch {
      // Runs are told by digest then. The names are listed again when a page is opened.
    }
  }

  async #ask(): Promise<void> {
    this.#isAsking = true;
    // Names are listed first, which finds out most of them at once.
    await this.list();
    for (let digest = this.#waiting.shift(); digest !== undefined; digest = this.#waiting.shift()) {
      if (this.#names.has(digest)) continue;
      try {
        const { module } = await this.daemon.modules.getModule({ digest });
        if (module !== undefined) this.#take(module);
        this.dispatchEvent(new Event('change'));
      } catch {
        // A module that came with its run is not stored, and has no name here.
      }
    }
    this.#isAsking = false;
  }

  #take({ digest, name, nameSection }: ModuleInfo): void {
    this.#names.set(digest, printable(name === '' ? nameSection : name));
  }
}
