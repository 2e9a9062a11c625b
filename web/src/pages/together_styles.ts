// How runs that are shown together are laid out.

import { css, unsafeCSS } from 'lit';

import { TAG_COLORS } from '../log/log_theme.js';

const swatches = TAG_COLORS.map(([light, dark], i) => `.tag-${i} { background: light-dark(${light}, ${dark}); }`);

/** Styles beside those of `logLayout`. */
export const togetherStyles = css`
  :host {
    grid-template-rows: auto auto minmax(12rem, 1fr) auto;
    height: 100%;
  }
  .head {
    grid-row: 1;
    display: grid;
    gap: var(--space-2);
    padding: var(--space-3);
    max-height: 40dvh;
    overflow: auto;
  }
  .head p {
    margin: 0;
  }
  .title {
    display: flex;
    flex-wrap: wrap;
    align-items: center;
    gap: var(--space-2) var(--space-3);
  }
  h1 {
    overflow-wrap: anywhere;
  }
  .layouts {
    margin-inline-start: auto;
    display: flex;
    gap: var(--space-1);
  }
  .runs {
    display: flex;
    flex-wrap: wrap;
    gap: var(--space-1) var(--space-4);
    margin: 0;
    padding: 0;
    list-style: none;
    font-size: var(--text-s);
  }
  .runs li,
  .run {
    overflow-wrap: anywhere;
  }
  .swatch {
    display: inline-block;
    width: 0.7em;
    height: 0.7em;
    border-radius: 50%;
  }
  rf-log-toolbar {
    grid-row: 2;
    border-block-start: 1px solid var(--line);
  }
  .columns {
    position: absolute;
    inset: 0;
    display: grid;
    grid-auto-flow: column;
    grid-auto-columns: minmax(min(24rem, 90%), 1fr);
    overflow-x: auto;
  }
  section {
    display: grid;
    grid-template-rows: auto minmax(0, 1fr);
    min-width: 0;
    border-inline-end: 1px solid var(--line);
  }
  .run {
    padding: var(--space-1) var(--space-2);
    background: var(--ground-2);
    border-block-end: 1px solid var(--line);
    font-size: var(--text-s);
  }
  section .lines {
    grid-row: 2;
  }
  ${unsafeCSS(swatches.join(''))}
`;
