// `path` of Node, for paths with slashes.

export const sep = '/';
export const delimiter = ':';

// Returns a path without ".", without ".." where it can be told, and without double slashes.
export function normalize(path) {
  const isAbsolute = path.startsWith('/');
  const parts = [];
  for (const part of path.split('/')) {
    if (part === '' || part === '.') continue;
    if (part !== '..') parts.push(part);
    else if (parts.length > 0 && parts.at(-1) !== '..') parts.pop();
    else if (!isAbsolute) parts.push('..');
  }
  const joined = parts.join('/') + (path.endsWith('/') && parts.length > 0 ? '/' : '');
  return isAbsolute ? `/${joined}` : joined || '.';
}

export function isAbsolute(path) {
  return path.startsWith('/');
}

export function join(...parts) {
  const joined = parts.filter((part) => part !== '').join('/');
  return joined === '' ? '.' : normalize(joined);
}

export function resolve(...parts) {
  let path = '';
  for (const part of parts.toReversed()) {
    path = path === '' ? part : `${part}/${path}`;
    if (part.startsWith('/')) break;
  }
  const whole = normalize(path.startsWith('/') ? path : `/${path}`);
  return whole.length > 1 && whole.endsWith('/') ? whole.slice(0, -1) : whole;
}

export function dirname(path) {
  const trimmed = path.replace(/\/+$/, '');
  const at = trimmed.lastIndexOf('/');
  if (at < 0) return path.startsWith('/') ? '/' : '.';
  return trimmed.slice(0, at).replace(/\/+$/, '') || '/';
}

export function basename(path, suffix = '') {
  const name = path.replace(/\/+$/, '').split('/').at(-1) ?? '';
  return suffix !== '' && name !== suffix && name.endsWith(suffix) ? name.slice(0, -suffix.length) : name;
}

export function extname(path) {
  const name = basename(path);
  const at = name.lastIndexOf('.');
  return at > 0 ? name.slice(at) : '';
}

export function relative(from, to) {
  const here = resolve(from).split('/').filter((part) => part !== '');
  const there = resolve(to).split('/').filter((part) => part !== '');
  let same = 0;
  while (same < here.length && same < there.length && here[same] === there[same]) same += 1;
  return [...here.slice(same).map(() => '..'), ...there.slice(same)].join('/');
}

export function parse(path) {
  const base = basename(path);
  const ext = extname(path);
  const root = path.startsWith('/') ? '/' : '';
  const dir = path.includes('/') ? dirname(path) : '';
  return { root, dir, base, ext, name: base.slice(0, base.length - ext.length) };
}

export function format({ dir, root = '', base, name = '', ext = '' }) {
  const file = base ?? name + ext;
  if (dir === undefined || dir === '') return root + file;
  return dir === root ? dir + file : `${dir}/${file}`;
}
