// Generates src/gen, the types of the API, from ../proto. `--check` says what would change, and changes nothing.

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { fromBinary, toBinary } from '@bufbuild/protobuf';
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt';

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

const files = (dir) => fs.readdirSync(dir, { recursive: true }).filter((it) => it.endsWith('.ts')).sort();
const read = (dir, name) => fs.readFileSync(path.join(dir, name), 'utf8');
// What other languages want to know of a file is a third of its descriptor, and nothing here asks for it. The rest
// stands there as characters, one a byte: in base64, names that are repeated are no longer alike, so that what is
// served compressed would be three kilobytes larger.
for (const name of files(out)) {
  const text = read(out, name);
  const lean = text.replace(/fileDesc\("([^"]*)"/, (_, encoded) => {
    const descriptor = fromBinary(FileDescriptorProtoSchema, Buffer.from(encoded, 'base64'));
    descriptor.options = undefined;
    const bytes = Buffer.from(toBinary(FileDescriptorProtoSchema, descriptor));
    const escape = (it) => `\\x${it.charCodeAt(0).toString(16).padStart(2, '0')}`;
    return `fileDesc(/*@__PURE__*/ btoa(${JSON.stringify(bytes.toString('latin1')).replace(/[\x7f-\xff]/g, escape)})`;
  });
  if (lean !== text) fs.writeFileSync(path.join(out, name), lean);
}
if (!isCheck) process.exit(0);

const [expected, found] = [files(out), files(made)];
const differing = [...new Set([...expected, ...found])].filter(
  (name) => !expected.includes(name) || !found.includes(name) || read(out, name) !== read(made, name),
);
fs.rmSync(out, { recursive: true });
if (differing.length > 0) {
  console.error(`src/gen is not what ../proto makes (npm run gen): ${differing.join(', ')}`);
  process.exit(1);
}
