#!/usr/bin/python3
"""The same functions with the engine in another process: every test of functions.py, those of lifecycle.py that do not ask whose
memory a model lies in, and a list of statements whose results and errors must be the very same both ways.

    MX_TEST_CLI   the program whose `serve` is asked (default: build/mixtral)
"""
import atexit
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import unittest

import harness

FILE = harness.MODEL
CLI = os.path.abspath(os.environ.get("MX_TEST_CLI", os.path.join(harness.TOP, "build", "mixtral")))
NAME = os.path.basename(FILE)[:-len(".gguf")]  # as the extension would name it
GREEDY = '{"temperature": 0, "max_tokens": 12, "seed": 1}'
ENDLESS = '{"max_tokens": 4000, "ignore_eos": true}'


class Server:
    """`mixtral serve` at a socket, until the end of this process."""

    def __init__(self, path):
        self.path = path
        self.process = None
        self.start()
        atexit.register(self.stop)

    def start(self):
        self.process = subprocess.Popen([CLI, "serve", "--model", FILE, "--socket", self.path, "--name", NAME],
                                        stderr=subprocess.PIPE, env=self.environment())
        if b"serving" not in self.process.stderr.readline():
            raise RuntimeError("the server has not started")

    @staticmethod
    def environment():
        """Its own sanitizer is linked into the program."""
        return {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "ASAN_OPTIONS")}

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()
        self.process.stderr.close()


if __name__ == "__main__" and (not harness.PRELOAD or os.environ.get("LD_PRELOAD") == harness.PRELOAD):
    FOLDER = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, FOLDER)
    SERVER = Server(os.path.join(FOLDER, "engine.sock"))
    harness.MODEL = "unix:" + SERVER.path

import functions  # pylint: disable=wrong-import-position
import lifecycle  # pylint: disable=wrong-import-position
from functions import About, Chunks, Embedding, Generation, Messages, Options, Sessions, Stream, Tokens  # noqa # pylint: disable=all


class Elsewhere:
    """Instead of a file of its own each test has the server."""

    def setUp(self):
        harness.Suite.setUp(self)
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.file = harness.MODEL


class Sharing(Elsewhere, lifecycle.Sharing):
    test_two_connections_one_engine = None  # counts threads and maps of this process


class Interrupts(Elsewhere, lifecycle.Interrupts):
    pass


class Locks(Elsewhere, lifecycle.Locks):
    pass


class Fork(Elsewhere, lifecycle.Fork):
    pass


class OverSocket(harness.Suite):
    """What only an engine elsewhere can do."""

    def test_open_gives_the_engine_s_name(self):
        self.assertEqual(self.one("SELECT mixtral_open(?)", harness.MODEL), NAME)
        ask = "SELECT mixtral_generate('Hi', json_object('max_tokens', 1, 'model', ?))->>'model'"
        self.assertEqual(self.one(ask, NAME), NAME)
        self.assertEqual(self.one(ask, harness.MODEL), NAME)
        self.assertEqual(self.one("SELECT mixtral_close(?)", NAME), 1)
        self.assertEqual(self.one("SELECT mixtral_close(?)", NAME), 0)
        self.assertTrue(self.one("SELECT mixtral_chat('Hi', ?)", GREEDY))

    def test_closing_closes_the_connection_only(self):
        other = harness.connect()
        text = harness.one(other, "SELECT mixtral_chat('Hi', ?)", GREEDY)
        self.one("SELECT mixtral_open(?)", harness.MODEL)
        self.one("SELECT mixtral_close(?)", harness.MODEL)
        self.assertEqual(harness.one(other, "SELECT mixtral_chat('Hi', ?)", GREEDY), text)
        other.close()

    def test_a_server_that_dies_and_comes_again(self):
        path = os.path.join(FOLDER, "mortal.sock")
        server = Server(path)
        self.addCleanup(atexit.unregister, server.stop)
        self.one("SELECT mixtral_open(?)", "unix:" + path)
        text = self.one("SELECT mixtral_chat('Hi', ?)", GREEDY)
        cursor = self.db.execute("SELECT piece FROM mixtral_stream('Count.', ?)", (ENDLESS,))
        self.assertTrue(cursor.fetchone()[0])
        server.stop(signal.SIGKILL)
        with self.assertRaisesRegex(sqlite3.OperationalError, "connection"):
            cursor.fetchall()
        self.fails("SELECT mixtral_chat('Hi')", "no engine answers at", path)
        server.start()
        self.assertEqual(self.one("SELECT mixtral_chat('Hi', ?)", GREEDY), text)
        cursor = self.db.execute("SELECT piece FROM mixtral_stream('Count.', ?)", (ENDLESS,))
        self.assertTrue(cursor.fetchone()[0])
        server.process.terminate()  # with a time of grace, which a second signal ends
        time.sleep(0.2)
        server.stop()
        with self.assertRaisesRegex(sqlite3.OperationalError, "the engine was closed"):
            cursor.fetchall()

    def test_a_server_that_says_nothing_can_be_interrupted(self):
        import socket    # pylint: disable=import-outside-toplevel
        import threading # pylint: disable=import-outside-toplevel
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.join(FOLDER, "mute.sock"))
            listener.listen()
            timer = threading.Timer(0.3, self.db.interrupt)
            timer.start()
            self.fails("SELECT mixtral_open(?)", "interrupted", values=("unix:" + os.path.join(FOLDER, "mute.sock"),))
            timer.join()


