#!/usr/bin/env python3
"""What comes between a client and the API: HTTP/2, TLS, slow and silent peers, and very many of them."""
import json
import os
import resource
import signal
import socket
import subprocess
import struct
import time

from server import HELLO, LONG, Connection, ask, harness, processes, read
import server

STREAMS = 1000  # that wait at the same time
STREAM = {"prompt": "One", "stream": True, **LONG}
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Http2:
    """A client with the least of RFC 9113: literal headers without Huffman, and no flow control of its own."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=harness.SECONDS)
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self.frame(SETTINGS, 0, 0))
        self.unread = b""
        self.number = -1

    @staticmethod
    def frame(kind, flags, stream, body=b""):
        return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body

    def request(self, path, body):
        """The stream's number."""
        self.number += 2
        text = json.dumps(body).encode()
        fields = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
                  ("content-length", str(len(text))))
        block = b"".join(b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields)
        self.socket.sendall(self.frame(HEADERS, END_HEADERS, self.number, block) + self.frame(DATA, END_STREAM, self.number, text))
        return self.number

    def reset(self, stream):
        self.socket.sendall(self.frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))

    def _read(self, size):
        while len(self.unread) < size:
            got = self.socket.recv(65536)
            if not got:
                raise EOFError("the connection was closed")
            self.unread += got
        data, self.unread = self.unread[:size], self.unread[size:]
        return data

    def receive(self):
        """(kind, flags, stream, body) of the next frame; settings are acknowledged, windows kept open."""
        head = self._read(9)
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        body = self._read(int.from_bytes(head[:3], "big"))
        if kind == SETTINGS and not flags & ACK:
            self.socket.sendall(self.frame(SETTINGS, ACK, 0))
        if kind == DATA and body:
            update = struct.pack(">I", len(body))
            self.socket.sendall(self.frame(WINDOW_UPDATE, 0, 0, update) + self.frame(WINDOW_UPDATE, 0, stream, update))
        return kind, flags, stream, body

    def wait_for(self, stream):
        """Until there is data of a stream."""
        while self.receive()[::2] != (DATA, stream):
            pass

    def answers(self, streams):
        """{stream: what came until its end}."""
        left, texts = set(streams), {stream: b"" for stream in streams}
        while left:
            kind, flags, stream, body = self.receive()
            if kind == DATA and stream in texts:
                texts[stream] += body
            if kind == GOAWAY or (kind == RST_STREAM and stream in texts):
                raise EOFError(f"frame {kind} on {stream}")
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                left.discard(stream)
        return texts


