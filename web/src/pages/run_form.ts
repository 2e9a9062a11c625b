// The fields of the form that starts a run.

import { css, html, LitElement, nothing, type TemplateResult } from 'lit';
import { property } from 'lit/decorators.js';

import type { ModuleInfo } from '../gen/ringfence/v1/module_pb.js';
import { type EntryPoint, entryPoints, showSignature } from '../model/entry_points.js';
import { formatBytes } from '../model/format.js';
import { printable } from '../model/printable.js';
import { chosenEntry, type FormErrors, type FormField, type RunForm, STACKS } from '../model/run_form.js';
import { described, fieldStyles, type FieldText, formField, invalid } from '../ui/form_field.js';
import { controls } from '../ui/styles.js';

/** The fields that take one line of text, or several. */
type TextField =
  | 'args'
  | 'program'
  | 'env'
  | 'stdinText'
  | 'memory'
  | 'fuel'
  | 'timeout'
  | 'output'
  | 'hostFunctions'
  | 'mounts'
  | 'workingDir'
  | 'labels';
/** The fields that are on or off. */
type SwitchField = 'openStdin' | 'truncate' | 'network' | 'detach';
type SelectField = 'entry' | 'stdinFrom' | 'memoryUnit' | 'stack' | 'wasi' | 'clock';

/** Tells the form that came of a change as the `detail` of its event `edit`. */
export class RunFormFields extends LitElement {
  static override styles = [
    controls,
    fieldStyles,
    css`
      fieldset {
        border: 1px solid var(--line);
        border-radius: var(--radius);
        margin: 0 0 var(--space-4);
        padding: var(--space-3) var(--space-4) var(--space-4);
        min-width: 0;
      }
      legend {
        font-weight: 600;
        font-size: var(--text-l);
        padding-inline: var(--space-1);
      }
      .grid {
        display: grid;
        grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr));
        gap: var(--space-4);
        align-items: start;
      }
      @media (min-width: 720px) {
        .wide {
          grid-column: span 2;
        }
      }
      .pair {
        display: grid;
        grid-template-columns: minmax(0, 1fr) auto;
        gap: var(--space-2);
      }
    `,
  ];

  @property({ attribute: false }) form!: RunForm;
  @property({ attribute: false }) module: ModuleInfo | undefined;
  @property({ attribute: false }) errors: FormErrors = new Map();

  /** Puts the focus on the first field that something is wrong with. */
  async focusError(): Promise<void> {
    await this.updateComplete;
    this.renderRoot.querySelector<HTMLElement>('[aria-invalid="true"]')?.focus();
  }

  override render() {
    const entry = chosenEntry(this.form, this.module);
    const hasParams = entry !== undefined && entry.params.length > 0;
    return html`
      <fieldset>
        <legend>What it does</legend>
        <div class="grid">
          ${this.#entry()} ${hasParams ? this.#params(entry) : this.#args()} ${this.#environment()} ${this.#stdin()}
          ${
            hasParams
              ? nothing
              : this.#line(
                  'program',
                  'Program name',
                  'What the program is told that it is called.',
                  'the module’s name',
                )
          }
        </div>
      </fieldset>
      <fieldset>
        <legend>Limits</legend>
        <div class="grid">${this.#limits()}</div>
      </fieldset>
      <fieldset>
        <legend>What it may reach</legend>
        <div class="grid">${this.#reach()}</div>
      </fieldset>
      <fieldset>
        <legend>How it is kept</legend>
        <div class="grid">
          ${this.#lines('labels', 'Labels', 'A line each: KEY=value. Runs are found and ended by them.')}
          ${this.#switch('detach', 'Go on without this page', 'If not, the run ends with this tab.')}
        </div>
      </fieldset>
    `;
  }

