#!/usr/bin/env python3
"""Client processes that are killed at any moment, by the dozen, while others' answers must stay what they are.

    tests/cli/killed_clients.py [SECONDS]      (10, or 30 under a sanitizer; tests/soak.sh gives it 600)

One `mixtral serve` with a small model of random weights and a KV pool in which the clients' requests do not fit together, so
that they wait and are preempted. Each request was first asked alone; then CLIENTS processes ask all of them in all ways, several
at once on a connection, cancel some, leave some unread, and are killed with SIGKILL after a random time and replaced. Whoever lives
compares every answer, and every piece of a stream, with what the same request gave alone.

At the end nobody is left, and within SETTLE_S no request is running or waiting and no block is in use; threads and
descriptors are as many as they were, and anonymous memory is within MEMORY_SHARE and MEMORY_KB of what it was after a warm-up under
the same load (a third of the time): allocators breathe, but what a lost connection leaves behind adds up.
"""
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import harness
import peer

CLIENTS = 24
LIFETIME_S = 0.8         # on average
SETTLE_S = 2.0 * harness.SLOW
MEMORY_SHARE, MEMORY_KB = 0.04, 1024
PROGRESS_S = 5
MODEL = ("--layers", "2", "--dim", "64", "--ff", "64", "--heads", "4", "--kv-heads", "2", "--experts", "4",
         "--experts-used", "2", "--vocab-size", "600", "--context", "1024", "--type", "Q8_0")
SERVE = ("--threads", "2", "--kv-pool", "512K", "--max-queue", "10000")
ENDLESS = {"op": "complete", "prompt": "x", "options": {"n": 8, "max_tokens": 900, "ignore_eos": True}}
VOLATILE = ("first_token_ms", "total_ms", "cached_tokens")  # in a result: all else depends on the request alone
WORDS = "rain sun wind snow hail fog ice dew sleet frost storm cloud".split()


def text(n, seed):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(n))


def all_requests():
    """(name, request): each kind several times over, with texts of their own and with beginnings in common."""
    greedy = {"temperature": 0, "seed": 1, "ignore_eos": True}
    book = text(120, "book")
    for i in range(6):
        yield f"chat {i}", {"op": "chat", "prompt": text(6, i), "options": {**greedy, "max_tokens": 10 + 9 * i}}
        yield f"long prompt {i}", {"op": "complete", "prompt": book + text(1 + 20 * i, i), "options": {**greedy, "max_tokens": 12}}
        yield f"long answer {i}", {"op": "complete", "prompt": text(5, 10 + i), "options": {**greedy, "max_tokens": 300}}
        yield f"uncached {i}", {"op": "complete", "prompt": text(40, 20 + i), "options": {**greedy, "max_tokens": 20, "cache": False}}
        yield f"three choices {i}", {"op": "complete", "prompt": text(20, 30 + i),
                                     "options": {"temperature": 1, "seed": i, "n": 3, "ignore_eos": True, "max_tokens": 25}}
        yield f"tenant {i}", {"op": "complete", "prompt": book, "options": {**greedy, "max_tokens": 8 + i, "tenant": f"t{i % 2}"}}
        yield f"embed {i}", {"op": "embed", "text": text(4 + 30 * i, 40 + i)}
        yield f"tokenize {i}", {"op": "tokenize", "text": text(10, 50 + i)}
        yield f"chunks {i}", {"op": "chunks", "text": text(60, 60 + i), "size": 40, "overlap": 8}
    talk = [{"role": "user", "content": text(8, "a")}, {"role": "assistant", "content": text(8, "b")}]
    yield "talk", {"op": "chat", "messages": talk + [{"role": "user", "content": "hail"}],
                   "options": {**greedy, "max_tokens": 16, "template": "mixtral", "logprobs": True, "top_logprobs": 2}}
    yield "too long", {"op": "complete", "prompt": text(3000, "long")}
    yield "nonsense", {"op": "complete", "prompt": "x", "options": {"temperature": "hot"}}


def fixed(body):
    return {key: value for key, value in body.items() if key not in VOLATILE}


# ---- A client process ------------------------------------------------------------------------------------------------

class Mismatch(Exception):
    pass


def is_piece_of(expected, streamed, choice):
    """Whether a choice's text begins with what has come of it."""
    choices = expected.get("choices")
    return choices is not None and choice < len(choices) and choices[choice]["text"].startswith(streamed)


