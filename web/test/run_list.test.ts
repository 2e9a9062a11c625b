import assert from 'node:assert/strict';
import { test } from 'node:test';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { durationFromMs, timestampFromMs } from '@bufbuild/protobuf/wkt';
import fc from 'fast-check';

import { Outcome } from '../src/gen/ringfence/v1/result_pb.js';
import { RunInfoSchema, RunState } from '../src/gen/ringfence/v1/run_pb.js';
import { killResult, namesOfTargets } from '../src/model/kill_words.js';
import { isDeletable, isOfLabels, matcher, parseLabel, type RunFilter, runStates } from '../src/model/run_filter.js';
import { RunList } from '../src/model/run_list.js';
import { ranFor, waitedFor } from '../src/model/run_times.js';

function run(runId: string, state = RunState.RUNNING, more: MessageInitShape<typeof RunInfoSchema> = {}) {
  return create(RunInfoSchema, { runId, state, ...more });
}

function filter(more: Partial<RunFilter>): RunFilter {
  return { text: '', states: [], labels: new Map(), ...more };
}

test('runs are sorted by their ids, the newest first, whatever order they come in', () => {
  const ids = fc.uniqueArray(fc.stringMatching(/^[0-9a-f]{4}$/));
  fc.assert(
    fc.property(ids, (given) => {
      const list = new RunList();
      list.begin();
      given.forEach((it) => list.take(run(it), 0));
      assert.deepEqual(
        list.newest().map((it) => it.runId),
        given.toSorted().reverse(),
      );
    }),
  );
});

test('a list that was returned stays as it was', () => {
  const list = new RunList();
  list.take(run('a'), 0);
  const before = list.newest();
  list.take(run('a', RunState.ENDED), 1);
  list.take(run('b'), 1);
  assert.deepEqual(
    before.map((it) => [it.runId, it.state]),
    [['a', RunState.RUNNING]],
  );
  assert.deepEqual(
    list.newest().map((it) => [it.runId, it.state]),
    [
      ['b', RunState.RUNNING],
      ['a', RunState.ENDED],
    ],
  );
});

test('a watch that begins again leaves what the daemon no longer knows until it has told of all runs', () => {
  const list = new RunList();
  list.begin();
  list.take(run('a'), 0);
  list.take(run('b'), 0);
  list.synced();
  list.begin();
  list.take(run('b'), 1);
  assert.equal(list.size, 2);
  list.synced();
  assert.deepEqual(
    list.newest().map((it) => it.runId),
    ['b'],
  );
});

test('of too many runs, the oldest that have ended are dropped', () => {
  const list = new RunList(10);
  for (let at = 0; at < 30; at += 1)
    list.take(run(String(at).padStart(2, '0'), at < 3 ? RunState.RUNNING : RunState.ENDED), 0);
  const ids = list.newest().map((it) => it.runId);
  assert.deepEqual(ids, ['29', '28', '27', '26', '25', '24', '23', '02', '01', '00']);
  assert.equal(list.dropped, 20);
});

test('what a run uses is refreshed, but never over its end', () => {
  const list = new RunList();
  const used = (memoryUsed: bigint) => run('a', RunState.RUNNING, { usage: { memoryUsed } });
  assert.equal(list.refresh(used(1n), 0), false);
  list.take(used(1n), 0);
  assert.equal(list.refresh(used(2n), 1), true);
  assert.equal(list.get('a')?.usage?.memoryUsed, 2n);
  list.take(run('a', RunState.ENDED), 2);
  assert.equal(list.refresh(used(3n), 3), false);
  assert.equal(list.get('a')?.state, RunState.ENDED);
});

