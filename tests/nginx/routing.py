#!/usr/bin/env python3
"""Two machines, each an nginx with an engine of its own, behind a front nginx that has none: conversations return to their cache."""
import json
import os
import subprocess

import server
from server import NGINX, harness, write_configuration

MACHINES = "one", "two"


class Suite(server.Suite):
    # the front server's, as in the module's README
    HTTP = """
    upstream machines {
        hash $mixtral_prefix consistent;
        server unix:{folder}/one/http.sock;
        server unix:{folder}/two/http.sock;
    }
    """
    SERVER = """
        client_max_body_size 32m;
        location /v1/ {
            proxy_pass http://machines;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout 10m;
            proxy_next_upstream off;
        }
        location /failing/ { proxy_pass http://machines/v1/; }
    """

    @classmethod
    def start_engine(cls):
        cls.MODEL = os.path.join(cls.folder, "tiny.gguf")
        done = harness.run("synth", cls.MODEL, *harness.TINY, "--type", "F16")
        assert done.returncode == 0, done.stderr
        cls.machines = {name: cls.start_machine(name) for name in MACHINES}
        cls.engine_socket = os.path.join(cls.folder, "one", "engine.sock")

    @classmethod
    def start_machine(cls, name):
        folder = os.path.join(cls.folder, name)
        os.mkdir(folder, 0o755)
        cls.engine_socket = os.path.join(folder, "engine.sock")
        super().start_engine()
        cls.addClassCleanup(cls.stop, cls.engine)
        arguments = write_configuration(folder, f"location /v1/ {{ mixtral_api main; mixtral_keys off; add_header X-Machine {name} always; }}",
                                        "mixtral_engine main unix:{folder}/engine.sock;")
        with open(os.path.join(folder, "stderr"), "wb") as log:
            process = subprocess.Popen([NGINX, *arguments], stderr=log)
        cls.addClassCleanup(cls.stop, process)
        cls.until(lambda: os.path.exists(os.path.join(folder, "nginx.pid")))
        return process

    def turn(self, messages, path="/v1/chat/completions"):
        """The machine; the answer."""
        response = self.send(path, {"messages": messages, "template": "mixtral", "max_tokens": 4, "seed": 1})
        text = response.read()
        self.assertEqual(response.status, 200, text)
        return response.headers["X-Machine"], json.loads(text)

    def test_a_conversation_finds_its_cache(self):
        used = {name: 0 for name in MACHINES}
        for i in range(16):
            messages = [{"role": "user", "content": f"{i}: a first question of some length, so that it fills blocks of the cache"}]
            first, answer = self.turn(messages)
            used[first] += 1
            for more in "And then?", "Why?":
                messages += [answer["choices"][0]["message"], {"role": "user", "content": more}]
                messages[-2]["content"] = messages[-2]["content"] or "-"
                before = answer["usage"]["prompt_tokens"]
                machine, answer = self.turn(messages)
                self.assertEqual(machine, first)
                cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
                self.assertGreaterEqual(cached, before // 32 * 32 - 32) # what was read before, in whole blocks
                self.assertGreater(cached, 0)
        self.assertGreaterEqual(min(used.values()), 2, used)

    def test_one_machine_is_gone(self):
        # what nginx's upstream does then: the other one answers
        conversations = [[{"role": "user", "content": f"conversation {i}"}] for i in range(8)]
        before = [self.turn(messages)[0] for messages in conversations]
        self.assertEqual(set(before), set(MACHINES))
        self.stop(self.machines["two"])
        after = [self.turn(messages, "/failing/chat/completions")[0] for messages in conversations]
        self.assertEqual(set(after), {"one"})


if __name__ == "__main__":
    harness.main()
