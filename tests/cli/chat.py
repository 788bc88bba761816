#!/usr/bin/env python3
"""`mixtral chat`, as a user has it: on a terminal, with Ctrl-C and Ctrl-D; and from a pipe."""
import os
import pty
import re
import select
import time

import harness
from harness import CLI, MODEL, SLOW

PROMPT = r"\r\n> \Z"  # at the end of what came: the program waits
ENDLESS = ("--max-tokens", "4000", "--option", "ignore_eos=true")
CTRL_C, CTRL_D = "\x03", "\x04"
CALM = ("--temperature", "0", "--max-tokens", "24")


class Terminal:
    """`mixtral chat` on a terminal of its own."""

    def __init__(self, *options):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(CLI, [CLI, "chat", MODEL, *options])
        self.seen = ""
        self.reads = 0

    def read_until(self, pattern, seconds=30):
        """What came up to the pattern; it is consumed."""
        deadline = time.monotonic() + seconds * SLOW
        while not (found := re.search(pattern, self.seen)):
            if not select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            self.seen += os.read(self.fd, 4096).decode("utf-8", "replace")
            self.reads += 1
        before, self.seen = self.seen[:found.end()], self.seen[found.end():]
        return before

    def type(self, text):
        os.write(self.fd, text.encode())

    def ask(self, question):
        """The answer, without the question's echo."""
        self.type(question + "\n")
        self.read_until(re.escape(question) + "\r\n")
        return self.read_until(PROMPT)

    def exit_status(self):
        """None if it does not end; below 0: the signal that it died of."""
        deadline = time.monotonic() + 10 * SLOW
        while time.monotonic() < deadline:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return None

    def close(self):
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


class OnATerminal(harness.Suite):
    def open(self, *options):
        terminal = Terminal(*options)
        self.addCleanup(terminal.close)
        terminal.read_until(r"\A> \Z")
        return terminal

    def end(self, terminal):
        terminal.type(CTRL_D)
        self.assertEqual(terminal.exit_status(), 0)

    def test_answers_stream(self):
        terminal = self.open("--temperature", "0", "--max-tokens", "40", "--option", "ignore_eos=true")
        before = terminal.reads
        terminal.ask("Tell me a story.")
        self.assertGreater(terminal.reads - before, 8)
        self.end(terminal)

    def test_the_conversation_is_kept(self):
        terminal = self.open(*CALM)
        terminal.ask("My name is Bob.")
        self.assertIn("Bob", terminal.ask("What is my name?"))
        self.end(terminal)

    def test_ctrl_c_stops_an_answer(self):
        terminal = self.open("--temperature", "0", *ENDLESS)
        for question in ("Count from one.", "Tell me a story."):
            terminal.type(question + "\n")
            terminal.read_until(re.escape(question) + r"\r\n[^>]*\w{3,} ")
            terminal.type(CTRL_C)
            begin = time.monotonic()
            terminal.read_until(PROMPT)
            self.assertLess(time.monotonic() - begin, 5 * SLOW)
        self.end(terminal)

    def test_what_was_said_before_ctrl_c_stays(self):
        small = ("--context", "256", "--temperature", "0", "--max-tokens", "200")
        too_long = "word " * 250 + "."
        terminal = self.open(*small)
        alone = int(re.search(r"(\d+) tokens", terminal.ask(too_long)).group(1))
        terminal.type("My name is Bob. Tell me a story.\n")
        terminal.read_until(r"story\.\r\n[^>]*\w{3,} ")
        terminal.type(CTRL_C)
        terminal.read_until(PROMPT)
        together = int(re.search(r"(\d+) tokens", terminal.ask(too_long)).group(1))
        self.assertGreater(together, alone + 10)  # the question, and what there is of the answer
        self.end(terminal)

    def test_ctrl_c_clears_a_line(self):
        terminal = self.open(*CALM)
        terminal.type("My name is Bob. ")
        terminal.read_until("Bob. ")
        terminal.type(CTRL_C)
        terminal.read_until(PROMPT)
        self.assertNotIn("Bob", terminal.ask("What is my name?"))
        self.end(terminal)

    def test_an_error_is_not_the_end(self):
        terminal = self.open("--context", "64", *CALM)
        self.assertIn("mixtral: ", terminal.ask("word " * 100 + "."))
        self.assertNotIn("mixtral: ", terminal.ask("Hello."))
        self.end(terminal)

    def test_ctrl_d_at_once(self):
        self.end(self.open())


class FromAPipe(harness.Suite):
    def test_a_message_a_line(self):
        answers = self.succeeds("chat", MODEL, *CALM, stdin=b"My name is Bob.\n\nWhat is my name?")
        self.assertIn("Bob", answers.splitlines()[-1])
        self.assertNotIn("> ", answers)
        self.assertNotIn("Bob", self.succeeds("chat", MODEL, *CALM, stdin=b"What is my name?\n"))

    def test_nothing_to_say(self):
        self.assertEqual(self.succeeds("chat", MODEL), "")

    def test_system(self):
        args = ("chat", MODEL, *CALM)
        told = self.succeeds(*args, "--system", "Your name is Ada.", stdin=b"What is your name?\n")
        self.assertNotEqual(told, self.succeeds(*args, stdin=b"What is your name?\n"))

    def test_an_error_is_the_end(self):
        self.fails("chat", MODEL, stdin=b"\xff\xfe\nHello.\n", words=["UTF-8"])

    def test_wrong_options(self):
        self.fails("chat", MODEL, "--json", words=["--json"])
        self.fails("chat", MODEL, "--option", "n=2", words=["option n"])


if __name__ == "__main__":
    harness.main()
