// Bundles the tests of a folder and runs them: `test.mjs` those of test/, `test.mjs browser` those of test/browser.
// Further arguments select files by a part of their name; `--name PATTERN` selects tests. What is run by hand, such as
// `test.mjs browser screenshots`, is named in full.

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import esbuild from 'esbuild';

/** No tests, but run as they are. */
const BY_HAND = ['screenshots.ts'];
const web = path.dirname(import.meta.dirname);
const args = process.argv.slice(2);
const isBrowser = args[0] === 'browser';
if (isBrowser) args.shift();
const at = args.indexOf('--name');
const pattern = at < 0 ? [] : ['--test-name-pattern', args.splice(at, 2)[1]];
const folder = path.join(web, 'test', isBrowser ? 'browser' : '');
const names = fs.readdirSync(folder).filter((it) => it.endsWith('.ts'));
const tests = names.filter((it) => it.endsWith('.test.ts'));
const byHand = names.filter((it) => BY_HAND.includes(it) && args.includes(it.replace(/\.ts$/, '')));
const chosen =
  byHand.length > 0 ? byHand : tests.filter((it) => args.length === 0 || args.some((part) => it.includes(part)));
if (chosen.length === 0) throw new Error(`no test of ${folder} has a name with ${args.join(' or ')}`);
// Several may be run at once, each in a folder of its own.
const out = path.join(web, 'node_modules/.cache', `tests-${process.pid}`);
process.on('exit', () => fs.rmSync(out, { recursive: true, force: true }));
await esbuild.build({
  absWorkingDir: web,
  entryPoints: chosen.map((name) => path.join(folder, name)),
  outdir: out,
  outExtension: { '.js': '.mjs' },
  bundle: true,
  packages: 'external',
  platform: 'node',
  format: 'esm',
  target: 'node20',
  sourcemap: 'inline',
  logLevel: 'warning',
});
const files = chosen.map((name) => path.join(out, name.replace(/\.ts$/, '.mjs')));
// One file after the other: browsers and daemons are heavy.
const flags = ['--enable-source-maps', '--test', ...(isBrowser ? ['--test-concurrency=1'] : []), ...pattern];
process.exit(spawnSync(process.execPath, [...flags, ...files], { stdio: 'inherit', cwd: web }).status ?? 1);
