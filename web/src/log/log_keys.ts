// Keys in the lines: one goes through them, selects and copies without a mouse.

import type { Extension } from '@codemirror/state';
import { EditorView } from '@codemirror/view';

import type { LogLine } from '../model/line_assembler.js';

interface LogKeys {
  readonly lines: () => readonly LogLine[];
  /** The reader chose a line. */
  readonly chosen: (line: LogLine) => void;
  /** The reader went up, away from the end. */
  readonly left: () => void;
  /** Returns what is selected, as it is to be copied. */
  readonly selected: () => string;
}

/** Handles the keys that a text that cannot be edited does not have by itself. */
export function logKeys({ lines, chosen, left, selected }: LogKeys): Extension {
  return EditorView.domEventHandlers({
    keydown(event, view) {
      if (event.key === 'a' && (event.ctrlKey || event.metaKey) && !event.altKey) {
        view.dispatch({ selection: { anchor: 0, head: view.state.doc.length } });
        return true;
      }
      if (event.ctrlKey || event.metaKey || event.altKey) return false;
      const steps = stepsOf(event.key, view);
      if (steps !== undefined) {
        if (steps < 0) left();
        move(view, steps, event.shiftKey);
        return true;
      }
      if (event.key === 'Enter') {
        const line = lines()[view.state.doc.lineAt(view.state.selection.main.head).number - 1];
        if (line !== undefined && line.source !== 'note') chosen(line);
        return true;
      }
      return false;
    },
    copy(event) {
      const text = selected();
      if (text === '' || event.clipboardData === null) return false;
      event.clipboardData.setData('text/plain', text);
      event.preventDefault();
      return true;
    },
    focus(_, view) {
      // Where the reader is, is where they look.
      const { head } = view.state.selection.main;
      if (head >= view.viewport.from && head <= view.viewport.to) return;
      view.dispatch({ selection: { anchor: lineInSight(view) } });
    },
  });
}

/** Tells how many lines a key goes on. */
function stepsOf(key: string, view: EditorView): number | undefined {
  const page = Math.max(Math.floor(view.scrollDOM.clientHeight / view.defaultLineHeight) - 1, 1);
  switch (key) {
    case 'ArrowDown':
      return 1;
    case 'ArrowUp':
      return -1;
    case 'PageDown':
      return page;
    case 'PageUp':
      return -page;
    case 'Home':
      return -Infinity;
    case 'End':
      return Infinity;
    default:
      return undefined;
  }
}

/** Goes to another line, or selects up to it. */
function move(view: EditorView, steps: number, selects: boolean): void {
  const { doc, selection } = view.state;
  const number = doc.lineAt(selection.main.head).number + steps;
  const head = doc.line(Math.min(Math.max(number, 1), doc.lines)).from;
  view.dispatch({
    selection: { anchor: selects ? selection.main.anchor : head, head },
    effects: EditorView.scrollIntoView(head, { y: 'nearest', yMargin: 2 * view.defaultLineHeight }),
  });
}

function lineInSight(view: EditorView): number {
  const top = view.scrollDOM.getBoundingClientRect().top - view.documentTop;
  return view.lineBlockAtHeight(Math.max(top, 0) + view.defaultLineHeight).from;
}
