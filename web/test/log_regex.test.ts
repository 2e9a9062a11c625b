import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { isHarmless, LinearRegex, requiredText } from '../src/model/linear_regex.js';
import { parseRegex, PatternError } from '../src/model/regex_syntax.js';

/** Finds the first match as `[from, to]`. */
function find(pattern: string, text: string, ignoreCase = false, from = 0): number[] | undefined {
  const found = new LinearRegex(parseRegex(pattern, ignoreCase)).find(text, from);
  return found === undefined ? undefined : [found.from, found.to];
}

/** Finds it with what the browser has. */
function findNatively(pattern: string, text: string, ignoreCase: boolean, flag: string): number[] | undefined {
  const found = new RegExp(pattern, flag + (ignoreCase ? 'i' : '')).exec(text);
  return found === null ? undefined : [found.index, found.index + found[0].length];
}

test('patterns match what they match in the browser', () => {
  const patterns = [
    ...['error', 'err(or)?', '^a', 'b$', '^$', '', 'a|ab', 'ab|a', '(a|b)*c', 'a*?b', 'a+?', '(?:ab){2,3}', 'a{2}'],
    ...['a{2,}', '[a-c]+', '[^a]', '[\\]\\-]', '\\d+ ms', '\\w+@\\w+', '\\bis\\b', '\\Bs', '.', '.*', 'a.c'],
    ...['\\x41', '\\u0041', '\\u{1f600}', '[\\u{1f600}-\\u{1f64f}]+', '\\p{Lu}+', '(?<name>a)b', 'a{', 'a{x}', ']'],
    ...['\\.', '\\t', '\\/', '\\-', '(a*)*b', '(|a)+', 'x|', '\\cA'],
  ];
  const texts = [
    ...['', 'a', 'ab', 'abab c', 'an error: this is it', '12 ms', 'A@b.c', 'x]-y', 'aaab', '😀😁 AÄ', 'a\tb'],
    ...['a{x}', 'a/b-c', 'A\x01'],
  ];
  for (const pattern of patterns) {
    let flag = 'u';
    try {
      new RegExp(pattern, flag);
    } catch {
      flag = '';
    }
    for (const text of texts) {
      for (const ignoreCase of [false, true]) {
        const expected = findNatively(pattern, text, ignoreCase, flag);
        const what = `/${pattern}/${ignoreCase ? 'i' : ''} in ${JSON.stringify(text)}`;
        assert.deepEqual(find(pattern, text, ignoreCase), expected, what);
      }
    }
  }
});

test('a search goes on from a place, and knows what is before it', () => {
  assert.deepEqual(find('a', 'aba', false, 1), [2, 3]);
  assert.equal(find('^a', 'aba', false, 1), undefined);
  assert.equal(find('\\bb', 'ab', false, 1), undefined);
});

/** Patterns whose meaning does not depend on how a loop treats what is empty. */
const { pattern } = fc.letrec<{ pattern: string }>((tie) => ({
  pattern: fc.oneof(
    { maxDepth: 4 },
    fc.constantFrom('a', 'b', 'ab', '.', '[ab]', '[^a]', '\\w', '^', '$', '\\b', ''),
    fc.tuple(tie('pattern'), tie('pattern')).map((it) => it.join('')),
    fc.tuple(tie('pattern'), tie('pattern')).map((it) => `(?:${it.join('|')})`),
    fc
      .tuple(
        fc.constantFrom('a', 'b', '.', '(?:ab|a)', '(?:a|b|ba)'),
        fc.constantFrom('*', '+', '?', '*?', '+?', '??', '{2}', '{1,3}', '{2,}?'),
      )
      .map((it) => it.join('')),
  ),
}));

test('any pattern matches what it matches in the browser', () => {
  const anyText = fc.string({ unit: fc.constantFrom('a', 'b', 'A', ' '), maxLength: 12 });
  fc.assert(
    fc.property(pattern, anyText, fc.boolean(), (it, text, ignoreCase) => {
      assert.deepEqual(find(it, text, ignoreCase), findNatively(it, text, ignoreCase, 'u'));
      const required = requiredText(parseRegex(it, false));
      if (findNatively(it, text, false, 'u') !== undefined) assert.ok(text.includes(required));
    }),
    { numRuns: 3_000 },
  );
});

test('what is wrong with a pattern is said', () => {
  const wrong = (it: string) => assert.throws(() => new LinearRegex(parseRegex(it, false)), PatternError, it);
  for (const it of ['(', 'a)', '[', '*', 'a**', '\\', 'a{9999}', '(a{99}){99}']) wrong(it);
  for (const it of ['(a)\\1', '(?<x>a)\\k<x>', 'a(?=b)', 'a(?!b)', '(?<=a)b', '(?<!a)b']) wrong(it);
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom(...'ab()[]{}*+?|\\^$.,-1<=!:kuxp') }), (it) => {
      try {
        new LinearRegex(parseRegex(it, false)).find('ab', 0);
      } catch (error) {
        assert.ok(error instanceof PatternError, `/${it}/: ${String(error)}`);
      }
    }),
    { numRuns: 3_000 },
  );
});

test('no pattern takes long', () => {
  const nested = ['(a+)+b', '(a|a)*b', '(a|aa)+$b', '(.*)(.*)(.*)(.*)x'];
  for (const it of [...nested, '^(([a-z])+.)+[A-Z]([a-z])+$', '(a?){50}a{50}b']) {
    const regex = new LinearRegex(parseRegex(it, false));
    assert.equal(regex.find('a'.repeat(16_384), 0), undefined);
    assert.ok(regex.steps < 16_384 * 400, `${it} takes ${regex.steps} steps`);
    assert.equal(isHarmless(parseRegex(it, false)), false);
  }
  assert.equal(isHarmless(parseRegex('(error|warn(ing)): \\d{3}', false)), true);
  assert.equal(isHarmless(parseRegex('(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)', false)), false);
  assert.equal(requiredText(parseRegex('a.*timeout: \\d', false)), 'timeout: ');
});
