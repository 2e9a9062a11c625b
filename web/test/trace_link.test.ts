import assert from 'node:assert/strict';
import { test } from 'node:test';

import { traceLink } from '../src/model/trace_link.js';

const ID = '0af7651916cd43dd8448eb211c80319c';

test('the id of a trace takes its place in the address that the operator gave', () => {
  assert.equal(traceLink('https://traces.example/t/{trace_id}', ID), `https://traces.example/t/${ID}`);
  assert.equal(traceLink('http://a/?q={trace_id}#{trace_id}', ID), `http://a/?q=${ID}#${ID}`);
});

test('there is no link without an address, to anything but a web page, or of what is no id', () => {
  for (const pattern of ['', 'undefined', 'javascript:alert({trace_id})', ' https://a/{trace_id}', 'data:,{trace_id}']) {
    assert.equal(traceLink(pattern, ID), undefined);
  }
  for (const id of ['', 'x', ID.toUpperCase(), `${ID}0`, `${ID}\n`, '/../../x']) {
    assert.equal(traceLink('https://a/{trace_id}', id), undefined);
  }
});
