// The frame of the page.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';

import type { Page } from 'playwright-core';

import { browserTest, printer, setTheme, setVisibility, tokenOf, until } from './harness.js';

const focused = (page: Page) =>
  page.evaluate(() => {
    let element = document.activeElement;
    while (element?.shadowRoot?.activeElement) element = element.shadowRoot.activeElement;
    return element?.localName;
  });

const ground = (page: Page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
const LIGHT = 'rgb(255, 255, 255)';
const DARK = 'rgb(15, 20, 25)';

browserTest('the navigation leads to each page, says where one is, and moves the focus there', async ({ open }) => {
  const page = await open();
  await page.getByText('test is serving').waitFor();
  assert.equal(await page.title(), 'Runs · Ringfence');
  for (const name of ['Modules', 'Overview', 'Runs']) {
    const link = page.getByRole('navigation', { name: 'Pages' }).getByRole('link', { name });
    assert.equal(await link.getAttribute('aria-current'), null);
    await link.click();
    await page.getByRole('main', { name }).waitFor();
    assert.equal(await link.getAttribute('aria-current'), 'page');
    assert.equal(await page.title(), `${name} · Ringfence`);
    assert.equal(await focused(page), 'main');
  }
  await page.goBack();
  await page.getByRole('main', { name: 'Overview' }).waitFor();
});

browserTest('each page can be the first that is opened', async ({ daemon, open }) => {
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'out:it is here\\n'], { labels: { a: 'b' } });
  await daemon.untilEnded(id);
  const places = [
    ['#/runs', 'Exited with 0'],
    [`#/runs/${id}`, 'it is here'],
    ['#/together?label=a=b', 'it is here'],
    ['#/modules', 'printer'],
    [`#/modules/${digest}`, '_start'],
    [`#/start?module=${digest}`, 'printer'],
    ['#/overview', 'Reserved memory'],
    ['#/nowhere', 'There is no such page'],
  ] as const;
  for (const [hash, text] of places) {
    const page = await open(hash);
    await page.getByRole('main').getByText(text).first().waitFor({ state: 'attached' });
    await page.context().close();
  }
});

browserTest('an address of no page says so, and leads back', async ({ open }) => {
  const page = await open('#/no<b>where</b>\u202e');
  await page.getByRole('heading', { name: 'There is no such page' }).waitFor();
  await page.getByText('/no<b>where</b>⟨U+202E⟩').waitFor();
  assert.equal(await page.title(), 'Ringfence');
  await page.getByRole('link', { name: 'Show the runs' }).click();
  await page.getByRole('main', { name: 'Runs' }).waitFor();
});

browserTest('keys lead everywhere, but not out of a field or a dialog', async ({ open }) => {
  const page = await open('#/nowhere');
  await page.getByText('test is serving').waitFor();
  for (const [key, name] of [
    ['m', 'Modules'],
    ['o', 'Overview'],
    ['r', 'Runs'],
  ] as const) {
    await page.keyboard.press('g');
    await page.keyboard.press(key);
    await page.getByRole('main', { name }).waitFor();
  }
  await page.keyboard.press('?');
  const list = page.getByRole('dialog', { name: 'Keys' });
  await list.waitFor();
  await list.getByText('Go to Modules').waitFor();
  await page.keyboard.press('g');
  await page.keyboard.press('o');
  await page.keyboard.press('Escape');
  await list.waitFor({ state: 'detached' });
  assert.equal(await page.title(), 'Runs · Ringfence');
  await page.evaluate(() => {
    const field = document.createElement('input');
    document.body.prepend(field);
    field.focus();
  });
  await page.keyboard.type('go?');
  assert.equal(await page.locator('body > input').inputValue(), 'go?');
  assert.equal(await page.title(), 'Runs · Ringfence');
  await page.getByRole('button', { name: 'Show the keys' }).click();
  await list.getByRole('button', { name: 'Close' }).click();
  await list.waitFor({ state: 'detached' });
  assert.equal(await focused(page), 'button');
});

browserTest('whoever goes by keys can skip what stands above the page', async ({ open }) => {
  const page = await open('#/nowhere');
  await page.getByText('test is serving').waitFor();
  await page.keyboard.press('Tab');
  const skip = page.getByRole('button', { name: 'Skip to the page' });
  assert.ok(await skip.evaluate((it) => getComputedStyle(it).clipPath === 'none'));
  await page.keyboard.press('Enter');
  assert.equal(await focused(page), 'main');
});

