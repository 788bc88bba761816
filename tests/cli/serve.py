#!/usr/bin/env python3
"""`mixtral serve`: an engine at a unix socket: who may connect and name a tenant, shared prefixes, and all the ways to end."""
import json
import os
import signal
import socket
import subprocess
import tempfile
import time

import harness
import peer
import serving
from peer import ask

LONG = ("--max-tokens", "400", "--option", "ignore_eos=true", "--temperature", "0")


def ask_as(uid, path, request):
    """Speaks the protocol as another user: the last frame's JSON. In a child, which gives up its rights."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(uid)
            os.write(write, json.dumps(ask(path, request)).encode())
        except OSError as error:
            os.write(write, json.dumps({"status": error.strerror}).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text)


class Serve(serving.Suite):
    def complete(self, *args):
        return self.succeeds("complete", "unix:" + self.socket, "one two three", *args)

    def test_it_answers_as_the_engine_in_process_does(self):
        self.start()
        options = ("--max-tokens", "12", "--temperature", "0")
        self.assertEqual(self.complete(*options), self.succeeds("complete", self.model, "one two three", *options))
        self.assertEqual(self.stats()["requests_done"], 1)

    def test_a_prefix_is_computed_once(self):
        self.start()
        request = {"op": "complete", "prompt": "word " * 60, "options": {"max_tokens": 4, "seed": 1}}
        cold, warm = ask(self.socket, request), ask(self.socket, request)
        self.assertEqual(cold["cached_tokens"], 0)
        self.assertGreaterEqual(warm["cached_tokens"], warm["prompt_tokens"] - 32)
        self.assertEqual(cold["text"], warm["text"])
        request["options"]["tenant"] = "other"
        self.assertEqual(ask(self.socket, request)["cached_tokens"], 0)
        request["options"] = {"max_tokens": 4, "seed": 1, "cache": False}
        self.assertEqual(ask(self.socket, request)["cached_tokens"], 0)

    def test_several_models_in_one_engine(self):
        other = self.model.replace("tiny", "other")
        self.succeeds("synth", other, *harness.TINY, "--seed", "7")
        self.start("--context", "256", "--name", "a", "--model", other, "--name", "b", "--kv-pool", "1M", "--threads", "1")
        options = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
        for name, path in (("a", self.model), ("b", other)):
            flags = ("--max-tokens", "12", "--temperature", "0", "--option", "ignore_eos=true")
            alone = self.succeeds("complete", path, "one two three", *flags)
            text = ask(self.socket, {"op": "complete", "prompt": "one two three", "options": dict(options, model=name)})
            self.assertEqual(text["text"].strip(), alone.strip())
            self.assertEqual(text["model"], name)
        self.assertEqual(ask(self.socket, {"op": "complete", "prompt": "one", "options": {"max_tokens": 1}})["model"], "a")
        models = ask(self.socket, {"op": "models"})["models"]
        self.assertEqual([(m["name"], m["context"] == 256) for m in models], [("a", True), ("b", False)])
        stats = self.stats()
        self.assertEqual([m["requests_done"] for m in stats["models"]], [2, 1])
        self.assertEqual(stats["requests_done"], 3)
        of_b = ask(self.socket, {"op": "stats", "options": {"model": "b"}})
        self.assertEqual((of_b["name"], of_b["requests_done"]), ("b", 1))
        self.assertLessEqual(of_b["kv_bytes"], 1 << 20)
        self.assertEqual(stats["kv_bytes"], sum(m["kv_bytes"] for m in stats["models"]))
        self.assertIn("not open here", ask(self.socket, {"op": "stats", "options": {"model": "c"}})["text"])

    def test_names_of_models_differ(self):
        self.fails("serve", "--model", self.model, "--model", self.model, "--socket", self.socket,
                   words=["a model named synthetic is open already"])

    def test_tenants_have_limits(self):
        self.start("--tenant-tokens-per-minute", "50", "--tenant-requests", "1")
        request = {"op": "complete", "prompt": "one", "options": {"max_tokens": 60, "ignore_eos": True}}
        self.assertEqual(ask(self.socket, request)["completion_tokens"], 60)
        refused = ask(self.socket, request)
        self.assertEqual((refused["status"], refused["field"]), ("busy", "tenant_tokens_per_minute"))
        self.assertGreater(refused["retry_after_ms"], 5000)
        request["options"]["tenant"] = "other"
        self.assertEqual(ask(self.socket, request)["completion_tokens"], 60)

    def test_the_sockets_mode_says_who_connects(self):
        self.start()
        self.assertEqual(os.stat(self.socket).st_mode & 0o777, 0o600)
        if os.geteuid() == 0:
            self.assertEqual(ask_as(12345, self.socket, {"op": "stats"}), {"status": "Permission denied"})

    def test_a_stranger_is_a_tenant_of_its_own(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, to be two users")
        self.start("--socket-mode", "0666", "--allow-uid", "777")
        request = {"op": "complete", "prompt": "word " * 60, "options": {"max_tokens": 2}}
        ask(self.socket, request)
        self.assertEqual(ask_as(12345, self.socket, request)["cached_tokens"], 0)
        self.assertGreater(ask_as(12345, self.socket, request)["cached_tokens"], 0)
        request["options"]["tenant"] = "uid:12345"
        self.assertGreater(ask_as(777, self.socket, request)["cached_tokens"], 0)
        request["options"]["tenant"] = "root"
        self.assertEqual(ask_as(12345, self.socket, request)["status"], "denied")
        self.assertEqual(ask_as(777, self.socket, request)["cached_tokens"], 0)

    def test_sigterm_lets_requests_finish_and_takes_no_more(self):
        server = self.start()
        with subprocess.Popen([harness.CLI, "complete", "unix:" + self.socket, "one", "--json", *LONG],
                              stdout=subprocess.PIPE) as client:
            while self.stats()["requests_running"] == 0:
                time.sleep(0.001)
            server.send_signal(signal.SIGHUP)  # changes nothing
            server.send_signal(signal.SIGTERM)
            self.assertEqual(json.loads(client.stdout.read())["completion_tokens"], 400)
        self.ends(server)
        self.assertFalse(os.path.exists(self.socket))
        self.fails("complete", "unix:" + self.socket, "one", words=("no engine answers",))

    def test_what_takes_longer_than_the_grace_time_is_cancelled(self):
        self.succeeds("synth", self.model, *harness.TINY[:-1], "1000000")
        server = self.start("--grace-ms", "100", "--kv-pool", "1G")
        with subprocess.Popen([harness.CLI, "complete", "unix:" + self.socket, "one", "--max-tokens", "900000", "--option",
                               "ignore_eos=true"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as client:
            while self.stats()["requests_running"] == 0:
                time.sleep(0.001)
            server.terminate()
            self.ends(server)
            self.assertIn(b"closed", client.stderr.read())

    def test_draining_leaves_an_inherited_socket_alone(self):
        """Its maker's copy goes on taking connections into the backlog, which must not keep this engine busy."""
        self.succeeds("synth", self.model, *harness.TINY[:-1], "1000000")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as late:
            listener.bind(self.socket)
            listener.listen()
            fd = listener.fileno()
            server = self.start("--grace-ms", "3000", "--kv-pool", "1G", target=("--listen-fd", str(fd)), pass_fds=(fd,))
            reader = peer.Peer(self.socket)  # takes nothing, so that its stream is soon paused
            self.addCleanup(reader.socket.close)
            reader.send(1, {"op": "complete", "prompt": "a", "options": {"max_tokens": 900000, "ignore_eos": True}})
            while self.cpu_seconds(server) - self.cpu_seconds(server, 0.2) != 0:
                pass
            server.terminate()
            time.sleep(0.2)
            late.connect(self.socket)
            before = self.cpu_seconds(server)
            self.assertLess(self.cpu_seconds(server, 1) - before, 0.3)
            self.ends(server)

    def test_the_lifelines_end_ends_it(self):
        read, write = os.pipe()
        server = self.start("--lifeline-fd", str(read), pass_fds=(read,))
        os.close(read)
        self.complete("--max-tokens", "2")
        os.close(write)
        self.ends(server)

    def test_inherited_sockets(self):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.socket)
            listener.listen()
            fd = listener.fileno()
            server = self.start(target=("--listen-fd", str(fd)), pass_fds=(fd,))
            self.complete("--max-tokens", "2")
            server.terminate()
            self.ends(server)
            self.assertTrue(os.path.exists(self.socket))  # its maker's

    def test_several_sockets(self):
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            fds = []
            for i, listener in enumerate((first, second)):
                listener.bind(f"{self.socket}.{i}")
                listener.listen()
                fds += ["--listen-fd", str(listener.fileno())]
            server = self.start(*fds, pass_fds=(first.fileno(), second.fileno()))  # and one of its own
            for path in (self.socket, self.socket + ".0", self.socket + ".1"):
                self.assertEqual(ask(path, {"op": "complete", "prompt": "one", "options": {"max_tokens": 1}})["completion_tokens"], 1)
            self.assertEqual(self.stats()["requests_done"], 3)
            server.terminate()
            self.ends(server)
            self.assertFalse(os.path.exists(self.socket))
            self.assertTrue(os.path.exists(self.socket + ".1"))
        self.fails("serve", "--model", self.model, *(["--listen-fd", "3"] * 4), words=["--listen-fd: expected at most 3 of them"])

    def test_one_engine_a_socket(self):
        server = self.start()
        self.fails("serve", "--model", self.model, "--socket", self.socket, words=(self.socket, "another engine"))
        server.kill()
        server.wait()
        self.start()  # the old socket is nobody's
        self.complete("--max-tokens", "2")

    def test_bad_options(self):
        self.fails("serve", "--socket", self.socket, words=("--model",))
        self.fails("serve", "--model", self.model, words=("--socket",))
        self.fails("serve", "--model", self.model, "--socket", "x" * 200, words=("107",))
        self.fails("serve", "--model", self.model, "--socket", self.socket, "--socket-mode", "99", words=("--socket-mode", "99"))
        self.fails("serve", "--model", self.model, "--socket", self.socket, "--colour", "red", words=("--colour",))
        self.fails("serve", "--model", self.model, "--socket", self.socket, "--threads", words=("--threads",))
        self.fails("serve", "--model", "/nonexistent.gguf", "--socket", self.socket, words=("nonexistent.gguf",))
        self.assertFalse(os.path.exists(self.socket))
        with tempfile.TemporaryFile() as file:
            done = subprocess.run([harness.CLI, "serve", "--model", self.model, "--listen-fd", str(file.fileno())],
                                  capture_output=True, text=True, pass_fds=(file.fileno(),), timeout=harness.SECONDS, check=False)
        self.assertIn("expected a listening socket", done.stderr)
        self.assertEqual(done.returncode, 1)


harness.main()
