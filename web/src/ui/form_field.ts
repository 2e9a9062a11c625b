// Fields of forms, each with its label, what is said about it, and what is wrong with it.

import { css, html, nothing, type TemplateResult } from 'lit';

/** What is said about a field. */
export interface FieldText {
  /** The id of its control, of which there is one in a component. */
  readonly id: string;
  readonly label: string;
  readonly hint?: string | TemplateResult | undefined;
  readonly error?: string | undefined;
}

/** Lays out a field around its control, which has the id and takes what [`described`] gives. */
export function formField({ id, label, hint, error }: FieldText, control: TemplateResult): TemplateResult {
  return html`
    <div class="field">
      <label for=${id}>${label}</label>
      ${control}
      ${error === undefined ? nothing : html`<p class="error" id="${id}-error">${error}</p>`}
      ${hint === undefined ? nothing : html`<p class="hint" id="${id}-hint">${hint}</p>`}
    </div>
  `;
}

/** The ids of what describes a control, for its `aria-describedby`. */
export function described({ id, hint, error }: FieldText): string | typeof nothing {
  const ids = [error === undefined ? '' : `${id}-error`, hint === undefined ? '' : `${id}-hint`];
  return ids.filter((it) => it !== '').join(' ') || nothing;
}

/** The value of `aria-invalid` of a control. */
export function invalid({ error }: FieldText): 'true' | typeof nothing {
  return error === undefined ? nothing : 'true';
}

/** The styles of fields. */
export const fieldStyles = css`
  .field {
    display: grid;
    gap: var(--space-1);
    align-content: start;
    min-width: 0;
  }
  .field > label {
    font-weight: 600;
  }
  .field input:not([type='checkbox']),
  .field select,
  .field textarea {
    width: 100%;
    min-width: 0;
  }
  input[type='checkbox'] {
    min-height: 0;
    margin: 0 var(--space-1) 0 0;
    vertical-align: middle;
  }
  ::placeholder {
    color: var(--ink-2);
    opacity: 1;
  }
  textarea {
    font-family: var(--mono);
    font-size: var(--text-s);
    resize: vertical;
  }
  [aria-invalid='true'] {
    border-color: var(--bad);
    box-shadow: inset 3px 0 var(--bad);
  }
  .error {
    margin: 0;
    color: var(--bad);
    overflow-wrap: anywhere;
  }
  .hint {
    margin: 0;
    color: var(--ink-2);
    font-size: var(--text-s);
  }
`;
