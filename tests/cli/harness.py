"""What the suites of the command line share: the program, the model, small models of random weights, the report.

    MX_TEST_CLI       the program (default: build/mixtral)
    MX_TEST_MODEL     a chat model (default: where `make model` puts it)
    MX_TEST_PRELOAD   not empty under a sanitizer: the program is slower then
"""
import os
import subprocess
import sys
import unittest

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mixtral")
CLI = os.path.abspath(os.environ.get("MX_TEST_CLI", os.path.join(TOP, "build", "mixtral")))
MODEL = os.path.abspath(os.environ.get("MX_TEST_MODEL", os.path.join(CACHE, "SmolLM2-135M-Instruct.Q4_1.gguf")))
VOCAB = os.path.join(CACHE, "tokenizer.model.v1")
SLOW = 10 if os.environ.get("MX_TEST_PRELOAD") else 1  # how much slower a sanitizer may be
SECONDS = 60 * SLOW                                     # what a command takes at most
TINY = ("--layers", "1", "--dim", "256", "--ff", "256", "--heads", "4", "--kv-heads", "2", "--experts", "4",
        "--vocab-size", "300", "--context", "512")


def run(*args, stdin=b""):
    """A finished `mixtral args`, with bytes in stdout and stderr."""
    return subprocess.run([CLI, *args], input=stdin, capture_output=True, timeout=SECONDS, check=False)


class Suite(unittest.TestCase):
    """Tests of commands that succeed with nothing on standard error, or fail with one line there and nothing else."""
    longMessage = True

    def succeeds(self, *args, stdin=b""):
        """Standard output, as text."""
        done = run(*args, stdin=stdin)
        self.assertEqual((done.returncode, done.stderr), (0, b""), args)
        return done.stdout.decode()

    def fails(self, *args, words=(), stdin=b""):
        """The message, which has all the words in it."""
        done = run(*args, stdin=stdin)
        message = done.stderr.decode()
        self.assertEqual((done.returncode, done.stdout), (1, b""), (args, message))
        self.assertRegex(message, r"\Amixtral: [^\n]+\n\Z", args)
        for word in words:
            self.assertIn(word, message, args)
        return message


def main():
    result = unittest.main(exit=False, verbosity=2).result
    # Subtests that failed count as the one test that they are of.
    failed = len({getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors})
    skipped = len(result.skipped)
    sys.stderr.flush()
    print(f"{max(0, result.testsRun - failed - skipped)} passed, {failed} failed, {skipped} skipped", flush=True)
    sys.exit(1 if failed else 0)
