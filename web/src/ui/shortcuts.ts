// Keys that do something wherever the focus is, but in a field that takes text.

/** A key, what it does in words, and what it does. */
export interface Shortcut {
  /** A key as `KeyboardEvent.key` has it, such as `f` or `?`, or two after each other, such as `g r`. */
  readonly keys: string;
  readonly says: string;
  readonly run: () => void;
}

const SECOND_KEY_MS = 1_000;
/** The types of fields that take no letters. */
const TEXTLESS = new Set(['button', 'checkbox', 'color', 'file', 'image', 'radio', 'range', 'reset', 'submit']);
const groups = new Set<readonly Shortcut[]>();
let first: { key: string; at: number } | undefined;

/** Adds shortcuts until the function that is returned is called. */
export function addShortcuts(shortcuts: readonly Shortcut[]): () => void {
  if (groups.size === 0) window.addEventListener('keydown', pressed);
  groups.add(shortcuts);
  return () => {
    groups.delete(shortcuts);
    if (groups.size === 0) window.removeEventListener('keydown', pressed);
  };
}

/** Returns the shortcuts that hold now, for a list of them. Of several with the same keys, the one added last holds. */
export function allShortcuts(): Shortcut[] {
  return [...new Map([...groups].flat().map((it) => [it.keys, it])).values()];
}

function pressed(event: KeyboardEvent): void {
  if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (isInDialog(event) || takesText(event)) return;
  const before = first !== undefined && event.timeStamp - first.at < SECOND_KEY_MS ? `${first.key} ` : '';
  const all = allShortcuts();
  const chosen = all.find((it) => it.keys === `${before}${event.key}`) ?? all.find((it) => it.keys === event.key);
  first = all.some((it) => it.keys.startsWith(`${event.key} `)) ? { key: event.key, at: event.timeStamp } : undefined;
  if (chosen === undefined) return;
  first = undefined;
  event.preventDefault();
  chosen.run();
}

/** Tells whether a key was pressed in a dialog, behind which nothing is to happen. */
function isInDialog(event: KeyboardEvent): boolean {
  return event.composedPath().some((it) => it instanceof HTMLDialogElement);
}

/** Tells whether a key goes into a field, of whichever component. */
function takesText(event: KeyboardEvent): boolean {
  const target = event.composedPath()[0];
  if (!(target instanceof HTMLElement)) return false;
  if (target.isContentEditable || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement)
    return true;
  return target instanceof HTMLInputElement && !TEXTLESS.has(target.type);
}
