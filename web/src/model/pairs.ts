// `KEY=value` lines, as labels and environments are typed.

const MAX_LABELS = 32;
const MAX_LABEL_BYTES = 128;

/** Pairs in their order, or what is wrong, in words. */
export type Pairs = { readonly pairs: ReadonlyMap<string, string> } | { readonly error: string };

/** Reads lines of `KEY=value`. Empty lines mean nothing; spaces belong to the value. */
export function parsePairs(text: string): Pairs {
  const pairs = new Map<string, string>();
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '') continue;
    const at = line.indexOf('=');
    const key = line.slice(0, at).trim();
    if (at < 0) return { error: `Line ${index + 1} has no “=”: write KEY=value.` };
    if (key === '') return { error: `Line ${index + 1} has nothing before its “=”: write KEY=value.` };
    if (pairs.has(key)) return { error: `Line ${index + 1} has a key that is there already.` };
    if (line.includes('\0')) return { error: `Line ${index + 1} has a NUL character.` };
    pairs.set(key, line.slice(at + 1));
  }
  return { pairs };
}

/** Reads labels as [`parsePairs`] does, by the daemon's rules of labels. */
export function parseLabels(text: string): Pairs {
  const read = parsePairs(text);
  if ('error' in read) return read;
  if (read.pairs.size > MAX_LABELS)
    return { error: `These are ${read.pairs.size} labels; at most ${MAX_LABELS} are allowed.` };
  for (const [key, value] of read.pairs) {
    if (key.startsWith('ringfence.')) return { error: 'Keys that begin with “ringfence.” are the daemon’s own.' };
    if (byteLength(key) > MAX_LABEL_BYTES || byteLength(value) > MAX_LABEL_BYTES) {
      return { error: `A key or value has more than ${MAX_LABEL_BYTES} bytes.` };
    }
    if (/\p{Cc}/u.test(key + value)) return { error: 'A key or value has a control character.' };
  }
  return read;
}

/** Writes pairs as lines. */
export function writePairs(pairs: Iterable<readonly [string, string]>): string {
  return [...pairs].map(([key, value]) => `${key}=${value}`).join('\n');
}

/** Returns how many bytes a text has in UTF-8. */
export function byteLength(text: string): number {
  return new TextEncoder().encode(text).length;
}
