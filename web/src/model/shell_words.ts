// Words of a command line, quoted as a shell quotes them. Nothing is expanded: `$HOME` and `*.txt` are what they are.

/** Words, or why a line cannot be split into words. */
export type Words = { readonly words: readonly string[] } | { readonly error: string };

/** Splits a line into words as a POSIX shell does: by `'…'`, `"…"` and `\`. Line breaks separate words too. */
export function splitWords(line: string): Words {
  const words: string[] = [];
  let word: string | undefined;
  let quote: string | undefined;
  for (let at = 0; at < line.length; at += 1) {
    const char = line[at] ?? '';
    const next = line[at + 1];
    if (quote === "'") {
      if (char === "'") quote = undefined;
      else word += char;
    } else if (char === '\\' && (quote === undefined || isEscapedInQuotes(next))) {
      if (next === undefined) return { error: 'The line ends with \\, after which a character is missing.' };
      // A line that ends with a backslash goes on in the next one.
      if (next !== '\n') word = (word ?? '') + next;
      at += 1;
    } else if (quote === '"') {
      if (char === '"') quote = undefined;
      else word += char;
    } else if (char === "'" || char === '"') {
      quote = char;
      word ??= '';
    } else if (/\s/.test(char)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else {
      word = (word ?? '') + char;
    }
  }
  if (quote !== undefined) return { error: `The quote ${quote} is opened and not closed.` };
  if (word !== undefined) words.push(word);
  return { words };
}

/** Writes words as one line, which [`splitWords`] and any POSIX shell read as the same words. */
export function joinWords(words: readonly string[]): string {
  return words.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)).join(' ');
}

/** Tells whether a backslash before a character means that character, between double quotes. */
function isEscapedInQuotes(char: string | undefined): boolean {
  return char !== undefined && '\\"$`\n'.includes(char);
}
