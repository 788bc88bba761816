#!/usr/bin/env python3
"""The engine that nginx owns: started, kept, replaced and ended with a real nginx."""
import http.client
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

from server import LONG, NGINX, Connection, Suite, copy_readable, harness, processes, read, write_configuration

HELLO = {"prompt": "Hello", "max_tokens": 4, "temperature": 0}
SERVER = """
    listen 127.0.0.1:{port};
    location /v1/ { mixtral_api main; mixtral_keys off; }
    location = /health { mixtral_api main; mixtral_keys off; }
"""


class Owned(Suite):
    @classmethod
    def setUpClass(cls):
        """The model and the program where nginx's user can read them."""
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.files = temporary.name
        copy_readable(cls.files)
        # an engine that takes its time
        cls.slow = os.path.join(cls.files, "slow")
        with open(cls.slow, "w", encoding="ascii") as file:
            file.write(f'#!/bin/sh\nsleep 1\nexec {cls.files}/mixtral "$@"\n')
        os.chmod(cls.slow, 0o755)

    @classmethod
    def tearDownClass(cls):
        pass # each test looks into its own log

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        type(self).folder = temporary.name
        os.chmod(self.folder, 0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.name = "t%d" % self.port # what its processes are told from others' by
        self.nginx = None
        self.addCleanup(self.end)

    def write(self, more="threads=2", model=None, program=None, engine=None, main=""):
        engine = engine or f"model={model or self.files + '/model.gguf'} program={program or self.files + '/mixtral'} {more}"
        server = SERVER.replace("{port}", str(self.port)).replace("main", self.name)
        return write_configuration(self.folder, server, f"mixtral_engine {self.name} {engine};", main)

    def start(self, *arguments, ready=True, **more):
        configured = self.write(*arguments, **more)
        with open(os.path.join(self.folder, "stderr"), "ab") as log:
            self.nginx = subprocess.Popen([NGINX, *configured], stderr=log)
        self.until(lambda: self.health() in ((200,) if ready else (200, 503)))

    def end(self):
        if self.nginx and self.nginx.poll() is None:
            self.stop(self.nginx)
        self.until(lambda: not self.all(), 10)

    def check(self, *arguments, **more):
        return subprocess.run([NGINX, "-t", *self.write(*arguments, **more)], capture_output=True, text=True, check=False)

    def reload(self, *arguments, **more):
        workers = self.workers()
        self.write(*arguments, **more)
        self.nginx.send_signal(signal.SIGHUP)
        self.until(lambda: set(self.workers()) - set(workers))

    def health(self):
        connection = Connection(os.path.join(self.folder, "http.sock"))
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def all(self, what="mixtral"):
        return [pid for pid, (_, title) in processes().items() if title.startswith(f"nginx: {what}") and self.name in title.split()]

    def engines(self):
        return self.all("mixtral engine")

    def supervisors(self):
        return self.all("mixtral supervisor")

    def workers(self):
        return [pid for pid, (parent, title) in processes().items() if parent == self.nginx.pid and title == "nginx: worker process"]

    def stream(self, tokens):
        response = self.send("/v1/completions", {"prompt": "One", "stream": True, **LONG, "max_tokens": tokens})
        self.assertEqual(response.status, 200)
        response.readline()
        return response

    # ---- In order ----

    def test_one_engine_for_all_workers(self):
        self.start("threads=1 kv_pool=64m kv_type=q8_0 context=2048 max_queue=7 max_step=100ms name=small priority=7")
        engine, = self.engines()
        supervisor, = self.supervisors()
        title = processes()[engine][1]
        self.assertTrue(title.startswith(f"nginx: mixtral engine {self.name} "), title)
        for words in ("--threads 1", f"--kv-pool {64 << 20}", "--kv-type q8_0", "--context 2048", "--max-queue 7", "--max-step-ms 100"):
            self.assertIn(words, title)
        user = pwd.getpwnam("www-data").pw_uid if os.getuid() == 0 else os.getuid()
        for pid in engine, supervisor:
            self.assertEqual(os.stat(f"/proc/{pid}").st_uid, user)
            self.assertEqual(os.getpriority(os.PRIO_PROCESS, pid), 7)
            if os.path.exists(f"/proc/{pid}/autogroup"):
                self.assertIn("nice 7", read(f"/proc/{pid}/autogroup"))
        self.assertGreater(int(read(f"/proc/{engine}/oom_score_adj")), int(read(f"/proc/{supervisor}/oom_score_adj")))
        self.assertEqual(self.get("/v1/models")["data"][0]["id"], "small")
        for pid in [*self.workers(), self.nginx.pid, supervisor]:
            self.assertNotIn("model.gguf", read(f"/proc/{pid}/maps"))
            self.assertNotIn("openblas", read(f"/proc/{pid}/maps"))
        self.assertEqual([name for name in os.listdir(self.folder) if name.startswith(".")], [])
        self.until(lambda: f'engine "{self.name}": serving' in self.log())

    def test_stop_and_start_at_once(self):
        self.start()
        for how in signal.SIGTERM, signal.SIGQUIT:
            self.nginx.send_signal(how)
            self.nginx.wait(10)
            begin = time.monotonic()
            self.start()
            self.assertNotIn("Address already in use", self.log())
            self.until(lambda: len(self.all()) == 2, 1)
            self.assertLess(time.monotonic() - begin, 5)

    def test_the_master_is_killed(self):
        self.start()
        workers = self.workers()
        stream = self.stream(6000)
        self.nginx.kill()
        self.nginx.wait()
        begin = time.monotonic()
        self.until(lambda: not self.all(), 5)
        self.assertLess(time.monotonic() - begin, 1)
        self.assertIn('"error"', stream.read().decode())
        self.assertEqual(self.health(), 503)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)

    def test_a_reload_keeps_it(self):
        self.start()
        before = self.all()
        stream = self.stream(200)
        for _ in range(5):
            self.reload()
            self.get("/v1/completions", HELLO)
        self.assertEqual(self.all(), before)
        self.assertTrue(stream.read().decode().endswith("data: [DONE]\n\n"))
        self.assertEqual(self.get("/v1/completions", {"prompt": "a b c " * 40, "max_tokens": 1})["usage"]["prompt_tokens_details"],
                         {"cached_tokens": 0})
        self.reload()
        answer = self.get("/v1/completions", {"prompt": "a b c " * 40, "max_tokens": 1})
        self.assertGreater(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0)

    def test_a_reload_replaces_it(self):
        self.start()
        first, = self.supervisors() # a script that execs the program does not keep the engine's title
        stream = self.stream(400)
        bad = []
        done = threading.Event()

        def knock():
            while not done.is_set():
                try:
                    self.get("/v1/completions", dict(HELLO, max_tokens=1))
                except AssertionError as error:
                    bad.append(error)
        thread = threading.Thread(target=knock)
        thread.start()
        self.reload("threads=1", program=self.slow)
        self.until(lambda: len(self.supervisors()) == 2)
        time.sleep(1.5) # longer than the new one takes to start
        done.set()
        thread.join()
        self.assertEqual(bad, []) # a reload drops nothing
        self.assertIn(first, self.supervisors()) # it has a client
        self.assertTrue(stream.read().decode().endswith("data: [DONE]\n\n"))
        self.until(lambda: first not in self.supervisors(), 10)
        self.assertEqual(len(self.supervisors()), 1)
        # a file of the same name with another model in it
        second, = self.supervisors()
        os.utime(os.path.join(self.files, "model.gguf"))
        self.reload("threads=1", program=self.slow)
        self.until(lambda: second not in self.supervisors(), 10)
        # none at all
        self.reload(engine="unix:/nobody.sock")
        self.until(lambda: not self.all(), 10)
        self.error(503, "/health")
        # nothing has been left in the master
        self.reload()
        files = len(os.listdir(f"/proc/{self.nginx.pid}/fd"))
        for threads in 1, 2, 1, 2:
            self.reload(f"threads={threads}")
            self.until(lambda: len(self.all()) == 2, 10)
        self.assertLessEqual(len(os.listdir(f"/proc/{self.nginx.pid}/fd")), files + 4)

    def test_a_binary_upgrade(self):
        arguments = self.write()
        configuration = read(arguments[-1]).replace("daemon off;", "daemon on;") # nginx takes the signal only as a daemon
        with open(arguments[-1], "w", encoding="utf-8") as file:
            file.write(configuration)
        subprocess.run([NGINX, *arguments], check=True, stderr=subprocess.DEVNULL)
        pid_file = os.path.join(self.folder, "nginx.pid")
        self.until(lambda: os.path.exists(pid_file) and read(pid_file) and self.health() == 200)
        old = int(read(pid_file))
        os.kill(old, signal.SIGUSR2)
        self.until(lambda: os.path.exists(pid_file + ".oldbin") and os.path.exists(pid_file) and len(self.engines()) == 2, 10)
        self.until(lambda: read(pid_file), 10)
        new = int(read(pid_file))
        self.addCleanup(lambda: os.path.exists(f"/proc/{new}") and os.kill(new, signal.SIGKILL))
        self.assertNotEqual(new, old)
        os.kill(old, signal.SIGQUIT)
        self.until(lambda: not os.path.exists(f"/proc/{old}") and len(self.all()) == 2, 10)
        self.get("/v1/completions", HELLO)
        os.kill(new, signal.SIGTERM)
        self.until(lambda: not self.all(), 5)

    def test_without_a_master(self):
        self.start(main="master_process off;")
        self.get("/v1/completions", HELLO)
        self.stop(self.nginx)
        self.until(lambda: not self.all(), 1)

    # ---- Trouble ----

    def test_the_engine_is_killed(self):
        self.start()
        before = self.nginx.pid, self.workers()
        stream = self.stream(6000)
        engine, = self.engines()
        os.kill(engine, signal.SIGKILL)
        last = stream.read().decode().strip().split("\n\n")[-1]
        self.assertEqual(json.loads(last.removeprefix("data: "))["error"]["type"], "server_error")
        # a question that the dead one left in the backlog may be answered before its successor is known to be ready
        self.until(lambda: self.send("/v1/completions", HELLO).status == 200, 10)
        self.assertEqual((self.nginx.pid, self.workers()), before)
        self.until(lambda: "exited on signal 9" in self.log())
        # the second time in a row it comes back after a pause, of which the answers speak
        os.kill(*self.engines(), signal.SIGKILL)
        self.until(lambda: self.health() == 503)
        self.assertIn("does not run", self.error(503, "/v1/completions", HELLO)["message"])
        self.until(lambda: self.health() == 200, 20)

    def test_the_supervisor_is_killed(self):
        self.start()
        os.kill(*self.supervisors(), signal.SIGKILL)
        self.until(lambda: not self.all(), 1)
        self.error(503, "/v1/completions", HELLO)
        self.reload()
        self.until(lambda: self.health() == 200, 10)

    def test_a_worker_is_killed(self):
        self.start()
        before = self.all()
        for pid in self.workers():
            os.kill(pid, signal.SIGKILL)
        self.until(lambda: len(self.workers()) == 2 and self.health() == 200, 10)
        self.assertEqual(self.all(), before)
        # what the engine says still reaches the log
        os.kill(*self.engines(), signal.SIGKILL)
        self.until(lambda: "exited on signal 9" in self.log().partition("worker process")[2], 5)

    def test_while_it_loads(self):
        self.start(program=self.slow, ready=False)
        self.assertIn("loading", self.error(503, "/health")["message"])
        response = self.send("/v1/completions", HELLO)
        self.assertEqual((response.status, response.headers["Retry-After"]), (503, "1"))
        response.read()
        self.until(lambda: self.health() == 200, 20)

    def test_an_engine_that_does_not_start(self):
        bad = os.path.join(self.files, "bad.gguf")
        with open(bad, "wb") as file:
            file.write(b"GGUF" + bytes(100))
        os.chmod(bad, 0o644)
        for model, words in ((bad, "expected version"), (os.path.join(self.files, "none.gguf"), "No such file")):
            self.start(model=model, ready=False)
            self.until(lambda: "does not run" in self.error(503, "/v1/completions", HELLO)["message"], 10)
            self.until(lambda: words in self.log())
            self.reload()
            self.until(lambda: self.health() == 200, 10)
            self.stop(self.nginx)
            self.until(lambda: not self.all(), 2)

    def test_reopened_logs(self):
        self.start()
        os.rename(os.path.join(self.folder, "error.log"), os.path.join(self.folder, "old.log"))
        self.nginx.send_signal(signal.SIGUSR1)
        self.until(lambda: os.path.exists(os.path.join(self.folder, "error.log")))
        time.sleep(0.2) # the workers follow the master
        os.kill(*self.engines(), signal.SIGKILL)
        self.until(lambda: "exited on signal 9" in self.log())
        self.assertNotIn("exited on signal 9", read(os.path.join(self.folder, "old.log")))

    def test_shutdown_timeout(self):
        self.start(main="worker_shutdown_timeout 1s;")
        stream = self.stream(6000)
        begin = time.monotonic()
        self.reload(main="worker_shutdown_timeout 1s;")
        try: # nginx closes its connections in any order
            self.assertIn("shutting down", stream.read().decode())
        except http.client.IncompleteRead as cut:
            self.assertIn(b'"choices"', cut.partial)
        self.assertLess(time.monotonic() - begin, 5)
        self.until(lambda: len(self.workers()) == 2, 5)

    # ---- nginx -t ----

    def test_the_check(self):
        done = self.check()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.all(), []) # nothing was started
        cut = os.path.join(self.files, "cut.gguf")
        with open(os.path.join(self.files, "model.gguf"), "rb") as source, open(cut, "wb") as file:
            file.write(source.read(1000000))
        os.chmod(cut, 0o644)
        done = self.check(model=cut)
        self.assertEqual(done.returncode, 1)
        self.assertIn("cut.gguf", done.stderr)
        if os.getuid() == 0:
            os.chmod(cut, 0o600)
            done = self.check(model=cut)
            self.assertEqual(done.returncode, 1)
            self.assertIn("Permission denied", done.stderr)

    def test_signals_check_nothing(self):
        program, keys = (os.path.join(self.folder, name) for name in ("program", "keys"))
        shutil.copy(harness.CLI, program)
        os.chmod(program, 0o755)
        subprocess.run([harness.CLI, "key", "new", keys], check=True, capture_output=True)
        arguments = self.write(program=program)
        configuration = read(arguments[-1]).replace("mixtral_keys off", f"mixtral_keys {keys}", 1)
        with open(arguments[-1], "w", encoding="utf-8") as file:
            file.write(configuration)
        self.nginx = subprocess.Popen([NGINX, *arguments], stderr=subprocess.DEVNULL)
        self.until(lambda: self.health() == 200)
        os.unlink(program)
        os.unlink(keys)
        self.assertEqual(subprocess.run([NGINX, "-t", *arguments], capture_output=True, check=False).returncode, 1)
        done = subprocess.run([NGINX, "-s", "stop", *arguments], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.nginx.wait(10)

    def test_the_parameters(self):
        for engine, words in (("threads=2", "model=FILE"), ("model=x threads=0", "1 to 256"), ("model=x threads=two", "1 to 256"),
                              ("model=x kv_pool=lots", "such as 2g"), ("model=x kv_pool=0", "such as 2g"),
                              ("model=x max_step=soon", "such as 250ms"), ("model= threads=2", "a file"),
                              ("model=x priority=20", "-20 to 19"), ("model=x priority=x", "-20 to 19"),
                              ("model=x program=/nowhere", "executable"), ("model=x color=red", "invalid parameter"),
                              ("model=x threads", "invalid parameter"), ("model", "invalid parameter"),
                              ("unix:/x threads=2", "nothing behind it")):
            with self.subTest(engine=engine):
                done = self.check(engine=engine + ("" if "program" in engine or "unix" in engine else f" program={self.files}/mixtral"))
                self.assertEqual(done.returncode, 1)
                self.assertIn(words, done.stderr)


del Suite # has no tests of its own

if __name__ == "__main__":
    harness.main()
