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

/** Builds all files of the page, by name. With `dev`, they have source maps. */
export async function build({ dev = false } = {}) {
  const built = await esbuild.build({
    absWorkingDir: web,
    entryPoints: { page: 'src/page.ts', 'ringfence-log': 'src/ringfence-log.ts', styles: 'src/page.css' },
    outdir: 'dist',
    bundle: true,
    format: 'esm',
    splitting: true,
    // Two entry points have one chunk in common.
    chunkNames: 'shared',
    target: ['chrome116', 'firefox124', 'safari17.4'],
    minify: !dev,
    sourcemap: dev ? 'inline' : false,
    legalComments: 'none',
    charset: 'utf8',
    write: false,
    logLevel: 'warning',
  });
  const files = new Map();
  for (const file of built.outputFiles) {
    const name = path.basename(file.path);
    files.set(name === 'styles.css' ? 'page.css' : name, Buffer.from(file.contents));
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
    if (differing.length > 0) throw new Error(`web/dist is not what web/src makes (npm run build): ${differing.join(', ')}`);
    return;
  }
  fs.rmSync(dist, { recursive: true, force: true });
  fs.mkdirSync(dist);
  for (const [name, bytes] of packed) fs.writeFileSync(path.join(dist, name), bytes);
}

if (process.argv[1] === import.meta.filename) await main();