class Same(unittest.TestCase):
    """Statements with the engine here and there: rows or message, type of error, and SQLite's code."""

    LONG = "word " * 20000
    STATEMENTS = [
        ("SELECT mixtral_chat('What is the capital of France?', ?)", GREEDY),
        ("SELECT mixtral_chat('Tell me a story.', '{\"seed\": 7, \"temperature\": 1, \"max_tokens\": 24}')",),
        ("SELECT mixtral_complete('The capital of France is', ?)", GREEDY),
        ("SELECT mixtral_generate('Say yes.', ?)", GREEDY),
        ("SELECT mixtral_generate('Say yes.', '{\"n\": 3, \"seed\": 2, \"max_tokens\": 5, \"logprobs\": true}')",),
        ("SELECT choice, piece FROM mixtral_stream('Name a colour.', '{\"max_tokens\": 6, \"seed\": 1}')",),
        ("SELECT mixtral_chat(json('[{\"role\": \"user\", \"content\": \"Hi\"}]'), ?)", GREEDY),
        ("SELECT mixtral_embed('A cat sleeps.')",),
        ("SELECT mixtral_embed('')",),
        ("SELECT mixtral_tokenize('naïve 中文 🙂')",),
        ("SELECT rowid, id, piece FROM mixtral_tokenize('one two' || char(0) || 'three')",),
        ("SELECT mixtral_detokenize('[1, 2, 300]')",),
        ("SELECT mixtral_token_count(?)", LONG),
        ("SELECT text, start, end, tokens FROM mixtral_chunks('One. Two. Three. Four. Five.', 5, 1)",),
        ("SELECT mixtral_chat(NULL), mixtral_embed(NULL), mixtral_tokenize(NULL)",),
        ("SELECT mixtral_models()",),
        ("SELECT mixtral_stats()",),
        # and what is refused: by the extension, by the engine's options, by its worker, by its scheduler
        ("SELECT mixtral_chat('x', '{\"temprature\": 1}')",),
        ("SELECT mixtral_chat('x', '{\"temperature\": \"hot\"}')",),
        ("SELECT mixtral_chat('x', '{\"top_p\": 2}')",),
        ("SELECT mixtral_chat('x', '{\"max_tokens\": 0}')",),
        ("SELECT mixtral_chat('x', '{\"n\": 99}')",),
        ("SELECT mixtral_chat('x', '{\"template\": \"none such\"}')",),
        ("SELECT mixtral_chat('x', '{\"template\": \"mixtral\", \"max_tokens\": 3, \"temperature\": 0}')",),
        ("SELECT mixtral_chat('x', '{\"logit_bias\": {\"-7\": 1}}')",),
        ("SELECT mixtral_chat('x', '{\"timeout_ms\": 1, \"max_tokens\": 4000, \"ignore_eos\": true}')",),
        ("SELECT mixtral_chat('x', '{\"seed\": 1')",),
        ("SELECT mixtral_chat('x', '[]')",),
        ("SELECT mixtral_chat(json('{}'))",),
        ("SELECT mixtral_chat(json('[{\"role\": \"queen\", \"content\": \"x\"}]'))",),
        ("SELECT mixtral_chat(?)", LONG),
        ("SELECT mixtral_embed(?)", LONG),
        ("SELECT mixtral_detokenize('[1, -5]')",),
        ("SELECT mixtral_detokenize('[99999999]')",),
        ("SELECT mixtral_chunks('x', 0)",),
        ("SELECT mixtral_chunks('x', 10, 10)",),
        ("SELECT mixtral_tokenize(x'41')",),
        ("SELECT * FROM mixtral_stream",),
    ]

    @staticmethod
    def outcome(db, sql, *values):
        try:
            return db.execute(sql, values).fetchall()
        except sqlite3.Error as problem:
            return type(problem).__name__, str(problem), getattr(problem, "sqlite_errorcode", None)

    @staticmethod
    def comparable(outcome):
        """Without times, figures of use, and where the model is."""
        if not isinstance(outcome, list) or not re.match(r'\[?\{"', str(outcome[0][0])):
            return outcome
        text = re.sub(r'"(\w+_ms|cached_tokens)":[0-9.e+-]+', r'"\1":0', outcome[0][0])
        value = json.loads(text.replace(harness.MODEL, "").replace(FILE, ""))
        return sorted(value) if "requests_done" in value else value

    def test_every_statement(self):
        here, there = harness.connect(), harness.connect()
        self.addCleanup(here.close)
        self.addCleanup(there.close)
        names = [harness.one(db, "SELECT mixtral_open(?)", path) for db, path in ((here, FILE), (there, harness.MODEL))]
        self.assertEqual(names, [NAME, NAME])
        refused = 0
        for sql, *values in self.STATEMENTS:
            with self.subTest(sql=sql):
                mine = self.comparable(self.outcome(here, sql, *values))
                self.assertEqual(mine, self.comparable(self.outcome(there, sql, *values)))
                refused += isinstance(mine, tuple)
        self.assertEqual(refused, 21)


if __name__ == "__main__":
    harness.main()
