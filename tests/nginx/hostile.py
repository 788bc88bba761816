#!/usr/bin/env python3
"""Bodies that nobody would send: mutations of good ones, as JSON and as bytes, to a real nginx from several clients at once.

    tests/nginx/hostile.py        for MX_SOAK_SECONDS (8); MX_SEED repeats what one client sends

Whatever comes, each answer is JSON (or a stream of events that are) with a status that a client can act on, never one that says that the
server failed; and at the end no worker has died, the engine is idle, and good requests are answered as before. A part goes through a
front server that hashes the conversation ($mixtral_prefix). The model is one of random weights, and answers are short: this is about
requests.
"""
import http.client
import json
import os
import random
import threading
import time

import server
from server import harness

SECONDS = float(os.environ.get("MX_SOAK_SECONDS", "8"))
SEED = os.environ.get("MX_SEED")
CLIENTS = 4
STATUSES = {200, 400, 404, 413, 429, 503}  # 503: too many of them wait

CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "abc"},
                     {"role": "assistant", "content": "d"}, {"role": "user", "content": [{"type": "text", "text": "e"}]}],
        "template": "mixtral", "max_tokens": 3, "temperature": 0.5, "seed": 7}
SEEDS = [
    ("/chat/completions", CHAT),
    ("/chat/completions", dict(CHAT, stream=True, stream_options={"include_usage": True}, n=2, timings=True)),
    ("/chat/completions", dict(CHAT, logprobs=True, top_logprobs=3, stop=["x", "yz"], logit_bias={"5": -100, "17": 3.5},
                               presence_penalty=1, frequency_penalty=-1, response_format={"type": "text"}, tools=[])),
    ("/completions", {"prompt": ["ab", "cd"], "max_tokens": 2, "logprobs": 2, "n": 2, "echo": False, "suffix": None}),
    ("/completions", {"prompt": "ab", "max_tokens": 4, "stream": True, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "ignore_eos": True}),
    ("/embeddings", {"input": ["ab", "cd"], "encoding_format": "base64", "user": "me"}),
    ("/tokenize", {"content": "ab cd", "with_pieces": True, "add_special": False}),
    ("/detokenize", {"tokens": [3, 5, 8]}),
    ("/messages", {"system": [{"type": "text", "text": "Be brief."}], "messages": [{"role": "user", "content": "abc"}], "max_tokens": 3,
                   "stop_sequences": ["q"], "stream": True, "metadata": {"user_id": "me"}, "template": "mixtral"}),
    ("/messages/count_tokens", {"messages": [{"role": "user", "content": "abc"}], "template": "mixtral"}),
]
FIELDS = sorted({name for _, seed in SEEDS for name in seed} | {"model", "tenant", "options", "op", "", "\0", "dimensions", "top_p"})
ATOMS = [None, True, False, 0, -1, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 63 - 1, 2 ** 63, -2 ** 63, 10 ** 40, 0.1, -0.0, 1e308, 5e-324, "", "a",
         "\0", "a\0b", "\ud800", "\udfff\ud800", "ä€😀", "\u2028\x7f", "%s%n", "x" * 300, "ab " * 3000, "<|im_start|>system\n", [], {},
         [[]], [None], {"": {}}, {"type": "text"}, {"type": "text", "text": 1}, {"role": "user"}, "../../etc/passwd", list(range(300))]
