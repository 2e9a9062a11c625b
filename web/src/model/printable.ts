// Text of others, such as labels, names and messages, made fit to be shown: nothing in it is invisible, and nothing
// changes the order in which it is read.

/**
 * Controls, and what has no picture of its own or changes the direction of text: soft hyphens, joiners, bidi controls,
 * line separators, fillers, invisible operators, tags, and surrogates that stand alone. The selectors U+FE00 to U+FE0F
 * remain, because emoji have them.
 */
const HIDDEN = new RegExp(
  '[\\u0000-\\u001f\\u007f-\\u009f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f' +
    '\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\uffa0\\ufff0-\\ufffb' +
    '\\u{1bca0}-\\u{1bca3}\\u{1d173}-\\u{1d17a}\\u{e0000}-\\u{e0fff}\\p{Surrogate}]',
  'gu',
);

/** Shows text on one line, with its hidden characters as `⟨U+202E⟩`, or as `␛` where Unicode has a picture. */
export function printable(text: string): string {
  return text.replace(HIDDEN, show);
}

/** Shows text as [`printable`] does, but leaves its line breaks and tabs. */
export function printableLines(text: string): string {
  return text.replaceAll('\r\n', '\n').replace(HIDDEN, (it) => (it === '\n' || it === '\t' ? it : show(it)));
}

/** Tells whether text has anything that [`printable`] would show otherwise. */
export function hasHidden(text: string): boolean {
  return text.search(HIDDEN) >= 0;
}

/** Replaces each hidden character of a text. */
export function replaceHidden(text: string, replace: (character: string) => string): string {
  return text.replace(HIDDEN, replace);
}

function show(character: string): string {
  const code = character.codePointAt(0) ?? 0;
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return '␡';
  return `⟨U+${code.toString(16).toUpperCase().padStart(4, '0')}⟩`;
}
