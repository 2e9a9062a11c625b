// A table of any number of rows, of which only those in view are in the document. All rows have one height.

import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';
import { property, query, state } from 'lit/decorators.js';
import { repeat } from 'lit/directives/repeat.js';

import { controls } from './styles.js';

/** Rows beyond each edge of the view that are in the document too, for scrolling that shows no gaps. */
const OVERSCAN = 6;

/** The base of such tables: what a row has in it is told by who extends it. */
export abstract class VirtualRows<T> extends LitElement {
  static override styles = [
    controls,
    css`
      :host {
        display: block;
        min-height: 0;
        container-type: inline-size;
      }
      .scroller {
        height: 100%;
        overflow: auto;
        overflow-anchor: none;
        scrollbar-gutter: stable;
      }
      .scroller:focus-visible {
        outline-offset: -2px;
      }
      .head {
        position: sticky;
        inset-block-start: 0;
        z-index: 1;
        background: var(--ground-2);
        border-block-end: 1px solid var(--line);
        font-weight: 600;
      }
      .rows > [role='row'] {
        height: var(--row-height);
        border-block-end: 1px solid var(--line);
        overflow: hidden;
      }
      .rows > [role='row']:hover {
        background: var(--ground-2);
      }
      .rows > [aria-selected='true'] {
        background: var(--ground-3);
      }
      .scroller:focus-visible .active {
        outline: 2px solid var(--focus);
        outline-offset: -2px;
      }
      .active {
        box-shadow: inset 3px 0 var(--accent);
      }
    `,
  ];

  @property({ attribute: false }) items: readonly T[] = [];
  /** What the table is called by those who hear it. */
  @property() label = '';
  /** Whether the table is so narrow that each row has two lines. */
  @state() protected isNarrow = false;
  @state() private from = 0;
  @state() private activeKey: string | undefined;
  @query('.scroller') private scroller!: HTMLElement;
  @query('.head') private head!: HTMLElement;
  @query('.rows') private rows!: HTMLElement;
  #shift = 0;
  #resized = new ResizeObserver(() => this.#measure());

  /** Heights of a row in rem, with one line and with two. */
  protected readonly rowRem: readonly [number, number] = [2.25, 3.5];
  /** Below this width in rem, rows have two lines. */
  protected readonly narrowRem: number = 45;

  /** Returns what tells an item from all others. */
  protected abstract keyOf(item: T): string;
  protected abstract renderHead(): TemplateResult;
  protected abstract renderRow(item: T): TemplateResult;
  /** Tells whether a row is chosen; `undefined` where rows cannot be. */
  protected isChosen(_item: T): boolean | undefined {
    return undefined;
  }
  /** Is called where Enter is pressed on a row, or it is clicked twice. */
  protected abstract open(item: T): void;
  /** Takes a key that is pressed on a row. Returns whether it did something. */
  protected takeKey(_event: KeyboardEvent, _item: T): boolean {
    return false;
  }

  /** The item that keys act on. */
  get active(): T | undefined {
    const at = this.#activeIndex();
    return at < 0 ? undefined : this.items[at];
  }

