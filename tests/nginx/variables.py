#!/usr/bin/env python3
"""Variables in the access log, and $mixtral_prefix before two machines, which are servers of the same nginx at sockets of their own."""
import json
import os
import time

import server
from server import HELLO, LONG, harness


def message(role, content):
    return {"role": role, "content": content}


class Suite(server.Suite):
    HTTP = """
    mixtral_engine main unix:{folder}/engine.sock;
    mixtral_engine none unix:{folder}/nobody.sock;
    mixtral_keys {folder}/keys;
    limit_req_zone $mixtral_key zone=keys:1m rate=1r/m;
    log_format figures '$uri|$status|$mixtral_prompt_tokens|$mixtral_cached_tokens|$mixtral_completion_tokens|$mixtral_ttft|'
                       '$mixtral_model|$mixtral_key|$request_time';
    log_format prefix '$mixtral_prefix $upstream_addr $uri';

    upstream machines {
        hash $mixtral_prefix consistent;
        server unix:{folder}/one.sock;
        server unix:{folder}/two.sock;
    }
    server {
        listen unix:{folder}/one.sock;
        location /v1/ { mixtral_api main; mixtral_keys off; add_header X-Machine one always; }
        location /echo/ { add_header X-Machine one always; return 200 one; }
    }
    server {
        listen unix:{folder}/two.sock;
        location /v1/ { mixtral_api main; mixtral_keys off; add_header X-Machine two always; }
        location /echo/ { add_header X-Machine two always; return 200 two; }
    }
    server {
        listen unix:{folder}/front.sock;
        access_log {folder}/front.log prefix;
        client_max_body_size 32m;
        location / {
            client_body_buffer_size 2k;
            proxy_pass http://machines;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }
        location /unbuffered/ {
            proxy_request_buffering off;
            proxy_pass http://machines/echo/;
        }
    }
    """
    SERVER = """
        access_log {folder}/access.log figures;
        location /v1/ { mixtral_api main; mixtral_keys off; }
        location /keys/ { mixtral_api main; }
        location /limited/ { mixtral_api main; limit_req zone=keys; }
        location /none/ { mixtral_api none; mixtral_keys off; }
        location /static/ { return 200 "x"; }
    """

    @classmethod
    def start_engine(cls):
        path = os.path.join(cls.folder, "keys")
        cls.keys = {name: harness.run("key", "new", path, "--name", name).stdout.decode().strip() for name in ("alice", "bob")}
        cls.ENGINE = ("--socket-mode", "0666", "--allow-uid", "33")
        super().start_engine()

    def lines(self, name):
        with open(os.path.join(self.folder, name), encoding="utf-8") as file:
            return file.read().splitlines()

    def logged(self, do, name="access.log"):
        """The line that a request leaves, in fields; what `do` gave."""
        before = len(self.lines(name))
        result = do()
        self.until(lambda: len(self.lines(name)) > before)
        return self.lines(name)[before].split("|"), result

    # ---- The log ----

    def check(self, fields, uri, usage, model):
        self.assertEqual(fields[:2], [uri, "200"])
        self.assertEqual([int(field) for field in fields[2:5]],
                         [usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"]])
        self.assertRegex(fields[5], r"\A\d+\.\d{3}\Z")
        self.assertLessEqual(float(fields[5]), float(fields[8]))
        self.assertEqual(fields[6], model)

    def test_an_answer_and_a_stream(self):
        model = self.logged(lambda: self.get("/v1/models"))[1]["data"][0]["id"]
        fields, answer = self.logged(lambda: self.get("/v1/chat/completions", HELLO))
        self.check(fields, "/v1/chat/completions", answer["usage"], model)
        self.assertEqual(fields[7], "-")
        body = {"prompt": "word " * 300, "max_tokens": 30, "ignore_eos": True, "stream_options": {"include_usage": True}, "cache": False}
        fields, chunks = self.logged(lambda: self.chunks("/v1/completions", body))
        self.check(fields, "/v1/completions", chunks[-1]["usage"], model)
        self.assertGreater(float(fields[5]), 0)
        self.assertLess(float(fields[5]), float(fields[8])) # 29 tokens came after the first

    def test_messages(self):
        body = {"messages": [message("user", "Hello")], "max_tokens": 3, "system": "Be brief."}
        fields, answer = self.logged(lambda: self.get("/v1/messages", body))
        usage = answer["usage"]
        self.assertEqual([int(field) for field in fields[2:5]], [usage["input_tokens"] + usage["cache_read_input_tokens"],
                                                                 usage["cache_read_input_tokens"], usage["output_tokens"]])
        self.assertRegex(fields[5], r"\A\d+\.\d{3}\Z")

    def test_the_first_token_waits_for_the_prompt(self):
        ttft = []
        for words in 10, 1500:
            fields, _ = self.logged(lambda: self.get("/v1/completions", {"prompt": "word " * words, "max_tokens": 1, "cache": False}))
            ttft.append(float(fields[5]))
        self.assertGreater(ttft[1], 3 * ttft[0])

    def test_prompts_count_together(self):
        fields, answer = self.logged(lambda: self.get("/v1/completions", {"prompt": ["One", "Two words"], "max_tokens": 3, "n": 2}))
        self.check(fields, "/v1/completions", answer["usage"], fields[6])
        fields, answer = self.logged(lambda: self.get("/v1/embeddings", {"input": ["one", "two"]}))
        self.assertEqual(fields[2:6], [str(answer["usage"]["prompt_tokens"]), "0", "0", "-"])

    def test_what_is_not_known(self):
        for path, status in (("/v1/models", 200), ("/static/x", 200), ("/none/models", 503), ("/keys/models", 401), ("/v1/x", 404)):
            fields, response = self.logged(lambda path=path: self.send(path).read())
            self.assertEqual(fields[:8], [path, str(status)] + ["-"] * 6)
        fields, _ = self.logged(lambda: self.send("/v1/chat/completions", {"messages": 1}).read())
        self.assertEqual(fields[1:8], ["400"] + ["-"] * 6)
        fields, _ = self.logged(lambda: self.send("/v1/completions", {"prompt": "a", "model": "gpt"}).read())
        self.assertEqual(fields[1:8], ["404"] + ["-"] * 6)

    def test_a_client_that_leaves(self):
        def leave():
            response = self.send("/v1/completions", {"prompt": "One", "stream": True, **LONG})
            response.readline()
            response.close()
            response.connection.close()
        fields, _ = self.logged(leave)
        self.assertEqual(fields[2:5], ["-"] * 3)
        self.assertRegex(fields[5], r"\A\d+\.\d{3}\Z")
        self.until(self.is_idle, 20)

    def test_keys(self):
        headers = {name: {"x-api-key": key} for name, key in self.keys.items()}
        fields, _ = self.logged(lambda: self.get("/keys/chat/completions", HELLO, headers=headers["alice"]))
        self.assertEqual(fields[7], "alice")
        # limit_req is asked before the handler is.
        self.get("/limited/models", headers=headers["alice"])
        self.error(503, "/limited/models", headers=headers["alice"])
        self.get("/limited/models", headers=headers["bob"])

    # ---- The front server ----

    def front(self, body, path="/v1/chat/completions"):
        """The machine, and the hash, of a body."""
        folder = self.folder
        before = len(self.lines("front.log"))
        connection = server.Connection(os.path.join(folder, "front.sock"))
        self.addCleanup(connection.close)
        connection.request("POST", path, body if isinstance(body, bytes) or body is None else json.dumps(body).encode())
        response = connection.getresponse()
        response.read()
        self.until(lambda: len(self.lines("front.log")) > before)
        prefix, address, _ = self.lines("front.log")[before].split(" ")
        machine = response.headers["X-Machine"]
        self.assertEqual(os.path.basename(address), machine + ".sock")
        return machine, prefix

    def conversation(self, i):
        return [message("system", "Be brief."), message("user", f"Question {i}: " + "why? " * 20)]

    def test_turns_come_to_the_same_machine_and_conversations_spread(self):
        machines = {}
        for i in range(24):
            messages = self.conversation(i)
            seen = set()
            for turn in range(3):
                seen.add(self.front({"model": "m", "messages": messages}, "/echo/chat/completions"))
                messages = messages + [message("assistant", f"Answer {turn}"), message("user", "And then? " * (200 * turn))]
            self.assertEqual(len(seen), 1, seen) # one machine, one hash; also of bodies in files
            machines[seen.pop()] = i
        self.assertEqual(len(machines), 24)
        share = sum(machine == "one" for machine, _ in machines)
        self.assertGreaterEqual(share, 4)
        self.assertLessEqual(share, 20)

    def test_answers_come_through(self):
        response = None
        connection = server.Connection(os.path.join(self.folder, "front.sock"))
        self.addCleanup(connection.close)
        connection.request("POST", "/v1/chat/completions", json.dumps(dict(HELLO, stream=True, ignore_eos=True, max_tokens=60)))
        response = connection.getresponse()
        times = []
        while line := response.readline():
            if line.startswith(b"data:"):
                times.append(time.monotonic())
        self.assertGreater(times[-1] - times[0], 0.1) # not in one piece at the end
        self.assertGreater(len(times), 20)

    def hash_of(self, body):
        machine, prefix = self.front(body, "/echo/x")
        self.assertRegex(prefix, r"\A[0-9a-f]{32}\Z")
        return prefix

    def test_what_the_hash_is_of(self):
        parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
        base = {"model": "m", "messages": [message("system", "Be brief."), message("user", "Hello")]}
        expected = self.hash_of(base)
        for same in (dict(base, temperature=1, stream=True), dict(base, messages=base["messages"] + [message("user", "More")]),
                     dict(base, messages=[message("developer", "Be brief."), message("user", parts)]),
                     dict(base, messages=[message("system", [{"type": "text", "text": "Be brief."}]), message("user", "Hello")]),
                     dict(base, messages=[message("user", "Hello")], system="Be brief."),
                     dict(base, messages=[message("user", parts)], system=[{"type": "text", "text": "Be "}, {"text": "brief."}])):
            self.assertEqual(self.hash_of(same), expected, same)
        seen = {expected}
        for other in (dict(base, model="n"), dict(base, messages=base["messages"][1:]), dict(base, model="mBe brief."),
                      dict(base, messages=[message("system", "Be brief.H"), message("user", "ello")]),
                      dict(base, messages=[message("system", "Be brief."), message("user", "hello")]),
                      {"model": "m", "prompt": "a"}, {"model": "m", "prompt": "b"}, {"model": "m", "prompt": "c" * 1024},
                      {"model": "m", "input": "a"}, {"messages": []}, b"no JSON", b"", b"[1]", b'{"messages": 1}', b'{"a":' * 100):
            self.assertNotIn(self.hash_of(other), seen, other)
            seen.add(self.hash_of(other))
        self.assertEqual(self.hash_of({"model": "m", "prompt": "c" * 1024 + "and more"}), self.hash_of({"model": "m", "prompt": "c" * 1024}))
        for odd in ({"messages": [1, None, {"role": 3}]}, {"messages": [message("user", [1, {"text": 2}])], "model": 3, "system": 4}):
            self.assertEqual(self.hash_of(odd), self.hash_of(odd))
        self.assertEqual(self.hash_of(None), self.hash_of(b""))

    def test_without_buffering_there_is_none(self):
        _, prefix = self.front(dict(HELLO, user="x" * 500000), "/unbuffered/x")
        self.assertEqual(prefix, "-")


if __name__ == "__main__":
    harness.main()
