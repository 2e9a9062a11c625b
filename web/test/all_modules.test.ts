import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createClient, createRouterTransport } from '@connectrpc/connect';

import { allModules } from '../src/api/all_modules.js';
import { ModuleService } from '../src/gen/ringfence/v1/module_service_pb.js';

test('modules come page by page, to the last one', async () => {
  const pages: Readonly<Record<string, { digests: string[]; next: string }>> = {
    '': { digests: ['a', 'b'], next: 'b' },
    b: { digests: [], next: 'x' },
    x: { digests: ['y'], next: '' },
  };
  const transport = createRouterTransport(({ service }) => {
    service(ModuleService, {
      listModules: ({ pageToken, pageSize }) => {
        assert.equal(pageSize, 1_000);
        const { digests, next } = pages[pageToken] ?? { digests: [], next: '' };
        return { modules: digests.map((digest) => ({ digest })), nextPageToken: next };
      },
    });
  });
  const steps: string[] = [];
  const daemon = { modules: createClient(ModuleService, transport) };
  for await (const { modules, isComplete } of allModules(daemon, new AbortController().signal)) {
    steps.push(`${modules.map((it) => it.digest).join('')} ${isComplete}`);
  }
  assert.deepEqual(steps, ['ab false', 'ab false', 'aby true']);
});
