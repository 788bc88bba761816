"""What the suites of `mixtral serve` share: a server of a small model in a folder of its own."""
import os
import subprocess
import tempfile
import time

import harness
from peer import ask


class Suite(harness.Suite):
    MODEL = harness.TINY

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        os.chmod(folder.name, 0o755)
        self.socket = os.path.join(folder.name, "engine.sock")
        self.model = os.path.join(folder.name, "tiny.gguf")
        self.succeeds("synth", self.model, *self.MODEL)

    def start(self, *args, target=None, **more):
        target = target or ("--socket", self.socket)
        server = subprocess.Popen([harness.CLI, "serve", "--model", self.model, *target, *args], stderr=subprocess.PIPE, **more)
        self.addCleanup(server.stderr.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        self.assertIn(b"serving", server.stderr.readline())
        return server

    def stats(self):
        return ask(self.socket, {"op": "stats"})

    def ends(self, server, status=0):
        self.assertEqual(server.wait(harness.SECONDS), status)

    @staticmethod
    def cpu_seconds(server, after=0):
        time.sleep(after)
        with open(f"/proc/{server.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
