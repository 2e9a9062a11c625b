// The lines themselves: CodeMirror, which lays out only those that are in sight.

import { Compartment, EditorState, type Extension, Text, type Transaction } from '@codemirror/state';
import type { TransactionSpec } from '@codemirror/state';
import { EditorView } from '@codemirror/view';
import { css, html, LitElement, type PropertyValues } from 'lit';
import { property, query } from 'lit/decorators.js';

import type { LogLine } from '../model/line_assembler.js';
import type { Matcher } from '../model/log_search.js';
import type { ListChange } from '../model/log_store.js';
import { appearanceChanged, decorations, gutters, type LogAppearance, type LogTag } from './log_extensions.js';
import { logKeys } from './log_keys.js';
import { scrollOnlyLines, ScrollWatch } from './log_scroll.js';
import { editorTheme } from './log_theme.js';

/** The detail of `log-line`: the reader chose a line. */
export interface LogLineDetail {
  readonly line: LogLine;
}

/**
 * Shows lines.
 *
 * @fires log-line - The number of a line was pressed, or Enter on it (`LogLineDetail`).
 * @fires log-follow - It follows the last line from now on, or no more.
 */
export class LogView extends LitElement {
  static override styles = css`
    :host {
      display: block;
      min-height: 0;
      min-width: 0;
      overflow: hidden;
    }
    #editor {
      height: 100%;
    }
  `;

