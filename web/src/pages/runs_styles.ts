// How the page of all runs looks.

import { css } from 'lit';

export const runsStyles = css`
  :host {
    display: grid;
    grid-template-rows: auto auto minmax(0, 1fr);
    height: 100%;
  }
  .bar {
    display: flex;
    flex-wrap: wrap;
    gap: var(--space-2);
    align-items: center;
    padding: var(--space-2) var(--space-3);
  }
  .bar + .bar {
    padding-block-start: 0;
  }
  rf-run-filters {
    flex: 1 1 20rem;
  }
  .end {
    margin-inline-start: auto;
    display: flex;
    flex-wrap: wrap;
    gap: var(--space-2);
  }
  .table {
    position: relative;
    min-height: 12rem;
  }
  rf-run-table {
    position: absolute;
    inset: 0;
    border-block-start: 1px solid var(--line);
  }
  .empty {
    position: absolute;
    inset: 4rem var(--space-4) auto;
    text-align: center;
    pointer-events: none;
  }
`;
