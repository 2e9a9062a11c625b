// SGR, the escape sequences that choose how the text after them looks (ECMA-48, with xterm's colours).

/** A colour: -1 is the default, 0 to 255 one of xterm's, and from `RGB` on 24 bits of red, green and blue. */
export type AnsiColor = number;

/** The colour that text has where none was chosen. */
export const DEFAULT_COLOR: AnsiColor = -1;
/** What is added to 24 bits of red, green and blue, so that they are none of the 256 colours. */
export const RGB = 0x1000000;

/** Flags of a style; a terminal shows bold text in a heavier weight, and inverse text with its colours exchanged. */
export const BOLD = 1;
export const DIM = 2;
export const ITALIC = 4;
export const UNDERLINE = 8;
export const STRIKE = 16;
export const INVERSE = 32;

/** How text looks. Blinking and concealed text is shown as any other. */
export interface AnsiStyle {
  readonly foreground: AnsiColor;
  readonly background: AnsiColor;
  /** A sum of `BOLD`, `DIM` and the others. */
  readonly flags: number;
}

/** Text that is styled otherwise than the rest of its line, by its place in that line. */
export interface StyledSpan {
  readonly from: number;
  readonly to: number;
  readonly style: AnsiStyle;
}

/** How text looks before any sequence. */
export const PLAIN: AnsiStyle = { foreground: DEFAULT_COLOR, background: DEFAULT_COLOR, flags: 0 };

/** Tells whether two styles look the same: equal ones need not be the same object. */
export function isSameStyle(a: AnsiStyle, b: AnsiStyle): boolean {
  return a === b || (a.foreground === b.foreground && a.background === b.background && a.flags === b.flags);
}

/** How many changes of a style are remembered: programs write the same few again and again. */
const MAX_KNOWN = 4_096;
const known = new Map<string, AnsiStyle>();
let changes = new WeakMap<AnsiStyle, Map<string, AnsiStyle>>();
let knownChanges = 0;

/**
 * Changes a style as an SGR sequence does whose parameters are such as `1;38;5;208`. Equal styles are mostly the same
 * object.
 */
export function applySgr(style: AnsiStyle, parameters: string): AnsiStyle {
  const before = changes.get(style)?.get(parameters);
  if (before !== undefined) return before;
  const changed = change(style, parameters);
  const key = `${changed.foreground} ${changed.background} ${changed.flags}`;
  const after = isSameStyle(changed, PLAIN) ? PLAIN : (known.get(key) ?? changed);
  if (knownChanges >= MAX_KNOWN) {
    known.clear();
    changes = new WeakMap();
    knownChanges = 0;
  }
  knownChanges += 1;
  known.set(key, after);
  const of = changes.get(style) ?? new Map<string, AnsiStyle>();
  changes.set(style, of.set(parameters, after));
  return after;
}

function change(style: AnsiStyle, parameters: string): AnsiStyle {
  let { foreground, background, flags } = style;
  const fields = parameters.split(';');
  for (let i = 0; i < fields.length; i++) {
    const [code = 0, ...sub] = (fields[i] ?? '').split(':').map(numberOf);
    if (code === 38 || code === 48 || code === 58) {
      const [color, used] = sub.length > 0 ? [colonColor(sub), 0] : semicolonColor(fields, i + 1);
      i += used;
      if (color !== undefined && code === 38) foreground = color;
      if (color !== undefined && code === 48) background = color;
      continue;
    }
    if (code === 0) [foreground, background, flags] = [DEFAULT_COLOR, DEFAULT_COLOR, 0];
    else if (code === 39) foreground = DEFAULT_COLOR;
    else if (code === 49) background = DEFAULT_COLOR;
    else if (code >= 30 && code <= 37) foreground = code - 30;
    else if (code >= 40 && code <= 47) background = code - 40;
    else if (code >= 90 && code <= 97) foreground = code - 82;
    else if (code >= 100 && code <= 107) background = code - 92;
    else flags = applyFlag(flags, code, sub[0]);
  }
  return { foreground, background, flags };
}

const SETS = new Map([[1, BOLD], [2, DIM], [3, ITALIC], [4, UNDERLINE], [7, INVERSE], [9, STRIKE], [21, UNDERLINE]]);
const CLEARS = new Map([[22, BOLD | DIM], [23, ITALIC], [24, UNDERLINE], [27, INVERSE], [29, STRIKE]]);

function applyFlag(flags: number, code: number, sub: number | undefined): number {
  // `4:0` is no underline, and `4:3` a curly one.
  if (code === 4 && sub === 0) return flags & ~UNDERLINE;
  return (flags | (SETS.get(code) ?? 0)) & ~(CLEARS.get(code) ?? 0);
}

/** Reads `5:N` or `2:R:G:B`, where another field, of the colour space, may stand before the red. */
function colonColor(sub: readonly number[]): AnsiColor | undefined {
  if (sub[0] === 5) return paletteColor(sub[1]);
  if (sub[0] === 2) return rgbColor(sub.length > 4 ? sub.slice(2) : sub.slice(1));
  return undefined;
}

/** Reads the fields `5;N` or `2;R;G;B`, and says how many they are. */
function semicolonColor(fields: readonly string[], at: number): readonly [AnsiColor | undefined, number] {
  const kind = numberOf(fields[at] ?? '');
  if (kind === 5) return [paletteColor(numberOf(fields[at + 1] ?? '')), 2];
  if (kind === 2) return [rgbColor(fields.slice(at + 1, at + 4).map(numberOf)), 4];
  return [undefined, 1];
}

function paletteColor(index: number | undefined): AnsiColor | undefined {
  return index !== undefined && index <= 255 ? index : undefined;
}

function rgbColor(parts: readonly number[]): AnsiColor | undefined {
  const [red = 0, green = 0, blue = 0] = parts;
  if (red > 255 || green > 255 || blue > 255) return undefined;
  return RGB + red * 0x10000 + green * 0x100 + blue;
}

/** Reads a parameter; one that is empty is 0. */
function numberOf(field: string): number {
  return field === '' ? 0 : Number(field.slice(0, 5));
}
