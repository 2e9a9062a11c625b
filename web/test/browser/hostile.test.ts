// What comes from attackers (labels, names, arguments, output, messages, addresses) is text, on every page: no markup,
// no link, no title, nothing invisible. That nothing runs and no request leaves is what every test asserts in the end.

import assert from 'node:assert/strict';

import type { Page } from 'playwright-core';

import { ArchiveState, RunState } from '../../src/gen/ringfence/v1/run_pb.js';
import { browserTest, type Fixture, printer, type TestDaemon, until, wat } from './harness.js';

/** Each has at most 128 bytes, as labels and names may have, and has EVIL in it. */
const HOSTILE: readonly string[] = [
  '<script>globalThis.EVIL=1</script>',
  '<img src=x onerror="globalThis.EVIL=1">',
  '"><svg/onload=globalThis.EVIL=1>',
  "' autofocus onfocus='globalThis.EVIL=1",
  'javascript:globalThis.EVIL=1//',
  'https://evil.example/EVIL?x=1#y',
  '${globalThis.EVIL=1}{{EVIL}}<!--EVIL-->',
  '\u202eLIVE\u202c EVIL \u2066\u2069\u200f\u061c',
  'E\u200bV\u200dI\u2060L EVIL\ufeff\u00ad',
  'EVIL'.repeat(32),
];

/** Bytes that a guest may print: sequences that would set a title, write to the clipboard, or make a link. */
const OUTPUT = [
  ...HOSTILE,
  '\\e]0;EVIL title\\x07after',
  '\\e]52;c;RVZJTA==\\x07after',
  '\\e]8;;https://evil.example/EVIL\\e\\\\\\\\EVIL link\\e]8;;\\e\\\\\\\\after',
  '\\e[8mEVIL hidden\\e[0m \\e[30;40mEVIL\\e[0m',
  '\\0\\0EVIL\\0 \\xff\\xfe\\xc3( EVIL \\xed\\xa0\\x80 \\xf0\\x9f EVIL',
  '\\e[2J\\e[H\\e[999;999HEVIL\\ec\\x9b31mEVIL',
];

/** What a reader would not see, or would see elsewhere than it stands. */
const HIDDEN =
  '[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff]';

/** Finds fault with what stands in the page, in all of its shadow roots. */
async function faults(page: Page): Promise<string[]> {
  return page.evaluate((hidden) => {
    const found: string[] = [];
    const isHidden = new RegExp(hidden, 'u');
    const check = (what: string, text: string) => {
      if (isHidden.test(text)) found.push(`${what} has hidden characters: ${encodeURIComponent(text).slice(0, 200)}`);
    };
    const walk = (node: Node) => {
      if (node instanceof Text) check(`text of ${node.parentElement?.localName}`, node.data);
      if (node instanceof Element) {
        const { localName } = node;
        if (['script', 'iframe', 'object', 'embed', 'svg', 'img'].includes(localName) && /EVIL/.test(node.outerHTML)) {
          found.push(`there is an element: ${node.outerHTML.slice(0, 200)}`);
        }
        for (const { name, value } of node.attributes) {
          // What is chosen is a name as it is, and what is shown of it is another thing.
          if (name !== 'value') check(`${localName}[${name}]`, value);
          if (name.startsWith('on')) found.push(`${localName} has ${name}`);
          // An address inside of the page may have the filter that was asked for in it.
          const isPlace = name === 'href' && value.startsWith('#/');
          const isName = ['href', 'src', 'style', 'title', 'class', 'id', 'action', 'download'].includes(name);
          if (isName && !isPlace && /EVIL/.test(value)) found.push(`${localName}[${name}] is ${value.slice(0, 200)}`);
        }
        if (node.shadowRoot !== null) walk(node.shadowRoot);
      }
      for (const child of node.childNodes) walk(child);
    };
    walk(document.documentElement);
    if (/EVIL/.test(document.title)) found.push(`the title is ${document.title}`);
    if ('EVIL' in globalThis) found.push('a script has run');
    return found;
  }, HIDDEN);
}

/** Everything that a reader can see or hear. */
async function textOf(page: Page): Promise<string> {
  return page.evaluate(() => {
    const texts: string[] = [];
    const walk = (node: Node) => {
      if (node instanceof Text) texts.push(node.data);
      if (node instanceof HTMLInputElement || node instanceof HTMLTextAreaElement) texts.push(node.value);
      if (node instanceof Element && node.shadowRoot !== null) walk(node.shadowRoot);
      for (const child of node.childNodes) walk(child);
    };
    walk(document.body);
    return texts.join(' ');
  });
}

interface World {
  readonly digests: readonly string[];
  readonly ids: readonly string[];
  readonly running: string;
}

