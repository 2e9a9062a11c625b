// Builds dist/, which the daemon embeds. `--check` builds it beside, and fails where the committed one differs.

import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import zlib from 'node:zlib';
import esbuild from 'esbuild';

const web = path.dirname(import.meta.dirname);
const dist = path.join(web, 'dist');
/** The most bytes of all files together, compressed. */
const MAX_BYTES = 200_000;

/** What the names of chunks are told by: a module that is in each. The daemon embeds them by name. */
const CHUNKS = new Map([
  ['src/more_pages.ts', 'more_pages.js'],
  ['node_modules/@codemirror/view/dist/index.js', 'log.js'],
  ['node_modules/@connectrpc/connect/dist/esm/connect-error.js', 'shared.js'],
  ['src/ui/confirm.ts', 'common.js'],
]);

/** Gives each chunk its name, and returns the names by those that they have. */
function nameChunks(outputs) {
  const names = new Map([['styles.css', 'page.css']]);
  for (const [output, { inputs }] of Object.entries(outputs)) {
    const hashed = path.basename(output);
    if (!/-[0-9A-Z]{8}\.js$/.test(hashed)) continue;
    const [, name] = [...CHUNKS].find(([input]) => input in inputs) ?? [];
    if (name === undefined || [...names.values()].includes(name)) {
      throw new Error(`the chunk of ${Object.keys(inputs).join(', ')} needs a name of its own`);
    }
    names.set(hashed, name);
  }
  return names;
}

/** Removes what a browser does not need of a stylesheet in a template. */
function narrowStyles(template) {
  return template
    .replace(/([{};,`])\s*\n\s*/g, '$1')
    .replace(/ \{/g, '{')
    .replace(/: /g, ':')
    .replace(/;\}/g, '}');
}

/** Removes the indentation of templates, which esbuild takes for text. */
const narrowTemplates = {
  name: 'narrow-templates',
  setup(builder) {
    builder.onLoad({ filter: /\/src\/(app|log|pages|ui)\/.*\.ts$/ }, (args) => {
      const source = fs.readFileSync(args.path, 'utf8');
      const narrowed = source.replace(/css`[^`]*`/g, narrowStyles).replace(/\n +/g, '\n ');
      return { contents: narrowed, loader: 'ts' };
    });
  },
};

/** Leaves out what makes JSON of messages and messages of JSON: calls by gRPC-Web have them in binary form alone. */
const withoutJson = {
  name: 'without-json',
  setup(builder) {
    builder.onLoad({ filter: /@bufbuild\/protobuf\/dist\/esm\/(from|to)-json\.js$/ }, (args) => {
      const source = fs.readFileSync(args.path, 'utf8');
      const names = [...source.matchAll(/^export function (\w+)/gm)].map(([, name]) => name);
      const none = (name) => `export function ${name}() { throw new Error('messages have no JSON here'); }`;
      return { contents: names.map(none).join('\n') };
    });
  },
};

/** Builds all files of the page, by name. With `dev`, they have source maps. */
export async function build({ dev = false } = {}) {
  const built = await esbuild.build({
    absWorkingDir: web,
    entryPoints: { page: 'src/page.ts', 'ringfence-log': 'src/ringfence-log.ts', styles: 'src/page.css' },
    outdir: 'dist',
    bundle: true,
    format: 'esm',
    splitting: true,
    chunkNames: 'chunk-[hash]',
    plugins: dev ? [withoutJson] : [withoutJson, narrowTemplates],
    metafile: true,
    target: ['chrome116', 'firefox124', 'safari17.4'],
    minify: !dev,
    sourcemap: dev ? 'inline' : false,
    legalComments: 'none',
    charset: 'utf8',
    write: false,
    logLevel: 'warning',
  });
  const names = nameChunks(built.metafile.outputs);
  const files = new Map();
  for (const file of built.outputFiles) {
    let { text } = file;
    for (const [hashed, name] of names) text = text.replaceAll(hashed, name);
    const name = path.basename(file.path);
    files.set(names.get(name) ?? name, Buffer.from(text));
  }
  for (const name of ['index.html', 'icon.svg']) files.set(name, fs.readFileSync(path.join(web, 'src', name)));
  return files;
}

async function main() {
  const files = await build();
  const packed = new Map([...files].map(([name, bytes]) => [`${name}.gz`, zlib.gzipSync(bytes, { level: 9 })]));
  let sum = 0;
  for (const [name, bytes] of packed) {
    sum += bytes.length;
    console.log(`${String(bytes.length).padStart(8)} ${name}`);
  }
  console.log(`${String(sum).padStart(8)} of ${MAX_BYTES}`);
  if (sum > MAX_BYTES) throw new Error(`the page has ${sum} bytes compressed, and may have ${MAX_BYTES}`);
  if (process.argv.includes('--check')) {
    // What is inside is compared: another release of zlib may pack the same bytes otherwise.
    const hash = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');
    const committed = new Map(
      fs.readdirSync(dist).map((name) => [name, hash(zlib.gunzipSync(fs.readFileSync(path.join(dist, name))))]),
    );
    const names = new Set([...committed.keys(), ...packed.keys()]);
    const differing = [...names].filter((name) => {
      const bytes = files.get(name.slice(0, -3));
      return bytes === undefined || committed.get(name) !== hash(bytes);
    });
    if (differing.length > 0)
      throw new Error(`web/dist is not what web/src makes (npm run build): ${differing.join(', ')}`);
    return;
  }
  fs.rmSync(dist, { recursive: true, force: true });
  fs.mkdirSync(dist);
  for (const [name, bytes] of packed) fs.writeFileSync(path.join(dist, name), bytes);
}

if (process.argv[1] === import.meta.filename) await main();
