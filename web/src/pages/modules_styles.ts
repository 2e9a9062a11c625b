// How the list of modules looks.

import { css } from 'lit';

/** The styles of the page of all modules. */
export const moduleListStyles = css`
  :host {
    display: block;
    padding: var(--space-4);
  }
  .bar {
    display: flex;
    flex-wrap: wrap;
    align-items: center;
    gap: var(--space-2) var(--space-3);
    margin-block-end: var(--space-3);
  }
  .bar input[type='search'] {
    flex: 1 1 14rem;
    min-width: 0;
    max-width: 32rem;
  }
  .registry {
    display: flex;
    flex: 1 1 14rem;
    gap: var(--space-2);
    margin: var(--space-2) 0;
  }
  .registry input {
    flex: 1 1 auto;
    min-width: 0;
  }
  .scroll {
    overflow-x: auto;
    border: 1px solid var(--line);
    border-radius: var(--radius);
  }
  table {
    width: 100%;
    border-collapse: collapse;
  }
  th,
  td {
    text-align: start;
    vertical-align: middle;
    padding: var(--space-2) var(--space-3);
    border-block-end: 1px solid var(--line);
  }
  thead th {
    background: var(--ground-2);
    white-space: nowrap;
  }
  th[scope='row'] {
    font-weight: 400;
    min-width: 10rem;
    overflow-wrap: anywhere;
  }
  tbody tr:last-child > * {
    border-block-end: 0;
  }
  tbody tr:hover {
    background: var(--ground-2);
  }
  th button {
    background: none;
    border: 0;
    padding: 0;
    min-height: 0;
    font-weight: 600;
  }
  .figure {
    white-space: nowrap;
  }
  .label {
    display: inline-block;
    max-width: 100%;
    overflow-wrap: anywhere;
    white-space: normal;
    text-align: start;
    min-height: 0;
    padding: 0 var(--space-2);
    margin: 0 var(--space-1) var(--space-1) 0;
    font-size: var(--text-s);
  }
  .actions {
    white-space: nowrap;
    text-align: end;
  }
  .empty {
    padding: var(--space-6) var(--space-4);
    border: 2px dashed var(--line);
    border-radius: var(--radius);
    text-align: center;
  }
  .drop {
    position: fixed;
    inset: var(--space-4);
    z-index: 5;
    display: grid;
    place-items: center;
    border: 3px dashed var(--accent);
    border-radius: var(--radius);
    background: color-mix(in srgb, var(--ground) 88%, transparent);
    font-size: var(--text-l);
    pointer-events: none;
  }
  @media (max-width: 900px) {
    .wide {
      display: none;
    }
  }
  @media (max-width: 480px) {
    .mid {
      display: none;
    }
  }
`;
