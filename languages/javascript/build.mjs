// Builds the runner of JavaScript programs, a WebAssembly component: `node build.mjs --out javascript.wasm`.
//
// `npm ci` comes first. The last line that is printed is the digest of the result.
//
//   --with NAME@VERSION   bundles a package of npm and what it depends on; may be repeated
//   --import NAME         executes a bundled package when the component is built, so that it costs a program nothing
//   --lock FILE           takes the packages as this package-lock.json has them, each by its digest, and no others

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cp, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { builtinModules } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const here = dirname(fileURLToPath(import.meta.url));

// The folder in which componentize-js works gets into the component, so it always is the same.
const work = join(tmpdir(), 'ringfence-javascript-runner');

async function main() {
  const many = { type: 'string', multiple: true, default: [] };
  const one = { type: 'string' };
  const { values } = parseArgs({ options: { out: one, with: many, import: many, lock: one } });
  if (values.out === undefined) throw new Error('--out FILE is missing: where to write the component');
  const packages = new Map(values.with.map(nameAndVersion));
  for (const name of values.import) {
    if (!packages.has(name)) throw new Error(`--import ${name}: there is no --with for this package`);
  }
  const out = resolve(values.out);
  await mkdir(work).catch((error) => {
    if (error.code !== 'EEXIST') throw error;
    throw new Error(`another build is at work in ${work}, or one has left it there: remove it then`);
  });
  try {
    const component = await build(packages, values);
    await writeFile(`${out}.part`, component);
    await rename(`${out}.part`, out);
    console.log(`sha256:${createHash('sha256').update(component).digest('hex')}`);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

// Divides NAME@VERSION.
function nameAndVersion(text) {
  const found = /^((?:@[\w.-]+\/)?[\w.-]+)@(\d+\.\d+\.\d+[\w.+-]*)$/.exec(text);
  if (found === null) throw new Error(`--with ${text}: a package is given as NAME@VERSION, with its exact version`);
  return [found[1], found[2]];
}

// Installs packages in a folder, without executing anything of them, and returns the text of each as one CommonJS module.
async function bundle(packages, lock) {
  const folder = join(work, 'packages');
  await mkdir(folder);
  const manifest = { private: true, dependencies: Object.fromEntries(packages) };
  await writeFile(join(folder, 'package.json'), JSON.stringify(manifest));
  if (lock !== undefined) await cp(resolve(lock), join(folder, 'package-lock.json'));
  const command = [lock === undefined ? 'install' : 'ci', '--ignore-scripts', '--no-audit', '--no-fund'];
  const ended = spawnSync('npm', command, { cwd: folder, encoding: 'utf8' });
  if (ended.status !== 0) throw new Error(`cannot fetch the packages:\n${ended.stderr ?? ended.error}`);
  await refuseNative(join(folder, 'node_modules'));
  const installed = JSON.parse(await readFile(join(folder, 'package-lock.json'), 'utf8')).packages;
  for (const [path, { version, integrity }] of Object.entries(installed)) {
    if (path !== '') console.log(`${path.replace(/^.*node_modules\//, '')}@${version} ${integrity}`);
  }
  const { rolldown } = await import('rolldown');
  const texts = {};
  for (const name of packages.keys()) {
    const external = builtinModules.flatMap((module) => [module, `node:${module}`]);
    const made = await rolldown({ input: name, cwd: folder, platform: 'node', external, logLevel: 'silent' });
    const { output } = await made.generate({ format: 'cjs', exports: 'auto' });
    if (output.length !== 1) throw new Error(`--with ${name}: it cannot be bundled as one module`);
    texts[name] = output[0].code;
    await made.close();
  }
  return texts;
}

// Refuses packages that have native code, which cannot run in the component.
async function refuseNative(folder) {
  const files = await readdir(folder, { recursive: true });
  const native = files.find((file) => file.endsWith('.node') || file.endsWith('binding.gyp'));
  if (native !== undefined) throw new Error(`a package has native code, which cannot be bundled: ${native}`);
}

async function build(packages, options) {
  await cp(join(here, 'src'), join(work, 'src'), { recursive: true });
  const texts = packages.size === 0 ? {} : await bundle(packages, options.lock);
  await writeFile(
    join(work, 'src', 'packages.js'),
    `export const packages = ${JSON.stringify(texts)};\nexport const imports = ${JSON.stringify(options.import)};\n`,
  );
  process.env.TMPDIR = work;
  process.chdir(join(work, 'src'));
  // It names its folder by this.
  Math.random = () => 0.5;
  const { componentize } = await import('@bytecodealliance/componentize-js').catch((error) => {
    throw new Error(`run \`npm ci\` in this folder first: ${error.message}`);
  });
  const { component } = await componentize({
    sourcePath: join(work, 'src', 'runner.js'),
    witPath: join(here, 'wit'),
    worldName: 'runner',
    disableFeatures: ['http', 'fetch-event'],
  });
  return component;
}

await main().catch((error) => {
  console.error(`build.mjs: ${error.message}`);
  process.exitCode = 1;
});
