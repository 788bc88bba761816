#!/usr/bin/env python3
"""Anthropic's /v1/messages and /v1/messages/count_tokens."""
import json
import os

import server
from server import LONG, Connection, harness

HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0}
COUNT = {"messages": [{"role": "user", "content": "Count from 1 to 20: 1, 2, 3,"}], "max_tokens": 60, "temperature": 0}
TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         405: "invalid_request_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}
VERSION = {"headers": {"anthropic-version": "2023-06-01", "Content-Type": "application/json"}}


class Suite(server.Suite):
    ENGINE = ("--socket-mode", "0666", "--tenant-requests", "1")
    HTTP = """
    limit_req_zone $uri zone=one:1m rate=1r/m;
    limit_req_status 429;
    mixtral_engine main unix:{folder}/engine.sock;
    mixtral_engine none unix:{folder}/nobody.sock;
    """
    SERVER = """
        location /v1/ { mixtral_api main; mixtral_keys off; }
        location /none/ { mixtral_api none; mixtral_keys off; }
        location /small/ { mixtral_api main; mixtral_keys off; client_max_body_size 100; }
        location /closed/ { mixtral_api main; mixtral_keys off; deny all; }
        location /limited/ { mixtral_api main; mixtral_keys off; limit_req zone=one; }
        location /keys/ { mixtral_api main; mixtral_keys {folder}/keys; }
    """

    @classmethod
    def start_engine(cls):
        done = harness.run("key", "new", os.path.join(cls.folder, "keys"), "--name", "alice")
        assert done.returncode == 0, done.stderr
        super().start_engine()

    def events(self, body, path="/v1/messages"):
        """[(name, data), ...] of a stream."""
        response = self.send(path, dict(body, stream=True), **VERSION)
        text = response.read().decode()
        self.assertEqual(response.status, 200, text)
        self.assertTrue(response.headers["Content-Type"].startswith("text/event-stream"))
        return self.parse(text)

    def parse(self, text):
        events = []
        for block in text.split("\n\n")[:-1]:
            lines = block.split("\n")
            self.assertEqual(len(lines), 2, block)
            name, data = lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))
            self.assertEqual(data["type"], name)
            events.append((name, data))
        return events

    def refused(self, status, path, body=None, **more):
        """The message of an error in Anthropic's shape."""
        response = self.send(path, body, **more)
        text = response.read()
        self.assertEqual(response.status, status, text)
        self.assertEqual(response.headers["Content-Type"], "application/json")
        error = json.loads(text)
        self.assertEqual((set(error), error["type"]), ({"type", "error"}, "error"))
        self.assertEqual(set(error["error"]), {"type", "message"})
        self.assertEqual(error["error"]["type"], TYPES[status])
        return error["error"]["message"]

    # ---- Answers ----

    def test_an_answer(self):
        message = self.get("/v1/messages", HELLO, **VERSION)
        self.assertTrue(message["id"].startswith("msg_"))
        self.assertEqual((message["type"], message["role"]), ("message", "assistant"))
        self.assertEqual((message["stop_reason"], message["stop_sequence"]), ("max_tokens", None))
        [block] = message["content"]
        other = self.get("/v1/chat/completions", HELLO)
        self.assertEqual(block, {"type": "text", "text": other["choices"][0]["message"]["content"]})
        usage = message["usage"]
        self.assertEqual(usage["output_tokens"], 6)
        self.assertEqual(usage["input_tokens"] + usage["cache_read_input_tokens"], other["usage"]["prompt_tokens"])
        self.assertEqual(message["model"], other["model"])

    def test_cached_tokens_are_counted_apart(self):
        body = dict(HELLO, messages=[{"role": "user", "content": "word " * 90}])
        first, again = self.get("/v1/messages", body)["usage"], self.get("/v1/messages", body)["usage"]
        self.assertEqual(first["cache_read_input_tokens"], 0)
        self.assertGreater(again["cache_read_input_tokens"], 32)
        self.assertEqual(again["input_tokens"] + again["cache_read_input_tokens"], first["input_tokens"])

    def test_a_stream(self):
        whole = self.get("/v1/messages", HELLO)
        events = self.events(HELLO)
        names = [name for name, _ in events]
        deltas = names.count("content_block_delta")
        self.assertGreater(deltas, 1)
        self.assertEqual(names, ["message_start", "content_block_start", "ping"] + deltas * ["content_block_delta"] +
                         ["content_block_stop", "message_delta", "message_stop"])
        start = events[0][1]["message"]
        self.assertEqual((start["content"], start["stop_reason"], start["stop_sequence"]), ([], None, None))
        text = "".join(data["delta"]["text"] for name, data in events if name == "content_block_delta")
        self.assertEqual(text, whole["content"][0]["text"])
        end = events[-2][1]
        self.assertEqual(end["delta"], {"stop_reason": "max_tokens", "stop_sequence": None})
        self.assertEqual(end["usage"]["output_tokens"], 6)
        self.assertEqual(start["usage"]["input_tokens"],
                         end["usage"]["input_tokens"] + end["usage"]["cache_read_input_tokens"])

    def test_why_it_ended(self):
        text = self.get("/v1/messages", COUNT)["content"][0]["text"]
        stop = text[5:8]
        body = dict(COUNT, stop_sequences=["\u4e2d\u6587", stop])
        message = self.get("/v1/messages", body)
        self.assertEqual((message["stop_reason"], message["stop_sequence"]), ("stop_sequence", stop))
        self.assertEqual(message["content"][0]["text"], text[:text.index(stop)])
        self.assertEqual(self.events(body)[-2][1]["delta"], {"stop_reason": "stop_sequence", "stop_sequence": stop})
        body = {"messages": [{"role": "user", "content": "Say only: yes"}], "max_tokens": 300, "temperature": 0}
        self.assertEqual(self.get("/v1/messages", body)["stop_reason"], "end_turn")

    def test_the_conversation(self):
        """Blocks, a system text, and neighbours of one role that become one turn."""
        blocks = [{"type": "text", "text": "Hel", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "lo"}]
        plain = dict(HELLO, system="Be brief.", messages=[
            {"role": "user", "content": "Hello\nagain"}, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "So?"}])
        parts = dict(HELLO, system=[{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}], messages=[
            {"role": "user", "content": blocks}, {"role": "user", "content": "again"},
            {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]}, {"role": "user", "content": "So?"}],
            metadata={"user_id": "a"}, tool_choice={"type": "auto"}, tools=[], thinking={"type": "disabled"})
        count = self.get("/v1/messages/count_tokens", plain)
        self.assertEqual(set(count), {"input_tokens"})
        self.assertEqual(self.get("/v1/messages/count_tokens", parts), count)
        first, second = self.get("/v1/messages", plain), self.get("/v1/messages", parts)
        self.assertEqual(first["content"], second["content"])
        self.assertEqual(first["usage"]["input_tokens"] + first["usage"]["cache_read_input_tokens"], count["input_tokens"])
        self.assertLess(self.get("/v1/messages/count_tokens", {"messages": plain["messages"]})["input_tokens"],
                        count["input_tokens"] + 40)

    # ---- Refusals ----

    def test_errors_name_the_field(self):
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
        for changes, words in (
                ({"max_tokens": None}, "max_tokens: expected an integer, got nothing"), ({"max_tokens": 0}, "max_tokens"),
                ({"max_tokens": "9"}, "max_tokens"), ({"messages": []}, "messages"), ({"messages": "Hello"}, "messages"),
                ({"messages": [7]}, "messages[0].role"), ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
                ({"messages": [{"role": "user"}]}, "messages[0].content"),
                ({"messages": [{"role": "user", "content": [image]}]}, "nothing but text"),
                ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "message"),
                ({"system": 7}, "system"), ({"tools": [{"name": "f"}]}, "tools"), ({"thinking": {"type": "enabled"}}, "thinking"),
                ({"output_config": {"format": {"type": "json_schema"}}}, "output_config"), ({"stop_sequences": "a"}, "stop_sequences"),
                ({"stop_sequences": [7]}, "stop_sequences[0]"), ({"stop_sequences": [""]}, "stop_sequences[0]"),
                ({"temperature": "hot"}, "temperature"), ({"stream": 1}, "stream")):
            with self.subTest(changes=changes):
                self.assertIn(words, self.refused(400, "/v1/messages", dict(HELLO, **changes), **VERSION))
        self.assertIn("tools", self.refused(400, "/v1/messages/count_tokens", dict(HELLO, tools=[{"name": "f"}])))
        self.assertIn("messages", self.refused(400, "/v1/messages/count_tokens", {}))
        self.assertIn("dance", self.refused(404, "/v1/messages", dict(HELLO, model="dance")))
        self.assertIn("context", self.refused(400, "/v1/messages",
                                              dict(HELLO, stream=True, messages=[{"role": "user", "content": "a b " * 20000}])))

    def test_refusals_of_nginx_and_keys(self):
        self.refused(405, "/v1/messages", method="GET")
        self.refused(413, "/small/messages", dict(HELLO, padding="a" * 100))
        self.refused(403, "/closed/messages", HELLO)
        self.refused(401, "/keys/messages", HELLO)
        self.refused(503, "/none/messages", HELLO)
        self.assertEqual(self.send("/limited/messages", HELLO).read()[:1], b"{")
        self.refused(429, "/limited/messages", HELLO)
        self.assertIn("param", self.error(405, "/v1/chat/completions", method="GET"))

    def test_a_limit_of_the_engine(self):
        response = self.send("/v1/messages", dict(HELLO, stream=True, max_tokens=4000))
        self.assertTrue(response.readline().startswith(b"event: message_start"))
        self.refused(429, "/v1/messages", HELLO)
        response.connection.close()
        self.until(self.is_idle)

    def test_an_error_in_a_stream(self):
        response = self.send("/v1/chat/completions", dict(HELLO, stream=True, **LONG))
        response.readline()
        response.connection.close()
        self.until(self.is_idle)
        body = {"messages": [{"role": "user", "content": "Write a long story."}], "max_tokens": 4000, "stream": True}
        response = self.send("/v1/messages", body)
        head = b"".join(response.readline() for _ in range(12))
        self.engine.kill()
        self.engine.wait()
        try:
            events = self.parse((head + response.read()).decode())
        finally:
            os.unlink(self.engine_socket)
            type(self).restart_engine()
        self.assertEqual(events[-1][0], "error")
        self.assertEqual(set(events[-1][1]["error"]), {"type", "message"})
        self.assertEqual(events[-1][1]["error"]["type"], "overloaded_error")

    @classmethod
    def restart_engine(cls):
        super().start_engine()

    def test_a_client_that_leaves(self):
        connection = Connection(os.path.join(self.folder, "http.sock"))
        connection.request("POST", "/v1/messages", json.dumps(dict(HELLO, max_tokens=4000, stream=True)))
        connection.getresponse().readline()
        connection.close()
        self.until(self.is_idle)


if __name__ == "__main__":
    harness.main()
