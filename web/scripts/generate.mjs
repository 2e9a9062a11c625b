// Generates src/gen, the types of the API, from ../proto. `--check` says what would change, and changes nothing.

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

const web = path.dirname(import.meta.dirname);
const made = path.join(web, 'src/gen');
const isCheck = process.argv.includes('--check');
const out = isCheck ? fs.mkdtempSync(path.join(os.tmpdir(), 'ringfence-gen-')) : made;

const template = {
  version: 'v2',
  plugins: [
    {
      local: path.join(web, 'node_modules/.bin/protoc-gen-es'),
      out,
      opt: ['target=ts', 'import_extension=js'],
      include_imports: true,
    },
  ],
};
for (const [folder, part] of [['../proto', 'ringfence'], ['proto', 'google']]) {
  const generated = spawnSync(
    path.join(web, 'node_modules/.bin/buf'),
    ['generate', '.', '--template', JSON.stringify(template), '--path', part],
    { cwd: path.join(web, folder), stdio: 'inherit' },
  );
  if (generated.status !== 0) process.exit(generated.status ?? 1);
}
if (!isCheck) process.exit(0);

const files = (dir) => fs.readdirSync(dir, { recursive: true }).filter((it) => it.endsWith('.ts')).sort();
const read = (dir, name) => fs.readFileSync(path.join(dir, name), 'utf8');
const [expected, found] = [files(out), files(made)];
const differing = [...new Set([...expected, ...found])].filter(
  (name) => !expected.includes(name) || !found.includes(name) || read(out, name) !== read(made, name),
);
fs.rmSync(out, { recursive: true });
if (differing.length > 0) {
  console.error(`src/gen is not what ../proto makes (npm run gen): ${differing.join(', ')}`);
  process.exit(1);
}
