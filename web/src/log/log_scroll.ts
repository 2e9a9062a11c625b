// Tells whether the reader scrolls, or what is shown does, and scrolls nothing but the lines.

import { EditorView } from '@codemirror/view';

/** How long after a wheel, a key or a touch a movement is the reader's. */
const READER_MS = 700;
/** How near the end is at it. */
const END_PX = 6;

/** Watches an element that the reader may scroll away from its end, and back to it. */
export class ScrollWatch {
  readonly #stop = new AbortController();
  #readerAt = -Infinity;
  /** Whether a finger or a button of the mouse is down, as on the scroll bar. */
  #isHeld = false;
  #top = 0;

  constructor(
    private readonly scroller: HTMLElement,
    private readonly told: { readonly left: () => void; readonly reachedEnd: () => void },
  ) {
    const options = { signal: this.#stop.signal, passive: true };
    const touched = (event: Event) => {
      this.#readerAt = event.timeStamp;
    };
    const hold = (isHeld: boolean) => (event: Event) => {
      this.#isHeld = isHeld;
      touched(event);
    };
    scroller.addEventListener('wheel', this.#turned, options);
    scroller.addEventListener('keydown', touched, options);
    for (const name of ['pointerdown', 'touchstart']) scroller.addEventListener(name, hold(true), options);
    // A finger that scrolls is no pointer any more.
    for (const name of ['pointerup', 'touchend', 'touchcancel']) window.addEventListener(name, hold(false), options);
    scroller.addEventListener('scroll', this.#scrolled, options);
    this.#top = scroller.scrollTop;
  }

  stop(): void {
    this.#stop.abort();
  }

  readonly #turned = (event: WheelEvent) => {
    this.#readerAt = event.timeStamp;
    if (event.deltaY < 0 && !event.shiftKey && !event.ctrlKey && this.scroller.scrollTop > 0) this.told.left();
  };

  readonly #scrolled = (event: Event) => {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const moved = scrollTop - this.#top;
    this.#top = scrollTop;
    if (!this.#isHeld && event.timeStamp - this.#readerAt > READER_MS) return;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < END_PX;
    // What is dropped at the beginning moves the lines up as well: only what is held is the reader's for sure.
    if (this.#isHeld && moved < -1 && !isAtEnd) this.told.left();
    else if (moved > 1 && isAtEnd) this.told.reachedEnd();
  };
}

/** How CodeMirror is asked to bring a position into sight. */
interface ScrollOptions {
  readonly x: string;
  readonly y: string;
  readonly xMargin: number;
  readonly yMargin: number;
}

/** Scrolls the lines alone: CodeMirror would scroll the page around them as well, again and again as lines come. */
export const scrollOnlyLines = EditorView.scrollHandler.of((view, range, options) => {
  const { scrollDOM: scroller } = view;
  if (range.head === view.state.doc.length && options.y === 'end') {
    scroller.scrollTop = scroller.scrollHeight;
    return true;
  }
  scrollTo(scroller, rectOf(view, range.head), options, view.contentDOM.getBoundingClientRect().left);
  return true;
});

/** Tells where a position is on the screen, while CodeMirror itself may not be asked. */
function rectOf(view: EditorView, position: number): DOMRect {
  const { node, offset } = view.domAtPos(position);
  const range = document.createRange();
  range.setStart(node, offset);
  // An empty line has nothing that a range could be at.
  const element = node instanceof Element ? (node.closest('.cm-line') ?? node) : node.parentElement;
  return range.getClientRects()[0] ?? (element ?? view.contentDOM).getBoundingClientRect();
}

function scrollTo(scroller: HTMLElement, place: DOMRect, options: ScrollOptions, left: number): void {
  const { x, y, xMargin, yMargin } = options;
  const box = scroller.getBoundingClientRect();
  const [above, below] = [place.top - box.top - yMargin, place.bottom - box.top - scroller.clientHeight + yMargin];
  if (y === 'center') scroller.scrollTop += (above + below) / 2;
  else if (y === 'start' || above < 0) scroller.scrollTop += above;
  else if (y === 'end' || below > 0) scroller.scrollTop += below;
  // What is beside the lines covers them.
  const first = left + scroller.scrollLeft + xMargin;
  const last = box.left + scroller.clientWidth - xMargin;
  if (x === 'nearest' && place.left < first) scroller.scrollLeft -= first - place.left;
  else if (x === 'nearest' && place.right > last) scroller.scrollLeft += place.right - last + scroller.clientWidth / 4;
}
