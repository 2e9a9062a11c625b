// What a daemon says, as sentences.

import type { Failure } from '../api/failure.js';
import { formatBytes } from './format.js';
import { printable } from './printable.js';

/** What a message may have besides the module that it carries. */
const MESSAGE_SLACK = 64 << 10;

/** Makes a message a sentence: it begins with a capital, and ends with a full stop. */
export function sentence(message: string): string {
  const text = printable(message.trim());
  const [first = ''] = text;
  // A message may begin with the name of a field, which is no word.
  const isName = /^[a-z]\w*[._:[]/.test(text);
  const begun = isName ? text : first.toUpperCase() + text.slice(first.length);
  return /[.!?…]$/.test(begun) || begun === '' ? begun : `${begun}.`;
}

/** Says why a call failed, with its stable reason. */
export function sayFailure(failure: Failure): string {
  const says = sentence(failure.message);
  return failure.reason === '' ? says : `${says} (${printable(failure.reason)})`;
}

/** Says why a module was not stored. `size` is that of a file; `undefined` for a module of a registry. */
export function sayUploadFailure(failure: Failure, size: number | undefined): string {
  const allowed = Number(failure.metadata['allowed']);
  const isTooLarge = failure.metadata['limit'] === 'compile.max_module' && Number.isFinite(allowed);
  if (!isTooLarge || size === undefined) return sayFailure(failure);
  const most = failure.reason === 'MESSAGE_TOO_LARGE' ? allowed - MESSAGE_SLACK : allowed;
  const limit = `This daemon takes modules of up to ${formatBytes(most)} (compile.max_module).`;
  return `The file has ${formatBytes(size)}. ${limit}`;
}

/** Makes a name for a module from the name of its file, as the daemon takes names. */
export function nameOfFile(file: string): string {
  const name = file.replace(/\.(wasm|wat|cwasm)$/i, '').replace(/\p{Cc}/gu, '');
  let bytes = 0;
  let end = 0;
  for (const character of name) {
    bytes += new TextEncoder().encode(character).length;
    if (bytes > 128) break;
    end += character.length;
  }
  return name.slice(0, end);
}