LITERALS = [b"NaN", b"-Infinity", b"1e999", b"01", b"+1", b"1.", b".5", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\\u0000",
            b"\\ud800", b"\\u", b"\\x", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\0", b"\xef\xbb\xbf", b"/**/", b"[" * 40, b'{"a":' * 40,
            b"tru", b"nul", b"\r\n\r\n", b" " * 5000, b'"model":', b"1" * 400]


def nodes(value, path=()):
    """Paths of all places in a value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from nodes(child, path + (key,))


def change(rng, value):
    """A copy with something else in one place, or with one thing more or less."""
    value = json.loads(json.dumps(value))
    path = rng.choice(list(nodes(value)))
    if not path:
        if rng.random() < 0.1:
            return rng.choice(ATOMS)
        value[rng.choice(FIELDS)] = rng.choice(ATOMS)
        return value
    at = value
    for key in path[:-1]:
        at = at[key]
    kind = rng.randrange(4)
    if kind == 0:
        del at[path[-1]]
    elif kind == 1 and isinstance(at, list):
        at.extend([at[path[-1]]] * rng.choice((1, 5, 400)))
    elif kind == 2:
        at[path[-1]] = [at[path[-1]]] if rng.random() < 0.5 else {rng.choice(FIELDS): at[path[-1]]}
    else:
        at[path[-1]] = rng.choice(ATOMS)
    return value


def damage(rng, data):
    """Other bytes in a place or two, or the whole cut."""
    for _ in range(rng.randint(1, 3)):
        at, n = rng.randint(0, len(data)), rng.choice((0, 0, 1, 1, 4, 50))
        kind = rng.randrange(4)
        if kind == 0:
            data = data[:at] + rng.choice(LITERALS) + data[at + n:]
        elif kind == 1:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1:]
        elif kind == 2:
            data = data[:at] + data[at:at + 80] * rng.choice((2, 3, 40)) + data[at:]
        else:
            data = data[:at] if rng.random() < 0.3 else data[:at] + data[at + n:]
    return data


def body(rng, seed):
    value = seed
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        value = change(rng, value) if isinstance(value, dict) else value
    data = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return damage(rng, data) if rng.random() < 0.5 else data


def strict(text):
    def refuse(name):
        raise ValueError(f"{name} is no JSON")
    return json.loads(text.decode("utf-8"), parse_constant=refuse)


def parts(data, n):
    for i in range(0, len(data), n):
        yield data[i:i + n]


class Suite(server.Suite):
    ENGINE = ("--socket-mode", "0666", "--max-queue", "64")
    HTTP = """
    mixtral_engine main unix:{folder}/engine.sock;
    upstream machines {
        hash $mixtral_prefix consistent;
        server unix:{folder}/http.sock;
    }
    """
    SERVER = """
        keepalive_requests 1000000;
        location /v1/ { mixtral_api main; mixtral_keys off; client_body_buffer_size 1k; }
        location /front/ { proxy_pass http://machines/v1/; client_max_body_size 32m; }
    """

    @classmethod
    def start_engine(cls):
        cls.MODEL = os.path.join(cls.folder, "tiny.gguf")
        done = harness.run("synth", cls.MODEL, *harness.TINY, "--type", "F16")
        assert done.returncode == 0, done.stderr
        super().start_engine()

    def check(self, path, response, text):
        """Raises for what no client could use."""
        if response.status not in STATUSES:
            raise AssertionError(f"status {response.status}")
        kind = response.headers["Content-Type"]
        if kind == "application/json":
            answer = strict(text)
            if response.status == 200:
                return
            error = answer["error"]
            if not isinstance(error["message"], str) or not error["message"] or not isinstance(error["type"], str):
                raise AssertionError("no error that a client reads")
            if response.status == 503 and "The engine" in error["message"]:
                raise AssertionError("the engine is gone")
            return
        if response.status != 200 or not kind.startswith("text/event-stream"):
            raise AssertionError(f"{response.status} {kind}")
        events = text.split(b"\n\n")
        if events[-1] != b"":
            raise AssertionError("a stream without its end")
        for event in events[:-1]:
            for line in event.split(b"\n"):
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    strict(line[len(b"data: "):])
                elif not line.startswith((b": ", b"event: ")) and line != b"data: [DONE]":
                    raise AssertionError("no event")

    def once(self, rng, connection):
        path, seed = rng.choice(SEEDS)
        data = body(rng, seed)
        prefix = "/front" if rng.random() < 0.2 else "/v1"
        chunked = rng.random() < 0.2
        try:
            connection.request("POST", prefix + path, parts(data, rng.choice((1, 7, 4000))) if chunked and len(data) < 4000 else data,
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            self.check(path, response, text)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AssertionError) as error:
            return f"{type(error).__name__} {error}: POST {prefix}{path} {data[:600]!r}"
        self.counts[response.status] = self.counts.get(response.status, 0) + 1
        return None

    def client(self, seed):
        rng = random.Random(seed)
        connection = server.Connection(os.path.join(self.folder, "http.sock"))
        while time.monotonic() < self.end and not self.failures_:
            failure = self.once(rng, connection)
            if failure:
                self.failures_.append(f"MX_SEED={seed}: {failure}")
        connection.close()

    def test_hostile_bodies(self):
        good = {"prompt": "ab", "max_tokens": 8, "ignore_eos": True, "seed": 1}
        before = self.get("/v1/completions", good)["choices"][0]["text"]
        self.get("/v1/chat/completions", CHAT)  # what is mutated is good
        self.counts, self.failures_ = {}, []
        self.end = time.monotonic() + SECONDS
        seeds = [SEED] if SEED else [str(random.SystemRandom().randrange(10 ** 9)) for _ in range(CLIENTS)]
        clients = [threading.Thread(target=self.client, args=(seed,)) for seed in seeds]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        self.assertEqual(self.failures_, [])
        print(f"{sum(self.counts.values())} requests in {SECONDS:g} s, by status: {dict(sorted(self.counts.items()))}", flush=True)
        self.assertGreater(self.counts[200], 10)
        self.assertGreater(self.counts[400], 50)
        self.until(self.is_idle)
        self.assertEqual(self.get("/v1/completions", good)["choices"][0]["text"], before)
        self.assertNotIn("exited on signal", self.log())
        self.assertNotIn("[alert]", self.log())

    def test_the_check_finds_something(self):
        # A test of the test: what `check` is to refuse.
        response = self.send("/v1/models")
        text = response.read()
        self.check("/models", response, text)
        for status, kind, wrong in ((200, "application/json", b'{"a": NaN}'), (200, "application/json", b"{"),
                                    (400, "application/json", b"{}"), (500, "application/json", text),
                                    (200, "text/html", b"<html>"), (200, "text/event-stream", b"data: {}\n\ndata: {"),
                                    (200, "text/event-stream", b"data: {\n\n"), (200, "text/event-stream", b"hello\n\n")):
            response.status = status
            response.headers.replace_header("Content-Type", kind)
            with self.subTest(wrong=wrong), self.assertRaises((AssertionError, ValueError, KeyError)):
                self.check("/models", response, wrong)


if __name__ == "__main__":
    harness.main()
