// Colours of a guest's choice, made readable: a contrast of 4.5 (WCAG AA) in the light theme and in the dark one.

import { type AnsiColor, type AnsiStyle, DEFAULT_COLOR, RGB } from './ansi.js';
import { BOLD, DIM, INVERSE, ITALIC, STRIKE, UNDERLINE } from './ansi.js';

/** Red, green and blue, 0 to 255 each. */
export type Rgb = readonly [number, number, number];

/** What text stands on, and how it looks by itself. */
export interface AnsiTheme {
  /** The background on which text is the least readable: that of marked lines (`--ground-3` of page.css). */
  readonly ground: Rgb;
  readonly ink: Rgb;
  /** The first sixteen of the 256 colours. */
  readonly palette: readonly Rgb[];
}

/** What WCAG asks of text of ordinary size at level AA. */
export const MINIMAL_CONTRAST = 4.5;

const hex = (text: string): Rgb[] =>
  text.split(' ').map((it) => [0, 2, 4].map((at) => parseInt(it.slice(at, at + 2), 16)) as unknown as Rgb);

/** The light theme of page.css. */
export const LIGHT: AnsiTheme = {
  ground: [0xe9, 0xed, 0xf1],
  ink: [0x17, 0x20, 0x2a],
  palette: hex(
    '17202a b3261e 1a7340 8a5700 0b62c4 8a2e9c 0a6b78 59636e 4d5a67 c2211a 1a7a3a 8f5a00 1f6fd0 a233b5 0e7480 76818c',
  ),
};

/** The dark theme of page.css. */
export const DARK: AnsiTheme = {
  ground: [0x22, 0x2a, 0x33],
  ink: [0xe3, 0xe9, 0xef],
  palette: hex(
    '3b4652 ff8a80 5fce8b f2bb55 6db3ff e09bf0 5fd0dd d3dae1 8d99a5 ffa79f 86e3aa ffd27d 9accff efbcfa 8ae6f0 ffffff',
  ),
};

const cache = new WeakMap<AnsiStyle, string>();

/** Writes a style as declarations of CSS, which hold in both themes by `light-dark()`. */
export function cssOfStyle(style: AnsiStyle): string {
  let css = cache.get(style);
  if (css === undefined) {
    css = declarations(style);
    cache.set(style, css);
  }
  return css;
}

function declarations(style: AnsiStyle): string {
  const { flags } = style;
  const [light, dark] = [colorsOf(style, LIGHT), colorsOf(style, DARK)];
  const parts: string[] = [];
  if (light.foreground !== undefined && dark.foreground !== undefined) {
    parts.push(`color: light-dark(${cssOf(light.foreground)}, ${cssOf(dark.foreground)})`);
  }
  if (light.background !== undefined && dark.background !== undefined) {
    parts.push(`background-color: light-dark(${cssOf(light.background)}, ${cssOf(dark.background)})`);
  }
  if (flags & BOLD) parts.push('font-weight: 700');
  if (flags & ITALIC) parts.push('font-style: italic');
  const lines = [flags & UNDERLINE ? 'underline' : '', flags & STRIKE ? 'line-through' : ''].filter((it) => it !== '');
  if (lines.length > 0) parts.push(`text-decoration: ${lines.join(' ')}`);
  return parts.join('; ');
}

/** Returns the colours of a style in a theme; `undefined` is what text has by itself. */
export function colorsOf(
  style: AnsiStyle,
  theme: AnsiTheme,
): { readonly foreground: Rgb | undefined; readonly background: Rgb | undefined } {
  const asked = {
    foreground: style.foreground === DEFAULT_COLOR ? undefined : rgbOf(style.foreground, theme),
    background: style.background === DEFAULT_COLOR ? undefined : rgbOf(style.background, theme),
  };
  const isDim = (style.flags & DIM) !== 0;
  const { foreground, background } =
    style.flags & INVERSE
      ? { foreground: asked.background ?? theme.ground, background: asked.foreground ?? theme.ink }
      : asked;
  if (foreground === undefined && background === undefined && !isDim) return { foreground, background };
  const ground = background ?? theme.ground;
  const wanted = foreground ?? theme.ink;
  return { foreground: readable(isDim ? mix(wanted, ground, 0.35) : wanted, ground), background };
}

/** Moves a colour towards black or white until it is readable on `ground`. */
function readable(color: Rgb, ground: Rgb): Rgb {
  if (contrast(color, ground) >= MINIMAL_CONTRAST) return color;
  // Black or white is readable on every colour.
  const end: Rgb = contrast([0, 0, 0], ground) >= contrast([255, 255, 255], ground) ? [0, 0, 0] : [255, 255, 255];
  for (let share = 0.1; share < 1; share += 0.1) {
    const moved = mix(color, end, share);
    if (contrast(moved, ground) >= MINIMAL_CONTRAST) return moved;
  }
  return end;
}

/** Tells the contrast of two colours, 1 to 21, as WCAG does. */
export function contrast(a: Rgb, b: Rgb): number {
  const [one, other] = [luminance(a), luminance(b)];
  return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
}

function luminance([red, green, blue]: Rgb): number {
  const linear = (part: number) => (part <= 10 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
}

function mix(from: Rgb, to: Rgb, share: number): Rgb {
  return [0, 1, 2].map((i) => Math.round(from[i]! + (to[i]! - from[i]!) * share)) as unknown as Rgb;
}

function rgbOf(color: AnsiColor, theme: AnsiTheme): Rgb {
  if (color >= RGB) return [(color >> 16) & 255, (color >> 8) & 255, color & 255];
  const basic = theme.palette[color];
  if (basic !== undefined) return basic;
  if (color >= 232) {
    const gray = 8 + (color - 232) * 10;
    return [gray, gray, gray];
  }
  const level = (step: number) => (step === 0 ? 0 : 55 + step * 40);
  const cube = color - 16;
  return [level(Math.floor(cube / 36)), level(Math.floor(cube / 6) % 6), level(cube % 6)];
}

function cssOf(color: Rgb): string {
  return `#${color.map((it) => it.toString(16).padStart(2, '0')).join('')}`;
}
