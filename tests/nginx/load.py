#!/usr/bin/env python3
"""Static files beside 32 streams of one nginx: their answers take no longer than without the streams.

Runs for about MX_SOAK_SECONDS (30). The engine leaves nginx a core: with as many threads as cores a static file may wait for the
kernel's time slice, 2 to 4 ms, whatever the engine's priority.
"""
import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import server
from server import LONG, copy_readable, harness

SECONDS = float(os.environ.get("MX_SOAK_SECONDS", "30"))
STREAMS = 32
RATE = 500       # static files a second
ROUNDS = 3       # without and with streams, in turn
NOISE_MS = 1.0   # of a machine that does other things
TOOL = os.path.join(os.path.dirname(harness.CLI), "tests", "tools", "static_load")


class Load(server.Suite):
    @classmethod
    def setUpClass(cls):
        files = tempfile.TemporaryDirectory()
        cls.addClassCleanup(files.cleanup)
        copy_readable(files.name)
        with open(os.path.join(files.name, "file"), "wb") as file:
            file.write(os.urandom(8192))
        os.chmod(file.name, 0o644)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            cls.port = free.getsockname()[1]
        threads = max(1, len(os.sched_getaffinity(0)) - 1)
        cls.HTTP = f"mixtral_engine main model={files.name}/model.gguf program={files.name}/mixtral threads={threads} kv_pool=1g;"
        cls.SERVER = f"""
            listen 127.0.0.1:{cls.port};
            keepalive_requests 1000000;
            location /v1/ {{ mixtral_api main; mixtral_keys off; }}
            location = /health {{ mixtral_api main; mixtral_keys off; }}
            location / {{ root {files.name}; }}
        """
        super().setUpClass()

    @classmethod
    def start_engine(cls):
        cls.engine = subprocess.Popen([sys.executable, "-c", ""]) # nginx has its own

    def stream(self, n, stop):
        """Reads n streams, begun again when they end, until stop is set; gives the number of pieces by a list."""
        body = json.dumps({"prompt": "One", "stream": True, **LONG, "max_tokens": 1000}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        pieces, texts = 0, {}
        with selectors.DefaultSelector() as selector:
            while not stop.is_set():
                while len(texts) < n:
                    peer = socket.create_connection(("127.0.0.1", self.port))
                    peer.sendall(head + body)
                    selector.register(peer, selectors.EVENT_READ)
                    texts[peer] = b""
                for key, _ in selector.select(0.1):
                    peer = key.fileobj
                    got = peer.recv(65536)
                    pieces += got.count(b"data: ")
                    texts[peer] = (texts[peer] + got)[-200:]
                    if not got:
                        if b"data: [DONE]" not in texts[peer]:
                            self.trouble.append(texts[peer])
                        selector.unregister(peer)
                        peer.close()
                        del texts[peer]
        for peer in texts:
            peer.close()
        self.pieces.append(pieces)

    def static(self):
        """(p50, p99) in ms."""
        seconds = max(1, SECONDS / ROUNDS / 2 - 0.5)
        done = subprocess.run([TOOL, str(self.port), "/file", str(RATE), str(seconds)], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        print(done.stdout.strip(), flush=True)
        return tuple(map(float, re.search(r"p50 ([\d.]+) ms, p99 ([\d.]+) ms", done.stdout).groups()))

    def test_static_files_beside_streams(self):
        self.until(lambda: self.send("/health").status == 200)
        self.trouble, self.pieces = [], []
        alone, beside = [], []
        for _ in range(ROUNDS):
            alone.append(self.static())
            stop = threading.Event()
            thread = threading.Thread(target=self.stream, args=(STREAMS, stop))
            thread.start()
            try:
                time.sleep(0.5)
                beside.append(self.static())
            finally:
                stop.set()
                thread.join()
        self.assertEqual(self.trouble, [])
        self.assertEqual([pieces > STREAMS for pieces in self.pieces], [True] * ROUNDS)
        for i, what in enumerate(("p50", "p99")):
            without, together = (statistics.median(times[i] for times in rounds) for rounds in (alone, beside))
            self.assertLess(together, 2 * without + NOISE_MS, what)


if __name__ == "__main__":
    harness.main()
