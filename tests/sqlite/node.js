#!/usr/bin/env node
// The extension in better-sqlite3, and mixtral_embed under sqlite-vec: npm packages, found through NODE_PATH.
'use strict';
const assert = require('assert');
const { spawnSync } = require('child_process');
const fs = require('fs');
const os = require('os');
const path = require('path');

const top = path.join(__dirname, '..', '..');
const extension = path.resolve(process.env.MX_TEST_EXTENSION || path.join(top, 'build', 'mixtral.so'));
const cache = process.env.XDG_CACHE_HOME || path.join(os.homedir(), '.cache');
const model = process.env.MX_TEST_MODEL || path.join(cache, 'mixtral', 'SmolLM2-135M-Instruct.Q4_1.gguf');
const preload = process.env.MX_TEST_PRELOAD || '';

// Node knows nothing of a sanitizer in the extension: start it again with the sanitizer's library.
if (preload && process.env.LD_PRELOAD !== preload) {
    const env = { ...process.env, LD_PRELOAD: preload, ASAN_OPTIONS: 'detect_leaks=0' };
    const { status } = spawnSync(process.execPath, [__filename], { env, stdio: 'inherit' });
    process.exit(status === null ? 1 : status);
}
process.env.MIXTRAL_MODEL = model;

let Database, sqliteVec;
try {
    Database = require('better-sqlite3');
    sqliteVec = require('sqlite-vec');
} catch (problem) {
    console.log(`better-sqlite3 and sqlite-vec are not there: ${problem.message.split('\n')[0]}`);
    console.log('0 passed, 0 failed, 1 skipped');
    process.exit(0);
}

function open() {
    const db = new Database(':memory:');
    db.loadExtension(extension);
    return db;
}

const greedy = '{"temperature": 0, "max_tokens": 12}';
const france = 'What is the capital of France?';

const tests = {
    'answers'() {
        const db = open();
        assert.match(db.prepare('SELECT mixtral_chat(?, ?)').pluck().get(france, greedy), /Paris/);
        db.close();
    },

    'takes messages as JSON'() {
        const db = open();
        const messages = JSON.stringify([{ role: 'user', content: france }]);
        assert.match(db.prepare('SELECT mixtral_chat(json(?), ?)').pluck().get(messages, greedy), /Paris/);
        const answer = JSON.parse(db.prepare('SELECT mixtral_generate(json(?), ?)').pluck().get(messages, greedy));
        assert.ok(answer.prompt_tokens > 0);
        db.close();
    },

    'streams, and stops when the loop does'() {
        const db = open();
        const running = db.prepare("SELECT mixtral_stats()->>'requests_running'").pluck();
        const stream = db.prepare('SELECT rowid, piece FROM mixtral_stream(?, ?)');
        const rows = stream.all(france, greedy);
        assert.deepStrictEqual(rows.map((row) => row.rowid), rows.map((_, i) => i + 1));
        assert.match(rows.map((row) => row.piece).join(''), /Paris/);
        let n = 0;
        for (const row of stream.iterate('Count.', '{"max_tokens": 4000, "ignore_eos": true}')) {
            assert.ok(row.piece);
            if (++n === 3)
                break;
        }
        const deadline = Date.now() + 5000;
        while (running.get() !== 0)
            assert.ok(Date.now() < deadline, 'the request is still running');
        db.close();
    },

    'names what is wrong'() {
        const db = open();
        const chat = db.prepare('SELECT mixtral_chat(?, ?)');
        assert.throws(() => chat.get('x', '{"temprature": 1}'), /temprature/);
        assert.throws(() => chat.get('x', '{'), /malformed JSON/);
        assert.throws(() => chat.get('word '.repeat(20000), '{}'), { code: 'SQLITE_TOOBIG' });
        assert.throws(() => db.prepare("SELECT mixtral_open('/no/such/file')").get(), { code: 'SQLITE_CANTOPEN' });
        db.close();
    },

    'outlives its last connection'() {
        for (let i = 0; i < 5; i++) {
            const db = open();
            assert.ok(db.prepare("SELECT mixtral_token_count('Hi')").pluck().get() > 0);
            db.close();
        }
    },

    'has vectors that sqlite-vec takes'() {
        const db = open();
        sqliteVec.load(db);
        const dim = db.prepare("SELECT vec_length(mixtral_embed('x'))").pluck().get();
        assert.strictEqual(dim, db.prepare("SELECT mixtral_models()->0->>'dim'").pluck().get());
        const texts = ['The cat sleeps on the sofa.', 'Interest rates rose by two percent.', 'The train to Lyon is late.'];
        db.exec(`CREATE VIRTUAL TABLE vec_docs USING vec0(embedding float[${dim}])`);
        const insert = db.prepare('INSERT INTO vec_docs(rowid, embedding) VALUES (?, mixtral_embed(?))');
        texts.forEach((text, i) => insert.run(BigInt(i + 1), text));
        const nearest = db.prepare(
            'SELECT rowid, distance FROM vec_docs WHERE embedding MATCH mixtral_embed(?) AND k = 3 ORDER BY distance');
        texts.forEach((text, i) => {
            const rows = nearest.all(text);
            assert.strictEqual(rows.length, 3);
            assert.strictEqual(rows[0].rowid, i + 1);
            assert.ok(rows[0].distance < 1e-3 && rows[1].distance > rows[0].distance);
        });
        assert.strictEqual(nearest.all('A kitten is asleep on the couch.')[0].rowid, 1);
        db.close();
    },

    'runs the recipe for sqlite-vec'() {
        const recipe = fs.readFileSync(path.join(top, 'sql', 'sqlite_rag_vec.sql'), 'utf8')
            .split('\n').filter((line) => !line.startsWith('.')).join('\n');
        const db = open();
        sqliteVec.load(db);
        db.exec(recipe);
        assert.ok(db.prepare('SELECT count(*) FROM vec_passages').pluck().get() > 0);
        db.close();
    },
};

let passed = 0, failed = 0;
for (const [name, test] of Object.entries(tests)) {
    try {
        test();
        passed++;
        console.log(`ok: ${name}`);
    } catch (problem) {
        failed++;
        console.log(`FAILED: ${name}: ${problem.stack}`);
    }
}
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
process.exit(failed ? 1 : 0);