  /** Makes an item the one that keys act on, and shows it. */
  activate(key: string): void {
    this.activeKey = key;
    void this.updateComplete.then(() => this.#reveal());
  }

  override focus(): void {
    this.scroller.focus();
  }

  override connectedCallback(): void {
    super.connectedCallback();
    this.#resized.observe(this);
  }

  override disconnectedCallback(): void {
    this.#resized.disconnect();
    super.disconnectedCallback();
  }

  protected override willUpdate(changed: PropertyValues): void {
    if (!changed.has('items') || !this.hasUpdated) return;
    const before = (changed.get('items') as readonly T[] | undefined) ?? [];
    this.#shift = this.#shiftOf(before);
  }

  /** Returns by how many rows what is looked at has moved. It is to remain where it is while rows come above it. */
  #shiftOf(before: readonly T[]): number {
    const top = this.scroller.scrollTop;
    const hasFocus = this.shadowRoot?.activeElement === this.scroller;
    if (top <= 0 && !hasFocus) return 0;
    const first = before[Math.floor(top / this.#rowHeight())];
    const key = hasFocus && this.activeKey !== undefined ? this.activeKey : first && this.keyOf(first);
    if (key === undefined) return 0;
    const from = before.findIndex((it) => this.keyOf(it) === key);
    const to = this.items.findIndex((it) => this.keyOf(it) === key);
    return from < 0 || to < 0 ? 0 : to - from;
  }

  protected override updated(): void {
    const height = this.#rowHeight();
    const { style } = this.rows;
    style.setProperty('--row-height', `${height}px`);
    style.setProperty('height', `${this.items.length * height}px`);
    style.setProperty('padding-block-start', `${this.#range()[0] * height}px`);
    if (this.#shift === 0) return;
    this.scroller.scrollTop += this.#shift * height;
    this.#shift = 0;
    this.#scrolled();
  }

  protected override firstUpdated(): void {
    this.#measure();
  }

  #measure(): void {
    const rem = remPixels();
    this.isNarrow = this.clientWidth > 0 && this.clientWidth < this.narrowRem * rem;
    this.requestUpdate();
  }

  #rowHeight(): number {
    return Math.round(this.rowRem[this.isNarrow ? 1 : 0] * remPixels());
  }

  /** Returns the first row that is in the document, and that after the last. */
  #range(): [number, number] {
    const inView = Math.ceil((this.clientHeight || window.innerHeight) / this.#rowHeight()) + 1;
    const from = Math.max(0, Math.min(this.from, this.items.length - inView));
    return [Math.max(0, from - OVERSCAN), Math.min(this.items.length, from + inView + OVERSCAN)];
  }

  readonly #scrolled = () => {
    this.from = Math.floor(this.scroller.scrollTop / this.#rowHeight());
  };

  #activeIndex(): number {
    return this.activeKey === undefined ? -1 : this.items.findIndex((it) => this.keyOf(it) === this.activeKey);
  }

  /** Scrolls so far that the active row is in view. */
  #reveal(): void {
    const at = this.#activeIndex();
    if (at < 0) return;
    const height = this.#rowHeight();
    const room = this.scroller.clientHeight - this.head.offsetHeight;
    const top = at * height;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top + height > this.scroller.scrollTop + room) this.scroller.scrollTop = top + height - room;
    this.#scrolled();
  }

  readonly #pressed = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey || this.items.length === 0) return;
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.#rowHeight()) - 1);
    const at = this.#activeIndex();
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: Infinity }[
      event.key
    ];
    if (to !== undefined) {
      const next = this.items[Math.max(0, Math.min(to, this.items.length - 1))];
      if (next !== undefined) this.activate(this.keyOf(next));
    } else {
      const item = this.items[at];
      if (item === undefined) return;
      if (event.key === 'Enter') this.open(item);
      else if (!this.takeKey(event, item)) return;
    }
    event.preventDefault();
    event.stopPropagation();
  };

  readonly #focused = () => {
    const first = this.items[Math.min(this.from, this.items.length - 1)];
    if (this.#activeIndex() < 0 && first !== undefined) this.activeKey = this.keyOf(first);
  };

  override render() {
    const [from, to] = this.#range();
    const active = this.#activeIndex();
    const inDocument = active >= from && active < to;
    return html`
      <div
        class=${this.isNarrow ? 'scroller narrow' : 'scroller'}
        role="grid"
        tabindex="0"
        aria-label=${this.label}
        aria-rowcount=${this.items.length + 1}
        aria-multiselectable="true"
        aria-activedescendant=${inDocument ? `row-${active}` : nothing}
        @scroll=${this.#scrolled}
        @keydown=${this.#pressed}
        @focus=${this.#focused}
      >
        <div class="head" role="rowgroup"><div role="row" aria-rowindex="1">${this.renderHead()}</div></div>
        <div class="rows" role="rowgroup">
          ${repeat(
            this.items.slice(from, to),
            (item) => this.keyOf(item),
            (item, index) => this.#row(item, from + index, from + index === active),
          )}
        </div>
      </div>
    `;
  }

  #row(item: T, index: number, isActive: boolean): TemplateResult {
    return html`<div
      role="row"
      id="row-${index}"
      class=${isActive ? 'active' : ''}
      aria-rowindex=${index + 2}
      aria-selected=${this.isChosen(item) ?? nothing}
      @click=${() => (this.activeKey = this.keyOf(item))}
      @dblclick=${() => this.open(item)}
    >
      ${this.renderRow(item)}
    </div>`;
  }
}

function remPixels(): number {
  return Number.parseFloat(getComputedStyle(document.documentElement).fontSize) || 16;
}
