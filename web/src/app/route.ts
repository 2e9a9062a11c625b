// Addresses inside the page. They stand behind the `#`, so that they work under whichever path a proxy has the page.

import { readRange, type RunRange, writeRange } from '../model/run_range.js';

/** A place in a run's output: bytes of one event, which mean the same however often the output is read. */
export interface LogPosition {
  readonly seq: bigint;
  readonly offset: number;
}

/** The states of runs that a list may be limited to. */
export type StateFilter = 'compiling' | 'queued' | 'running' | 'ended';

export const STATE_FILTERS: readonly StateFilter[] = ['compiling', 'queued', 'running', 'ended'];

/** What is shown. */
export type Route =
  | {
      readonly page: 'runs';
      readonly text: string;
      readonly states: readonly StateFilter[];
      readonly labels: ReadonlyMap<string, string>;
      /** The time in which runs were asked for; absent for what the daemon remembers. */
      readonly range?: RunRange | undefined;
    }
  | { readonly page: 'run'; readonly id: string; readonly at: LogPosition | undefined }
  | {
      readonly page: 'together';
      readonly labels: ReadonlyMap<string, string>;
      readonly ids: readonly string[];
      readonly layout: 'merged' | 'columns';
    }
  | { readonly page: 'modules'; readonly text: string }
  | { readonly page: 'module'; readonly digest: string }
  | { readonly page: 'start'; readonly digest: string; readonly from: string }
  | { readonly page: 'overview' }
  | { readonly page: 'unknown'; readonly path: string };

export const HOME: Route = { page: 'runs', text: '', states: [], labels: new Map() };

/** Reads what stands behind the `#` of an address. */
export function parseRoute(hash: string): Route {
  const [path = '', query = ''] = splitOnce(hash.replace(/^#/, ''), '?');
  const params = new URLSearchParams(query);
  const parts = path
    .split('/')
    .filter((it) => it !== '')
    .map(decode);
  const labels = new Map(params.getAll('label').map(parseLabel));
  const [page = 'runs', item] = parts;
  if (parts.length > 2) return { page: 'unknown', path };
  if (page === 'runs' && item === undefined) {
    const states = STATE_FILTERS.filter((it) => params.getAll('state').includes(it));
    const range = readRange(params);
    return { page, text: params.get('text') ?? '', states, labels, ...(range && { range }) };
  }
  if (page === 'runs' && item !== undefined)
    return { page: 'run', id: item, at: parsePosition(params.get('at') ?? '') };
  if (page === 'together' && item === undefined) {
    const layout = params.get('layout') === 'columns' ? 'columns' : 'merged';
    return { page, labels, ids: params.getAll('run'), layout };
  }
  if (page === 'modules' && item === undefined) return { page, text: params.get('text') ?? '' };
  if (page === 'modules' && item !== undefined) return { page: 'module', digest: item };
  if (page === 'start' && item === undefined) {
    return { page, digest: params.get('module') ?? '', from: params.get('from') ?? '' };
  }
  if (page === 'overview' && item === undefined) return { page };
  return { page: 'unknown', path };
}

/** Returns what is the same for routes of one place, of which a filter or a line may be another. */
export function placeOf(route: Route): string {
  switch (route.page) {
    case 'run':
      return `run ${route.id}`;
    case 'module':
      return `module ${route.digest}`;
    case 'start':
      return `start ${route.digest} ${route.from}`;
    case 'runs':
    case 'together':
    case 'modules':
    case 'overview':
    case 'unknown':
      return route.page;
  }
}

/** Writes a route as what stands behind the `#`, with the `#`. */
export function formatRoute(route: Route): string {
  const params = new URLSearchParams();
  const add = (name: string, value: string) => {
    if (value !== '') params.append(name, value);
  };
  let path: string;
  switch (route.page) {
    case 'runs':
      path = 'runs';
      add('text', route.text);
      for (const state of route.states) add('state', state);
      for (const label of route.labels) add('label', formatLabel(label));
      writeRange(route.range, params);
      break;
    case 'run':
      path = `runs/${encodeURIComponent(route.id)}`;
      if (route.at !== undefined) add('at', formatPosition(route.at));
      break;
    case 'together':
      path = 'together';
      for (const label of route.labels) add('label', formatLabel(label));
      for (const id of route.ids) add('run', id);
      if (route.layout === 'columns') add('layout', route.layout);
      break;
    case 'modules':
      path = 'modules';
      add('text', route.text);
      break;
    case 'module':
      path = `modules/${encodeURIComponent(route.digest)}`;
      break;
    case 'start':
      path = 'start';
      add('module', route.digest);
      add('from', route.from);
      break;
    case 'overview':
      path = 'overview';
      break;
    case 'unknown':
      path = route.path.replace(/^\//, '');
      break;
  }
  const query = params.toString();
  return query === '' ? `#/${path}` : `#/${path}?${query}`;
}

/** Reads a place as [`formatPosition`] writes it. */
export function parsePosition(text: string): LogPosition | undefined {
  const [, seq, offset] = /^(\d{1,19})\.(\d{1,9})$/.exec(text) ?? [];
  return seq === undefined || offset === undefined ? undefined : { seq: BigInt(seq), offset: Number(offset) };
}

/** Writes a place as `SEQ.OFFSET`. */
export function formatPosition(at: LogPosition): string {
  return `${at.seq}.${at.offset}`;
}

/** Writes a label as `KEY=VALUE`. A key may have any character, so an `=` in it is written in another way. */
function formatLabel([key, value]: readonly [string, string]): string {
  return `${key.replace(/[%=]/g, encodeURIComponent)}=${value}`;
}

function parseLabel(text: string): [string, string] {
  const [key, value] = splitOnce(text, '=');
  return [decode(key), value];
}

function splitOnce(text: string, separator: string): [string, string] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + separator.length)];
}

/** Decodes what a browser encoded; what is no escape stands for itself. */
export function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
