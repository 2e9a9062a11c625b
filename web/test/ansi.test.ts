import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { applySgr, BOLD, DIM, INVERSE, isSameStyle, ITALIC, PLAIN, RGB, STRIKE, UNDERLINE } from '../src/model/ansi.js';
import { colorsOf, contrast, cssOfStyle, DARK, LIGHT, MINIMAL_CONTRAST } from '../src/model/ansi_color.js';

const after = (...sequences: string[]) => sequences.reduce(applySgr, PLAIN);

test('SGR sets and clears', () => {
  assert.deepEqual(after('1;31'), { foreground: 1, background: -1, flags: BOLD });
  assert.deepEqual(after('1;2;3;4;7;9'), { ...PLAIN, flags: BOLD | DIM | ITALIC | UNDERLINE | INVERSE | STRIKE });
  assert.deepEqual(after('1;2;3;4;7;9', '22;23;24;27;29'), PLAIN);
  assert.deepEqual(after('31', ''), PLAIN);
  assert.deepEqual(after('31;', '1'), { ...PLAIN, flags: BOLD });
  assert.deepEqual(after('97;104'), { foreground: 15, background: 12, flags: 0 });
  assert.deepEqual(after('31;42', '39'), { foreground: -1, background: 2, flags: 0 });
  assert.deepEqual(after('31;42', '49'), { foreground: 1, background: -1, flags: 0 });
});

test('256 colours and 24 bits, in both ways to write them', () => {
  const orange = RGB + 0xff8000;
  assert.equal(after('38;5;208').foreground, 208);
  assert.equal(after('38:5:208').foreground, 208);
  assert.equal(after('48;2;255;128;0').background, orange);
  assert.equal(after('38:2:255:128:0').foreground, orange);
  assert.equal(after('38:2::255:128:0').foreground, orange);
  assert.deepEqual(after('38;5;208;1;48;5;3'), { foreground: 208, background: 3, flags: BOLD });
  // The colour of underlines is none of the text, and takes its parameters with it.
  assert.deepEqual(after('58;5;1;3'), { ...PLAIN, flags: ITALIC });
  assert.deepEqual(after('4:3'), { ...PLAIN, flags: UNDERLINE });
  assert.deepEqual(after('4', '4:0'), PLAIN);
});

test('what is no colour changes nothing', () => {
  for (const it of ['38;5;256', '38;2;256;0;0', '38', '38;7', '38:9:1', '1000', '5', '8', '38;5']) {
    const { foreground } = after(it);
    assert.ok(foreground === -1 || foreground === 0, it);
  }
  assert.deepEqual(after('99999999999999999999'), PLAIN);
});

test('any parameters are taken', () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom(...'0123456789;:') }), (parameters) => {
      const style = applySgr(PLAIN, parameters);
      assert.ok(Number.isSafeInteger(style.foreground) && Number.isSafeInteger(style.flags));
      assert.ok(isSameStyle(style, { ...style }));
    }),
  );
});

const color = fc.oneof(fc.integer({ min: -1, max: 255 }), fc.integer({ min: RGB, max: RGB + 0xffffff }));
const style = fc.record({ foreground: color, background: color, flags: fc.integer({ min: 0, max: 63 }) });

test('text is readable in every style and in both themes', () => {
  const grounds = { light: [0xff, 0xff, 0xff], dark: [0x0f, 0x14, 0x19] } as const;
  fc.assert(
    fc.property(style, (it) => {
      for (const [theme, ground] of [[LIGHT, grounds.light], [DARK, grounds.dark]] as const) {
        const { foreground = theme.ink, background } = colorsOf(it, theme);
        for (const under of background === undefined ? [theme.ground, ground] : [background]) {
          assert.ok(contrast(foreground, under) >= MINIMAL_CONTRAST);
        }
      }
    }),
    { numRuns: 2_000 },
  );
});

test('a style is declarations that hold in both themes', () => {
  assert.equal(cssOfStyle(PLAIN), '');
  const css = cssOfStyle({ ...PLAIN, flags: BOLD | UNDERLINE | STRIKE });
  assert.equal(css, 'font-weight: 700; text-decoration: underline line-through');
  assert.equal(cssOfStyle({ ...PLAIN, foreground: 1 }), 'color: light-dark(#b3261e, #ff8a80)');
  fc.assert(
    fc.property(style, (it) => {
      assert.match(cssOfStyle(it), /^([a-z-]+: [a-z0-9#(), -]+(; |$))*$/);
    }),
  );
});
