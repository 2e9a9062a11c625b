// How the log looks. In the pages of others, it takes its colours from `--ringfence-…`, and has those of this page by
// default: in light or dark as the page's `color-scheme` is.

import { EditorView } from '@codemirror/view';
import { css } from 'lit';

/** Defines what all styles of this page are made of, for a component that stands in another page. */
export const hostTheme = css`
  :host {
    --sans: var(--ringfence-font, system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif);
    --mono: var(--ringfence-mono, ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace);
    --text-s: 0.8125rem;
    --text-m: 0.875rem;
    --text-l: 1.0625rem;
    --space-1: 0.25rem;
    --space-2: 0.5rem;
    --space-3: 0.75rem;
    --space-4: 1rem;
    --space-6: 1.5rem;
    --radius: var(--ringfence-radius, 6px);
    --ground: var(--ringfence-ground, light-dark(#ffffff, #0f1419));
    --ground-2: var(--ringfence-ground-2, light-dark(#f5f7f9, #171d24));
    --ground-3: var(--ringfence-ground-3, light-dark(#e9edf1, #222a33));
    --line: var(--ringfence-line, light-dark(#d3dae1, #2f3944));
    --ink: var(--ringfence-ink, light-dark(#17202a, #e3e9ef));
    --ink-2: var(--ringfence-ink-2, light-dark(#4d5a67, #a6b2be));
    --accent: var(--ringfence-accent, light-dark(#0b62c4, #6db3ff));
    --on-accent: var(--ringfence-on-accent, light-dark(#ffffff, #06121f));
    --good: var(--ringfence-good, light-dark(#1a7340, #5fce8b));
    --bad: var(--ringfence-bad, light-dark(#b3261e, #ff8a80));
    --warn: var(--ringfence-warn, light-dark(#8a5700, #f2bb55));
    --busy: var(--ringfence-accent, light-dark(#0b62c4, #6db3ff));
    --mark: var(--ringfence-mark, light-dark(#ffe08a, #6b5200));
    --mark-current: var(--ringfence-mark-current, light-dark(#ffb347, #8f5a00));
    --focus: var(--ringfence-focus, light-dark(#0b62c4, #8cc4ff));
  }
`;

/** How many colours tell runs apart; there are more runs than that, so that each has its name beside it. */
export const TAG_COLORS = [
  ['#0b62c4', '#6db3ff'],
  ['#8a5700', '#f2bb55'],
  ['#1a7340', '#5fce8b'],
  ['#8a2e9c', '#e09bf0'],
  ['#0a6b78', '#5fd0dd'],
  ['#b3261e', '#ff8a80'],
  ['#4d5a67', '#a6b2be'],
  ['#6a4bc9', '#b7a2ff'],
] as const;

const tagRules = Object.fromEntries(
  TAG_COLORS.map(([light, dark], i) => [`.cm-tag-${i}`, { color: `light-dark(${light}, ${dark})`, fontWeight: '600' }]),
);

/** The styles of CodeMirror, which it adopts in the shadow root: the page's policy has no other way for them. */
export const editorTheme = EditorView.theme({
  '&': { height: '100%', backgroundColor: 'var(--ground)', color: 'var(--ink)', fontSize: 'var(--text-s)' },
  '&.cm-focused': { outline: '2px solid var(--focus)', outlineOffset: '-2px' },
  '.cm-scroller': { fontFamily: 'var(--mono)', lineHeight: '1.45', overflowAnchor: 'none' },
  '.cm-content': { padding: '0', cursor: 'text' },
  '.cm-content:focus': { outline: 'none' },
  '.cm-line': { padding: '0 0.5rem', tabSize: '8' },
  '.cm-line.cm-stderr': { boxShadow: 'inset 3px 0 var(--bad)' },
  '.cm-line.cm-note': { color: 'var(--warn)', fontStyle: 'italic' },
  '.cm-line.cm-marked': { backgroundColor: 'var(--ground-3)', outline: '1px solid var(--accent)' },
  '&.cm-focused .cm-line.cm-here': { outline: '1px dashed var(--focus)', outlineOffset: '-1px' },
  '.cm-gutters': {
    backgroundColor: 'var(--ground-2)',
    color: 'var(--ink-2)',
    border: 'none',
    borderInlineEnd: '1px solid var(--line)',
    cursor: 'pointer',
  },
  '.cm-gutterElement': { paddingInline: '0.4rem', whiteSpace: 'nowrap', userSelect: 'none' },
  '.cm-gutterElement:hover': { color: 'var(--accent)' },
  '.cm-numbers .cm-gutterElement': { textAlign: 'right', minWidth: '2.5rem' },
  '.cm-gutterElement.cm-marked': { backgroundColor: 'var(--accent)', color: 'var(--on-accent)' },
  '.cm-err': { color: 'var(--bad)', fontWeight: '600' },
  '.cm-match': { backgroundColor: 'var(--mark)' },
  '.cm-match, .cm-match *': { color: 'var(--ink) !important' },
  '.cm-match *': { backgroundColor: 'transparent !important' },
  '.cm-match.cm-current': { backgroundColor: 'var(--mark-current)', outline: '1px solid var(--ink)' },
  '.cm-goes-on::after': { content: '" ↩ this line goes on below"', color: 'var(--ink-2)', fontStyle: 'italic' },
  ...tagRules,
});