class Client:
    def __init__(self, path, requests, expected, report):
        self.path, self.requests, self.expected, self.report = path, requests, expected, report

    def live(self):
        while True:
            with peer.Peer(self.path) as connection:
                for _ in range(random.randint(1, 5)):
                    self.ask_together(connection, random.choices(list(self.requests), k=random.choice((1, 1, 1, 2, 4))))
                if random.random() < 0.3:  # leaves with requests running
                    connection.send(1000, self.requests[random.choice(list(self.requests))])
                if random.random() < 0.1:  # or takes nothing of an answer until it is killed
                    connection.send(1001, ENDLESS)
                    time.sleep(1000)

    def ask_together(self, connection, names):
        """Asks several at once, cancels some of them, and checks whatever comes."""
        open_ones = {}
        for number, name in enumerate(names, 1):
            connection.send(number, self.requests[name])
            open_ones[number] = (name, {})
        cancelled = {number for number in open_ones if random.random() < 0.1}
        for number in cancelled:
            connection.cancel(number)
        while open_ones:
            kind, number, body = connection.receive()
            name, streamed = open_ones[number]
            if kind == peer.PIECE:
                choice = body["choice"]
                streamed[choice] = streamed.get(choice, "") + body["text"]
                if not is_piece_of(self.expected[name], streamed[choice], choice):
                    raise Mismatch(f"{name}: choice {choice} streams {streamed[choice]!r}, alone it gave {self.expected[name]}")
                continue
            del open_ones[number]
            if number in cancelled and body.get("status") == "cancelled":
                self.tell("c")
                continue
            if fixed(body) != self.expected[name]:
                raise Mismatch(f"{name}: gave {body}, alone it gave {self.expected[name]}")
            if any(text != body["choices"][choice]["text"] for choice, text in streamed.items()):
                raise Mismatch(f"{name}: streamed {streamed}, but the result is {body}")
            self.tell("a")

    def tell(self, mark):
        os.write(self.report, mark.encode())


def start_client(*args):
    """A forked client's pid. What it finds wrong goes to its standard error, and makes it exit by itself."""
    pid = os.fork()
    if pid > 0:
        return pid
    try:
        random.seed()
        Client(*args).live()
    except BaseException as problem:  # pylint: disable=broad-except
        os.write(2, f"client: {problem}\n".encode() if isinstance(problem, Mismatch) else traceback.format_exc().encode())
    finally:
        os._exit(1)


# ---- The server, seen from outside ------------------------------------------------------------------------------------

