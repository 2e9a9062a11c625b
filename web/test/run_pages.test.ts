import assert from 'node:assert/strict';
import { test } from 'node:test';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { Code, ConnectError } from '@connectrpc/connect';

import type { Daemon } from '../src/api/client.js';
import { RunPages } from '../src/api/run_pages.js';
import type { RunInfo } from '../src/gen/ringfence/v1/run_pb.js';
import { type ListRunsRequestSchema, ListRunsResponseSchema } from '../src/gen/ringfence/v1/run_service_pb.js';

type Asked = MessageInitShape<typeof ListRunsRequestSchema>;

/** Answers with a page for each call: ids of runs, and what a test wants to fail. */
function listing(answers: ReadonlyArray<readonly string[] | Error>, known: readonly string[] = []) {
  const asked: Asked[] = [];
  const ids = new Set(known);
  const stop = new AbortController();
  let changes = 0;
  const listRuns = async (request: Asked) => {
    asked.push(request);
    const answer = answers[asked.length - 1];
    if (answer === undefined || answer instanceof Error) throw answer ?? new Error('no such page');
    const isLast = asked.length === answers.length;
    return create(ListRunsResponseSchema, {
      runs: answer.filter((it) => !it.startsWith('!')).map((runId) => ({ runId })),
      damaged: answer.filter((it) => it.startsWith('!')),
      nextPageToken: isLast ? '' : `page ${asked.length}`,
    });
  };
  const pages = new RunPages({
    daemon: { runs: { listRuns } } as unknown as Pick<Daemon, 'runs'>,
    request: { labels: { job: 'nightly' } },
    signal: stop.signal,
    take: ({ runId }: RunInfo) => ids.size !== ids.add(runId).size,
    changed: () => (changes += 1),
  });
  return { pages, asked, ids, stop, changes: () => changes };
}

test('a page is loaded at a time, with the token of the one before', async () => {
  const { pages, asked, ids, changes } = listing([['c'], ['b'], ['a']]);
  await pages.load();
  assert.deepEqual([...ids], ['c']);
  assert.deepEqual([pages.isLoading, pages.isWhole, changes()], [false, false, 2]);
  await pages.load();
  await pages.load();
  await pages.load();
  assert.deepEqual([...ids], ['c', 'b', 'a']);
  assert.equal(pages.isWhole, true);
  assert.deepEqual(
    asked.map((it) => [it.pageToken, it.labels]),
    ['', 'page 1', 'page 2'].map((token) => [token, { job: 'nightly' }]),
  );
});

test('pages without a run, and later ones without a new run, are passed over', async () => {
  const { pages, asked, ids } = listing([[], [], ['b'], ['b'], [], ['a'], ['z']], ['b']);
  await pages.load();
  assert.equal(asked.length, 6);
  assert.deepEqual([...ids], ['b', 'a']);
  // What is listed again after a break is known, and is not loaded to its end.
  const again = listing([['c'], ['b']], ['c', 'b']);
  await again.pages.load();
  assert.equal(again.asked.length, 1);
});

test('a daemon that has no run for long is not asked for ever', async () => {
  const { pages, asked } = listing(Array.from({ length: 50 }, () => []));
  await pages.load();
  assert.equal(asked.length, 20);
  assert.equal(pages.isWhole, false);
  await pages.load();
  assert.equal(asked.length, 40);
});

test('a failure is told, and the same page is tried again', async () => {
  const { pages, asked, ids } = listing([['b'], new ConnectError('the bucket is away', Code.Unavailable), ['a']]);
  await pages.load();
  await pages.load();
  assert.equal(pages.failure?.message, 'the bucket is away');
  assert.equal(pages.isLoading, false);
  await pages.load();
  assert.equal(pages.failure, undefined);
  assert.equal(pages.isWhole, true);
  assert.deepEqual([...ids], ['b', 'a']);
  assert.deepEqual(asked.map((it) => it.pageToken), ['', 'page 1', 'page 1']);
});

test('damaged parts are named once', async () => {
  const { pages } = listing([['b', '!x: bad'], ['a', '!x: bad', '!y: bad']]);
  await pages.load();
  await pages.load();
  assert.deepEqual([...pages.damaged], ['!x: bad', '!y: bad']);
});

test('nothing is taken once nobody wants it', async () => {
  const { pages, ids, stop, changes } = listing([['a'], ['b']]);
  const loading = pages.load();
  stop.abort();
  await loading;
  assert.deepEqual([...ids], []);
  assert.equal(changes(), 1);
});
