#!/usr/bin/env python3
"""/metrics, as Prometheus's own parser reads it."""
import os
import signal
import socket
import threading
import time

from prometheus_client.parser import text_string_to_metric_families

import server
from server import HELLO, LONG, ask, harness

# Of vLLM and llama.cpp: what means the same has the same name behind another prefix.
NAMES = {
    "mixtral_up": "gauge", "mixtral_num_requests_running": "gauge", "mixtral_num_requests_waiting": "gauge",
    "mixtral_request_success": "counter", "mixtral_request_failure": "counter", "mixtral_prompt_tokens": "counter",
    "mixtral_generation_tokens": "counter", "mixtral_prefix_cache_queries": "counter", "mixtral_prefix_cache_hits": "counter",
    "mixtral_num_preemptions": "counter", "mixtral_steps": "counter", "mixtral_kv_blocks": "gauge", "mixtral_kv_bytes": "gauge",
    "mixtral_weight_bytes": "gauge", "mixtral_request_queue_time_seconds": "histogram",
    "mixtral_time_to_first_token_seconds": "histogram"}
NAME = 'a "name" \\ of\ttwo'


class Suite(server.Suite):
    ENGINE = ("--socket-mode", "0666", "--name", NAME, "--model", harness.MODEL, "--name", "second", "--kv-pool", "64M")
    HTTP = """
    mixtral_engine main unix:{folder}/engine.sock;
    mixtral_engine none unix:{folder}/nobody.sock;
    mixtral_engine mute unix:{folder}/mute.sock;
    """
    SERVER = """
        location /v1/ { mixtral_api main; mixtral_keys off; }
        location = /metrics { mixtral_metrics main; }
        location = /all { mixtral_metrics main none; }
        location = /none { mixtral_metrics none; }
        location = /mute { mixtral_metrics mute main; mixtral_timeout 400ms; }
        location = /default { mixtral_metrics mute; }
        location /mute/ { mixtral_api mute; mixtral_keys off; mixtral_timeout 400ms; }
        location /patient/ { mixtral_api main; mixtral_keys off; mixtral_timeout 800ms; }
        location = /closed { mixtral_metrics main; deny all; }
    """

    def families(self, path="/metrics"):
        response = self.send(path)
        text = response.read().decode()
        self.assertEqual(response.status, 200, text)
        self.assertEqual(response.headers["Content-Type"], "text/plain; version=0.0.4; charset=utf-8")
        families = list(text_string_to_metric_families(text))
        self.assertEqual(len({family.name for family in families}), len(families)) # each in one group
        return {family.name: family for family in families}

    def value(self, name, families=None, **labels):
        families = families or self.families()
        found = [sample.value for family in families.values() for sample in family.samples
                 if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())]
        self.assertEqual(len(found), 1, (name, labels))
        return found[0]

    def test_families(self):
        families = self.families()
        self.assertEqual({name: family.type for name, family in families.items()}, NAMES)
        for name, family in families.items():
            self.assertTrue(family.documentation.endswith("."), name)
            for sample in family.samples:
                self.assertEqual(sample.labels["engine"], "main")
                if name != "mixtral_up":
                    self.assertIn(sample.labels["model"], (NAME, "second"))
        self.assertEqual(self.value("mixtral_up", families, engine="main"), 1)

    def test_figures_are_the_engines(self):
        before = self.families()
        answer = self.get("/v1/completions", {"model": "second", "prompt": "word " * 100, "max_tokens": 5, "ignore_eos": True})
        after = self.families()

        def difference(name, **labels):
            return self.value(name, after, model="second", **labels) - self.value(name, before, model="second", **labels)
        self.assertEqual(difference("mixtral_request_success_total"), 1)
        self.assertEqual(difference("mixtral_prompt_tokens_total"), answer["usage"]["prompt_tokens"])
        self.assertEqual(difference("mixtral_generation_tokens_total"), 5)
        self.assertEqual(difference("mixtral_time_to_first_token_seconds_count"), 1)
        self.assertEqual(difference("mixtral_request_queue_time_seconds_bucket", le="+Inf"), 1)
        self.assertGreater(difference("mixtral_steps_total"), 4)
        self.assertEqual(self.value("mixtral_prompt_tokens_total", after, model=NAME),
                         self.value("mixtral_prompt_tokens_total", before, model=NAME))
        self.get("/v1/completions", {"model": "second", "prompt": "word " * 100, "max_tokens": 1})
        self.assertGreater(self.value("mixtral_prefix_cache_hits_total", model="second"),
                           self.value("mixtral_prefix_cache_hits_total", after, model="second"))
        stats = {model["name"]: model for model in ask(self.engine_socket, {"op": "stats"})["models"]}
        families = self.families()
        for model, figures in stats.items():
            for state in "used", "cached", "free":
                self.assertEqual(self.value("mixtral_kv_blocks", families, model=model, state=state), figures["kv_blocks_" + state])
            self.assertEqual(sum(figures["kv_blocks_" + state] for state in ("used", "cached", "free")), figures["kv_blocks_total"])
            self.assertEqual(self.value("mixtral_kv_bytes", families, model=model), figures["kv_bytes"])

    def test_histograms_are_cumulative(self):
        for i in range(3):
            self.get("/v1/completions", {"prompt": "word " * (1 + 150 * i), "max_tokens": 1})
        for name in "mixtral_time_to_first_token_seconds", "mixtral_request_queue_time_seconds":
            samples = [s for s in self.families()[name].samples if s.labels["model"] == NAME]
            buckets = [(float(s.labels["le"]), s.value) for s in samples if s.name == name + "_bucket"]
            self.assertEqual([bound for bound, _ in buckets], [0.001 * 2 ** i for i in range(16)] + [float("inf")])
            self.assertEqual(sorted(value for _, value in buckets), [value for _, value in buckets])
            [count] = [s.value for s in samples if s.name == name + "_count"]
            [total] = [s.value for s in samples if s.name == name + "_sum"]
            self.assertEqual(buckets[-1][1], count)
            # What is in a bucket lies between its bounds, so the sum does too.
            counts = [value - before for (_, value), (_, before) in zip(buckets, [(0, 0)] + buckets)]
            bounds = [0] + [bound for bound, _ in buckets[:-1]]
            self.assertGreaterEqual(total + 0.001, sum(n * low for n, low in zip(counts, bounds)))
            self.assertLessEqual(total, sum(n * high for n, high in zip(counts, bounds[1:] + [60])) + 0.001)

    def test_a_request_that_runs(self):
        response = self.send("/v1/completions", {"prompt": "One", "stream": True, **LONG})
        response.readline()
        families = self.families()
        self.assertEqual(self.value("mixtral_num_requests_running", families, model=NAME), 1)
        self.assertGreater(self.value("mixtral_kv_blocks", families, model=NAME, state="used"), 0)
        response.close()
        response.connection.close()
        self.until(lambda: self.value("mixtral_num_requests_running", model=NAME) == 0, 20)

    def test_engines_that_do_not_answer(self):
        families = self.families("/all")
        self.assertEqual(self.value("mixtral_up", families, engine="main"), 1)
        self.assertEqual(self.value("mixtral_up", families, engine="none"), 0)
        self.assertEqual({family.name for family in self.families("/none").values() if family.samples}, {"mixtral_up"})

    def listen(self, path):
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        self.addCleanup(listener.shutdown, socket.SHUT_RDWR)
        self.addCleanup(os.unlink, path)
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen(16)
        return listener

    @staticmethod
    def accept(listener):
        held = []
        try:
            while True:
                held.append(listener.accept()[0])
        except OSError: # it was shut down
            for connection in held:
                connection.close()

    def test_an_engine_that_is_silent(self):
        # It is no engine: it takes connections, or lets them wait, and says nothing.
        listener = self.listen(os.path.join(self.folder, "mute.sock"))
        for accepts in False, True:
            if accepts:
                threading.Thread(target=self.accept, args=(listener,), daemon=True).start()
            begin = time.monotonic()
            families = self.families("/mute")
            self.assertEqual(self.value("mixtral_up", families, engine="mute"), 0)
            self.assertEqual(self.value("mixtral_up", families, engine="main"), 1)
            self.assertGreater(time.monotonic() - begin, 0.3)
            error = self.error(503, "/mute/chat/completions", dict(HELLO, stream=True))
            self.assertIn("does not answer", error["message"])
            self.error(503, "/mute/models")
        self.assertIn('engine "mute" has said nothing for', self.log())
        begin = time.monotonic()
        self.assertEqual(self.value("mixtral_up", self.families("/default")), 0)
        self.assertGreater(time.monotonic() - begin, 4)
        self.assertLess(time.monotonic() - begin, 9) # Prometheus waits for 10

    def test_an_engine_that_stops(self):
        response = self.send("/patient/completions", {"prompt": "One", "stream": True, **LONG})
        response.readline()
        os.kill(self.engine.pid, signal.SIGSTOP)
        try:
            last = response.read().decode().strip().split("\n\n")[-1]
        finally:
            os.kill(self.engine.pid, signal.SIGCONT)
        self.assertIn("does not answer", last)
        self.until(self.is_idle, 20)

    def test_a_long_prompt_is_no_silence(self):
        # Its first token comes after more than mixtral_timeout.
        begin = time.monotonic()
        answer = self.get("/patient/completions", {"prompt": "word " * 4000, "max_tokens": 1, "cache": False})
        self.assertGreater(time.monotonic() - begin, 0.8)
        self.assertEqual(answer["usage"]["completion_tokens"], 1)

    def test_methods_and_access(self):
        response = self.send("/metrics", method="HEAD")
        self.assertEqual((response.status, response.read()), (200, b""))
        self.assertEqual(self.send("/metrics", {}).status, 405)
        response = self.send("/closed")
        self.assertEqual(response.status, 403)

    def test_directives(self):
        engine = "mixtral_engine main unix:/nobody.sock;"
        for more, words in (("mixtral_metrics;", "number of arguments"), ("mixtral_metrics other;", '"other"'),
                            ("mixtral_metrics main main;", "duplicate"), ("mixtral_metrics main; mixtral_metrics main;", "duplicate"),
                            ("mixtral_api main; mixtral_keys off; mixtral_metrics main;", "mixtral_api"),
                            ("mixtral_metrics main; mixtral_api main; mixtral_keys off;", "mixtral_metrics"),
                            ("mixtral_chat main; mixtral_metrics main;", "mixtral_chat"),
                            ("mixtral_timeout 10ms;", "between 100 and"), ("mixtral_timeout soon;", "invalid value")):
            with self.subTest(more=more):
                self.refused(words, f"location /x {{ {more} }}", engine)


if __name__ == "__main__":
    harness.main()