  #entry(): TemplateResult {
    const points = this.module === undefined ? [] : entryPoints(this.module);
    const shown = (it: EntryPoint) =>
      it.name === '' ? 'the module’s command' : printable(it.name) + showSignature(it);
    const options = points.map((it) => [it.name, shown(it)] as const);
    const hint =
      points.length === 0 && this.module !== undefined ? 'This module has nothing that a run can call.' : undefined;
    return this.#select('entry', 'Entry point', options, hint);
  }

  #params(entry: EntryPoint): TemplateResult[] {
    return entry.params.map((type, index) => {
      const field: FieldText = {
        id: `param-${index}`,
        label: `Parameter ${index + 1}: ${type}`,
        error: this.errors.get(`params.${index}`),
      };
      const take = (event: InputEvent) => {
        const params = entry.params.map((_, at) => this.form.params[at] ?? '');
        params[index] = (event.target as HTMLInputElement).value;
        this.#edit({ params });
      };
      const control = html`<input
        id=${field.id}
        class="mono"
        autocomplete="off"
        spellcheck="false"
        .value=${this.form.params[index] ?? ''}
        aria-describedby=${described(field)}
        aria-invalid=${invalid(field)}
        @input=${take}
      />`;
      return formField(field, control);
    });
  }

  #args(): TemplateResult {
    const hint = 'Words as in a shell, with quotes where they are needed. Nothing is expanded.';
    return html`<div class="wide">${this.#line('args', 'Arguments', hint)}</div>`;
  }

  #environment(): TemplateResult {
    if (this.form.wasi === 'off') return html``;
    return this.#lines('env', 'Environment', 'A line each: KEY=value. Nothing is inherited.');
  }

  #stdin(): TemplateResult {
    const { stdinFrom, stdinFile, wasi } = this.form;
    if (wasi === 'off') return html``;
    const file: FieldText = {
      id: 'stdin-file',
      label: 'File',
      hint: stdinFile === undefined ? undefined : `${printable(stdinFile.name)}, ${formatBytes(stdinFile.size)}`,
    };
    const choose = (event: Event) => this.#edit({ stdinFile: (event.target as HTMLInputElement).files?.[0] });
    return html`
      <div class="field">
        ${this.#select('stdinFrom', 'Standard input', [
          ['none', 'nothing'],
          ['text', 'a text'],
          ['file', 'a file'],
        ])}
        ${stdinFrom === 'text' ? this.#lines('stdinText', 'Text', 'It is sent as it stands here.') : nothing}
        ${
          stdinFrom === 'file'
            ? formField(
                file,
                html`<input id=${file.id} type="file" aria-describedby=${described(file)} @change=${choose} />`,
              )
            : nothing
        }
        ${this.#switch('openStdin', 'Leave it open for typing', 'More is typed on the run’s page, which also ends it.')}
      </div>
    `;
  }

  #limits(): TemplateResult {
    const stacks = STACKS.map((bytes) => [String(bytes), formatBytes(bytes)] as const);
    const minimum = this.module?.memoryMinimumPages ?? 0n;
    const least = minimum > 0n ? ` The module needs ${formatBytes(minimum * 65_536n)} at least.` : '';
    const memory: FieldText = {
      id: 'memory',
      label: 'Memory',
      hint: `A page has 64 KiB.${least}`,
      error: this.errors.get('memory'),
    };
    return html`
      ${formField(
        memory,
        html`<div class="pair">
          ${this.#input('memory', memory, 'default')}
          <select aria-label="Unit of memory" @change=${(event: Event) => this.#set('memoryUnit', event)}>
            ${['MiB', 'pages'].map((it) => html`<option ?selected=${it === this.form.memoryUnit}>${it}</option>`)}
          </select>
        </div>`,
      )}
      ${this.#line('timeout', 'Time', 'Wall time, such as 500ms, 30s or 2m.', 'default')}
      ${this.#line('fuel', 'Fuel', 'About one for each instruction. With it, the run is metered.', 'default')}
      ${this.#select('stack', 'Call stack', [['', 'default'], ...stacks])}
      ${this.#line('output', 'Output', 'Of stdout and of stderr, each, such as 1MiB.', 'default')}
      ${this.#switch('truncate', 'Drop output beyond its limit', 'If not, the run ends there.')}
    `;
  }

  #reach(): TemplateResult {
    const choices = [
      ['default', 'default'],
      ['on', 'yes'],
      ['off', 'no'],
    ] as const;
    return html`
      ${this.#select('wasi', 'WASI', choices, 'It gives arguments, environment, input and files.')}
      ${this.#select('clock', 'Real clock', choices, 'Without it, each reading is 1 ms later, from 2022 on.')}
      ${this.#line('hostFunctions', 'Host functions', 'Such as ringfence.log and ringfence.label.', 'none')}
      ${this.#switch('network', 'Network', 'Components may connect to the addresses that the operator grants.')}
      ${
        this.form.wasi === 'off'
          ? nothing
          : html`${this.#lines('mounts', 'Mounts', 'A line each, of what is granted: /HOST:/GUEST[:ro]')}
          ${this.#line('workingDir', 'Working directory', 'An absolute path under a mount.', '/')}`
      }
    `;
  }

  #text(name: FormField, label: string, hint?: string): FieldText {
    return { id: name, label, hint, error: this.errors.get(name) };
  }

  #line(name: TextField, label: string, hint: string, placeholder = ''): TemplateResult {
    const field = this.#text(name, label, hint);
    return formField(field, this.#input(name, field, placeholder));
  }

  #input(name: TextField, field: FieldText, placeholder: string): TemplateResult {
    return html`<input
      id=${name}
      class="mono"
      autocomplete="off"
      spellcheck="false"
      placeholder=${placeholder}
      .value=${this.form[name]}
      aria-describedby=${described(field)}
      aria-invalid=${invalid(field)}
      @input=${(event: Event) => this.#set(name, event)}
    />`;
  }

  #lines(name: TextField, label: string, hint: string): TemplateResult {
    const field = this.#text(name, label, hint);
    const control = html`<textarea
      id=${name}
      rows="3"
      spellcheck="false"
      .value=${this.form[name]}
      aria-describedby=${described(field)}
      aria-invalid=${invalid(field)}
      @input=${(event: Event) => this.#set(name, event)}
    ></textarea>`;
    return formField(field, control);
  }

  #select(
    name: SelectField,
    label: string,
    options: ReadonlyArray<readonly [string, string]>,
    hint?: string,
  ): TemplateResult {
    const field = this.#text(name, label, hint);
    const control = html`<select
      id=${name}
      aria-describedby=${described(field)}
      aria-invalid=${invalid(field)}
      @change=${(event: Event) => this.#set(name, event)}
    >
      ${options.map(
        ([value, says]) => html`<option value=${value} ?selected=${value === this.form[name]}>${says}</option>`,
      )}
    </select>`;
    return formField(field, control);
  }

  #switch(name: SwitchField, label: string, hint: string): TemplateResult {
    const field = this.#text(name, label, hint);
    const take = (event: Event) => this.#edit({ [name]: (event.target as HTMLInputElement).checked });
    return html`<div class="field">
      <span>
        <input
          id=${name}
          type="checkbox"
          .checked=${this.form[name]}
          aria-describedby=${described(field)}
          aria-invalid=${invalid(field)}
          @change=${take}
        />
        <label for=${name}>${label}</label>
      </span>
      ${field.error === undefined ? nothing : html`<p class="error" id="${name}-error">${field.error}</p>`}
      <p class="hint" id="${name}-hint">${hint}</p>
    </div>`;
  }

  #set(name: TextField | SelectField, event: Event): void {
    this.#edit({ [name]: (event.target as HTMLInputElement).value });
  }

  #edit(change: Partial<RunForm>): void {
    this.dispatchEvent(new CustomEvent<RunForm>('edit', { detail: { ...this.form, ...change } }));
  }
}

customElements.define('rf-run-form', RunFormFields);
