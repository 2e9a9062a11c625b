// Keys that do something wherever the focus is, but in a field that takes text.

/** A key, what it does in words, and what it does. */
export interface Shortcut {
  /** A key as `KeyboardEvent.key` has it, such as `f` or `?`, or two after each other, such as `g r`. */
  readonly keys: string;
  readonly says: string;
  readonly run: () => void;
}

const SECOND_KEY_MS = 1_000;
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

/** Returns all shortcuts that there are now, for a list of them. */
export function allShortcuts(): Shortcut[] {
  return [...groups].flat();
}

function pressed(event: KeyboardEvent): void {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || takesText(event)) return;
  const before = first !== undefined && event.timeStamp - first.at < SECOND_KEY_MS ? `${first.key} ` : '';
  const all = allShortcuts();
  const chosen =
    all.findLast((it) => it.keys === `${before}${event.key}`) ?? all.findLast((it) => it.keys === event.key);
  first = all.some((it) => it.keys.startsWith(`${event.key} `)) ? { key: event.key, at: event.timeStamp } : undefined;
  if (chosen === undefined) return;
  first = undefined;
  event.preventDefault();
  chosen.run();
}

/** Tells whether a key goes into a field, of whichever component. */
function takesText(event: KeyboardEvent): boolean {
  const target = event.composedPath()[0];
  if (!(target instanceof HTMLElement)) return false;
  if (target.isContentEditable || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return true;
  return target instanceof HTMLInputElement && !['button', 'checkbox', 'radio', 'range'].includes(target.type);
}
