import { css } from 'lit';

/** How the frame is laid out: a header as high as it needs to be, and below it a page that scrolls by itself. */
export const shellStyles = css`
  :host {
    display: grid;
    grid-template: auto minmax(0, 1fr) / minmax(0, 1fr);
    height: 100dvh;
  }
  header {
    display: flex;
    flex-wrap: wrap;
    align-items: center;
    gap: var(--space-2) var(--space-4);
    padding: var(--space-2) var(--space-4);
    background: var(--ground-2);
    border-block-end: 1px solid var(--line);
  }
  .skip {
    position: absolute;
    inset-block-start: var(--space-1);
    inset-inline-start: var(--space-1);
    z-index: 2;
  }
  .skip:not(:focus) {
    clip-path: inset(50%);
    pointer-events: none;
  }
  .brand {
    font-weight: 700;
  }
  nav {
    display: flex;
    gap: var(--space-1);
  }
  nav a {
    padding: 0.25rem 0.6rem;
    border-radius: var(--radius);
    color: var(--ink);
    text-decoration: none;
  }
  nav a:hover {
    background: var(--ground-3);
  }
  nav a[aria-current='page'] {
    background: var(--ground-3);
    box-shadow: inset 0 -2px var(--accent);
  }
  .rest {
    margin-inline-start: auto;
    display: flex;
    flex-wrap: wrap;
    align-items: center;
    justify-content: end;
    gap: var(--space-2) var(--space-3);
  }
  .state {
    overflow-wrap: anywhere;
  }
  main {
    min-height: 0;
    overflow: auto;
  }
  main:focus {
    outline: none;
  }
  .notice {
    flex-basis: 100%;
    margin: 0;
    color: var(--warn);
  }
  .unknown {
    padding: var(--space-4);
    overflow-wrap: anywhere;
  }
  @media (max-width: 40rem) {
    header {
      padding: var(--space-2) var(--space-3);
      gap: var(--space-2);
    }
    .rest {
      gap: var(--space-2);
      flex-basis: 100%;
      justify-content: start;
    }
    .state {
      flex: 1 1 8rem;
    }
    .state.long {
      flex-basis: 100%;
    }
  }
`;
