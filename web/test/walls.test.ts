import assert from 'node:assert/strict';
import { test } from 'node:test';

import { compileWalls, featureWalls, hardeningWalls, poolWalls } from '../src/model/walls.js';

test('every wall that a daemon has is explained', () => {
  for (const wall of [
    ...hardeningWalls('user+no_new_privs+capabilities+landlock+seccomp'),
    ...hardeningWalls('none'),
    ...compileWalls('child+landlock+seccomp'),
    ...compileWalls('in-process'),
    ...poolWalls('pooled+pagemap_scan'),
    ...poolWalls('pooled'),
    ...poolWalls('on-demand'),
    ...featureWalls([
      'wasi_snapshot_preview1',
      'wasi_unstable',
      'wasi_cli_run',
      'memory_limits',
      'fuel',
      'compilation_cache',
      'context_cancellation',
      'streaming',
      'wasm:gc',
    ]),
  ]) {
    assert.match(wall.says, /\.$/, wall.name);
  }
});

test('what is not known is shown by its name', () => {
  assert.deepEqual(hardeningWalls('seccomp+moat').at(-1), { name: 'moat', says: '' });
  assert.deepEqual(featureWalls(['new']), [{ name: 'new', says: '' }]);
  assert.deepEqual(hardeningWalls(''), []);
});
