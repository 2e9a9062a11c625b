// Reads regular expressions as JavaScript writes them, but for what cannot be matched in linear time.

/** A pattern that cannot be searched for. Its message is for whoever typed it. */
export class PatternError extends Error {}

/** Tells whether a character, by its code point, is one of a set. */
export type CharacterTest = (code: number) => boolean;

/** A condition on a place, which takes no character. */
export type Assertion = 'start' | 'end' | 'boundary' | 'no-boundary';

/** A regular expression, as a tree. */
export type RegexNode =
  | { readonly kind: 'character'; readonly test: CharacterTest; readonly literal: string | undefined }
  | { readonly kind: 'assertion'; readonly assertion: Assertion }
  | { readonly kind: 'sequence'; readonly items: readonly RegexNode[] }
  | { readonly kind: 'either'; readonly branches: readonly RegexNode[] }
  | {
      readonly kind: 'repeat';
      readonly item: RegexNode;
      readonly min: number;
      readonly max: number;
      readonly isLazy: boolean;
    };

const ESCAPED: Readonly<Record<string, string>> = { n: '\n', r: '\r', t: '\t', v: '\v', f: '\f', 0: '\0' };

/** Reads a pattern, or throws a `PatternError`. */
export function parseRegex(source: string, ignoreCase: boolean): RegexNode {
  return new Parser(source, ignoreCase, checkSyntax(source)).parse();
}

/** Has the browser judge the pattern. Returns whether it is one with the flag `u`. */
function checkSyntax(source: string): boolean {
  for (const flags of ['u', '']) {
    try {
      new RegExp(source, flags);
      return flags === 'u';
    } catch (error) {
      if (flags === '') throw new PatternError((error as Error).message.replace(/^.*: /s, ''));
    }
  }
  return false;
}

class Parser {
  #at = 0;

  constructor(
    private readonly source: string,
    private readonly ignoreCase: boolean,
    private readonly isUnicode: boolean,
  ) {}

  parse(): RegexNode {
    return this.#either();
  }

  #takes(text: string): boolean {
    if (!this.source.startsWith(text, this.#at)) return false;
    this.#at += text.length;
    return true;
  }

  #either(): RegexNode {
    const branches = [this.#sequence()];
    while (this.#takes('|')) branches.push(this.#sequence());
    return branches.length === 1 ? branches[0]! : { kind: 'either', branches };
  }

  #sequence(): RegexNode {
    const items: RegexNode[] = [];
    while (this.#at < this.source.length && this.source[this.#at] !== '|' && this.source[this.#at] !== ')') {
      items.push(this.#repeat(this.#atom()));
    }
    return items.length === 1 ? items[0]! : { kind: 'sequence', items };
  }

  #repeat(item: RegexNode): RegexNode {
    const [, mark] = this.#matches(/([*+?])/y) ?? [];
    const [, least, comma, most] = mark === undefined ? (this.#matches(/\{(\d+)(?:(,)(\d*))?\}/y) ?? []) : [];
    if (mark === undefined && least === undefined) return item;
    const min = mark === '+' ? 1 : Number(least ?? 0);
    const max = mark === '?' ? 1 : least !== undefined && comma === undefined ? min : most ? Number(most) : Infinity;
    return { kind: 'repeat', item, min, max, isLazy: this.#takes('?') };
  }

  #matches(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.source);
    if (match !== null) this.#at += match[0].length;
    return match;
  }

  #atom(): RegexNode {
    if (this.#takes('(')) return this.#group();
    if (this.#takes('^')) return { kind: 'assertion', assertion: 'start' };
    if (this.#takes('$')) return { kind: 'assertion', assertion: 'end' };
    if (this.#takes('.')) return { kind: 'character', test: () => true, literal: undefined };
    const set = this.#matches(/\[(?:\\.|[^\]\\])*\]/suy);
    if (set !== null) return this.#set(set[0]);
    if (this.#takes('\\')) return this.#escape();
    const character = String.fromCodePoint(this.source.codePointAt(this.#at) ?? 0);
    this.#at += character.length;
    return this.#literal(character);
  }

  #group(): RegexNode {
    if (!this.#takes('?:') && this.#matches(/\?<[^=!>][^>]*>/y) === null && this.source[this.#at] === '?') {
      throw new PatternError('Look-around and modifiers cannot be searched for here');
    }
    const inside = this.#either();
    this.#takes(')');
    return inside;
  }

  #escape(): RegexNode {
    if (this.#takes('b')) return { kind: 'assertion', assertion: 'boundary' };
    if (this.#takes('B')) return { kind: 'assertion', assertion: 'no-boundary' };
    if (this.#matches(/[1-9]|k</y) !== null) throw new PatternError('Back references cannot be searched for here');
    const set = this.#matches(this.isUnicode ? /[dDwWsS]|[pP]\{[^}]*\}/y : /[dDwWsS]/y);
    if (set !== null) return this.#set(`\\${set[0]}`);
    const numbers = this.isUnicode ? /x([\da-f]{2})|u([\da-f]{4})|u\{([\da-f]+)\}/iy : /x([\da-f]{2})|u([\da-f]{4})/iy;
    const [, hex, unicode, point] = this.#matches(numbers) ?? [];
    const digits = hex ?? unicode ?? point;
    if (digits !== undefined) return this.#literal(String.fromCodePoint(parseInt(digits, 16)));
    const [, control] = this.#matches(/c([a-z])/iy) ?? [];
    if (control !== undefined) return this.#literal(String.fromCharCode(control.charCodeAt(0) % 32));
    const character = String.fromCodePoint(this.source.codePointAt(this.#at) ?? 0);
    this.#at += character.length;
    return this.#literal(ESCAPED[character] ?? character);
  }

  #literal(character: string): RegexNode {
    const code = character.codePointAt(0) ?? 0;
    if (!this.ignoreCase) return { kind: 'character', test: (it) => it === code, literal: character };
    const lower = character.toLowerCase();
    const codes = new Set([character, lower, character.toUpperCase(), lower.toUpperCase()].map((it) => it.codePointAt(0)));
    return { kind: 'character', test: (it) => codes.has(it), literal: character };
  }

  /** Takes a set of characters. The browser says of each character once whether it is in. */
  #set(source: string): RegexNode {
    const pattern = new RegExp(`^${source}$`, (this.isUnicode ? 'u' : '') + (this.ignoreCase ? 'i' : ''));
    const known = new Map<number, boolean>();
    const test = (code: number) => {
      let isIn = known.get(code);
      if (isIn === undefined) {
        isIn = pattern.test(String.fromCodePoint(code));
        known.set(code, isIn);
      }
      return isIn;
    };
    return { kind: 'character', test, literal: undefined };
  }
}
