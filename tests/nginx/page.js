#!/usr/bin/env node
// The chat page in Chromium. Screenshots go to build/screenshots/.
'use strict';
const assert = require('assert');
const { execFileSync } = require('child_process');
const fs = require('fs');
const path = require('path');
const { chromium } = require('playwright-core');
const { Server, TOP, run, until } = require('./server.js');

const server = new Server(`
    location = / { mixtral_chat main; }
    location = /page { mixtral_chat main api=v1; }
    location /v1/ { mixtral_api main; mixtral_keys off; }
    location = /locked/ { mixtral_chat main api=/locked/v1; }
    location /locked/v1/ { mixtral_api main; mixtral_keys {folder}/keys; }
`);
const SCREENSHOTS = path.join(TOP, 'build', 'screenshots');
const CHROMIUM = execFileSync('sh', ['-c', 'command -v chromium'], { encoding: 'utf8' }).trim();
const LONG = { temperature: 0, max_tokens: 3000, system: 'You write very long stories.' };
const ATTACK = '<img src=x onerror="window.hit=1"><script>window.hit=2</script><svg onload="window.hit=3">' +
    '\n\n[a](javascript:window.hit=4) ![b](http://203.0.113.1/x.png)\n\n```html"><img src=y onerror=window.hit=5>\n' +
    '<script>window.hit=6</script>\n```\n\n- <b onclick="window.hit=7">c</b>\n\n`<i>d</i>` **<u>e</u>**';
let browser;
const requested = []; // by all pages

// A page of a browser that has kept nothing; `kept`: what it is to find in localStorage.
async function open(at = '/', { kept = {}, ...options } = {}) {
    const context = await browser.newContext({ locale: 'en-US', ...options });
    const page = await context.newPage();
    page.errors = [];
    page.on('pageerror', error => page.errors.push(error));
    page.on('request', request => requested.push(request.url()));
    page.setDefaultTimeout(30000);
    const api = at.startsWith('/locked') ? '/locked/v1/' : '/v1/';
    await page.goto(server.origin + at);
    await page.evaluate(([prefix, entries]) => {
        for (const [name, value] of entries)
            localStorage.setItem(prefix + name, JSON.stringify(value));
    }, [`mixtral ${api} `, Object.entries(kept)]);
    if (Object.keys(kept).length)
        await page.reload();
    return page;
}

async function close(page) {
    await page.context().close();
    assert.deepStrictEqual(page.errors, []);
}

async function ask(page, text) {
    await page.fill('#input', text);
    await page.press('#input', 'Enter');
}

const lastText = page => page.locator('.turn.assistant .body').last().textContent();
const ended = page => page.locator('.turn.assistant').last().locator('.facts .again').waitFor();