  @property({ type: Boolean }) wrap = true;
  @property({ type: Boolean }) numbers = true;
  @property({ type: Boolean }) times = false;
  /** What the lines are, for whoever reads by ear. */
  @property() label = 'Output';
  /** The names of runs, where lines have tags. */
  @property({ attribute: false }) tags: readonly LogTag[] | undefined;
  @query('#editor') private parent!: HTMLElement;
  readonly #appearance: LogAppearance = {
    lines: [],
    marked: undefined,
    matcher: undefined,
    current: undefined,
    tags: [],
  };
  readonly #wrapping = new Compartment();
  readonly #gutters = new Compartment();
  readonly #attributes = new Compartment();
  #editor: EditorView | undefined;
  #scroll: ScrollWatch | undefined;
  readonly #resized = new ResizeObserver(() => this.#stick());
  #isFollowing = true;

  /** Whether the last line is kept in sight. */
  get isFollowing(): boolean {
    return this.#isFollowing;
  }

  set isFollowing(follows: boolean) {
    if (follows) this.#toEnd();
    if (follows === this.#isFollowing) return;
    this.#isFollowing = follows;
    this.dispatchEvent(new Event('log-follow'));
  }

  override render() {
    return html`<div id="editor"></div>`;
  }

  override connectedCallback(): void {
    super.connectedCallback();
    if (this.hasUpdated) this.#create();
  }

  override disconnectedCallback(): void {
    // The window would hold it, and all of its text, for ever.
    this.#resized.disconnect();
    this.#scroll?.stop();
    this.#editor?.destroy();
    this.#editor = undefined;
    super.disconnectedCallback();
  }

  #create(): void {
    const left = () => (this.isFollowing = false);
    const editor = new EditorView({
      parent: this.parent,
      root: this.renderRoot as ShadowRoot,
      state: EditorState.create({
        doc: this.#textOf(this.#appearance.lines),
        extensions: [
          EditorState.readOnly.of(true),
          EditorView.editable.of(false),
          this.#attributes.of(this.#contentAttributes()),
          this.#wrapping.of(this.wrap ? EditorView.lineWrapping : []),
          this.#gutters.of(this.#chosenGutters()),
          scrollOnlyLines,
          decorations(this.#appearance),
          logKeys({
            lines: () => this.#appearance.lines,
            chosen: (line) => this.#tellLine(line),
            left,
            selected: () => this.selectedText,
          }),
          EditorView.updateListener.of((update) => {
            if (update.docChanged || update.geometryChanged) this.#stick();
          }),
          editorTheme,
        ],
      }),
    });
    this.#editor = editor;
    this.#resized.observe(editor.scrollDOM);
    this.#scroll = new ScrollWatch(editor.scrollDOM, { left, reachedEnd: () => (this.isFollowing = true) });
    if (this.#isFollowing) this.#toEnd();
  }

  protected override updated(changed: PropertyValues): void {
    const editor = this.#editor;
    if (editor === undefined) {
      if (this.isConnected) this.#create();
      return;
    }
    const effects = [];
    if (changed.has('wrap')) effects.push(this.#wrapping.reconfigure(this.wrap ? EditorView.lineWrapping : []));
    if (changed.has('label')) effects.push(this.#attributes.reconfigure(this.#contentAttributes()));
    if (changed.has('numbers') || changed.has('times') || changed.has('tags')) {
      effects.push(this.#gutters.reconfigure(this.#chosenGutters()));
    }
    if (effects.length === 0) return;
    editor.dispatch({ effects });
    if (this.#isFollowing) this.#toEnd();
  }

  #chosenGutters(): Extension {
    this.#appearance.tags = this.tags ?? [];
    const choice = { numbers: this.numbers, times: this.times, tags: this.tags !== undefined };
    return gutters(this.#appearance, choice, (line) => this.#tellLine(line));
  }

  /** Shows other lines. They are those of the list from now on, whose changes are told by `apply`. */
  reset(lines: readonly LogLine[]): void {
    this.#appearance.lines = lines;
    const editor = this.#editor;
    if (editor === undefined) return;
    editor.dispatch({ changes: { from: 0, to: editor.state.doc.length, insert: this.#textOf(lines) } });
    if (this.#isFollowing) this.#toEnd();
  }

  /** Takes changes that were made to the list, in their order. */
  apply(changes: readonly ListChange[]): void {
    const editor = this.#editor;
    if (editor === undefined || changes.length === 0) return;
    const transactions: Transaction[] = [];
    let { state } = editor;
    const update = (spec: TransactionSpec) => {
      const transaction = state.update(spec);
      transactions.push(transaction);
      state = transaction.state;
    };
    for (const change of changes) update({ changes: specOf(state.doc, change) });
    if (this.#isFollowing) update({ effects: EditorView.scrollIntoView(state.doc.length, { y: 'end' }) });
    editor.update(transactions);
    // Measures now, which CodeMirror would put off to the next frame: each would be laid out twice.
    editor.lineBlockAtHeight(0);
  }

  /** Marks a line, or none. */
  mark(line: LogLine | undefined): void {
    if (this.#appearance.marked === line) return;
    this.#appearance.marked = line;
    this.#refresh();
  }

  /** Marks what matches, and of that the match that one went to. */
  highlight(matcher: Matcher | undefined, current: LogAppearance['current']): void {
    this.#appearance.matcher = matcher;
    this.#appearance.current = current;
    this.#refresh();
  }

  /** Brings a line into sight, by its place in the list, and its part from `from` on. */
  reveal(index: number, from = 0, y: 'center' | 'start' | 'nearest' = 'center'): void {
    const editor = this.#editor;
    if (editor === undefined) return;
    this.isFollowing = false;
    const line = editor.state.doc.line(Math.min(index + 1, editor.state.doc.lines));
    const at = Math.min(line.from + from, line.to);
    editor.dispatch({ selection: { anchor: at }, effects: EditorView.scrollIntoView(at, { y, x: 'nearest' }) });
  }

  /** Whether a line, by its place in the list, is in sight. */
  isInSight(index: number): boolean {
    const editor = this.#editor;
    if (editor === undefined || index >= this.#appearance.lines.length) return false;
    const block = editor.lineBlockAt(editor.state.doc.line(index + 1).from);
    const top = editor.scrollDOM.getBoundingClientRect().top - editor.documentTop;
    return block.bottom > top && block.top < top + editor.scrollDOM.clientHeight;
  }

  /** Returns the place of the first line in sight. */
  get firstInSight(): number {
    const editor = this.#editor;
    if (editor === undefined) return 0;
    const top = editor.scrollDOM.getBoundingClientRect().top - editor.documentTop;
    return editor.state.doc.lineAt(editor.lineBlockAtHeight(Math.max(top, 0)).from).number - 1;
  }

  /** Returns the place of the line that the reader went to last. */
  get here(): number {
    const state = this.#editor?.state;
    return state === undefined ? 0 : state.doc.lineAt(state.selection.main.head).number - 1;
  }

  /** Returns what is selected, as text. */
  get selectedText(): string {
    const state = this.#editor?.state;
    if (state === undefined) return '';
    const { from, to } = state.selection.main;
    return joined(state.doc, this.#appearance.lines, from, to);
  }

  /** Returns the text of all lines. */
  get allText(): string {
    const { lines } = this.#appearance;
    return this.#editor === undefined ? '' : joined(this.#editor.state.doc, lines, 0, this.#editor.state.doc.length);
  }

  override focus(): void {
    this.#editor?.focus();
  }

  #textOf(lines: readonly LogLine[]): Text {
    return Text.of([...lines.map((it) => it.text), '']);
  }

  #contentAttributes() {
    // It remains a text box that cannot be written in, as CodeMirror has it: a `log` may not say that it has lines.
    return EditorView.contentAttributes.of({ tabindex: '0', 'aria-label': this.label });
  }

  #refresh(): void {
    this.#editor?.dispatch({ effects: appearanceChanged.of(null) });
  }

  #toEnd(): void {
    const editor = this.#editor;
    if (editor === undefined) return;
    editor.dispatch({ effects: EditorView.scrollIntoView(editor.state.doc.length, { y: 'end' }) });
    this.#stick();
  }

  /** Stays at the end, where lines turn out to be higher than they were thought to be, or less of them has room. */
  #stick(): void {
    if (!this.#isFollowing) return;
    this.#editor?.requestMeasure({
      key: this,
      read: ({ scrollDOM }) => scrollDOM.scrollHeight - scrollDOM.clientHeight - scrollDOM.scrollTop,
      write: (below, { scrollDOM }) => {
        if (below > 1 && this.#isFollowing) scrollDOM.scrollTop = scrollDOM.scrollHeight;
      },
    });
  }

  #tellLine(line: LogLine): void {
    this.dispatchEvent(new CustomEvent<LogLineDetail>('log-line', { detail: { line } }));
  }
}

/** Writes a change of the list as one of the document, in which a line feed is after each line. */
function specOf(
  doc: Text,
  { at, removed, inserted }: ListChange,
): { readonly from: number; readonly to?: number; readonly insert: Text | string } {
  const first = doc.line(at + 1);
  const [line] = inserted;
  if (removed.length === 1 && inserted.length === 1 && line !== undefined && line.text.startsWith(first.text)) {
    // A selection in a line that goes on remains.
    return { from: first.to, insert: line.text.slice(first.length) };
  }
  const insert = inserted.length === 0 ? '' : Text.of([...inserted.map((it) => it.text), '']);
  return { from: first.from, to: removed.length === 0 ? first.from : doc.line(at + removed.length + 1).from, insert };
}

/** Returns the text between two places. What is one line of the output is one line there. */
function joined(doc: Text, lines: readonly LogLine[], from: number, to: number): string {
  const parts: string[] = [];
  const last = doc.lineAt(to);
  for (let line = doc.lineAt(from); ; line = doc.line(line.number + 1)) {
    parts.push(line.text.slice(Math.max(from - line.from, 0), to - line.from));
    if (line.number === last.number) return parts.join('');
    // The rest of a line that was too long may come after lines of the other stream.
    const [log, next] = [lines[line.number - 1], lines[line.number]];
    if (log?.goesOn !== true || next?.source !== log.source) parts.push('\n');
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'rf-log-view': LogView;
  }
}

customElements.define('rf-log-view', LogView);
