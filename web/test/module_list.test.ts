import assert from 'node:assert/strict';
import { test } from 'node:test';
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';

import { ModuleInfoSchema } from '../src/gen/ringfence/v1/module_pb.js';
import { filterModules, moduleName, sortModules } from '../src/model/module_list.js';

const module = (digest: string, name: string, size: number, used: number, more: object = {}) =>
  create(ModuleInfoSchema, {
    digest,
    name,
    size: BigInt(size),
    ...(used === 0 ? {} : { lastUsed: timestampFromMs(used) }),
    ...more,
  });

const modules = [
  module('sha256:aa', 'Python 3', 20, 5, { labels: { team: 'a', env: 'prod' } }),
  module('sha256:bb', 'clang', 30, 0),
  module('sha256:cc', '', 10, 9, { nameSection: 'kit.wasm' }),
  module('sha256:dd', '', 10, 9),
];

const digests = (found: readonly { digest: string }[]) => found.map((it) => it.digest.slice(7)).join(' ');

test('every word has to be found, in whichever text', () => {
  assert.equal(digests(filterModules(modules, '')), 'aa bb cc dd');
  assert.equal(digests(filterModules(modules, ' PYTHON ')), 'aa');
  assert.equal(digests(filterModules(modules, 'team=a prod')), 'aa');
  assert.equal(digests(filterModules(modules, 'python clang')), '');
  assert.equal(digests(filterModules(modules, 'kit')), 'cc');
  assert.equal(digests(filterModules(modules, 'sha256:d')), 'dd');
});

test('modules are sorted, and what is equal stays in the order of digests', () => {
  assert.equal(digests(sortModules(modules, 'used', false)), 'cc dd aa bb');
  assert.equal(digests(sortModules(modules, 'size', false)), 'bb aa cc dd');
  assert.equal(digests(sortModules(modules, 'size', true)), 'cc dd aa bb');
  assert.equal(digests(sortModules(modules, 'name', false)), 'bb cc aa dd');
  assert.equal(digests(sortModules(modules, 'memory', false)), 'aa bb cc dd');
});

test('a module without a name goes by that of its name section', () => {
  assert.deepEqual(modules.map(moduleName), ['Python 3', 'clang', 'kit.wasm', '']);
});
