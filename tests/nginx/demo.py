#!/usr/bin/env python3
"""`make demo-nginx`: what it prints works, and it ends with all that it started."""
import os
import re
import signal
import socket
import subprocess
import unittest
import urllib.request

import server
from server import harness

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
RUN = os.path.join(TOP, "tests", "demo", "run_nginx")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Demo(unittest.TestCase):
    def start(self, port):
        # a group of its own: signals are for it only
        demo = subprocess.Popen([RUN], env={**os.environ, "PORT": str(port), "MODEL": harness.MODEL}, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
        self.addCleanup(demo.stdout.close)
        self.addCleanup(demo.stderr.close)
        self.addCleanup(server.Suite.stop, demo)
        return demo

    def test_what_it_prints_works(self):
        port = free_port()
        for ending in signal.SIGINT, signal.SIGTERM:
            demo = self.start(port)
            curl, text = None, ""
            for line in demo.stdout:
                text += line
                curl = line.strip() if line.strip().startswith("curl ") else curl
                if line.startswith("Ctrl-C"):
                    break
            url = re.search(r"http://127\.0\.0\.1:\d+/(?= )", text).group()
            self.assertEqual(url, f"http://127.0.0.1:{port}/")
            answer = subprocess.run(curl.replace("curl ", "curl -s ", 1), shell=True, capture_output=True, text=True, check=True).stdout
            self.assertIn("Paris", answer)
            with urllib.request.urlopen(url, timeout=harness.SECONDS) as page:
                self.assertIn(b"<textarea", page.read())
            demo.send_signal(ending)
            self.assertEqual(demo.wait(10), 0)
            self.assertEqual(demo.stderr.read(), "")
            with socket.socket() as probe:
                self.assertNotEqual(probe.connect_ex(("127.0.0.1", port)), 0)

    def test_a_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            demo = self.start(taken.getsockname()[1])
            _, errors = demo.communicate(timeout=30)
        self.assertEqual(demo.returncode, 1)
        self.assertIn("Address already in use", errors)

    def test_wrong_ports(self):
        for port in "0", "70000", "http":
            demo = self.start(port)
            self.assertIn("expected a number", demo.communicate(timeout=30)[1])
            self.assertEqual(demo.returncode, 1)


if __name__ == "__main__":
    harness.main()
