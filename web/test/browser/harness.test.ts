// The harness itself: what it is to find fault with, it finds.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { RunState } from '../../src/gen/ringfence/v1/run_pb.js';
import { browserTest, kit, printer, setVisibility, until, wat, withFixture } from './harness.js';

/** Each is run in the page, and what the test then complains of. */
const WRONGS: ReadonlyArray<readonly [name: string, complaint: RegExp, wrong: string]> = [
  ['a script of others', /violation: script-src-elem/, "import('http://127.0.0.1:1/x.js').catch(() => {})"],
  ['markup from text', /violation: require-trusted-types-for/, "document.body.innerHTML = '<b>x</b>'"],
  ['an inline style', /violation: style-src-attr/, "document.body.setAttribute('style', 'color: red')"],
  ['an image of others', /violation: img-src/, "new Image().src = 'http://127.0.0.1:1/x.png'"],
  ['a call to others', /violation: connect-src/, "fetch('http://127.0.0.1:1/').catch(() => {})"],
  ['an error', /error: .*as asked/, "setTimeout(() => { throw new Error('as asked') })"],
  ['an error that nobody takes', /error: .*as asked/, "void Promise.reject(new Error('as asked'))"],
  ['a complaint on the console', /console: as asked/, "console.error('as asked')"],
  ['a window', /window: /, "window.open('about:blank')"],
  ['a dialog', /dialog: as asked/, "alert('as asked')"],
  ['a way out', /request: http:\/\/127.0.0.1:1\//, "location.href = 'http://127.0.0.1:1/'"],
];

for (const [name, complaint, wrong] of WRONGS) {
  test(`${name} fails a test`, async () => {
    const failed = withFixture({}, async ({ open, complaints }) => {
      const page = await open('#/nowhere');
      await page.evaluate(`try { ${wrong} } catch {}`);
      await until('the harness complains', async () => complaints.some((it) => complaint.test(it)));
    });
    await assert.rejects(failed, (error: Error) => {
      assert.match(error.message, /stays within its walls/);
      return true;
    });
  });
}

browserTest('guests run, a crash ends them, and a file store outlives it', { store: 'file' }, async ({ daemon }) => {
  const digest = await daemon.load(kit(), 'kit');
  const { stdout } = await daemon.run(digest, ['kit', 'hello']);
  assert.equal(new TextDecoder().decode(stdout), 'hello\n');
  const tell = await daemon.load(printer(), 'printer', { of: 'a test' });
  const id = await daemon.start(tell, ['printer', 'out:one\\n', 'err:\\e[31mtwo\\x0a', 'trap'], { labels: { a: 'b' } });
  const ended = await daemon.untilEnded(id);
  assert.equal(ended.labels['a'], 'b');
  assert.equal(ended.end.case === 'result' && ended.end.value.trap?.code, 'unreachable');
  const spinning = await daemon.start(tell, ['printer', 'spin']);
  await daemon.untilRun(spinning, (run) => run.state === RunState.RUNNING);
  const { admin, grpc } = daemon;
  await daemon.kill();
  await daemon.restart();
  assert.deepEqual([daemon.admin, daemon.grpc], [admin, grpc]);
  const { modules } = await daemon.client.modules.listModules({});
  assert.deepEqual(modules.map((it) => it.digest).sort(), [digest, tell].sort());
  await daemon.load(wat('(module (func (export "_start")))'));
});

browserTest(
  'a proxy has the page under a path, counts streams, and can be cut',
  { prefix: '/a/b' },
  async (fixture) => {
    const { open, proxy } = fixture;
    assert.match(fixture.url, /\/a\/b\/$/);
    const page = await open('#/nowhere');
    await page.getByText('test is serving').waitFor();
    assert.ok((proxy.seen.get('Health') ?? 0) > 0);
    proxy.cut();
    await assert.rejects(fetch(fixture.url));
    proxy.mend();
    assert.equal((await fetch(fixture.url)).status, 200);
  },
);

browserTest('a tab can be hidden', async ({ open }) => {
  const page = await open('#/nowhere');
  await page.evaluate(() => {
    document.addEventListener('visibilitychange', () => (document.title = document.visibilityState));
  });
  await setVisibility(page, 'hidden');
  assert.equal(await page.title(), 'hidden');
  await setVisibility(page, 'visible');
  assert.equal(await page.title(), 'visible');
});
