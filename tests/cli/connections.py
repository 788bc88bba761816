#!/usr/bin/env python3
"""Connections that a server has to bear: a thousand of them, halves of frames, halves of sockets, readers that do not read, noise."""
import json
import os
import random
import socket
import struct
import time

import harness
import peer
import serving
from peer import ask

CONNECTIONS_MAX = 1024  # MX_CONNECTIONS_MAX
IDLE = 1000
PATIENCE_S = harness.SECONDS
GREEDY = {"temperature": 0, "ignore_eos": True, "seed": 1}
CHAT = {"op": "chat", "prompt": "one two three", "options": {**GREEDY, "max_tokens": 200}}
LONG = {"op": "complete", "prompt": "four five", "options": {**GREEDY, "max_tokens": 900, "n": 8, "temperature": 1}}


class Connections(serving.Suite):
    MODEL = (*harness.TINY[:-1], "16384")

    def start(self, *args, **more):
        server = super().start("--threads", "1", "--kv-pool", "64M", *args, **more)
        self.server = server
        return server

    def peer(self, **options):
        one = peer.Peer(self.socket, timeout=PATIENCE_S, **options)
        self.addCleanup(one.socket.close)
        return one

    def fill(self, n):
        """n connections, all of them accepted: each has the server's HELLO."""
        peers = [self.peer() for _ in range(n)]
        for one in peers:
            self.assertEqual(struct.unpack("<IB", one.socket.recv(4096, socket.MSG_PEEK)[:5])[1], peer.HELLO)
        return peers

    def is_refused(self):
        try:
            return "status" in self.peer().ask({"op": "stats"})
        except (EOFError, ConnectionError):
            return True

    def text(self, request=CHAT):
        return ask(self.socket, request, timeout=PATIENCE_S)["text"]

    def seconds(self, request=CHAT):
        """How long a request takes: the shortest of some times, as the machine may be busy."""
        return min(ask(self.socket, request, timeout=PATIENCE_S)["total_ms"] for _ in range(5)) / 1000

    def settles(self):
        deadline = time.monotonic() + PATIENCE_S
        while any(self.stats()[key] for key in ("requests_running", "requests_waiting", "kv_blocks_used")):
            self.assertLess(time.monotonic(), deadline, "something is left")
            time.sleep(0.01)

    def ends_with(self, one, status, words):
        """The connection's last frame is an ERROR about itself, and nothing is behind it. Gives the frames before."""
        frames = []
        while True:
            kind, number, body = one.receive()
            if number == 0:
                break
            frames.append((kind, number, body))
        self.assertEqual((kind, body["status"]), (peer.ERROR, status), body)
        self.assertIn(words, body["text"])
        with self.assertRaises((EOFError, ConnectionResetError)):
            one.receive()
        return frames

    # ---- Many ----

    def test_a_thousand_idle_connections_cost_nothing(self):
        server = self.start()
        alone, text = self.seconds(), self.text()
        idle = self.fill(IDLE)
        self.assertEqual(self.text(), text)
        self.assertLess(self.seconds(), 3 * alone + 0.2)
        before = self.cpu_seconds(server, 0.2)
        self.assertLess(self.cpu_seconds(server, 1) - before, 0.05)
        self.assertEqual([one.ask({"op": "token_count", "text": "abc"}) for one in random.sample(idle, 20)],
                         [ask(self.socket, {"op": "token_count", "text": "abc"})] * 20)

    def test_one_too_many_is_told_so(self):
        self.start()
        peers = self.fill(CONNECTIONS_MAX)
        for _ in range(3):
            self.ends_with(self.peer(greet=False), "busy", f"{CONNECTIONS_MAX} connections are open")
        self.fails("complete", "unix:" + self.socket, "x", words=(f"{CONNECTIONS_MAX} connections are open",))
        peers[500].socket.close()
        deadline = time.monotonic() + PATIENCE_S
        while self.is_refused():  # until the server has seen it
            self.assertLess(time.monotonic(), deadline)
        for one in peers:
            one.socket.close()
        self.fill(CONNECTIONS_MAX - 10)

    def test_a_soft_limit_of_descriptors_is_no_limit(self):
        import resource  # pylint: disable=import-outside-toplevel
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if 0 <= hard < 2 * CONNECTIONS_MAX:
            self.skipTest("needs a higher hard limit of descriptors")
        self.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)))
        self.fill(400)

    # ---- Halves ----

    def test_half_a_frame_holds_up_nobody(self):
        self.start()
        text = self.text()
        frame = peer.frame(peer.REQUEST, 5, CHAT)
        for cut in (1, 11, 12, 13, len(frame) - 1):
            one = self.peer()
            one.socket.sendall(frame[:cut])
            self.assertEqual(self.text(), text)
            one.socket.sendall(frame[cut:])
            self.assertEqual([one.receive() for _ in range(3)][-1][1], 5)
        one = self.peer()
        for byte in frame:
            one.socket.sendall(bytes([byte]))
        kind = peer.PIECE
        while kind == peer.PIECE:
            kind, _, body = one.receive()
        self.assertEqual((kind, body["text"]), (peer.RESULT, text))
        one = self.peer()
        one.socket.sendall(frame[:-1])
        one.socket.close()
        self.settles()

    def test_a_client_that_shuts_down_its_side_has_left(self):
        """core/server/wire.h: what it asked for is cancelled, and it is told so behind what came before."""
        self.start()
        one = self.peer()
        one.send(1, LONG)
        self.assertEqual(one.receive()[0], peer.PIECE)
        one.socket.shutdown(socket.SHUT_WR)
        frames = self.ends_with(one, "unavailable", "closed its side")
        self.assertEqual({kind for kind, _, _ in frames} - {peer.PIECE}, set())
        self.settles()
        one = self.peer()  # an answer that was there already is not lost
        one.send(1, {"op": "stats"})
        self.assertEqual(one.receive()[0], peer.RESULT)
        one.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(self.ends_with(one, "unavailable", "closed its side"), [])

    def test_a_client_that_shuts_down_its_other_side_has_left(self):
        self.start()
        one = self.peer()
        one.send(1, LONG)
        while self.stats()["requests_running"] == 0:
            pass
        one.socket.shutdown(socket.SHUT_RD)
        self.settles()

    def test_a_client_that_says_nothing(self):
        server = self.start()
        silent = [self.peer(greet=False) for _ in range(20)]
        text = self.text()
        before = self.cpu_seconds(server, 0.2)
        self.assertLess(self.cpu_seconds(server, 0.5) - before, 0.05)
        silent[0].socket.sendall(peer.frame(peer.HELLO, 0, {"protocol": 1, "version": "late"}))
        self.assertEqual(silent[0].ask(CHAT)["text"], text)
        silent[1].send(1, CHAT)
        self.ends_with(silent[1], "corrupt", "expected a hello first")
        server.terminate()
        self.ends(server)
        with self.assertRaises((EOFError, ConnectionResetError)):
            silent[2].receive()

    # ---- Readers that do not read ----

    def test_a_slow_reader_waits_alone(self):
        self.start()
        request = {"op": "complete", "prompt": "four five", "options": {**GREEDY, "max_tokens": 4000, "n": 4, "temperature": 1}}
        expected, text, alone = ask(self.socket, request), self.text(), self.seconds()
        slow = self.peer()
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.send(9, request)
        made = -1
        deadline = time.monotonic() + PATIENCE_S
        while made != self.stats()["completion_tokens"] or made == 0:  # until it has stopped
            self.assertLess(time.monotonic(), deadline, "a stream that nobody reads goes on")
            made = self.stats()["completion_tokens"]
            time.sleep(0.3)
        self.assertEqual(self.stats()["requests_running"], 1)
        self.assertLess(self.seconds(), 3 * alone + 0.2)
        self.assertEqual(self.text(), text)
        streamed = [""] * 4
        while True:
            kind, number, body = slow.receive()
            self.assertEqual(number, 9)
            if kind != peer.PIECE:
                break
            streamed[body["choice"]] += body["text"]
        self.assertEqual(kind, peer.RESULT, body)
        self.assertEqual([choice["text"] for choice in body["choices"]], streamed)
        self.assertEqual(body["choices"], expected["choices"])
        self.settles()

    # ---- Noise ----

    def test_noise_ends_its_own_connection_only(self):
        server = self.start()
        os.set_blocking(server.stderr.fileno(), False)
        text = self.text()
        rng = random.Random(4)
        hello = peer.frame(peer.HELLO, 0, {"protocol": 1, "version": "test"})
        request = json.dumps(CHAT).encode()
        for i in range(150):
            one = self.peer(greet=False)
            noise = bytes(rng.randrange(256) for _ in range(rng.choice((12, 40, 3000))))
            if i % 3 == 1:
                noise = hello + noise
            elif i % 3 == 2:  # a frame whose JSON is spoiled
                body = bytearray(request)
                body[rng.randrange(len(body))] = rng.randrange(32)
                noise = hello + struct.pack("<IBxxxI", len(body), peer.REQUEST, 1) + body
            one.socket.sendall(noise)
            one.socket.settimeout(0.02)
            try:
                while True:
                    one.receive()
            except (EOFError, ConnectionResetError, socket.timeout):
                pass  # a length that is allowed, and not yet reached
            one.socket.close()
            try:
                os.read(server.stderr.fileno(), 65536)  # its log must not fill the pipe
            except BlockingIOError:
                pass
        self.assertEqual(self.text(), text)
        self.settles()


harness.main()