test('clocks that differ do not change how long a run lasts', () => {
  const list = new RunList();
  // The daemon's clock is an hour ahead.
  const hour = 3_600_000;
  const usage = { elapsed: durationFromMs(5_000) };
  list.take(run('a', RunState.RUNNING, { started: timestampFromMs(hour), usage }), 5_000);
  assert.equal(list.since('a'), 0);
  list.take(run('b', RunState.QUEUED, { asked: timestampFromMs(hour + 2_000) }), 6_000);
  assert.equal(list.since('b'), 2_000);
  list.take(run('c', RunState.QUEUED, { asked: timestampFromMs(hour + 9_000) }), 6_000);
  assert.equal(list.since('c'), 6_000);
});

test('how long runs took and waited', () => {
  const asked = timestampFromMs(1_000);
  assert.equal(ranFor(run('a')), undefined);
  const value = { outcome: Outcome.EXITED, duration: { seconds: 1n, nanos: 500_000 } };
  assert.equal(ranFor(run('a', RunState.ENDED, { end: { case: 'result', value } })), 1_000.5);
  assert.equal(ranFor(run('a', RunState.ENDED, { end: { case: 'error', value: {} } })), undefined);
  assert.equal(waitedFor(run('a', RunState.RUNNING, { asked, started: timestampFromMs(1_250) })), 250);
  assert.equal(waitedFor(run('a', RunState.ENDED, { asked, ended: timestampFromMs(900) })), 0);
  assert.equal(waitedFor(run('a', RunState.QUEUED, { asked })), undefined);
});

test('filters', () => {
  const names = (digest: string) => (digest === 'sha256:1' ? 'Kit' : '');
  const value = { outcome: Outcome.EXITED, exitCode: 3 };
  const known = run('0a1b', RunState.ENDED, {
    moduleDigest: 'sha256:1',
    labels: { job: 'nightly', empty: '' },
    end: { case: 'result', value },
  });
  const cases: ReadonlyArray<readonly [Partial<RunFilter>, boolean]> = [
    [{}, true],
    [{ text: '  ' }, true],
    [{ text: 'a1' }, true],
    [{ text: 'KIT' }, true],
    [{ text: 'sha256:1' }, true],
    [{ text: 'job=night' }, true],
    [{ text: 'exited with 3' }, true],
    [{ text: 'kit nightly' }, true],
    [{ text: 'kit weekly' }, false],
    [{ text: '0a1bkit' }, false],
    [{ states: ['running'] }, false],
    [{ states: ['running', 'ended'] }, true],
    [{ labels: new Map([['job', 'nightly']]) }, true],
    [{ labels: new Map([['job', 'night']]) }, false],
    [{ labels: new Map([['empty', '']]) }, true],
    [{ labels: new Map([['none', '']]) }, false],
    [{ labels: new Map([['toString', '']]) }, false],
  ];
  for (const [given, expected] of cases)
    assert.equal(matcher(filter(given), names, 0)(known), expected, JSON.stringify(given));
});

test('the name of a module is found once it is known', () => {
  const known = run('a', RunState.RUNNING, { moduleDigest: 'sha256:1' });
  assert.equal(matcher(filter({ text: 'kit' }), () => '', 0)(known), false);
  assert.equal(matcher(filter({ text: 'kit' }), () => 'kit', 0)(known), true);
});

test('a run is selected by the time at which it was asked for', () => {
  const at = (time: number) => run('a', RunState.ENDED, { asked: timestampFromMs(time) });
  const now = 10_000_000;
  const selects = (range: RunFilter['range'], time: number) => matcher(filter({ range }), () => '', now)(at(time));
  assert.equal(selects('hour', now - 3_600_000), true);
  assert.equal(selects('hour', now - 3_600_001), false);
  assert.equal(selects({ since: 5, until: 7 }, 4), false);
  assert.equal(selects({ since: 5, until: 7 }, 5), true);
  assert.equal(selects({ since: 5, until: 7 }, 6), true);
  assert.equal(selects({ since: 5, until: 7 }, 7), false);
  assert.equal(selects({ since: undefined, until: undefined }, 0), true);
  assert.equal(selects(undefined, 0), true);
});

