// Addresses inside the page.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import fc from 'fast-check';

import {
  formatPosition,
  formatRoute,
  HOME,
  parsePosition,
  parseRoute,
  placeOf,
  type Route,
  STATE_FILTERS,
} from '../src/app/route.js';

/** Text as labels and names have it: any but halves of characters, which no address can hold. */
const text = fc.string({ unit: 'binary' }).filter((it) => !/\p{Surrogate}/u.test(it));
const word = text.filter((it) => it !== '');
const labels = fc.uniqueArray(fc.tuple(word, text), { selector: ([key]) => key }).map((it) => new Map(it));
const position = record({ seq: fc.bigInt({ min: 0n, max: 10n ** 19n - 1n }), offset: fc.nat(999_999_999) });

/** Makes objects as they are written in code. */
function record<T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }): fc.Arbitrary<T> {
  return fc.record<T>(model, { noNullPrototype: true });
}

const routes: fc.Arbitrary<Route> = fc.oneof(
  record({ page: fc.constant('runs' as const), text, states: fc.subarray([...STATE_FILTERS]), labels }),
  record({ page: fc.constant('run' as const), id: word, at: fc.option(position, { nil: undefined }) }),
  record({
    page: fc.constant('together' as const),
    labels,
    ids: fc.array(word),
    layout: fc.constantFrom('merged' as const, 'columns' as const),
  }),
  record({ page: fc.constant('modules' as const), text }),
  record({ page: fc.constant('module' as const), digest: word }),
  record({ page: fc.constant('start' as const), digest: text, from: text }),
  record({ page: fc.constant('overview' as const) }),
);

test('an address leads back to the route that it was made of', () => {
  fc.assert(fc.property(routes, (route) => assert.deepEqual(parseRoute(formatRoute(route)), route)));
});

test('an address is one of this page, whatever stands in it', () => {
  fc.assert(
    fc.property(routes, (route) => {
      const url = new URL(formatRoute(route), 'https://host.example/some/prefix/');
      assert.equal(url.href.split('#')[0], 'https://host.example/some/prefix/');
    }),
  );
});

test('whatever stands behind the # is read without an error', () => {
  fc.assert(fc.property(fc.string({ unit: 'binary' }), (hash) => void formatRoute(parseRoute(hash))));
});

test('no address is that of the runs', () => {
  for (const hash of ['', '#', '#/', '#/runs', '#/runs/', '#runs']) assert.deepEqual(parseRoute(hash), HOME);
});

test('addresses are as people would write them', () => {
  const runs: Route = { page: 'runs', text: 'a b', states: ['running'], labels: new Map([['team', 'x']]) };
  assert.equal(formatRoute(runs), '#/runs?text=a+b&state=running&label=team%3Dx');
  assert.deepEqual(parseRoute('#/runs?label=team=x&state=running&text=a%20b'), runs);
  assert.equal(formatRoute({ page: 'run', id: '01ab.host', at: { seq: 7n, offset: 12 } }), '#/runs/01ab.host?at=7.12');
  assert.equal(formatRoute({ page: 'module', digest: 'sha256:00' }), '#/modules/sha256%3A00');
  assert.deepEqual(parseRoute('#/modules/sha256:00'), { page: 'module', digest: 'sha256:00' });
});

test('what nobody knows is no page, and is told as it was written', () => {
  for (const path of ['/nowhere', '/runs/a/b', '/overview/x', '/together/x', '/start/x', '/__proto__']) {
    assert.deepEqual(parseRoute(`#${path}`), { page: 'unknown', path });
    assert.equal(formatRoute(parseRoute(`#${path}`)), `#${path}`);
  }
});

test('a time range stands in the address, and what is none is left out', () => {
  const between = { since: Date.UTC(2026, 10, 30, 1, 2), until: Date.UTC(2026, 10, 30, 3) };
  for (const [range, query] of [
    ['week', 'last=week'],
    [between, 'since=2026-11-30T01%3A02%3A00.000Z&until=2026-11-30T03%3A00%3A00.000Z'],
    [{ since: undefined, until: undefined }, 'since='],
    [{ since: undefined, until: between.until }, 'since=&until=2026-11-30T03%3A00%3A00.000Z'],
  ] as const) {
    const route: Route = { ...HOME, page: 'runs', text: '', states: [], labels: new Map(), range };
    assert.equal(formatRoute(route), `#/runs?${query}`);
    assert.deepEqual(parseRoute(`#/runs?${query}`), route);
  }
  assert.deepEqual(parseRoute('#/runs?last=year'), HOME);
  const none = { ...HOME, range: { since: undefined, until: undefined } };
  assert.deepEqual(parseRoute('#/runs?since=yesterday&until=x'), none);
});

test('what is not one of the states is left out, and what is no escape stands for itself', () => {
  assert.deepEqual(parseRoute('#/runs?state=dead&state=ended'), { ...HOME, states: ['ended'] });
  assert.deepEqual(parseRoute('#/runs/%zz'), { page: 'run', id: '%zz', at: undefined });
});

test('a label key may have the character that ends it', () => {
  const route = {
    ...HOME,
    labels: new Map([
      ['a=b', 'c=d'],
      ['50%', ''],
    ]),
  };
  assert.deepEqual(parseRoute(formatRoute(route)), route);
});

test('a place in a log is two numbers', () => {
  fc.assert(fc.property(position, (at) => assert.deepEqual(parsePosition(formatPosition(at)), at)));
  for (const wrong of [
    '',
    '1',
    '1.',
    '.1',
    '-1.0',
    '1.0x',
    '1.0.0',
    '1e3.0',
    '99999999999999999999.0',
    '1.9999999999',
  ]) {
    assert.equal(parsePosition(wrong), undefined);
  }
});

test('a filter or a line is another view of the same place', () => {
  assert.equal(placeOf(HOME), placeOf(parseRoute('#/runs?text=a')));
  assert.equal(placeOf(parseRoute('#/runs/a')), placeOf(parseRoute('#/runs/a?at=1.2')));
  const hashes = [
    '#/runs',
    '#/runs/a',
    '#/runs/b',
    '#/modules',
    '#/modules/a',
    '#/start?module=a',
    '#/start',
    '#/overview',
  ];
  assert.equal(new Set(hashes.map((it) => placeOf(parseRoute(it)))).size, hashes.length);
});