const tests = {
    async 'headers, and what is answered'() {
        const response = await fetch(server.origin + '/');
        const policy = response.headers.get('content-security-policy');
        assert.match(policy, /^default-src 'none'; script-src 'sha256-[^ ]{44}'; style-src 'sha256-[^ ]{44}'; connect-src 'self'; /);
        assert.strictEqual(response.headers.get('content-type'), 'text/html; charset=utf-8');
        assert.strictEqual(response.headers.get('x-content-type-options'), 'nosniff');
        assert.strictEqual(response.headers.get('content-encoding'), 'gzip');
        const etag = response.headers.get('etag');
        assert.match(etag, /^W\/"[0-9a-f]{32}"$/);
        assert.strictEqual((await fetch(server.origin + '/', { headers: { 'If-None-Match': etag } })).status, 304);
        assert.strictEqual((await fetch(server.origin + '/', { headers: { 'If-None-Match': '"x"' } })).status, 200);
        const head = await fetch(server.origin + '/', { method: 'HEAD', headers: { 'Accept-Encoding': 'identity' } });
        assert.strictEqual(head.headers.get('content-length'), String(Buffer.byteLength(await response.text())));
        assert.strictEqual((await fetch(server.origin + '/', { method: 'POST', body: 'a' })).status, 405);
        assert.strictEqual((await fetch(server.origin + '/favicon.ico')).status, 404);
    },

    async 'an answer appears as it is made, with its speed'() {
        const page = await open('/', { kept: { settings: { temperature: 0, max_tokens: 120, system: 'You write long stories.' } } });
        await ask(page, 'Tell me a story about a lighthouse.');
        const lengths = new Set();
        while (!await page.locator('.facts .again').count())
            if (await page.locator('.turn.assistant .body').count())
                lengths.add((await lastText(page)).length);
        assert.ok(lengths.size >= 5, `${lengths.size} lengths`);
        assert.match(await page.locator('.facts').last().textContent(), /120 tokens.*\d+\.\d tokens\/s.*prompt \d+ tokens/);
        assert.match(await page.locator('#announce').textContent(), /^Answer: ./);
        await page.screenshot({ path: path.join(SCREENSHOTS, 'desktop-light.png') });
        await close(page);
    },

    async 'the stop button frees what the engine held'() {
        const page = await open('/', { kept: { settings: LONG } });
        await ask(page, 'Tell me a story.');
        await until('there is text', async () => (await lastText(page)).length > 20);
        assert.strictEqual(await server.isIdle(), false);
        await page.click('#stop');
        await until('the engine is idle', () => server.isIdle(), 10);
        await ended(page);
        assert.match(await page.locator('.facts').last().textContent(), /Stopped/);
        assert.ok((await lastText(page)).length > 20);
        await close(page);
    },

    async 'a reload keeps conversations, also one that is being answered'() {
        const page = await open('/', { kept: { settings: { temperature: 0, max_tokens: 8 } } });
        await ask(page, 'Say hello.');
        await ended(page);
        await page.click('#new');
        assert.strictEqual(await page.locator('.turn').count(), 0);
        await ask(page, 'Say goodbye.');
        await ended(page);
        const text = await lastText(page);
        await page.reload();
        assert.strictEqual(await lastText(page), text);
        assert.deepStrictEqual(await page.locator('#chats .open').allTextContents(), ['Say goodbye.', 'Say hello.']);
        await page.click('#chats .open >> text=Say hello.');
        assert.strictEqual(await page.locator('.turn.user .body').textContent(), 'Say hello.');
        await page.locator('#chats .remove').last().click();
        assert.deepStrictEqual(await page.locator('#chats .open').allTextContents(), ['Say goodbye.']);
        await page.click('#settings');
        await page.fill('#max_tokens', '3000');
        await page.click('#settings-dialog button >> text=Close');
        await ask(page, 'Tell me a very long story.');
        await page.waitForTimeout(1500);
        await page.reload();
        assert.ok((await lastText(page)).length > 20);
        await until('the engine is idle', () => server.isIdle(), 10);
        await close(page);
    },

    async 'the model is told what was said, and the system prompt'() {
        const page = await open('/', { kept: { settings: { temperature: 0, max_tokens: 4, system: 'Be brief.' } } });
        const bodies = [];
        page.on('request', request => request.method() === 'POST' && bodies.push(request.postDataJSON()));
        await ask(page, 'One');
        await ended(page);
        const text = await page.evaluate(() => chat.messages[1].content);
        await ask(page, 'Two');
        await until('the second answer', async () => await page.locator('.turn.assistant .facts').count() === 2 &&
            await page.locator('.again').count() === 1);
        assert.deepStrictEqual(bodies[1].messages, [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: 'One' },
            { role: 'assistant', content: text }, { role: 'user', content: 'Two' }]);
        assert.strictEqual(bodies[1].max_tokens, 4);
        assert.strictEqual(bodies[1].model, await page.locator('#model').inputValue());
        await close(page);
    },

    async 'a key is asked for after a 401, and kept'() {
        const page = await open('/locked/', { kept: { settings: { max_tokens: 4 } } });
        await page.locator('#key-dialog[open]').waitFor();
        await page.fill('#key', 'wrong');
        await page.press('#key', 'Enter');
        await until('it is asked for again', () => page.evaluate(() => /no such/.test(document.querySelector('#key-why').textContent)));
        await page.click('#key-cancel');
        await ask(page, 'Hello');
        await page.locator('#key-dialog[open]').waitFor();
        await page.screenshot({ path: path.join(SCREENSHOTS, 'key.png') });
        await page.fill('#key', server.key);
        await page.press('#key', 'Enter');
        await ended(page);
        await until('the models are there', async () => await page.locator('#model option').count() === 1);
        await page.reload();
        await until('the models are there', async () => await page.locator('#model option').count() === 1);
        assert.strictEqual(await page.locator('#key-dialog[open]').count(), 0);
        await close(page);
    },

    async 'markup in texts does nothing'() {
        const messages = [{ role: 'user', content: ATTACK }, { role: 'assistant', content: ATTACK, facts: {} },
            { role: 'user', content: 'x' }, { role: 'assistant', content: '', error: ATTACK }];
        const settings = { temperature: 0, max_tokens: 40 };
        const page = await open('/', { kept: { 'chat 1': { id: '1', changed: 1, messages }, open: '1', settings } });
        await page.locator('.turn').nth(3).waitFor();
        await ask(page, ATTACK);
        await page.locator('.turn').nth(5).waitFor();
        await ended(page);
        assert.strictEqual(await page.evaluate(() => window.hit), undefined);
        assert.strictEqual(await page.locator('#log img, #log script, #log svg, #log a, #log [onclick], #chats img').count(), 0);
        assert.match(await page.locator('.turn.assistant .code').first().textContent(), /<script>window\.hit=6<\/script>/);
        assert.strictEqual(await page.locator('.turn.assistant code >> text=<i>d</i>').count(), 1);
        // the policy holds even if something got into the page
        const refused = await page.evaluate(() => new Promise(resolve => {
            document.addEventListener('securitypolicyviolation', event => resolve(event.effectiveDirective));
            const script = document.createElement('script');
            script.textContent = 'window.hit = 8';
            document.body.append(script);
        }));
        assert.strictEqual(refused, 'script-src-elem');
        assert.strictEqual(await page.evaluate(() => window.hit), undefined);
        await close(page);
    },

    async 'Markdown of an answer'() {
        const content = '# Title\n\nSome **bold** and *thin* text.\n\n1. one\n2. two\n\n```python\nprint("hi")\n```\n\n- a\n- `b`';
        const messages = [{ role: 'user', content: 'Show me.' }, { role: 'assistant', content, facts: {} }];
        const kept = { 'chat 1': { id: '1', changed: 1, messages }, open: '1' };
        const page = await open('/', { kept, colorScheme: 'dark', permissions: ['clipboard-read', 'clipboard-write'] });
        const body = page.locator('.turn.assistant .body');
        for (const [selector, text] of [['h3', 'Title'], ['strong', 'bold'], ['em', 'thin'], ['ol li >> nth=1', 'two'],
            ['pre code', 'print("hi")'], ['ul li code', 'b'], ['.code > div > span', 'python']])
            assert.strictEqual(await body.locator(selector).textContent(), text);
        await page.click('.code button');
        assert.strictEqual(await page.evaluate(() => navigator.clipboard.readText()), 'print("hi")');
        await page.screenshot({ path: path.join(SCREENSHOTS, 'desktop-dark.png') });
        await close(page);
    },

    async 'the keyboard is enough'() {
        const page = await open('/', { kept: { settings: LONG } });
        const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.className);
        assert.strictEqual(await focused(), 'input');
        await page.keyboard.type('one');
        await page.keyboard.press('Shift+Enter');
        await page.keyboard.type('two');
        await page.keyboard.press('Enter');
        assert.strictEqual(await page.locator('.turn.user .body').textContent(), 'one\ntwo');
        await until('there is text', async () => (await lastText(page)).length > 5);
        await page.keyboard.press('Escape');
        await ended(page);
        await until('the engine is idle', () => server.isIdle(), 10);
        const seen = [];
        for (let i = 0; i < 12; i++) {
            await page.keyboard.press('Tab');
            seen.push(await focused());
        }
        for (const id of ['send', 'skip', 'model', 'language', 'settings', 'new', 'open', 'remove', 'log'])
            assert.ok(seen.includes(id), `${id} in ${seen}`);
        const unnamed = await page.evaluate(() => [...document.querySelectorAll('button, select, input, textarea')].filter(
            e => !e.getAttribute('aria-label') && !e.textContent.trim() && !e.labels?.length).map(e => e.outerHTML));
        assert.deepStrictEqual(unnamed, []);
        await page.focus('#settings');
        await page.keyboard.press('Enter');
        await page.locator('#settings-dialog[open]').waitFor();
        assert.strictEqual(await focused(), 'system');
        await page.screenshot({ path: path.join(SCREENSHOTS, 'settings.png') });
        await page.keyboard.press('Escape');
        assert.strictEqual(await focused(), 'settings');
        await close(page);
    },

    async 'Chinese by the browser, English by a button'() {
        const page = await open('/', { locale: 'zh-CN', kept: { settings: { temperature: 0, max_tokens: 40 } } });
        assert.strictEqual(await page.locator('#send').textContent(), '发送');
        assert.strictEqual(await page.evaluate(() => document.documentElement.lang), 'zh-CN');
        await ask(page, '你好，请介绍一下你自己。');
        await ended(page);
        await page.screenshot({ path: path.join(SCREENSHOTS, 'chinese.png') });
        await page.click('#language');
        assert.strictEqual(await page.locator('#send').textContent(), 'Send');
        await page.reload();
        assert.strictEqual(await page.locator('#send').textContent(), 'Send');
        await close(page);
    },

    async 'a phone'() {
        const page = await open('/page', { viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true,
            kept: { settings: { temperature: 0, max_tokens: 60 } } });
        await ask(page, 'Write a Python function that adds two numbers. ' + 'x'.repeat(100));
        await ended(page);
        await page.screenshot({ path: path.join(SCREENSHOTS, 'phone.png') });
        assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'it is as wide as the screen');
        assert.strictEqual(await page.locator('#new').isVisible(), false);
        await page.click('#menu');
        await page.locator('#new').waitFor();
        await page.waitForTimeout(300);
        await page.screenshot({ path: path.join(SCREENSHOTS, 'phone-menu.png') });
        await page.click('#new');
        await until('the list is away', async () => !await page.locator('#new').isVisible());
        assert.strictEqual(await page.locator('.turn').count(), 0);
        await close(page);
    },

    async 'an engine and a server that die are shown'() {
        const page = await open('/', { kept: { settings: LONG } });
        await ask(page, 'Tell me a story.');
        await until('there is text', async () => (await lastText(page)).length > 20);
        await Server.end(server.engine, 'SIGKILL');
        assert.match(await page.locator('.error').textContent(), /\w+.*Try again$/);
        assert.ok((await lastText(page)).length > 20, 'what was written is still there');
        await page.click('.retry');
        await until('the refusal is shown', async () => /The engine does not answer/.test(await page.locator('.error').textContent()));
        await page.screenshot({ path: path.join(SCREENSHOTS, 'error.png') });
        fs.unlinkSync(server.socket);
        server.startEngine();
        await until('the engine answers', () => server.answers());
        await Server.end(server.nginx);
        await page.click('.retry');
        await until('it is said', async () => /The server does not answer/.test(await page.locator('.error').textContent()));
        server.startNginx();
        await until('nginx answers', () => server.answers());
        await page.click('.retry');
        await until('there is text', async () => (await lastText(page)).length > 20);
        assert.strictEqual(await page.locator('.error').count(), 0);
        await page.click('#stop');
        await ended(page);
        await close(page);
    },

    async 'no request has left the origin'() {
        assert.ok(requested.length > 20);
        assert.deepStrictEqual(requested.filter(url => new URL(url).origin !== server.origin), []);
    },
};

run(tests, async () => {
    fs.mkdirSync(SCREENSHOTS, { recursive: true });
    await server.start();
    browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] });
}, async () => {
    await browser?.close();
    await server.stop();
});
