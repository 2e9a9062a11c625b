import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Code } from '@connectrpc/connect';

import type { Failure } from '../src/api/failure.js';
import { nameOfFile, sayFailure, sayUploadFailure, sentence } from '../src/model/sentences.js';

const failure = (reason: string, message: string, metadata: Record<string, string> = {}): Failure => ({
  code: Code.InvalidArgument,
  reason,
  message,
  metadata,
  fields: [],
  retryAfterMs: undefined,
});

test('messages become sentences', () => {
  assert.equal(sentence('the module is gone'), 'The module is gone.');
  assert.equal(sentence('Done!'), 'Done!');
  assert.equal(sentence('spec.args[1]: it is wrong'), 'spec.args[1]: it is wrong.');
  assert.equal(sentence(''), '');
  assert.equal(sentence('<b>\u202ex'), '<b>⟨U+202E⟩x.');
  assert.equal(sayFailure(failure('QUEUE_FULL', 'too many wait')), 'Too many wait. (QUEUE_FULL)');
  assert.equal(sayFailure(failure('', 'the connection broke off')), 'The connection broke off.');
});

test('a module that is too large is told with both numbers', () => {
  const limit = 'compile.max_module';
  const too = 'The file has 70 MiB. This daemon takes modules of up to 64 MiB (compile.max_module).';
  const message = failure('MESSAGE_TOO_LARGE', '…', { limit, allowed: String((64 << 20) + (64 << 10)) });
  assert.equal(sayUploadFailure(message, 70 << 20), too);
  const module = failure('MODULE_TOO_LARGE', '…', { limit, allowed: String(64 << 20) });
  assert.equal(sayUploadFailure(module, 70 << 20), too);
  assert.equal(sayUploadFailure(failure('MODULE_INVALID', 'bad magic'), 5), 'Bad magic. (MODULE_INVALID)');
});

test('a file’s name becomes a module’s', () => {
  assert.equal(nameOfFile('python.wasm'), 'python');
  assert.equal(nameOfFile('a.b.WAT'), 'a.b');
  assert.equal(nameOfFile('tool.bin'), 'tool.bin');
  assert.equal(nameOfFile('a\u0007b.wasm'), 'ab');
  const long = nameOfFile(`${'é'.repeat(100)}.wasm`);
  assert.equal(new TextEncoder().encode(long).length, 128);
});