class Protocols(server.Suite):
    ENGINE = ("--socket-mode", "0666", "--allow-uid", "33", "--max-queue", "2000")
    EVENTS = "worker_connections 4096;"

    @classmethod
    def setUpClass(cls):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
        cls.addClassCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        cls.plain, cls.secure = free_port(), free_port()
        cls.MAIN = "worker_rlimit_nofile 8192;" if os.getuid() == 0 else ""
        cls.HTTP = "mixtral_engine main unix:{folder}/engine.sock; client_header_timeout 2s; client_body_timeout 2s;"
        cls.SERVER = f"""
            listen 127.0.0.1:{cls.plain} http2;
            listen 127.0.0.1:{cls.secure} ssl http2;
            ssl_certificate {{folder}}/certificate.pem;
            ssl_certificate_key {{folder}}/key.pem;
            location / {{ mixtral_api main; mixtral_keys off; }}
        """
        super().setUpClass()

    @classmethod
    def configure(cls):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
                        "-keyout", os.path.join(cls.folder, "key.pem"), "-out", os.path.join(cls.folder, "certificate.pem")],
                       check=True, capture_output=True)
        return super().configure()

    def curl(self, *arguments):
        done = subprocess.run(["curl", "-sS", "--max-time", "60", *arguments], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    # ---- HTTP/2 and TLS ----

    def test_http2_and_tls(self):
        body = json.dumps(dict(HELLO, stream=True))
        expected = self.get("/v1/chat/completions", HELLO)["choices"][0]["message"]["content"]
        for arguments in (("--http2-prior-knowledge", f"http://127.0.0.1:{self.plain}/v1/chat/completions"),
                          ("--cacert", os.path.join(self.folder, "certificate.pem"), "--resolve",
                           f"localhost:{self.secure}:127.0.0.1", f"https://localhost:{self.secure}/v1/chat/completions"),
                          ("--http1.1", "-k", f"https://127.0.0.1:{self.secure}/v1/chat/completions")):
            with self.subTest(arguments=arguments):
                events = self.curl("-d", body, *arguments).split("\n\n")
                self.assertEqual(events[-2:], ["data: [DONE]", ""])
                chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
                self.assertEqual("".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks), expected)
        head = self.curl("-i", "-k", "-d", "{}", f"https://127.0.0.1:{self.secure}/v1/completions")
        self.assertTrue(head.startswith("HTTP/2 400"), head)

    def test_http2_streams_on_one_connection(self):
        connection = Http2(self.plain)
        prompts = [f"Count to {i}:" for i in range(16)]
        streams = {connection.request("/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0}): prompt
                   for prompt in prompts}
        for stream, text in connection.answers(streams).items():
            alone = self.get("/v1/completions", {"prompt": streams[stream], "max_tokens": 8, "temperature": 0})
            self.assertEqual(json.loads(text)["choices"], alone["choices"])
        connection.socket.close()

    def test_http2_resets(self):
        connection = Http2(self.plain)
        lasting = connection.request("/v1/completions", dict(STREAM, max_tokens=200))
        connection.wait_for(lasting)
        other = connection.request("/v1/completions", STREAM)
        connection.wait_for(other)
        connection.reset(other)
        for _ in range(200): # reset at once: before its body is read, while it waits, while it is made
            connection.reset(connection.request("/v1/completions", STREAM))
        self.assertTrue(connection.answers([lasting])[lasting].endswith(b"data: [DONE]\n\n"))
        self.until(self.is_idle, 20)
        connection.socket.close()
        # the whole connection goes
        connection = Http2(self.plain)
        for stream in [connection.request("/v1/completions", STREAM) for _ in range(8)]:
            connection.wait_for(stream)
        connection.socket.close()
        self.until(self.is_idle, 20)

    # ---- Slow peers ----

    def test_keepalive(self):
        connection = Connection(os.path.join(self.folder, "http.sock"))
        self.addCleanup(connection.close)
        for stream in False, True, False:
            connection.request("POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 3, "stream": stream}))
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            self.assertTrue(response.read())
            self.assertFalse(response.will_close)

    def test_pings(self):
        self.engine.send_signal(signal.SIGSTOP) # it is reading a very long prompt
        try:
            begin = time.monotonic()
            response = self.send("/v1/completions", {"prompt": "One", "stream": True, "max_tokens": 3})
            self.assertEqual(response.readline(), b": ping\n")
            self.assertGreater(time.monotonic() - begin, 5)
        finally:
            self.engine.send_signal(signal.SIGCONT)
        self.assertTrue(response.read().endswith(b"data: [DONE]\n\n"))

    def test_slowloris(self):
        begin = time.monotonic()
        peers = []
        for i in range(200):
            peer = socket.socket(socket.AF_UNIX)
            self.addCleanup(peer.close)
            peer.connect(os.path.join(self.folder, "http.sock"))
            peer.sendall((b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
                          b"Content-Length: 1000\r\n\r\n{\"prompt\": \"a")[i % 2])
            peers.append(peer)
        self.get("/v1/completions", {"prompt": "a", "max_tokens": 2})
        self.assertTrue(self.is_idle()) # half a body asks for nothing
        for peer in peers:
            peer.settimeout(harness.SECONDS)
            while True: # until nginx closes it
                try:
                    if not peer.recv(4096):
                        break
                except ConnectionResetError:
                    break
        self.assertLess(time.monotonic() - begin, 20)

    def workers_kb(self):
        workers = [pid for pid, (parent, _) in processes().items() if parent == self.nginx.pid]
        lines = [line for pid in workers for line in read(f"/proc/{pid}/status").splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def test_a_thousand_streams_that_wait(self):
        before = self.workers_kb()
        body = json.dumps(dict(STREAM, max_tokens=3)).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.engine.send_signal(signal.SIGSTOP)
        peers = []
        try:
            for _ in range(STREAMS):
                peer = socket.socket(socket.AF_UNIX)
                self.addCleanup(peer.close)
                peer.connect(os.path.join(self.folder, "http.sock")) # waits where the backlog is full, as with a time limit it would not
                peer.settimeout(harness.SECONDS)
                peer.sendall(head + body)
                peers.append(peer)
            self.until(lambda: self.workers_kb() > before + STREAMS) # all are taken up: each has a request and its pool
            grown = self.workers_kb() - before
        finally:
            self.engine.send_signal(signal.SIGCONT)
        self.assertLess(grown / STREAMS, 64, "KB a stream")
        self.until(lambda: ask(self.engine_socket, {"op": "stats"})["requests_waiting"] > 0)
        begin = time.monotonic()
        self.get("/v1/models") # beside them
        self.assertLess(time.monotonic() - begin, 2)
        for peer in peers[STREAMS // 2:]: # half of them leave
            peer.close()
        for peer in peers[:STREAMS // 2]:
            text = b""
            while not text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                got = peer.recv(65536)
                self.assertTrue(got, text)
                text += got
        self.until(self.is_idle, 20)


if __name__ == "__main__":
    harness.main()