class Server:
    def __init__(self, folder):
        self.path = os.path.join(folder, "engine.sock")
        model = os.path.join(folder, "model.gguf")
        subprocess.run([harness.CLI, "synth", model, *MODEL], check=True)
        self.process = subprocess.Popen([harness.CLI, "serve", "--model", model, "--socket", self.path, *SERVE],
                                        stderr=subprocess.PIPE)
        if b"serving" not in self.process.stderr.readline():
            raise RuntimeError("no server")

    def stats(self):
        return peer.ask(self.path, {"op": "stats"}, timeout=harness.SECONDS)

    def count(self, folder):
        return len(os.listdir(f"/proc/{self.process.pid}/{folder}"))

    def anonymous_kb(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))

    def settle(self):
        """The figures once nothing is left to do, or after SETTLE_S."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            stats = self.stats()
            busy = stats["requests_running"] + stats["requests_waiting"] + stats["kv_blocks_used"]
            if busy == 0 or time.monotonic() > deadline:
                return stats
            time.sleep(0.02)

    def resources(self):
        """(threads, descriptors without a connection of ours, KB); the engine closes its end of one a moment later."""
        deadline = time.monotonic() + SETTLE_S
        descriptors = self.count("fd")
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if self.count("fd") < descriptors:
                descriptors = self.count("fd")
        return self.count("task"), descriptors, self.anonymous_kb()


# ---- The load ----------------------------------------------------------------------------------------------------------

class Load:
    def __init__(self, server, requests, expected):
        self.server, self.requests, self.expected = server, requests, expected
        self.killed = self.answers = self.cancelled = self.most_waiting = 0
        self.own_ends = 0  # clients that ended by themselves: they have found something
        self.begin = time.monotonic()

    def collect(self, report):
        while select.select([report], [], [], 0)[0]:
            marks = os.read(report, 65536)
            self.answers += marks.count(b"a")
            self.cancelled += marks.count(b"c")

    def run(self, seconds):
        """Keeps CLIENTS processes alive and killed for so long. Nobody is left afterwards."""
        report, write = os.pipe()
        end = time.monotonic() + seconds
        clients, said = [], time.monotonic()
        try:
            while time.monotonic() < end and self.own_ends == 0 and self.server.process.poll() is None:
                while len(clients) < CLIENTS:
                    clients.append(start_client(self.server.path, self.requests, self.expected, write))
                time.sleep(random.expovariate(CLIENTS / LIFETIME_S))
                self.kill(clients.pop(random.randrange(len(clients))))
                self.collect(report)
                if time.monotonic() - said > PROGRESS_S:
                    said = time.monotonic()
                    self.say()
                if random.random() < 0.1:
                    self.most_waiting = max(self.most_waiting, self.server.stats()["requests_waiting"])
        finally:
            for pid in clients:
                self.kill(pid)
            self.collect(report)
            os.close(report)
            os.close(write)

    def kill(self, pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        status = os.waitpid(pid, 0)[1]
        self.killed += 1
        self.own_ends += not os.WIFSIGNALED(status)

    def say(self):
        stats = self.server.stats()
        print(f"{time.monotonic() - self.begin:6.0f} s: {self.killed} clients killed, {self.answers} answers compared, "
              f"{self.cancelled} cancelled, {stats['preemptions']} preemptions, {stats['requests_running']} running, "
              f"{stats['requests_waiting']} waiting, anonymous memory {self.server.anonymous_kb()} KB", flush=True)


def kill_one(server, n):
    """(requests that ended with an error, that went on to their end) of n long ones whose client is killed."""
    before = server.stats()
    pid = os.fork()
    if pid == 0:
        with peer.Peer(server.path) as connection:
            for number in range(n):
                connection.send(number + 1, ENDLESS)
            time.sleep(1000)
    deadline = time.monotonic() + harness.SECONDS
    while sum(server.stats()[key] for key in ("requests_running", "requests_waiting")) < n and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    stats = server.settle()
    # of the requests for stats none is counted
    return tuple(stats[key] - before[key] for key in ("requests_failed", "requests_done"))


class Report:
    def __init__(self):
        self.passed = self.failed = 0

    def check(self, holds, what):
        self.passed += bool(holds)
        self.failed += not holds
        print(("ok      " if holds else "FAILED  ") + what, flush=True)


def main(seconds):
    report = Report()
    requests = dict(all_requests())
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder)
        try:
            expected = {name: fixed(peer.ask(server.path, request)) for name, request in requests.items()}
            refused = {name for name, body in expected.items() if "status" in body}
            report.check(refused == {"too long", "nonsense"}, f"each request alone has its answer (refused: {refused})")
            made = [str(body["choices"]) for body in expected.values() if "choices" in body]
            report.check(len(set(made)) == len(made), f"no two of {len(made)} texts are the same")

            load = Load(server, requests, expected)
            load.run(seconds / 3)
            server.settle()
            threads, descriptors, memory = server.resources()
            load.run(seconds - seconds / 3)
            load.say()
            stats = server.settle()
            now = server.resources()

            report.check(load.own_ends == 0 and load.answers > 0, f"{load.answers} answers are what they are alone")
            report.check(stats["preemptions"] > 0 and load.most_waiting > 0,
                         f"{stats['preemptions']} preemptions, up to {load.most_waiting} requests waited")
            report.check(stats["requests_running"] == 0 and stats["requests_waiting"] == 0, "nothing runs nor waits")
            report.check(stats["kv_blocks_used"] == 0 and
                         stats["kv_blocks_free"] + stats["kv_blocks_cached"] == stats["kv_blocks_total"],
                         f"{stats['kv_blocks_total']} blocks are free or cached")
            report.check(now[:2] == (threads, descriptors),
                         f"{threads} threads and {descriptors} descriptors are {now[0]} and {now[1]}")
            allowed = int(memory * MEMORY_SHARE) + MEMORY_KB
            if harness.SLOW == 1:  # a sanitizer keeps what is freed
                report.check(now[2] - memory <= allowed,
                             f"anonymous memory of {memory} KB has grown by {now[2] - memory} KB; {allowed} KB are allowed")
            ends = kill_one(server, 4)
            report.check(ends == (4, 0), f"of 4 requests whose client is killed {ends[0]} end at once, {ends[1]} go on")
            again = {name: fixed(peer.ask(server.path, request)) for name, request in requests.items()}
            report.check(again == expected, "every request alone has the same answer again")
            server.process.terminate()
            report.check(server.process.wait(harness.SECONDS) == 0, "the server ends in order")
        finally:
            server.process.kill()
            print(server.process.stderr.read().decode()[-4000:], end="")
            server.process.wait()
            server.process.stderr.close()
    print(f"{report.passed} passed, {report.failed} failed, 0 skipped", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0 if harness.SLOW == 1 else 30.0))