/** Modules and runs with all of it, in every place where a caller may write something. */
async function populate(daemon: TestDaemon): Promise<World> {
  const digests: string[] = [];
  const ids: string[] = [];
  const wasm = printer();
  for (const [i, evil] of HOSTILE.entries()) {
    const own = new Uint8Array([...wasm, 0, 3, 2, 105, i]);
    const digest = await daemon.load(own, evil, { [evil.slice(0, 60)]: evil });
    digests.push(digest);
    const output = OUTPUT.flatMap((it) => [`out:${it}\\n`, `err:${it}\\n`]);
    const labels = { [evil]: evil, EVIL: '1', [`n${i}`]: evil };
    ids.push(await daemon.start(digest, [evil, ...output], { labels, env: [`EVIL=${evil}`] }));
  }
  // Names that a module brings: of itself, of its functions, of its exports and of its imports.
  const [, image = '', , , , , , bidi = ''] = HOSTILE;
  const quoted = (text: string) =>
    JSON.stringify(text).replace(/[\u007f-\uffff]/g, (it) => `\\u{${it.codePointAt(0)!.toString(16)}}`);
  const named = await daemon.load(
    wat(`(module $${quoted(image)}
      (func $${quoted(image)} (export "_start") call $${quoted(bidi)})
      (func $${quoted(bidi)} (export ${quoted(bidi)}) unreachable)
      (func (export ${quoted(image)}) (param i32) (result i32) local.get 0))`),
    image,
  );
  digests.push(named);
  ids.push(await daemon.start(named, []));
  const importing = wat(`(module (import ${quoted(image)} ${quoted(bidi)} (func)) (func (export "_start")))`);
  // Refusals whose messages have it.
  for (const evil of [image, bidi]) {
    await assert.rejects(daemon.start(named, [], { entryPoint: `${evil}?`, labels: { EVIL: '1' } }));
  }
  const spec = { module: { case: 'wasm' as const, value: importing }, labels: { EVIL: '1' } };
  await assert.rejects(daemon.client.sandbox.run({ spec }));
  for (const id of ids) await daemon.untilEnded(id);
  const labels = { [image]: bidi, EVIL: '1' };
  const running = await daemon.start(digests[1]!, [image, `out:${bidi}\\n`, 'cat'], { labels, openStdin: true });
  await daemon.untilRun(running, (run) => run.state === RunState.RUNNING);
  return { digests, ids, running };
}

/** Goes to a place, and waits until nothing is left of the one before. */
async function go(page: Page, hash: string): Promise<void> {
  await page.evaluate(async (it) => {
    location.hash = it;
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  }, hash);
}

/** Opens places one after the other, and finds fault with none of them. */
async function inspect({ open }: Fixture, hashes: readonly string[], options = {}): Promise<Page> {
  const page = await open('#/nowhere', options);
  await page.getByText('test is serving').waitFor();
  for (const hash of hashes) {
    await go(page, hash);
    // What is hostile is there, wherever something of it is to be shown.
    if (!hash.includes('overview')) await until(`${hash} shows it`, async () => (await textOf(page)).includes('EVIL'));
    await page.waitForTimeout(400);
    assert.deepEqual(await faults(page), [], hash);
  }
  return page;
}

browserTest('runs, whatever they are called and print', async (fixture) => {
  const { ids, running } = await populate(fixture.daemon);
  const { runs } = await fixture.daemon.client.runs.listRuns({});
  assert.equal(runs.length, ids.length + 1 + 3, 'the refused ones are there too');
  await inspect(fixture, ['#/runs', ...runs.map((it) => `#/runs/${it.runId}`), `#/runs/${running}`]);
});

browserTest('runs of the archive, and the question whether to delete them', { hasArchive: true }, async (fixture) => {
  const { daemon } = fixture;
  const { ids, running } = await populate(daemon);
  await daemon.client.runs.cancelRun({ runId: running });
  for (const id of [...ids, running]) await daemon.untilRun(id, (run) => run.archive === ArchiveState.WRITTEN);
  await daemon.kill();
  await daemon.restart();
  const page = await inspect(fixture, ['#/runs?last=hour', ...ids.slice(0, 4).map((it) => `#/runs/${it}`)]);
  await go(page, '#/runs?last=hour&label=EVIL=1');
  await page.getByText('All runs of this time are loaded.').waitFor();
  await page.getByRole('button', { name: 'Delete all that match' }).click();
  await page.getByRole('alertdialog').getByRole('heading', { name: /^Delete \d+ runs\?$/ }).waitFor();
  assert.deepEqual(await faults(page), []);
});

browserTest('modules, and the form that runs them', async (fixture) => {
  const { digests, ids } = await populate(fixture.daemon);
  const modules = digests.map((it) => `#/modules/${it}`);
  const starts = [
    `#/start?module=${digests[0]}`,
    `#/start?module=${digests.at(-1)}`,
    ...ids.slice(0, 4).map((it) => `#/start?from=${it}`),
  ];
  await inspect(fixture, ['#/modules', ...modules, ...starts]);
});

browserTest('several runs at once, merged and side by side', async (fixture) => {
  await populate(fixture.daemon);
  await inspect(fixture, ['#/together?label=EVIL=1', '#/together?label=EVIL=1&layout=columns']);
});

browserTest('figures, and addresses that lead nowhere', async (fixture) => {
  await populate(fixture.daemon);
  const places = HOSTILE.flatMap((evil) => {
    const text = encodeURIComponent(evil);
    return [`#/${text}`, `#/runs/${text}`, `#/runs?text=${text}`, `#/runs?label=${text}=${text}`, `#/modules/${text}`];
  });
  const more = HOSTILE.slice(0, 3).flatMap((evil) => {
    const text = encodeURIComponent(evil);
    return [`#/modules?text=${text}`, `#/start?module=${text}`, `#/start?from=${text}`, `#/together?run=${text}`];
  });
  const page = await inspect(fixture, ['#/overview']);
  for (const hash of [...places, ...more]) {
    await go(page, hash);
    await page.waitForTimeout(150);
    assert.deepEqual(await faults(page), [], hash);
  }
});

browserTest('questions and messages', async (fixture) => {
  const { running } = await populate(fixture.daemon);
  const page = await inspect(fixture, ['#/runs?state=running']);
  await page.getByRole('button', { name: /^Kill run/ }).click();
  const question = page.getByRole('alertdialog');
  await question.waitFor();
  assert.deepEqual(await faults(page), []);
  await question.getByRole('button', { name: /Kill/ }).click();
  await fixture.daemon.untilEnded(running);
  await page.waitForTimeout(300);
  assert.deepEqual(await faults(page), []);
});
