"""What the suites in Python share: the extension, the model, connections to both, and the report's last line.

    MX_TEST_EXTENSION   the extension (default: build/mixtral.so)
    MX_TEST_MODEL       a chat model (default: where `make model` puts it)
    MX_TEST_PRELOAD     a sanitizer's library: this interpreter knows nothing of it, so it is started again with it
"""
import os
import sqlite3
import sys
import time
import unittest

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
EXTENSION = os.path.abspath(os.environ.get("MX_TEST_EXTENSION", os.path.join(TOP, "build", "mixtral.so")))
MODEL = os.path.abspath(os.environ.get("MX_TEST_MODEL",
                                       os.path.join(CACHE, "mixtral", "SmolLM2-135M-Instruct.Q4_1.gguf")))
PRELOAD = os.environ.get("MX_TEST_PRELOAD", "")
SLOW = 10 if PRELOAD else 1  # how much slower a sanitizer may be
INTERRUPT_S = 0.1 * SLOW     # what an interrupted caller waits at most


def host_environment(**changes):
    """The environment for a host program that was not built with the sanitizer of the extension."""
    env = dict(os.environ, MIXTRAL_MODEL=MODEL, **changes)
    if PRELOAD:
        env["LD_PRELOAD"] = PRELOAD
        env["ASAN_OPTIONS"] = "detect_leaks=0"  # the interpreter's own
        env["TSAN_OPTIONS"] = "die_after_fork=0"
    return env


def connect(path=":memory:", **options):
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, **options)
    db.enable_load_extension(True)
    db.execute("SELECT load_extension(?)", (EXTENSION,))
    return db


def one(db, sql, *values):
    return db.execute(sql, values).fetchone()[0]


def wait_until(condition, seconds=5):
    """True as soon as condition() is."""
    deadline = time.monotonic() + seconds * SLOW
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Suite(unittest.TestCase):
    """Tests that compare messages, too."""

    def setUp(self):
        self.db = connect()
        self.addCleanup(self.db.close)

    def one(self, sql, *values):
        return one(self.db, sql, *values)

    def fails(self, sql, *words, values=(), kind=sqlite3.OperationalError, db=None):
        """The statement fails with a message that has all the words in it."""
        with self.assertRaises(kind) as caught:
            (db or self.db).execute(sql, values).fetchall()
        for word in words:
            self.assertIn(word, str(caught.exception))
        return str(caught.exception)


def main():
    if PRELOAD and os.environ.get("LD_PRELOAD") != PRELOAD:
        os.execve(sys.executable, [sys.executable] + sys.argv, host_environment())
    os.environ["MIXTRAL_MODEL"] = MODEL
    result = unittest.main(exit=False, verbosity=2).result
    failed = len(result.failures) + len(result.errors)
    skipped = len(result.skipped)
    sys.stderr.flush()
    print(f"{result.testsRun - failed - skipped} passed, {failed} failed, {skipped} skipped", flush=True)
    sys.exit(1 if failed else 0)
