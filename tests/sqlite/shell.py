#!/usr/bin/python3
"""The sqlite3 shell, as a user has it: a terminal and Ctrl-C, rows as they come, and the recipes of sql/."""
import os
import pty
import re
import select
import shutil
import subprocess
import tempfile
import time
import unittest

import harness
from harness import EXTENSION, INTERRUPT_S, MODEL, SLOW, TOP

SHELL = shutil.which("sqlite3")
LOAD = f".load {EXTENSION[:-3] if EXTENSION.endswith('.so') else EXTENSION}\n"
ENDLESS = '{"max_tokens": 4000, "ignore_eos": true}'


class Terminal:
    """An interactive shell on a terminal of its own."""

    def __init__(self):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(SHELL, ["sqlite3"], harness.host_environment(TERM="dumb"))
        self.seen = ""

    def read_until(self, pattern, seconds=30):
        """What came up to the pattern; it is consumed."""
        deadline = time.monotonic() + seconds * SLOW
        while not (found := re.search(pattern, self.seen)):
            if not select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            self.seen += os.read(self.fd, 4096).decode("utf-8", "replace")
        before, self.seen = self.seen[:found.end()], self.seen[found.end():]
        return before

    def type(self, text):
        os.write(self.fd, text.encode())

    def close(self):
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@unittest.skipUnless(SHELL, "there is no sqlite3 program")
class Shell(unittest.TestCase):
    def run_shell(self, script, *arguments):
        """(rows, messages) of a script that is fed to a shell."""
        done = subprocess.run([SHELL, *arguments], input=LOAD + script, env=harness.host_environment(), text=True, cwd=TOP,
                              capture_output=True, timeout=300 * SLOW, check=False)
        self.assertGreaterEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines(), done.stderr

    def test_answers_and_ends(self):
        rows, messages = self.run_shell("SELECT mixtral_chat('What is the capital of France?', "
                                        "'{\"temperature\": 0, \"max_tokens\": 12}');")
        self.assertIn("Paris", " ".join(rows))
        self.assertEqual(messages, "")

    def test_exit_in_the_middle_of_an_answer(self):
        begin = time.monotonic()
        rows, _ = self.run_shell(f"SELECT 1 FROM mixtral_stream('Count.', '{ENDLESS}') LIMIT 2;\n.exit 3")
        self.assertEqual(rows, ["1", "1"])
        self.assertLess(time.monotonic() - begin, 20 * SLOW)

    def test_the_engine_exports_only_its_entry_point(self):
        symbols = subprocess.run(["nm", "-D", "--defined-only", EXTENSION], capture_output=True, text=True, check=True).stdout
        names = [line.split()[-1] for line in symbols.splitlines()]
        self.assertEqual([n for n in names if not n.startswith(("__asan", "__ubsan", "__tsan"))], ["sqlite3_mixtral_init"])
        dynamic = subprocess.run(["readelf", "-d", EXTENSION], capture_output=True, text=True, check=True).stdout
        self.assertIn("NODELETE", dynamic)

    def test_ctrl_c(self):
        terminal = Terminal()
        self.addCleanup(terminal.close)
        terminal.read_until("sqlite> ")
        for line in (LOAD, "CREATE TABLE t(x);\n", "BEGIN;\n", "INSERT INTO t VALUES (7);\n"):
            terminal.type(line)
            terminal.read_until("sqlite> ")
        for sql in (f"SELECT mixtral_chat('Count.', '{ENDLESS}');\n",
                    f"SELECT count(*) FROM mixtral_stream('Count.', '{ENDLESS}');\n"):
            terminal.type(sql)
            terminal.read_until(";\r*\n")
            time.sleep(1 * SLOW)
            begin = time.monotonic()
            terminal.type("\x03")
            terminal.read_until("interrupted")
            self.assertLess(time.monotonic() - begin, INTERRUPT_S + 0.05)
            terminal.read_until("sqlite> ")
        terminal.type("COMMIT;\n")
        terminal.read_until("sqlite> ")
        terminal.type("SELECT x * 6 FROM t;\n")
        terminal.read_until("42")
        terminal.type("SELECT length(mixtral_chat('Hi', '{\"max_tokens\": 2}')) > 0 AS ok;\n")
        terminal.read_until("\n1\r*\n")

    def test_first_row_before_the_last(self):
        script = LOAD + ".mode list\n.separator '' ''\n" + \
            "SELECT piece FROM mixtral_stream('Count.', '{\"max_tokens\": 60, \"ignore_eos\": true}');\n"
        shell = subprocess.Popen(["stdbuf", "-o0", SHELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 env=harness.host_environment())
        shell.stdin.write(script.encode())
        shell.stdin.close()
        times = []
        while shell.stdout.read1(4096):
            times.append(time.monotonic())
        shell.stdout.close()
        shell.wait()
        self.assertGreater(len(times), 20)

    def test_recipes(self):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        for recipe in ("sqlite_rag_fts5.sql", "sqlite_summarise.sql"):
            done = subprocess.run([SHELL, "-bail", os.path.join(folder, recipe + ".db")], cwd=TOP, capture_output=True, text=True,
                                  input=LOAD + f".read sql/{recipe}\n", timeout=300 * SLOW, check=False,
                                  env=harness.host_environment())
            self.assertEqual((done.returncode, done.stderr), (0, ""), recipe)
            self.assertGreater(len(done.stdout), 20)


if __name__ == "__main__":
    harness.main()
