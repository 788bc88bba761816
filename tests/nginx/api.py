#!/usr/bin/env python3
"""The API as nginx serves it."""
import base64
import json
import os
import signal
import struct
import time
import urllib.parse

import server
from server import HELLO, LONG, Connection, harness


class Suite(server.Suite):
    HTTP = """
    limit_req_zone $uri zone=one:1m rate=1r/m;
    mixtral_engine main unix:{folder}/engine.sock;
    mixtral_engine none unix:{folder}/nobody.sock;
    """
    SERVER = """
        location /v1/ { mixtral_api main; mixtral_keys off; client_body_buffer_size 1k; }
        location ~ ^/(tokenize|detokenize|health)$ { mixtral_api main; mixtral_keys off; }
        location /none/ { mixtral_api none; mixtral_keys off; }
        location /small/ { mixtral_api main; mixtral_keys off; client_max_body_size 100; }
        location /closed/ { mixtral_api main; mixtral_keys off; deny all; }
        location /limited/ { mixtral_api main; mixtral_keys off; limit_req zone=one; }
    """

    # ---- Endpoints ----

    def test_chat(self):
        answer = self.get("/v1/chat/completions", HELLO)
        self.assertEqual(answer["object"], "chat.completion")
        self.assertTrue(answer["system_fingerprint"].startswith("mixtral-"))
        choice, usage = answer["choices"][0], answer["usage"]
        self.assertEqual(choice["message"]["role"], "assistant")
        self.assertEqual(usage["completion_tokens"], 6)
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + 6)
        self.assertIn("cached_tokens", usage["prompt_tokens_details"])

        chunks = self.chunks("/v1/chat/completions", dict(HELLO, stream_options={"include_usage": True}))
        self.assertEqual(len({chunk["id"] for chunk in chunks}), 1)
        self.assertEqual(len({chunk["model"] for chunk in chunks}), 1)
        self.assertEqual(chunks[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1])
        self.assertEqual(text, choice["message"]["content"])
        self.assertEqual(chunks[-2]["choices"][0]["finish_reason"], "length")
        self.assertEqual(chunks[-1]["choices"], [])
        self.assertEqual(chunks[-1]["usage"]["completion_tokens"], 6)
        self.assertTrue(all(chunk["usage"] is None for chunk in chunks[:-1]))

        chunks = self.chunks("/v1/chat/completions", HELLO)
        self.assertTrue(all("usage" not in chunk for chunk in chunks))

    def test_choices_logprobs_and_parts(self):
        body = dict(HELLO, n=2, seed=1, temperature=1, logprobs=True, top_logprobs=2,
                    messages=[{"role": "developer", "content": "Be brief."},
                              {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}])
        answer = self.get("/v1/chat/completions", body)
        self.assertEqual([choice["index"] for choice in answer["choices"]], [0, 1])
        entry = answer["choices"][1]["logprobs"]["content"][0]
        self.assertEqual(set(entry), {"token", "logprob", "bytes", "top_logprobs"})
        self.assertEqual(len(entry["top_logprobs"]), 2)
        chunks = self.chunks("/v1/chat/completions", body)
        for i in 0, 1:
            text = "".join(choice["delta"].get("content", "") for c in chunks for choice in c["choices"] if choice["index"] == i)
            self.assertEqual(text, answer["choices"][i]["message"]["content"])

    def test_completions(self):
        body = {"prompt": ["The capital of France is", "One, two,"], "max_tokens": 4, "temperature": 0, "logprobs": 1}
        answer = self.get("/v1/completions", body)
        self.assertEqual([choice["index"] for choice in answer["choices"]], [0, 1])
        self.assertEqual(len(answer["choices"][0]["logprobs"]["tokens"]), 4)
        chunks = self.chunks("/v1/completions", body)
        for i in 0, 1:
            text = "".join(choice["text"] for c in chunks for choice in c["choices"] if choice["index"] == i)
            self.assertEqual(text, answer["choices"][i]["text"])

    def test_embeddings(self):
        answer = self.get("/v1/embeddings", {"input": ["one", "two"]})
        self.assertEqual([entry["index"] for entry in answer["data"]], [0, 1])
        floats = answer["data"][1]["embedding"]
        packed = self.get("/v1/embeddings", {"input": "two", "encoding_format": "base64"})["data"][0]["embedding"]
        self.assertEqual(struct.pack(f"<{len(floats)}f", *floats), base64.b64decode(packed))
        self.assertEqual(self.error(400, "/v1/embeddings", {"input": [1, 2]})["param"], "input")
        self.assertEqual(self.error(400, "/v1/embeddings", {"input": []})["param"], "input")
        self.assertEqual(self.error(400, "/v1/embeddings", {"input": "a", "dimensions": 2})["param"], "dimensions")
        self.assertEqual(self.error(400, "/v1/embeddings", {"input": "a", "encoding_format": 1})["param"], "encoding_format")

    def test_models_tokens_and_health(self):
        self.assertEqual(self.get("/health"), {"status": "ok"})
        models = self.get("/v1/models")
        self.assertEqual(models["data"][0]["object"], "model")
        model = self.get("/v1/models/" + urllib.parse.quote(models["data"][0]["id"]))
        self.assertEqual({**model, "created": 0}, {**models["data"][0], "created": 0})
        for name in "gpt", "a/b%20c", "%ff", "models/gpt":
            error = self.error(404, "/v1/models/" + name)
            self.assertEqual((error["param"], error["code"]), ("model", "model_not_found"))
        self.assertIsNone(self.error(404, "/v1/models/")["code"])
        self.error(405, "/v1/models/gpt", {})
        self.get("/v1/chat/completions", dict(HELLO, model=models["data"][0]["id"]))
        text = "Hello, wörld"
        tokens = self.get("/tokenize", {"content": text})["tokens"]
        self.assertEqual(self.get("/detokenize", {"tokens": tokens}), {"content": text})
        pieces = self.get("/tokenize", {"content": text, "with_pieces": True})["tokens"]
        self.assertEqual([piece["id"] for piece in pieces], tokens)
        self.assertEqual(self.error(400, "/tokenize", {"content": 1})["param"], "content")
        self.assertEqual(self.error(400, "/tokenize", {"content": "a", "add_special": True})["param"], "add_special")
        self.assertEqual(self.error(400, "/detokenize", {"tokens": "a"})["param"], "tokens")
        self.assertEqual(self.error(400, "/detokenize", {"tokens": [-1]})["param"], "tokens")

    def test_bodies_in_files_and_in_chunks(self):
        text = "word " * 500
        body = json.dumps({"content": text}).encode()
        tokens = len(self.get("/tokenize", {"content": text})["tokens"])
        answer = self.get("/v1/completions", {"prompt": text, "max_tokens": 1})
        self.assertEqual(answer["usage"]["prompt_tokens"], tokens)
        parts = (body[i:i + 700] for i in range(0, len(body), 700))
        self.assertEqual(len(self.get("/tokenize", parts)["tokens"]), tokens)

    # ---- Errors ----

    def test_errors_name_the_field(self):
        for field, value in (("messages", 3), ("messages", []), ("messages", [1]), ("temperature", "hot"), ("top_p", 7),
                             ("max_tokens", 0), ("n", 1.5), ("stop", 4), ("stream", "yes"), ("stream_options", 1),
                             ("logit_bias", []), ("tools", [{}]), ("response_format", {"type": "json_object"}),
                             ("response_format", 1), ("seed", "x"), ("logprobs", 3)):
            with self.subTest(field=field, value=value):
                error = self.error(400, "/v1/chat/completions", dict(HELLO, **{field: value}))
                self.assertEqual((error["param"], error["type"]), (field, "invalid_request_error"))
        for field, value in (("prompt", None), ("prompt", [1]), ("echo", True), ("suffix", "x"), ("logprobs", True)):
            with self.subTest(field=field, value=value):
                self.assertEqual(self.error(400, "/v1/completions", dict({"prompt": "a"}, **{field: value}))["param"], field)
        error = self.error(404, "/v1/chat/completions", dict(HELLO, model="gpt"))
        self.assertEqual(error["code"], "model_not_found")
        error = self.error(400, "/v1/completions", {"prompt": "word " * 9000})
        self.assertEqual(error["code"], "context_length_exceeded")

    def test_unknown_fields_and_nulls_are_ignored(self):
        self.get("/v1/chat/completions", dict(HELLO, user="me", store=True, metadata={"a": [1]}, stop=None, seed=None, tools=[],
                                              response_format={"type": "text"}))

    def test_hostile_json(self):
        for body in (b"", b"{", b"nothing", b"[]", b"3", b'"a"', b'{"a":1}x', b'{"messages":NaN}', b'{"a":1,"a":2}', b"[" * 100000,
                     b'{"a":' * 1000, b'{"messages":"\xff\xfe"}', b'{"\xc3', b'{"a":"\\ud800"}', b"\0", b'{"a":1e999}',
                     b"{" + "ä".encode() * 200, b'{"a":[' + b"1," * 300000 + b"1]}", b'{"prompt":"\\', b'{"a":"\x01"}'):
            with self.subTest(body=body[:30]):
                self.assertTrue(self.error(400, "/v1/completions", body)["message"])
        self.get("/v1/completions", b'{"prompt":"a\\u0062","max_tokens":1}')

    def test_refusals_of_nginx(self):
        self.error(413, "/small/completions", {"prompt": "a" * 200})
        self.error(403, "/closed/models")
        self.error(404, "/v1/nothing")
        self.error(405, "/v1/completions")
        self.error(405, "/v1/models", {})
        self.get("/limited/models")
        self.error(503, "/limited/models")
        response = self.send("/v1/models", method="OPTIONS")
        self.assertEqual((response.status, response.headers["Allow"]), (204, "GET, HEAD, OPTIONS"))
        response = self.send("/v1/models", method="HEAD")
        self.assertEqual((response.status, response.read()), (200, b""))

    def test_directives(self):
        for more, words in (("location /x { mixtral_api main; }", "mixtral_keys"),
                            ("location /x { mixtral_api other; mixtral_keys off; }", "other"),
                            ("location /x { mixtral_api main; mixtral_api main; mixtral_keys off; }", "duplicate"),
                            ("location /x { mixtral_chat other; }", "other"),
                            ("location /x { mixtral_chat main; mixtral_chat main; }", "duplicate"),
                            ("location /x { mixtral_chat main; mixtral_api main; mixtral_keys off; }", "mixtral_chat"),
                            ("location /x { mixtral_chat main; mixtral_metrics main; }", "mixtral_chat"),
                            ("location /x { mixtral_api main; mixtral_keys off; mixtral_chat main; }", "mixtral_api"),
                            ("location /x { mixtral_chat main path=/v1; }", "invalid parameter"),
                            ("location /x { mixtral_chat main api=; }", "invalid parameter"),
                            ("location /x { mixtral_chat main api=//host/v1; }", "invalid path"),
                            ("location /x { mixtral_chat main api=http://host/; }", "invalid path"),
                            ("location /x { mixtral_chat main 'api=/<b>'; }", "invalid path"),
                            ("} mixtral_engine main unix:/x; server {", "duplicate"),
                            ("} mixtral_engine new threads=1; server {", "unix:"),
                            ("} mixtral_engine new unix:; server {", "unix:"),
                            ("} mixtral_engine a.b unix:/x; server {", "name")):
            with self.subTest(more=more):
                self.refused(words, more, "mixtral_engine main unix:/nobody.sock;")

    # ---- Ends ----

    def test_a_client_that_leaves(self):
        response = self.send("/v1/chat/completions", dict(HELLO, stream=True, **LONG))
        response.readline()
        self.assertFalse(self.is_idle())
        response.close()
        response.connection.close()
        self.until(self.is_idle, 20)
        # while its prompt is read
        connection = Connection(os.path.join(self.folder, "http.sock"))
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "word " * 5000, "cache": False}))
        self.until(lambda: not self.is_idle())
        connection.close()
        self.until(self.is_idle, 20)

    def test_a_slow_reader_loses_nothing_and_delays_nobody(self):
        response = self.send("/v1/completions", {"prompt": "One", "stream": True, **LONG, "max_tokens": 250, "n": 8,
                                                 "stream_options": {"include_usage": True}})
        for _ in range(6): # more than the sockets hold is made meanwhile
            self.get("/v1/completions", {"prompt": "Two", "max_tokens": 4})
            time.sleep(1)
        events = response.read().decode().strip().split("\n\n")
        self.assertGreater(sum(map(len, events)), 400000)
        self.assertEqual(events[-1], "data: [DONE]")
        self.assertEqual(json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"], 8 * 250)
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        texts = {"".join(c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == i) for i in range(8)}
        self.assertEqual(len(texts), 1) # all choices are greedy

    def test_reload_during_a_stream(self):
        response = self.send("/v1/completions", {"prompt": "One", "stream": True, **LONG, "max_tokens": 100})
        response.readline()
        self.nginx.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        self.get("/health")
        self.assertTrue(response.read().decode().endswith("data: [DONE]\n\n"))

    def test_engine_gone(self):
        self.error(503, "/none/health")
        self.error(503, "/none/chat/completions", dict(HELLO, stream=True))
        response = self.send("/v1/completions", {"prompt": "One", "stream": True, **LONG})
        response.readline()
        self.engine.kill()
        self.engine.wait()
        last = response.read().decode().strip().split("\n\n")[-1]
        self.assertEqual(json.loads(last.removeprefix("data: "))["error"]["type"], "server_error")
        self.error(503, "/health")
        self.start_engine()
        self.get("/health")


if __name__ == "__main__":
    harness.main()