browserTest(
  'the theme is that of the system, or the one that was chosen, which is remembered',
  async ({ allow, open }) => {
    const page = await open('#/nowhere');
    const choice = page.getByRole('combobox', { name: 'Theme' });
    await choice.waitFor();
    assert.equal(await ground(page), LIGHT);
    await setTheme(page, 'dark');
    assert.equal(await ground(page), DARK);
    await choice.selectOption('light');
    assert.equal(await ground(page), LIGHT);
    await page.reload();
    assert.equal(await choice.inputValue(), 'light');
    assert.equal(await ground(page), LIGHT);
    allow(/^window: about:blank$/);
    const other = await page.context().newPage();
    await other.goto(page.url());
    await other.getByRole('combobox', { name: 'Theme' }).selectOption('dark');
    await until('the other tab follows', async () => (await ground(page)) === DARK);
    assert.equal(await choice.inputValue(), 'dark');
  },
);

browserTest(
  'a caller who is not known is asked for a token, which is kept in the tab',
  { tenants: ['a', 'b'] },
  async ({ open }) => {
    const page = await open('#/modules');
    const token = page.getByLabel('Token');
    await token.waitFor();
    assert.equal(await focused(page), 'input');
    assert.equal(await page.getByRole('alert').first().textContent(), '');
    await page.keyboard.type('no such token');
    await page.keyboard.press('Enter');
    await page.getByText('The daemon does not accept this token').waitFor();
    assert.equal(await focused(page), 'input');
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    await page.keyboard.type(tokenOf('b'));
    await page.keyboard.press('Enter');
    await token.waitFor({ state: 'detached' });
    await page.getByText('test is serving').waitFor();
    assert.equal(await focused(page), 'main');
    await page.reload();
    await page.getByText('test is serving').waitFor();
    assert.equal(await token.count(), 0);
    const kept = await page.evaluate(() =>
      JSON.stringify([localStorage, document.cookie, location.href, history.state]),
    );
    assert.ok(!kept.includes('token-of'), kept);
    await page.getByRole('button', { name: 'Sign out' }).click();
    await token.waitFor();
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    assert.equal(await page.getByRole('button', { name: 'Sign out' }).count(), 0);
  },
);

browserTest('a token that is not to be kept is gone with the page', { tenants: ['a'] }, async ({ open }) => {
  const page = await open();
  await page.getByLabel('Token').fill(tokenOf('a'));
  await page.getByLabel('Keep it until this tab is closed').uncheck();
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByText('test is serving').waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
  await page.reload();
  await page.getByLabel('Token').waitFor();
});

browserTest(
  'health that anybody may ask for lets nobody in, and a token that is withdrawn lets nobody stay',
  { tenants: ['a'], set: { 'auth.open_health': 'true' } },
  async ({ daemon, open }) => {
    const page = await open();
    await page.getByText('test is serving').waitFor();
    const token = page.getByLabel('Token');
    await token.fill('no such token');
    await page.keyboard.press('Enter');
    await page.getByText('The daemon does not accept this token').waitFor();
    await token.fill(tokenOf('a'));
    await page.keyboard.press('Enter');
    await token.waitFor({ state: 'detached' });
    fs.writeFileSync(path.join(daemon.folder, 'new'), '');
    fs.renameSync(path.join(daemon.folder, 'new'), path.join(daemon.folder, 'tokens'));
    await until('the daemon refuses the token', async () =>
      daemon.client.runs.listRuns({}).then(
        () => false,
        () => true,
      ),
    );
    await page.getByRole('link', { name: 'Modules' }).click();
    await page.getByText('The daemon does not accept the token of this tab any more.').waitFor();
  },
);

browserTest('a page that only shows says so', { set: { 'admin.read_only': 'true' } }, async ({ open }) => {
  const page = await open();
  await page.getByText("the daemon's listener is read-only").waitFor();
});

browserTest('a page that may change something says nothing of that', async ({ open }) => {
  const page = await open();
  await page.getByText('test is serving').waitFor();
  await page.waitForLoadState('networkidle').catch(() => {});
  assert.equal(await page.getByText('read-only').count(), 0);
});