test('what is listed is there beside what a watch tells of, which knows better', () => {
  const list = new RunList(3);
  const ids = () => list.newest().map((it) => it.runId);
  list.begin();
  assert.equal(list.takeListed(run('b', RunState.ENDED)), true);
  assert.equal(list.takeListed(run('b', RunState.ENDED)), false, 'known already');
  assert.equal(list.takeListed(run('e')), false, 'a watch tells of what goes on');
  list.take(run('d'), 0);
  list.take(run('b', RunState.ENDED, { method: 'Run' }), 0);
  assert.deepEqual(ids(), ['d', 'b']);
  assert.equal(list.get('b')?.method, 'Run');
  assert.equal(list.takeListed(run('d', RunState.ENDED)), false, 'known by the watch');
  assert.equal(list.get('d')?.state, RunState.RUNNING);
  assert.equal(list.isFull, false);
  assert.equal(list.takeListed(run('a', RunState.ENDED)), true);
  assert.equal(list.isFull, true);
  assert.equal(list.takeListed(run('c', RunState.ENDED)), false, 'beyond the limit');
  // The watch begins again, and knows none of them: what was listed stays, also what the watch knew.
  list.begin();
  list.synced();
  assert.deepEqual(ids(), ['d', 'b', 'a']);
  list.forgetListed();
  assert.deepEqual(ids(), []);
  assert.equal(list.isFull, false);
});

test('a daemon deletes by labels and time, and by nothing else', () => {
  const labels = new Map([['a', 'b']]);
  for (const [given, expected] of [
    [{ labels }, true],
    [{ range: 'hour' }, true],
    [{ range: { since: 1, until: undefined }, states: ['ended'] }, true],
    [{}, false],
    [{ states: ['ended'] }, false],
    [{ labels, text: 'x' }, false],
    [{ labels, states: ['ended', 'running'] }, false],
    [{ labels, states: ['running'] }, false],
  ] as ReadonlyArray<readonly [Partial<RunFilter>, boolean]>) {
    assert.equal(isDeletable(filter(given)), expected, JSON.stringify(given));
  }
  assert.equal(isOfLabels(filter({ labels, range: 'hour' })), false, 'no call ends runs by their time');
});

test('labels as they are typed', () => {
  assert.deepEqual(parseLabel('a=b=c'), { key: 'a', value: 'b=c' });
  assert.deepEqual(parseLabel(' a = b '), { key: 'a', value: 'b' });
  assert.deepEqual(parseLabel('a='), { key: 'a', value: '' });
  assert.equal(parseLabel('a'), 'A label is KEY=VALUE.');
  assert.equal(parseLabel('=b'), 'A label is KEY=VALUE.');
  assert.deepEqual(runStates(['queued', 'ended']), [RunState.QUEUED, RunState.ENDED]);
  assert.equal(isOfLabels(filter({ labels: new Map([['a', 'b']]) })), true);
  assert.equal(isOfLabels(filter({ labels: new Map([['a', 'b']]), text: 'x' })), false);
  assert.equal(isOfLabels(filter({ states: ['running'] })), false);
});

test('what is asked before runs are ended, and told afterwards', () => {
  const targets = Array.from({ length: 7 }, (_, at) => ({ id: `run ${at}`, name: at === 0 ? 'kit' : '' }));
  assert.equal(namesOfTargets(targets, 12), 'kit run 0\nRun run 1\nRun run 2\nRun run 3\nRun run 4\nand 7 more');
  assert.equal(namesOfTargets(targets.slice(0, 1), 1), 'kit run 0');
  const none = { cancelled: 0, alone: 0, unfinished: 0, failures: [] };
  assert.equal(killResult(none), 'No run was there to end.');
  assert.equal(killResult({ ...none, cancelled: 1 }), '1 run ended.');
  assert.equal(
    killResult({ cancelled: 2, alone: 1, unfinished: 1, failures: ['gone'] }),
    '2 runs ended. 1 run ended without that. 1 run is still ending or still there. 1 call failed: gone',
  );
});
