#!/usr/bin/python3
"""Engines and connections: who shares what, for how long, and what happens when it goes away."""
import json
import os
import shutil
import sqlite3
import tempfile
import threading
import time
import unittest

import harness
from harness import EXTENSION, INTERRUPT_S, MODEL, PRELOAD, Suite, connect, one

ENDLESS = '{"max_tokens": 4000, "ignore_eos": true}'
SHORT = '{"temperature": 0, "max_tokens": 8}'


def threads():
    return len(os.listdir("/proc/self/task"))


def rss_mb():
    with open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024


def mapped(path):
    """How often a file is mapped into this process."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return sum(path in line for line in maps)


class Files(Suite):
    """Each test has model files of its own, so that no engine of another test is in the way."""

    def setUp(self):
        super().setUp()
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.file = self.copy("a.gguf")

    def copy(self, name):
        path = os.path.join(self.folder, name)
        shutil.copy(MODEL, path)
        self.addCleanup(self.close_engine, path)
        return path

    @staticmethod
    def head(size):
        with open(MODEL, "rb") as file:
            return file.read(size)

    @staticmethod
    def close_engine(path):
        db = connect()
        one(db, "SELECT mixtral_close(?)", path)
        db.close()


class Opening(Files):
    def test_name_is_the_file_s_or_the_option_s(self):
        self.assertEqual(self.one("SELECT mixtral_open(?)", self.file), "a")
        other = self.copy("b.gguf")
        self.assertEqual(self.one("SELECT mixtral_open(?, '{\"name\": \"bee\"}')", other), "bee")

    def test_the_last_one_opened_answers_unless_named(self):
        self.one("SELECT mixtral_open(?)", self.file)
        self.one("SELECT mixtral_open(?)", self.copy("b.gguf"))
        ask = "SELECT mixtral_generate('Hi', '{\"max_tokens\": 1%s}')->>'model'"
        self.assertEqual(self.one(ask % ""), "b")
        self.assertEqual(self.one(ask % ', "model": "a"'), "a")
        self.assertEqual(self.one(ask % f', "model": "{self.file}"'), "a")
        self.assertEqual([m["name"] for m in json.loads(self.one("SELECT mixtral_models()"))], ["b", "a"])
        self.fails(ask % ', "model": "c"', "'c'", "b, a")
        self.one("SELECT mixtral_open(?)", self.file)
        self.assertEqual(self.one(ask % ""), "a")

    def test_options(self):
        self.one("SELECT mixtral_open(?, ?)", self.file,
                 '{"threads": 1, "context": 512, "kv_pool": "64M", "max_queue": 8, "stall_timeout_ms": 5000, '
                 '"kv_type": "q8_0", "kernels": "scalar", "name": "small", "keep_s": 1.5}')
        self.assertEqual(json.loads(self.one("SELECT mixtral_models()"))[0]["context"], 512)
        self.fails("SELECT mixtral_chat(?)", "512", values=("word " * 1000,), kind=sqlite3.DataError)

    def test_options_that_are_wrong(self):
        for options, words in (('{"thread": 1}', ["thread", "threads"]), ('{"threads": "two"}', ["threads", "two"]),
                               ('{"threads": -1}', ["threads", "-1"]), ('{"threads": 100000}', ["threads", "100000"]),
                               ('{"kv_pool": "5 bananas"}', ["kv_pool", "bananas"]),
                               ('{"kv_pool": "99999999999G"}', ["kv_pool"]), ('{"keep_s": -1}', ["keep_s", "-1"]),
                               ('{"kv_type": "q4_0"}', ["kv_type", "q8_0", "q4_0"]),
                               ('{"kernels": "abacus"}', ["kernels", "abacus"]), ('{"name": ""}', ["name"]),
                               ('{"threads"', ["malformed JSON"]), ("[]", ["object", "array"])):
            self.fails("SELECT mixtral_open(?, ?)", "mixtral_open", *words, values=(self.file, options))
        self.assertEqual(self.one("SELECT mixtral_open(?)", self.file), "a")

    def test_other_options_for_an_open_file(self):
        self.one("SELECT mixtral_open(?, '{\"threads\": 1, \"kv_pool\": \"64M\"}')", self.file)
        self.one("SELECT mixtral_open(?, '{\"kv_pool\": 67108864}')", self.file)
        other = connect()
        self.assertEqual(one(other, "SELECT mixtral_open(?)", self.file), "a")
        self.fails("SELECT mixtral_open(?, '{\"threads\": 2}')", '"threads":1', '"threads":2', values=(self.file,), db=other)
        other.close()

    def test_the_same_file_by_another_path(self):
        self.one("SELECT mixtral_open(?, '{\"threads\": 1}')", self.file)
        link = os.path.join(self.folder, "link.gguf")
        os.symlink(self.file, link)
        self.fails("SELECT mixtral_open(?, '{\"threads\": 2}')", '"threads":1', values=(link,))

    def test_relative_paths_outlive_a_change_of_folder(self):
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.folder)
        self.one("SELECT mixtral_open('a.gguf')")
        os.chdir(before)
        self.close_engine(self.file)
        self.assertTrue(self.one("SELECT mixtral_chat('Hi', ?)", SHORT))

    def test_bad_files(self):
        self.fails("SELECT mixtral_open('/no/such/file.gguf')", "/no/such/file.gguf", "No such file")
        self.fails("SELECT mixtral_open(?)", "mixtral_open", values=(self.folder,))
        self.fails("SELECT mixtral_open('')", "path")
        for name, content in (("empty", b""), ("text", b"hello, I am no model"), ("short", b"GGUF\x03\0\0\0"),
                              ("cut", self.head(1 << 20))):
            path = os.path.join(self.folder, name + ".gguf")
            with open(path, "wb") as file:
                file.write(content)
            self.fails("SELECT mixtral_open(?)", "mixtral_open: ", values=(path,))
        self.assertEqual(self.one("SELECT mixtral_open(?)", self.file), "a")

    def test_no_engine_at_a_socket(self):
        self.fails("SELECT mixtral_open('unix:/no/such/socket')", "/no/such/socket")
        self.fails("SELECT mixtral_open('unix:/no/such/socket', '{\"threads\": 1}')", "options")


class DefaultModel(Files):
    def with_environment(self, **changes):
        before = dict(os.environ)
        self.addCleanup(lambda: (os.environ.clear(), os.environ.update(before)))
        for name, value in changes.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def test_nothing_is_said_to_be_missing_before_it_is_used(self):
        self.with_environment(MIXTRAL_MODEL=None, XDG_CACHE_HOME=self.folder)
        db = connect()
        message = self.fails("SELECT mixtral_chat('Hi')", db=db)
        for way in ("mixtral_open", "MIXTRAL_MODEL", "make model"):
            self.assertIn(way, message)
        self.assertEqual(one(db, "SELECT mixtral_open(?)", self.file), "a")
        self.assertTrue(one(db, "SELECT mixtral_chat('Hi', ?)", SHORT))
        db.close()

    def test_variable(self):
        self.with_environment(MIXTRAL_MODEL=self.file)
        self.assertEqual(self.one("SELECT mixtral_models()->0->>'path'"), self.file)

    def test_variable_that_is_wrong(self):
        self.with_environment(MIXTRAL_MODEL="/no/such/model.gguf")
        self.fails("SELECT mixtral_chat('Hi')", "MIXTRAL_MODEL", "/no/such/model.gguf")

    def test_cache(self):
        os.mkdir(os.path.join(self.folder, "mixtral"))
        path = os.path.join(self.folder, "mixtral", "SmolLM2-135M-Instruct.Q4_1.gguf")
        os.rename(self.file, path)
        self.addCleanup(self.close_engine, path)
        self.with_environment(MIXTRAL_MODEL=None, XDG_CACHE_HOME=self.folder)
        self.assertEqual(self.one("SELECT mixtral_models()->0->>'path'"), path)


class Sharing(Files):
    def test_two_connections_one_engine(self):
        self.one("SELECT mixtral_open(?)", self.file)
        self.one("SELECT mixtral_chat('Hi', ?)", SHORT)
        memory, count, maps = rss_mb(), threads(), mapped(self.file)
        self.assertGreater(maps, 0)
        other = connect()
        one(other, "SELECT mixtral_open(?)", self.file)
        one(other, "SELECT mixtral_chat('Hi', ?)", SHORT)
        self.assertEqual((threads(), mapped(self.file)), (count, maps))
        self.assertLess(rss_mb() - memory, 20 * harness.SLOW)
        done = "SELECT mixtral_stats()->>'requests_done'"
        self.assertGreaterEqual(one(other, done), 2)
        other.close()

    def test_threads_with_connections_of_their_own(self):
        sql = "SELECT mixtral_chat(?, '{\"temperature\": 1, \"max_tokens\": 16, \"seed\": 5}')"
        prompts = [f"Tell me about the number {i}." for i in range(4)]
        self.one("SELECT mixtral_open(?)", self.file)
        alone = [self.one(sql, p) for p in prompts]
        together = [None] * len(prompts)

        def work(i):
            db = connect()
            one(db, "SELECT mixtral_open(?)", self.file)
            together[i] = one(db, sql, prompts[i])
            db.close()

        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.assertEqual(together, alone)

    def test_one_connection_on_two_threads(self):
        self.one("SELECT mixtral_open(?)", self.file)
        answers = []
        worker = threading.Thread(target=lambda: answers.append(self.one("SELECT mixtral_chat('Hi', ?)", SHORT)))
        worker.start()
        answers.append(self.one("SELECT mixtral_chat('Hi', ?)", SHORT))
        worker.join()
        self.assertEqual(answers[0], answers[1])

    def test_loaded_twice(self):
        self.one("SELECT mixtral_open(?)", self.file)
        self.db.load_extension(EXTENSION)
        self.assertTrue(self.one("SELECT mixtral_chat('Hi', ?)", SHORT))


class Closing(Files):
    def gone(self):
        return mapped(self.file) == 0

    def test_an_engine_outlives_its_last_connection_by_keep_s(self):
        db = connect()
        one(db, "SELECT mixtral_open(?, '{\"keep_s\": 1}')", self.file)
        db.close()
        time.sleep(0.3)
        self.assertFalse(self.gone())
        db = connect()
        one(db, "SELECT mixtral_open(?)", self.file)
        time.sleep(1.5)
        self.assertFalse(self.gone())
        db.close()
        self.assertTrue(harness.wait_until(self.gone, 5))

    def test_kept_for_no_time(self):
        db = connect()
        one(db, "SELECT mixtral_open(?, '{\"keep_s\": 0}')", self.file)
        db.close()
        self.assertTrue(harness.wait_until(self.gone, 5))

    def test_close_frees_now(self):
        count = threads()
        self.one("SELECT mixtral_open(?)", self.file)
        self.one("SELECT mixtral_chat('Hi', ?)", SHORT)
        self.assertGreater(threads(), count)
        self.assertEqual(self.one("SELECT mixtral_close(?)", self.file), 1)
        self.assertTrue(self.gone())
        self.assertTrue(harness.wait_until(lambda: threads() <= count))
        self.assertEqual(self.one("SELECT mixtral_close(?)", self.file), 0)
        self.one("SELECT mixtral_open(?, '{\"threads\": 1}')", self.file)
        self.assertEqual(self.one("SELECT mixtral_close('a')"), 1)

    def test_others_find_their_model_again(self):
        self.one("SELECT mixtral_open(?)", self.file)
        before = self.one("SELECT mixtral_chat('Hi', ?)", SHORT)
        other = connect()
        self.assertEqual(one(other, "SELECT mixtral_close(?)", self.file), 1)
        other.close()
        self.assertTrue(self.gone())
        self.assertEqual(self.one("SELECT mixtral_chat('Hi', ?)", SHORT), before)

    def test_a_running_request_ends_with_an_error(self):
        self.one("SELECT mixtral_open(?)", self.file)
        cursor = self.db.execute("SELECT piece FROM mixtral_stream('Count.', ?)", (ENDLESS,))
        cursor.fetchone()
        other = connect()
        one(other, "SELECT mixtral_close(?)", self.file)
        other.close()
        with self.assertRaises(sqlite3.OperationalError):
            cursor.fetchall()
        self.assertTrue(self.one("SELECT mixtral_chat('Hi', ?)", SHORT))

    def test_a_file_replaced_by_rename(self):
        self.one("SELECT mixtral_open(?, '{\"threads\": 1}')", self.file)
        os.rename(self.copy("new.gguf"), self.file)
        self.one("SELECT mixtral_open(?, '{\"threads\": 2}')", self.file)
        self.assertEqual(len(json.loads(self.one("SELECT mixtral_models()"))), 1)
        self.assertTrue(self.one("SELECT mixtral_chat('Hi', ?)", SHORT))


class Locks(Files):
    """Why the recipes generate into a temporary table."""

    def blocked_while(self, sql):
        """Whether another connection cannot write while the statement runs."""
        path = os.path.join(self.folder, "locks.db")
        db, other = connect(path), connect(path, timeout=0)
        one(db, "SELECT mixtral_open(?)", self.file)
        db.executescript("DROP TABLE IF EXISTS docs; CREATE TABLE docs(body, summary);"
                         "INSERT INTO docs(body) VALUES ('One.'), ('Two.');"
                         "CREATE TEMP TABLE work AS SELECT * FROM docs;")
        worker = threading.Thread(target=db.execute, args=(sql, ('{"max_tokens": 60, "ignore_eos": true}',)))
        worker.start()
        running = "SELECT mixtral_stats()->>'requests_running'"
        one(other, "SELECT mixtral_open(?)", self.file)
        self.assertTrue(harness.wait_until(lambda: one(other, running) > 0))
        try:
            other.execute("INSERT INTO docs(body) VALUES ('Three.')")
            return False
        except sqlite3.OperationalError as problem:
            self.assertIn("locked", str(problem))
            return True
        finally:
            worker.join()
            other.close()
            db.close()

    def test_temporary_table(self):
        self.assertTrue(self.blocked_while("UPDATE docs SET summary = mixtral_chat(body, ?)"))
        self.assertFalse(self.blocked_while("UPDATE temp.work SET summary = mixtral_chat(body, ?)"))


class Interrupts(Files):
    def interrupted_after(self, sql, *values, seconds=0.3):
        """Interrupts a statement, and returns how long it took to come back."""
        at = []

        def interrupt():
            at.append(time.monotonic())
            self.db.interrupt()

        timer = threading.Timer(seconds, interrupt)
        timer.start()
        message = self.fails(sql, values=values)
        end = time.monotonic()
        timer.join()
        self.assertIn("interrupted", message)
        return end - at[0]

    def test_within_a_transaction(self):
        self.one("SELECT mixtral_open(?)", self.file)
        self.db.execute("CREATE TABLE t(x)")
        self.db.execute("BEGIN")
        self.db.execute("INSERT INTO t VALUES (1)")
        for sql in ("SELECT mixtral_chat('Count.', ?)", "SELECT count(*) FROM mixtral_stream('Count.', ?)"):
            self.assertLess(self.interrupted_after(sql, ENDLESS), INTERRUPT_S)
            self.assertTrue(self.db.in_transaction)
            self.assertTrue(self.one("SELECT mixtral_chat('Hi', ?)", SHORT))
        self.db.execute("INSERT INTO t VALUES (2)")
        self.db.execute("COMMIT")
        self.assertEqual(self.one("SELECT sum(x) FROM t"), 3)
        self.assertTrue(harness.wait_until(lambda: self.one("SELECT mixtral_stats()->>'requests_running'") == 0))

    def test_while_a_long_prompt_is_read(self):
        self.one("SELECT mixtral_open(?)", self.file)
        self.assertLess(self.interrupted_after("SELECT mixtral_embed(?)", "A word and another. " * 1500), INTERRUPT_S)
        self.assertLess(self.interrupted_after("SELECT mixtral_chat(?)", "A word and another. " * 1500), INTERRUPT_S)
        self.assertTrue(self.one("SELECT mixtral_token_count('Hi')"))


@unittest.skipIf("tsan" in PRELOAD, "ThreadSanitizer does not follow a fork of a process with threads")
class Fork(Files):
    def in_child(self, work):
        """Whether work() is true in a child."""
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if work() else 1)
            except BaseException as problem:  # pylint: disable=broad-except
                os.write(2, f"child: {problem!r}\n".encode())
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def test_parent_and_child_go_on(self):
        sql = "SELECT mixtral_chat('Hi', ?)"
        self.one("SELECT mixtral_open(?)", self.file)
        text = self.one(sql, SHORT)
        self.assertTrue(self.in_child(lambda: self.one(sql, SHORT) == text))
        self.assertEqual(self.one(sql, SHORT), text)

    def test_child_of_a_child_and_a_new_connection(self):
        self.one("SELECT mixtral_open(?)", self.file)
        text = self.one("SELECT mixtral_chat('Hi', ?)", SHORT)

        def grandchild():
            db = connect()
            one(db, "SELECT mixtral_open(?)", self.file)
            return one(db, "SELECT mixtral_chat('Hi', ?)", SHORT) == text

        self.assertTrue(self.in_child(lambda: self.in_child(grandchild) and grandchild()))

    def test_a_stream_stays_with_the_parent(self):
        self.one("SELECT mixtral_open(?)", self.file)
        cursor = self.db.execute("SELECT piece FROM mixtral_stream('Count.', '{\"max_tokens\": 20, \"ignore_eos\": true}')")
        first = cursor.fetchone()[0]

        def child():
            try:
                cursor.fetchall()
            except sqlite3.OperationalError as problem:
                return "forked" in str(problem)
            return False

        self.assertTrue(self.in_child(child))
        self.assertTrue(first + "".join(p for p, in cursor.fetchall()))

    def test_fork_before_the_first_use(self):
        self.assertTrue(self.in_child(lambda: bool(self.one("SELECT mixtral_chat('Hi', ?)", SHORT))))
        self.assertTrue(self.one("SELECT mixtral_chat('Hi', ?)", SHORT))


if __name__ == "__main__":
    harness.main()
