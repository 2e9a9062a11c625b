// Copies lines as text.

import { plural } from '../model/format.js';
import { copyText } from '../ui/copy.js';
import type { LogView } from './log_view.js';

/** Copies what is selected, or else all lines. Returns what there is to say about it. */
export async function copyLines(view: LogView): Promise<string> {
  const selected = view.selectedText;
  const text = selected === '' ? view.allText : selected;
  const lines = text.split('\n').length - (text.endsWith('\n') ? 1 : 0);
  const what = `${selected === '' ? 'The text' : 'The selection'}, ${plural(lines, 'line')},`;
  try {
    await navigator.clipboard.writeText(text);
    return `${what} is copied.`;
  } catch {
    await copyText(text, what);
    return '';
  }
}
