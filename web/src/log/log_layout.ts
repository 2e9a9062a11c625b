// How the parts of a log stand to each other.

import { css } from 'lit';

/** Styles of what has a toolbar, lines and a line about their state. */
export const logLayout = css`
  :host {
    display: grid;
    grid-template-rows: auto auto minmax(6rem, 1fr) auto;
    grid-template-columns: minmax(0, 1fr);
    min-height: 16rem;
    background: var(--ground);
  }
  rf-log-toolbar {
    grid-row: 1;
    background: var(--ground-2);
    border-block-end: 1px solid var(--line);
  }
  .notice {
    grid-row: 2;
    margin: 0;
    padding: var(--space-2) var(--space-3);
    background: var(--ground-3);
    overflow-wrap: anywhere;
  }
  .lines {
    grid-row: 3;
    position: relative;
  }
  /* However many lines there are, the log is not higher. */
  rf-log-view {
    position: absolute;
    inset: 0;
  }
  .empty {
    position: absolute;
    inset: var(--space-6) 0 auto;
    text-align: center;
    pointer-events: none;
    margin: 0;
  }
  .new {
    position: absolute;
    inset-block-end: var(--space-4);
    inset-inline: 0;
    margin-inline: auto;
    width: fit-content;
    max-width: calc(100% - 2rem);
    white-space: normal;
    box-shadow: 0 2px 8px rgb(0 0 0 / 30%);
  }
  .state {
    grid-row: 4;
    display: flex;
    flex-wrap: wrap;
    align-items: center;
    gap: 0 var(--space-4);
    padding: 0 var(--space-3);
    border-block-start: 1px solid var(--line);
    background: var(--ground-2);
    font-size: var(--text-s);
    font-variant-numeric: tabular-nums;
  }
`;
