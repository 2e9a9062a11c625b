import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { printable, printableLines } from '../src/model/printable.js';

test('hidden characters are shown', () => {
  const cases: ReadonlyArray<readonly [string, string]> = [
    ['plain text, ünïcödé, 日本語, 👍🏽', 'plain text, ünïcödé, 日本語, 👍🏽'],
    ['a\u202eb', 'a⟨U+202E⟩b'],
    ['\u2066\u2069\u200e\u200f\u061c', '⟨U+2066⟩⟨U+2069⟩⟨U+200E⟩⟨U+200F⟩⟨U+061C⟩'],
    ['pay\u200bpal\u200d\ufeff', 'pay⟨U+200B⟩pal⟨U+200D⟩⟨U+FEFF⟩'],
    ['\u001b[31mred\u0000\u007f\u009b', '␛[31mred␀␡⟨U+009B⟩'],
    ['a\nb\tc\r', 'a␊b␉c␍'],
    ['\u{e0041}tag', '⟨U+E0041⟩tag'],
    ['\ud800!', '⟨U+D800⟩!'],
    ['<script>alert(1)</script>', '<script>alert(1)</script>'],
    ['', ''],
  ];
  for (const [text, shown] of cases) assert.equal(printable(text), shown);
});

test('lines remain where they are wanted', () => {
  assert.equal(printableLines('a\r\nb\n\tc\rd\u202e'), 'a\nb\n\tc␍d⟨U+202E⟩');
});

test('what is shown has nothing that is hidden, and is not changed again', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      const shown = printable(text);
      assert.doesNotMatch(shown, /[\p{Cc}\p{Bidi_Control}\u200b-\u200f\u2060\ufeff\u2028\u2029]/u);
      assert.equal(printable(shown), shown);
    }),
  );
});
