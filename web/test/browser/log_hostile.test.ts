// A guest that writes what is to harm whoever reads it: it is text, and nothing else.

import assert from 'node:assert/strict';

import { browserTest, rustSource, until } from './harness.js';
import { LogPage } from './log_helpers.js';

/** Writes bytes that arguments cannot have, such as NUL, and a megabyte without an end. */
const HOSTILE = String.raw`
use std::io::Write;
fn main() {
    let mut out = std::io::stdout();
    let lines: [&[u8]; 11] = [
        b"<script>alert(1)</script><img src=x onerror=alert(2)>",
        b"<a href=\"javascript:alert(3)\" onmouseover=alert(4)>here</a>",
        b"\x1b]8;;https://evil.example/\x07a link\x1b]8;;\x07 and \x1b]8;;ftp://e.example/\x1b\\another\x1b]8;;\x1b\\",
        b"clip\x1b]52;c;ZXZpbA==\x07board",
        "safe \u{202e}txt.exe \u{2066}a\u{2069} \u{200f}".as_bytes(),
        "pay\u{200b}pal\u{200d}\u{feff} soft\u{ad}".as_bytes(),
        b"nul\0bell\x07back\x7f",
        b"\xff\xfe\xc3( \xe2\x82 \xf0\x9f\x98",
        b"\x1b]0;title\x07\x1bPq#0;2;0;0;0\x1b\\\x1b[?1049h\x1b[2J\x1b[Hcleared",
        b"\x1b]8;;https://unterminated.example/ no end",
        b"</div></template>{{7*7}}\${7*7}",
    ];
    for line in lines {
        out.write_all(line).unwrap();
        out.write_all(b"\n").unwrap();
    }
    out.flush().unwrap();
    let piece = [b'y'; 65536];
    for _ in 0..16 {
        out.write_all(&piece).unwrap();
    }
    out.write_all(b"\nthe last line\n").unwrap();
}`;

const SHOWN = [
  '<script>alert(1)</script><img src=x onerror=alert(2)>',
  '<a href="javascript:alert(3)" onmouseover=alert(4)>here</a>',
  'a link and another',
  'clipboard',
  'safe ⟨U+202E⟩txt.exe ⟨U+2066⟩a⟨U+2069⟩ ⟨U+200F⟩',
  'pay⟨U+200B⟩pal⟨U+200D⟩⟨U+FEFF⟩ soft⟨U+00AD⟩',
  'nul␀bell␇back␡',
  '��\ufffd( \ufffd \ufffd',
  'cleared',
  '8;;https://unterminated.example/ no end',
  '</div></template>{{7*7}}${7*7}',
];

browserTest('hostile output is text, and nothing leaves', { set: { 'runs.log_bytes': '"4MiB"' } }, async (fixture) => {
  const { daemon, open, complaints } = fixture;
  const digest = await daemon.load(rustSource(HOSTILE.replace('\\${', '${')), '<b>module</b>\u202e', {});
  const id = await daemon.start(digest, [], { labels: { '<img src=x>': '</script>' } });
  await daemon.untilEnded(id);
  for (const theme of ['light', 'dark'] as const) {
    const page = await open(`#/runs/${id}`, { theme });
    await page.evaluate(() => navigator.clipboard.writeText('mine'));
    const log = new LogPage(page);
    await log.untilLine('the last line');
    const title = await page.title();
    // A megabyte is 64 lines, which one can go through, search and leave.
    await log.log.getByText('76 lines', { exact: true }).waitFor();
    const began = Date.now();
    await log.button('First').click();
    await log.untilLine(SHOWN[0]!);
    assert.ok(Date.now() - began < 5_000, 'it is usable');
    assert.deepEqual((await log.lines()).slice(0, SHOWN.length), SHOWN);
    const end = await log.log.locator('.cm-goes-on').first().evaluate((it) => getComputedStyle(it, '::after').content);
    assert.match(end, /this line goes on below/);
    assert.equal(await log.log.locator('.cm-content a, .cm-content img, .cm-content script').count(), 0);
    await log.search.fill('yy');
    await log.log.getByText(/^[\d,]+ matches$/).waitFor();
    await log.button('Wrap').click();
    await log.button('Latest').click();
    await log.untilLine('the last line');
    await log.log.locator('.cm-content').click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), 'mine');
    assert.equal(await page.title(), title);
    await until('all is quiet', async () => complaints.length === 0);
    await log.button('Wrap').click();
    await page.close();
  }
});
