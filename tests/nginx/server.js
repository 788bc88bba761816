// What the suites in Node.js share: a real nginx on a free TCP port before `mixtral serve`, in a folder of its own, and their running.
'use strict';
const { spawn, spawnSync } = require('child_process');
const fs = require('fs');
const net = require('net');
const os = require('os');
const path = require('path');

const TOP = path.join(__dirname, '..', '..');
const CLI = path.resolve(process.env.MX_TEST_CLI || path.join(TOP, 'build', 'mixtral'));
const CACHE = process.env.XDG_CACHE_HOME || path.join(os.homedir(), '.cache');
const MODEL = path.resolve(process.env.MX_TEST_MODEL || path.join(CACHE, 'mixtral', 'SmolLM2-135M-Instruct.Q4_1.gguf'));
const MODULE = path.join(path.dirname(CLI), 'ngx_http_mixtral_module.so');
const NGINX = '/usr/sbin/nginx';
const SECONDS = 60;

const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

async function until(what, condition, seconds = SECONDS) {
    const end = Date.now() + seconds * 1000;
    while (!await condition()) {
        if (Date.now() > end)
            throw new Error(`did not happen in ${seconds} s: ${what}`);
        await sleep(20);
    }
}

function freePort() {
    return new Promise((resolve, reject) => {
        const server = net.createServer().on('error', reject);
        server.listen(0, '127.0.0.1', () => {
            const { port } = server.address();
            server.close(() => resolve(port));
        });
    });
}

// `locations` is text of the server block; {folder} in it is the folder.
class Server {
    constructor(locations) {
        this.folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mixtral-nginx-'));
        fs.chmodSync(this.folder, 0o755);
        this.socket = path.join(this.folder, 'engine.sock');
        this.keys = path.join(this.folder, 'keys');
        this.locations = locations;
    }

    async start() {
        const worker = process.getuid() === 0 ? 33 : process.getuid(); // www-data
        const made = spawnSync(CLI, ['key', 'new', this.keys, '--name', 'alice'], { encoding: 'utf8' });
        if (made.status !== 0)
            throw new Error(made.stderr);
        this.key = made.stdout.trim();
        this.port = await freePort();
        this.origin = `http://127.0.0.1:${this.port}`;
        fs.writeFileSync(path.join(this.folder, 'nginx.conf'), `
            load_module ${MODULE};
            ${process.getuid() === 0 ? 'user www-data;' : ''}
            daemon off;
            pid nginx.pid;
            error_log error.log info;
            events { }
            http {
                access_log off;
                gzip on;
                ${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(name => `${name}_temp_path ${name};`).join(' ')}
                mixtral_engine main unix:${this.socket};
                server {
                    listen 127.0.0.1:${this.port};
                    location = /metrics { mixtral_metrics main; }
                    ${this.locations.replaceAll('{folder}', this.folder)}
                }
            }`);
        this.worker = worker;
        this.startEngine();
        this.startNginx();
        await until('nginx and its engine answer', () => this.answers());
    }

    startEngine() {
        this.engine = spawn(CLI, ['serve', '--model', MODEL, '--socket', this.socket, '--socket-mode', '0666',
            '--allow-uid', String(this.worker)], { stdio: 'ignore' });
    }

    startNginx() {
        this.nginx = spawn(NGINX, ['-p', this.folder + '/', '-c', path.join(this.folder, 'nginx.conf')], { stdio: 'ignore' });
    }

    // 'up 1' stands there only while the engine answers
    async answers() {
        try {
            return /^mixtral_up\{[^}]*\} 1$/m.test(await (await fetch(this.origin + '/metrics')).text());
        } catch {
            return false;
        }
    }

    // Whether the engine works for nobody
    async isIdle() {
        const text = await (await fetch(this.origin + '/metrics')).text();
        const used = text.match(/^mixtral_kv_blocks\{[^}]*state="used"[^}]*\} (\d+)$/m);
        if (!used)
            throw new Error('no figure of the used blocks in ' + text);
        return Number(used[1]) === 0;
    }

    static async end(child, signal = 'SIGTERM') {
        if (!child || child.exitCode !== null || child.signalCode !== null)
            return;
        const ended = new Promise(resolve => child.once('exit', resolve));
        child.kill(signal);
        await ended;
    }

    async stop() {
        await Server.end(this.nginx);
        await Server.end(this.engine);
        const log = path.join(this.folder, 'error.log');
        const died = fs.existsSync(log) && fs.readFileSync(log, 'utf8').includes('exited on signal');
        fs.rmSync(this.folder, { recursive: true, force: true });
        if (died)
            throw new Error('a worker of nginx died');
    }
}

// Runs {name: async function}, all or those whose name contains one of the arguments, and exits.
async function run(tests, before, after) {
    const words = process.argv.slice(2);
    let passed = 0, failed = 0;
    async function step(name, test) {
        const begin = Date.now();
        try {
            await test();
            console.log(`ok: ${name} (${Date.now() - begin} ms)`);
            return true;
        } catch (problem) {
            console.log(`FAILED: ${name}: ${problem.stack}`);
            return false;
        }
    }
    if (await step('start', before)) {
        for (const [name, test] of Object.entries(tests))
            if (!words.length || words.some(word => name.includes(word)))
                await step(name, test) ? passed++ : failed++;
    } else {
        failed++;
    }
    if (!await step('stop', after))
        failed++;
    console.log(`${passed} passed, ${failed} failed, 0 skipped`);
    process.exit(failed ? 1 : 0);
}

module.exports = { Server, TOP, run, sleep, until };