browserTest('a daemon that is gone is told at once, and so is that it is back', async ({ daemon, open }) => {
  const page = await open();
  await page.getByText('test is serving').waitFor();
  await daemon.kill();
  // A live stream notices long before the next question for its health is due.
  await page.getByText('The daemon does not answer.').waitFor({ timeout: 5_000 });
  await daemon.restart();
  await page.getByText('test is serving').waitFor({ timeout: 5_000 });
});

browserTest('a daemon that drains says so', async ({ daemon, open }) => {
  const page = await open('#/nowhere');
  await page.getByText('test is serving').waitFor();
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'out:begun', 'spin']);
  daemon.drain();
  // A tab asks anew when it is shown.
  await setVisibility(page, 'hidden');
  await setVisibility(page, 'visible');
  await page.getByText('test is draining').waitFor();
  await daemon.client.runs.cancelRun({ runId: id }).catch(() => {});
});

browserTest('all of it works under a path of a proxy', { prefix: '/some/prefix' }, async ({ daemon, open, proxy }) => {
  const digest = await daemon.load(printer(), 'printer');
  const id = await daemon.start(digest, ['printer', 'out:begun\\n']);
  await daemon.untilEnded(id);
  const page = await open();
  await page.getByText('test is serving').waitFor();
  for (const hash of [
    `#/runs/${id}`,
    '#/modules',
    `#/modules/${digest}`,
    `#/start?module=${digest}`,
    '#/overview',
    '#/runs',
  ]) {
    await page.evaluate((it) => (location.hash = it), hash);
    await until(`${hash} is there`, async () => (await page.getByRole('main').textContent()) !== null);
  }
  assert.equal(proxy.misses, 0);
  assert.ok((proxy.seen.get('WatchRuns') ?? 0) > 0);
});

browserTest('what was done and what failed is told, for a while', async ({ open }) => {
  const page = await open('#/nowhere');
  await page.getByText('test is serving').waitFor();
  const tell = (kind: string, text: string) =>
    page.evaluate((detail) => window.dispatchEvent(new CustomEvent('ringfence-toast', { detail })), { kind, text });
  await tell('done', 'It is <b>done</b>\u202e.');
  await tell('failed', 'It failed.');
  await page.getByRole('status').getByText('It is <b>done</b>⟨U+202E⟩.').waitFor();
  const failed = page.getByRole('alert').getByText('It failed.');
  await failed.waitFor();
  await page.getByRole('button', { name: 'Close this message' }).last().click();
  await failed.waitFor({ state: 'detached' });
  // Under the pointer it would stay.
  await page.mouse.move(0, 0);
  await page.getByText('It is <b>done</b>').waitFor({ state: 'detached' });
});

for (const width of [360, 1280, 3840]) {
  browserTest(
    `nothing has to be scrolled sideways at a width of ${width}`,
    { width, tenants: ['a'] },
    async ({ daemon, open }) => {
      const digest = await daemon.load(printer(), 'a-module-with-a-name-that-is-longer-than-others'.repeat(2));
      const labels = { 'a-long-label-without-a-space-in-it': 'and-a-value-that-is-just-as-long'.repeat(3) };
      const id = await daemon.start(digest, ['printer', 'out:begun\\n', 'trap'], { labels });
      await daemon.untilEnded(id);
      const page = await open();
      await page.getByLabel('Token').fill(tokenOf('a'));
      await page.keyboard.press('Enter');
      await page.getByText('test is serving').waitFor();
      const hashes = [
        '#/runs',
        `#/runs/${id}`,
        `#/together?run=${id}`,
        '#/modules',
        `#/modules/${digest}`,
        '#/start',
        '#/overview',
      ];
      for (const hash of hashes) {
        await page.evaluate((it) => (location.hash = it), hash);
        await page.waitForTimeout(300);
        const wide = await page.evaluate(() => {
          const main = document.querySelector('ringfence-page')!.shadowRoot!.querySelector('main')!;
          return Math.max(main.scrollWidth - main.clientWidth, document.documentElement.scrollWidth - innerWidth);
        });
        assert.ok(wide <= 0, `${hash} is ${wide} px too wide`);
      }
    },
  );
}
