// Styles that several components share.

import { css } from 'lit';

/** Buttons, fields, links and focus, as every component has them. */
export const controls = css`
  :host {
    font: var(--text-m) / 1.45 var(--sans);
    color: var(--ink);
  }
  *,
  *::before,
  *::after {
    box-sizing: border-box;
  }
  [hidden] {
    display: none !important;
  }
  a {
    color: var(--accent);
  }
  :focus-visible {
    outline: 2px solid var(--focus);
    outline-offset: 1px;
  }
  button,
  input,
  select,
  textarea {
    font: inherit;
    color: inherit;
    background: var(--ground);
    border: 1px solid var(--line);
    border-radius: var(--radius);
    padding: 0.25rem 0.6rem;
    min-height: 2rem;
  }
  button {
    background: var(--ground-2);
    cursor: pointer;
    white-space: nowrap;
  }
  button:hover:not(:disabled) {
    background: var(--ground-3);
  }
  button:disabled {
    color: var(--ink-2);
    cursor: default;
  }
  button[aria-pressed='true'],
  button.primary {
    background: var(--accent);
    border-color: var(--accent);
    color: var(--on-accent);
  }
  button[aria-pressed='true']:hover:not(:disabled),
  button.primary:hover:not(:disabled) {
    background: color-mix(in srgb, var(--accent) 88%, var(--ink));
  }
  button.danger {
    color: var(--bad);
    border-color: var(--bad);
  }
  h1,
  h2,
  h3 {
    font-size: var(--text-l);
    line-height: 1.3;
    margin: 0;
    font-weight: 600;
  }
  .mono {
    font-family: var(--mono);
    font-size: var(--text-s);
  }
  .dim {
    color: var(--ink-2);
  }
  .good {
    color: var(--good);
  }
  .bad {
    color: var(--bad);
  }
  .warn {
    color: var(--warn);
  }
  .busy {
    color: var(--busy);
  }
  .visually-hidden {
    position: absolute;
    width: 1px;
    height: 1px;
    overflow: hidden;
    clip-path: inset(50%);
    white-space: nowrap;
  }
`;

/** The colours and the edge of every dialog, which browsers give ones of their own. */
export const dialogs = css`
  dialog {
    color: var(--ink);
    background: var(--ground);
    border: 1px solid var(--line);
    border-radius: var(--radius);
  }
`;
