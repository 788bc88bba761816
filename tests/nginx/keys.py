#!/usr/bin/env python3
"""API keys, before an engine that trusts nginx and one that does not."""
import json
import os
import shutil
import signal
import socket
import subprocess
import threading

import server
from server import HELLO, LONG, Connection, ask, harness

WORKER = 33 if os.getuid() == 0 else os.getuid()  # www-data


class Suite(server.Suite):
    ENGINE = ("--socket-mode", "0666", "--allow-uid", str(WORKER))
    HTTP = """
    mixtral_engine main unix:{folder}/engine.sock;
    mixtral_engine foreign unix:{folder}/foreign.sock;
    mixtral_engine own model={folder}/tiny.gguf program={folder}/mixtral threads=1;
    mixtral_keys {folder}/keys;
    server {
        listen unix:{folder}/http2.sock http2;
        location /v1/ { mixtral_api main; }
    }
    """
    SERVER = """
        location /v1/ { mixtral_api main; }
        location /open/ { mixtral_api main; mixtral_keys off; }
        location /relative/ { mixtral_api main; mixtral_keys keys; }
        location /foreign/ { mixtral_api foreign; }
        location /own/ { mixtral_api own; }
        location = /metrics { mixtral_metrics own main; }
        location /any/ { mixtral_api main; satisfy any; allow all; }
        location /static/ { return 200 "no key\\n"; }
    """

    @classmethod
    def start_engine(cls):
        cls.keys = {}
        for name, *limits in (("alice",), ("bob", "--requests", "1"), ("carol", "--tokens-per-minute", "20")):
            cls.key("new", "--name", name, *limits)
        cls.prepare_own()
        super().start_engine()

    @classmethod
    def prepare_own(cls):
        """What an engine that nginx runs is made of, where nginx's user can read it."""
        model, program = os.path.join(cls.folder, "tiny.gguf"), os.path.join(cls.folder, "mixtral")
        done = harness.run("synth", model, *harness.TINY, "--type", "F16")
        assert done.returncode == 0, done.stderr
        shutil.copy(harness.CLI, program)
        os.chmod(model, 0o644)
        os.chmod(program, 0o755)

    @classmethod
    def key(cls, verb, *arguments):
        done = harness.run("key", verb, os.path.join(cls.folder, "keys"), *arguments)
        assert done.returncode == 0, done.stderr
        if verb == "new":
            cls.keys[arguments[1]] = done.stdout.decode().strip()

    def by(self, name):
        return {"headers": {"Authorization": "Bearer " + self.keys.get(name, name)}}

    def refused_key(self, path="/v1/models", body=None, **more):
        response = self.send(path, body, **more)
        text = response.read()
        self.assertEqual(response.status, 401, text)
        self.assertEqual(response.headers["WWW-Authenticate"], "Bearer")
        self.assertEqual(response.headers["Content-Type"], "application/json")
        error = json.loads(text)["error"]
        self.assertEqual((error["code"], error["param"], error["type"]), ("invalid_api_key", None, "invalid_request_error"))
        return error["message"]

    def reload(self):
        """Returns when a worker with the new configuration answers, and no older one does."""
        before = self.log().count("start worker process ")
        self.nginx.send_signal(signal.SIGHUP)
        self.until(lambda: self.log().count("start worker process ") >= before + 2 and "exited with code 0" in self.log())
        self.until(lambda: self.log().count("start worker process ") == 2 + self.log().count("exited with code 0"))

    # ---- Who may ----

    def test_right_and_wrong_keys(self):
        key = self.keys["alice"]
        for headers in ({"Authorization": "Bearer " + key}, {"authorization": "bearer  " + key}, {"x-api-key": key},
                        {"X-API-Key": key, "Authorization": "Basic YTpi"}):
            with self.subTest(headers=headers):
                self.get("/v1/models", headers=headers)
                self.get("/v1/chat/completions", HELLO, headers=headers)
        for headers in ({"Authorization": "Bearer " + key[:-1]}, {"Authorization": "Bearer " + key + "x"},
                        {"Authorization": "Bearer " + key.swapcase()}, {"x-api-key": "x" * 4000}, {"x-api-key": "mx-"},
                        {"Authorization": "Bearer wrong", "x-api-key": key}):
            with self.subTest(headers=headers):
                self.assertIn("no such", self.refused_key(headers=headers))
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer"}, {"Authorization": key}, {"x-api-key": ""},
                        {"Authorization": "Basic " + key}):
            with self.subTest(headers=headers):
                self.assertIn("is needed", self.refused_key(headers=headers))
        self.refused_key("/v1/chat/completions", HELLO)
        self.refused_key("/v1/chat/completions", method="GET")
        self.get("/relative/models", **self.by("alice"))
        self.refused_key("/any/models")

    def test_what_needs_none(self):
        self.get("/open/chat/completions", HELLO)
        self.assertEqual(self.send("/static/x").read(), b"no key\n")
        response = self.send("/v1/chat/completions", method="OPTIONS")
        self.assertEqual((response.status, response.headers["Allow"]), (204, "POST, OPTIONS"))
        self.error(404, "/v1/nothing")

    def test_a_connection_goes_on_after_a_refusal(self):
        connection = Connection(os.path.join(self.folder, "http.sock"))
        self.addCleanup(connection.close)
        for _ in range(3):
            connection.request("POST", "/v1/completions", json.dumps({"prompt": "a" * 100000}))
            response = connection.getresponse()
            response.read()
            self.assertEqual(response.status, 401)
        connection.request("GET", "/v1/models", **self.by("alice"))
        self.assertEqual(connection.getresponse().status, 200)

    def test_a_refusal_does_not_wait_for_the_body(self):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(harness.SECONDS)
            client.connect(os.path.join(self.folder, "http.sock"))
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 30000000\r\nExpect: 100-continue\r\n\r\n")
            answer = b""
            while got := client.recv(65536): # until it is closed
                answer += got
        self.assertTrue(answer.startswith(b"HTTP/1.1 401"), answer)
        self.assertIn(b"Connection: close", answer)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(harness.SECONDS)
            client.connect(os.path.join(self.folder, "http.sock"))
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 30000000\r\n\r\n" + b"x" * 10)
            self.assertTrue(client.recv(65536).startswith(b"HTTP/1.1 401"))
            client.sendall(b"y" * 100000) # still read and left aside
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(harness.SECONDS)
            client.connect(os.path.join(self.folder, "http.sock"))
            body = b'{"prompt":"a","max_tokens":1}'
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nx-api-key: %s\r\nContent-Length: %d\r\nConnection: close\r\n"
                           b"Expect: 100-continue\r\n\r\n" % (self.keys["alice"].encode(), len(body)))
            self.assertTrue(client.recv(65536).startswith(b"HTTP/1.1 100 Continue\r\n"))
            client.sendall(body)
            self.assertTrue(client.recv(65536).startswith(b"HTTP/1.1 200"))

    def test_messages(self):
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        for headers in {"x-api-key": self.keys["alice"]}, {"Authorization": "Bearer " + self.keys["alice"]}:
            self.assertEqual(self.get("/v1/messages", body, headers=headers)["type"], "message")
        response = self.send("/v1/messages", body, headers={"x-api-key": "wrong"})
        answer = json.loads(response.read())
        self.assertEqual((response.status, answer["type"], answer["error"]["type"]), (401, "error", "authentication_error"))
        response = self.send("/v1/messages", dict(body, stream=True, max_tokens=500, ignore_eos=True), **self.by("bob"))
        response.readline()
        refusal = self.send("/v1/messages", body, **self.by("bob"))
        self.assertEqual((refusal.status, json.loads(refusal.read())["error"]["type"]), (429, "rate_limit_error"))

    def curl(self, *arguments, data=b""):
        """Over HTTP/2: the status, and the body."""
        done = subprocess.run(["curl", "-s", "--http2-prior-knowledge", "-w", "\n%{http_version} %{http_code}", "--unix-socket",
                               os.path.join(self.folder, "http2.sock"), *arguments], input=data, capture_output=True, timeout=60, check=True)
        text, _, status = done.stdout.decode().rpartition("\n")
        self.assertTrue(status.startswith("2 "), status)
        return int(status[2:]), text

    def test_http_2(self):
        url, key = "http://localhost/v1/completions", "X-Api-Key: " + self.keys["alice"]
        for data in b'{"prompt":"a","max_tokens":1}', b'{"prompt":"' + b"a " * 3000 + b'","max_tokens":1}':
            status, text = self.curl(url, "-H", key, "--data-binary", "@-", data=data)
            self.assertEqual((status, json.loads(text)["usage"]["completion_tokens"]), (200, 1))
        # without a body: curl 7.88 takes a refusal while it sends one, which nginx ends with RST_STREAM, for a failure
        status, text = self.curl(url, "-X", "POST")
        self.assertEqual((status, json.loads(text)["error"]["code"]), (401, "invalid_api_key"))
        status, text = self.curl(url, "-H", key, "--data-binary", "@-", data=b'{"prompt":"a","max_tokens":3,"stream":true}')
        self.assertEqual((status, text[-16:]), (200, "\n\ndata: [DONE]\n\n"))

    def test_many_prompts_stay_within_the_limit(self):
        answer = self.get("/v1/embeddings", {"input": ["one", "two", "three", "four"]}, **self.by("bob"))
        self.assertEqual(len(answer["data"]), 4)

    # ---- Tenants ----

    def test_requests_at_a_time(self):
        body = dict(HELLO, stream=True, **LONG)
        response = self.send("/v1/chat/completions", body, **self.by("bob"))
        response.readline()
        for _ in range(4): # whichever worker it is
            refusal = self.send("/v1/chat/completions", HELLO, **self.by("bob"))
            text = refusal.read()
            self.assertEqual(refusal.status, 429, text)
            self.assertGreater(int(refusal.headers["Retry-After"]), 0)
            error = json.loads(text)["error"]
            self.assertEqual((error["type"], error["code"], error["param"]), ("rate_limit_error", "rate_limit_exceeded", None))
            self.assertIn("1 requests", error["message"])
        self.get("/v1/chat/completions", HELLO, **self.by("alice"))
        self.get("/v1/models", **self.by("bob"))
        response.close()
        response.connection.close()
        self.until(self.is_idle, 20)
        self.get("/v1/chat/completions", HELLO, **self.by("bob"))

    def test_tokens_a_minute(self):
        body = {"prompt": "One, two, three", "max_tokens": 60, "ignore_eos": True}
        self.get("/v1/completions", body, **self.by("carol"))
        refusal = self.send("/v1/completions", body, **self.by("carol"))
        self.assertEqual(refusal.status, 429)
        self.assertGreater(int(refusal.headers["Retry-After"]), 60)
        self.assertIn("20 tokens a minute", json.loads(refusal.read())["error"]["message"])
        self.get("/v1/completions", body, **self.by("alice"))

    def test_tenants_share_no_prefix(self):
        prompt = "A prompt of its own, " * 30
        cached = [self.get("/v1/completions", {"prompt": prompt, "max_tokens": 1}, **self.by(name))
                  ["usage"]["prompt_tokens_details"]["cached_tokens"] for name in ("alice", "alice", "bob", "bob")]
        self.assertEqual([tokens > 0 for tokens in cached], [False, True, False, True])

    def test_an_engine_that_nginx_runs_trusts_it(self):
        self.until(lambda: self.send("/own/health", **self.by("bob")).status == 200)
        body = {"prompt": "ab", "max_tokens": 500, "ignore_eos": True, "stream": True, "n": 8}
        self.get("/own/completions", dict(body, stream=False, max_tokens=2), **self.by("bob"))
        response = self.send("/own/completions", body, **self.by("bob"))
        response.readline()
        self.assertEqual(self.send("/own/completions", body, **self.by("bob")).status, 429)
        self.assertEqual(self.send("/own/completions", body, **self.by("nobody")).status, 401)
        self.assertTrue(response.read().endswith(b"data: [DONE]\n\n"))
        text = self.send("/metrics").read().decode()
        self.assertIn('mixtral_up{engine="own"} 1\nmixtral_up{engine="main"} 1\n', text)

    def test_an_engine_that_does_not_trust_nginx(self):
        if WORKER == os.getuid():
            self.skipTest("an engine of our own uid trusts us: needs root")
        path = os.path.join(self.folder, "foreign.sock")
        engine = subprocess.Popen([harness.CLI, "serve", "--model", harness.MODEL, "--socket", path, "--socket-mode", "0666"],
                                  stderr=subprocess.DEVNULL)
        self.addCleanup(self.stop, engine)
        self.until(lambda: os.path.exists(path))
        self.until(lambda: self.send("/foreign/health", **self.by("alice")).status == 200)
        self.get("/foreign/models", **self.by("alice"))
        for name in ("alice", "bob"):
            error = self.error(500, "/foreign/chat/completions", HELLO, **self.by(name))
            self.assertEqual((error["type"], error["param"]), ("server_error", None))
            self.assertIn("not set up for API keys", error["message"])
        self.assertIn('engine "foreign" does not let nginx name tenants', self.log())
        self.assertIn(f'--allow-uid {WORKER}"', self.log())

    # ---- The file ----

    def test_reload(self):
        self.key("new", "--name", "dave")
        self.refused_key(**self.by("dave"))
        self.reload()
        self.get("/v1/models", **self.by("dave"))
        self.key("revoke", "dave")
        self.get("/v1/models", **self.by("dave"))
        self.reload()
        self.refused_key(**self.by("dave"))
        with open(os.path.join(self.folder, "keys"), "a", encoding="ascii") as file:
            file.write("eve\n")
        lines = 5
        self.nginx.send_signal(signal.SIGHUP)
        self.until(lambda: f"keys\", line {lines}: expected an id" in self.log())
        self.get("/v1/models", **self.by("alice")) # as before
        self.key_file_without_last_line()

    def key_file_without_last_line(self):
        path = os.path.join(self.folder, "keys")
        with open(path, encoding="ascii") as file:
            lines = file.readlines()
        with open(path, "w", encoding="ascii") as file:
            file.writelines(lines[:-1])

    def test_workers_need_no_access(self):
        self.assertEqual(os.stat(os.path.join(self.folder, "keys")).st_mode & 0o777, 0o600)
        self.get("/v1/models", **self.by("alice"))

    def test_directive(self):
        engine = "mixtral_engine main unix:/nobody.sock;"
        bad = os.path.join(self.folder, "bad")
        with open(bad, "wb") as file:
            file.write(b"root:x:0:0\n")
        large = os.path.join(self.folder, "large")
        with open(large, "wb") as file:
            file.truncate(2 << 20)
        fifo = os.path.join(self.folder, "fifo")
        os.mkfifo(fifo)
        for more, words in (("mixtral_api main;", "mixtral_keys"),
                            ("mixtral_api main; mixtral_keys off; mixtral_keys off;", "duplicate"),
                            ("mixtral_api main; mixtral_keys;", "number of arguments"),
                            ("mixtral_api main; mixtral_keys /nowhere/keys;", "No such file"),
                            (f"mixtral_api main; mixtral_keys {self.folder};", "no regular file"),
                            (f"mixtral_api main; mixtral_keys {fifo};", "no regular file"),
                            (f"mixtral_api main; mixtral_keys {large};", "1048576 bytes"),
                            (f"mixtral_api main; mixtral_keys {bad};", f'key file "{bad}", line 1: expected "mixtral-keys 1 ')):
            with self.subTest(more=more):
                self.refused(words, f"location /x {{ {more} }}", engine)

    def test_many_clients_at_once(self):
        statuses = []

        def client(name):
            response = self.send("/v1/models", **self.by(name))
            response.read()
            statuses.append((name, response.status))
        threads = [threading.Thread(target=client, args=(name,)) for name in ["alice", "nobody"] * 20]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(statuses), [("alice", 200)] * 20 + [("nobody", 401)] * 20)
        self.assertTrue(ask(self.engine_socket, {"op": "stats"}))


if __name__ == "__main__":
    harness.main()
