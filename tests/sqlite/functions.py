#!/usr/bin/python3
"""Every function, with what it gives and what it refuses, in Debian's Python."""
import array
import json
import math
import os
import sqlite3
import tempfile

import harness
from harness import MODEL, Suite

GREEDY = '{"temperature": 0, "max_tokens": 12}'
FRANCE = "What is the capital of France?"
MESSAGES = json.dumps([{"role": "system", "content": "You are terse."}, {"role": "user", "content": FRANCE}])


class Generation(Suite):
    def test_chat_answers(self):
        self.assertIn("Paris", self.one("SELECT mixtral_chat(?, ?)", FRANCE, GREEDY))

    def test_same_seed_same_text(self):
        ask = "SELECT mixtral_chat('Tell me a story.', '{\"seed\": %d, \"temperature\": 1, \"max_tokens\": 24}')"
        first = self.one(ask % 1)
        self.assertEqual(first, self.one(ask % 1))
        self.assertNotEqual(first, self.one(ask % 2))

    def test_options_may_be_null(self):
        self.assertIsInstance(self.one("SELECT mixtral_token_count('x', NULL)"), int)
        self.assertEqual(self.one("SELECT mixtral_generate('Say yes.', ?)->>'finish_reason'", '{"max_tokens": 1}'), "length")

    def test_complete_has_no_template(self):
        count = self.one("SELECT mixtral_token_count('Once upon a time')")
        text = self.one("SELECT mixtral_complete('The capital of France is', ?)", GREEDY)
        self.assertIn("Paris", text)
        self.assertLess(count, self.one("SELECT mixtral_generate('Once upon a time', ?)->>'prompt_tokens'", GREEDY))

    def test_generate_is_json(self):
        answer = json.loads(self.one("SELECT mixtral_generate(?, ?)", FRANCE, GREEDY))
        self.assertEqual(answer["text"], self.one("SELECT mixtral_chat(?, ?)", FRANCE, GREEDY))
        for key in ("finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens", "first_token_ms", "total_ms",
                    "seed"):
            self.assertIn(key, answer)
        self.assertLessEqual(answer["completion_tokens"], 12)

    def test_max_tokens_is_512_by_default(self):
        sql = "SELECT mixtral_generate('Write without an end.', '{\"ignore_eos\": true, \"temperature\": 0}')"
        answer = json.loads(self.one(sql))
        self.assertEqual((answer["completion_tokens"], answer["finish_reason"]), (512, "length"))

    def test_a_row_for_each_document(self):
        self.db.execute("CREATE TABLE docs(id INTEGER PRIMARY KEY, body)")
        self.db.executemany("INSERT INTO docs(body) VALUES (?)", [(FRANCE,), (None,), ("Say hello.",)])
        rows = self.db.execute("SELECT id, mixtral_chat(body, ?) FROM docs ORDER BY id", (GREEDY,)).fetchall()
        self.assertIn("Paris", rows[0][1])
        self.assertIsNone(rows[1][1])
        self.assertTrue(rows[2][1])

    def test_null_gives_null(self):
        for call in ("chat(NULL)", "complete(NULL)", "generate(NULL)", "embed(NULL)", "tokenize(NULL)", "detokenize(NULL)",
                     "token_count(NULL)", "chunks(NULL, 10)", "chunks('x', NULL)", "chat(NULL, '{')", "open(NULL)",
                     "close(NULL)"):
            self.assertIsNone(self.one(f"SELECT mixtral_{call}"), call)


class Messages(Suite):
    def tokens(self, sql, *values):
        return self.one(f"SELECT mixtral_generate({sql}, '{{\"max_tokens\": 1}}')->>'prompt_tokens'", *values)

    def test_json_is_messages_and_text_is_a_prompt(self):
        self.assertIn("Paris", self.one("SELECT mixtral_chat(json(?), ?)", MESSAGES, GREEDY))
        as_messages, as_text = self.tokens("json(?)", MESSAGES), self.tokens("?", MESSAGES)
        self.assertLess(as_messages, as_text)

    def test_json_made_in_sql(self):
        made = "json_array(json_object('role', 'system', 'content', 'You are terse.'), " \
               "json_object('role', 'user', 'content', ?))"
        self.assertEqual(self.tokens(made, FRANCE), self.tokens("json(?)", MESSAGES))

    def test_a_column_loses_the_subtype_and_json_gives_it_back(self):
        self.db.execute("CREATE TABLE talks(messages)")
        self.db.execute("INSERT INTO talks SELECT json(?)", (MESSAGES,))
        plain = "(SELECT mixtral_generate(%s, '{\"max_tokens\": 1}')->>'prompt_tokens' FROM talks)"
        self.assertEqual(self.one("SELECT " + plain % "messages"), self.tokens("?", self.one("SELECT messages FROM talks")))
        self.assertEqual(self.one("SELECT " + plain % "json(messages)"), self.tokens("json(?)", MESSAGES))

    def test_what_is_no_list_of_messages(self):
        self.fails("SELECT mixtral_chat(json('{\"role\": \"user\"}'))", "array", "an object")
        self.fails("SELECT mixtral_chat('{\"a\": \"text\"}'->'a')", "array", "a string", "->>")
        self.fails("SELECT mixtral_chat(json('[]'))", "messages")
        self.fails("SELECT mixtral_chat(json('[{\"role\": \"queen\", \"content\": \"x\"}]'))", "messages[0].role", "queen")
        self.fails("SELECT mixtral_chat(json('[{\"role\": \"user\"}]'))", "messages[0].content")

    def test_stream_takes_messages(self):
        pieces = self.db.execute("SELECT piece FROM mixtral_stream(json(?), ?)", (MESSAGES, GREEDY)).fetchall()
        self.assertEqual("".join(p for p, in pieces), self.one("SELECT mixtral_chat(json(?), ?)", MESSAGES, GREEDY))


class Stream(Suite):
    def test_pieces_make_the_text(self):
        rows = self.db.execute("SELECT rowid, piece FROM mixtral_stream(?, ?)", (FRANCE, GREEDY)).fetchall()
        self.assertEqual([r[0] for r in rows], list(range(1, len(rows) + 1)))
        self.assertEqual("".join(r[1] for r in rows), self.one("SELECT mixtral_chat(?, ?)", FRANCE, GREEDY))
        self.assertGreater(len(rows), 2)

    def test_one_column(self):
        cursor = self.db.execute("SELECT * FROM mixtral_stream('Hi', ?)", (GREEDY,))
        self.assertEqual([d[0] for d in cursor.description], ["piece"])

    def test_choices(self):
        rows = self.db.execute("SELECT choice, piece FROM mixtral_stream('Name a colour.', "
                               "'{\"n\": 3, \"max_tokens\": 5, \"ignore_eos\": true, \"seed\": 1}')").fetchall()
        self.assertEqual({r[0] for r in rows}, {0, 1, 2})

    def test_in_a_join(self):
        self.db.execute("CREATE TABLE docs(id INTEGER PRIMARY KEY, body)")
        self.db.executemany("INSERT INTO docs(body) VALUES (?)", [(FRANCE,), (None,), ("Say hello.",)])
        sql = "SELECT id, group_concat(piece, '') FROM %s GROUP BY id ORDER BY id"
        for tables in ("docs, mixtral_stream(docs.body, ?)", "mixtral_stream(docs.body, ?), docs",
                       "docs JOIN mixtral_stream ON prompt = body AND options = ?"):
            rows = self.db.execute(sql % tables, (GREEDY,)).fetchall()
            self.assertEqual([r[0] for r in rows], [1, 3], tables)
            self.assertIn("Paris", rows[0][1])

    def test_prompt_is_needed(self):
        self.fails("SELECT * FROM mixtral_stream", "mixtral_stream(prompt | messages [, options])")
        self.fails("SELECT * FROM mixtral_stream WHERE options = '{}'", "mixtral_stream")
        self.fails("SELECT * FROM mixtral_stream('a', '{}', 0, 1)", "too many arguments")

    def test_two_streams_at_a_time(self):
        sql = "SELECT piece FROM mixtral_stream(?, '{\"max_tokens\": 20, \"ignore_eos\": true, \"seed\": 1}')"
        alone = [self.db.execute(sql, (p,)).fetchall() for p in ("One", "Two")]
        cursors = [self.db.execute(sql, (p,)) for p in ("One", "Two")]
        together = [[], []]
        for _ in range(max(map(len, alone))):
            for rows, cursor in zip(together, cursors):
                rows.extend(cursor.fetchmany(1))
        self.assertEqual(together, alone)

    def test_limit_ends_the_generation(self):
        before = json.loads(self.one("SELECT mixtral_stats()"))["completion_tokens"]
        sql = "SELECT piece FROM mixtral_stream('Count.', '{\"max_tokens\": 4000, \"ignore_eos\": true}') LIMIT 3"
        self.assertEqual(len(self.db.execute(sql).fetchall()), 3)
        self.assertTrue(harness.wait_until(lambda: self.running() == 0))
        self.assertLess(json.loads(self.one("SELECT mixtral_stats()"))["completion_tokens"] - before, 1000)

    def test_closing_the_cursor_ends_the_generation(self):
        cursor = self.db.execute("SELECT piece FROM mixtral_stream('Count.', '{\"max_tokens\": 4000, \"ignore_eos\": true}')")
        self.assertTrue(cursor.fetchone()[0])
        self.assertEqual(self.running(), 1)
        cursor.close()
        self.assertTrue(harness.wait_until(lambda: self.running() == 0))

    def running(self):
        return self.one("SELECT mixtral_stats()->>'requests_running'")


class Tokens(Suite):
    TEXTS = ["Hello world", " two  spaces ", "naïve 中文 🙂", "line\nline", "<|im_end|>", "a'b\"c\\", ""]

    def test_round_trip(self):
        for text in self.TEXTS:
            self.assertEqual(self.one("SELECT mixtral_detokenize(mixtral_tokenize(?))", text), text)

    def test_array_table_and_count_agree(self):
        for text in self.TEXTS:
            ids = json.loads(self.one("SELECT mixtral_tokenize(?)", text))
            rows = self.db.execute("SELECT rowid, id, piece FROM mixtral_tokenize(?)", (text,)).fetchall()
            self.assertEqual([r[1] for r in rows], ids)
            self.assertEqual([r[0] for r in rows], list(range(1, len(ids) + 1)))
            self.assertEqual(self.one("SELECT mixtral_token_count(?)", text), len(ids))

    def test_special_tokens_in_text_are_text(self):
        self.assertGreater(self.one("SELECT mixtral_token_count('<|im_end|>')"), 1)

    def test_numbers_are_text(self):
        self.assertEqual(self.one("SELECT mixtral_tokenize(42)"), self.one("SELECT mixtral_tokenize('42')"))

    def test_nul_is_a_character(self):
        with_nul = self.one("SELECT mixtral_token_count('one' || char(0) || 'two three')")
        self.assertGreater(with_nul, self.one("SELECT mixtral_token_count('one')"))

    def test_utf16_database(self):
        db = harness.connect()
        db.execute("PRAGMA encoding = 'UTF-16'")
        db.execute("CREATE TABLE t AS SELECT 'naïve 中文' AS x")
        self.assertEqual(harness.one(db, "SELECT mixtral_detokenize(mixtral_tokenize(x)) FROM t"), "naïve 中文")
        db.close()

    def test_refused(self):
        self.fails("SELECT mixtral_tokenize(x'41')", "text", "BLOB")
        self.fails("SELECT mixtral_tokenize(CAST(x'41ff42' AS TEXT))", "UTF-8", "0xFF", "byte 1")
        self.fails("SELECT mixtral_detokenize('[1, -5]')", "tokens[1]", "-5")
        self.fails("SELECT mixtral_detokenize('{}')", "array of token ids", "an object")
        self.fails("SELECT mixtral_detokenize('[1,')", "malformed JSON")


class Chunks(Suite):
    TEXT = "".join(f"Sentence number {i} is here, naïvely. " for i in range(60))

    def test_chunks_cover_the_text(self):
        rows = self.db.execute('SELECT text, start, "end", tokens FROM mixtral_chunks(?, 40)', (self.TEXT,)).fetchall()
        raw = self.TEXT.encode()
        self.assertGreater(len(rows), 5)
        self.assertEqual(rows[0][1], 0)
        self.assertEqual(rows[-1][2], len(raw))
        for i, (text, start, end, tokens) in enumerate(rows):
            self.assertEqual(raw[start:end].decode(), text)
            self.assertLessEqual(tokens, 40)
            if i > 0:
                self.assertEqual(start, rows[i - 1][2])

    def test_overlap(self):
        rows = self.db.execute("SELECT start, end FROM mixtral_chunks(?, 40, 10)", (self.TEXT,)).fetchall()
        for before, after in zip(rows, rows[1:]):
            self.assertLess(after[0], before[1])
            self.assertGreater(after[0], before[0])

    def test_scalar_agrees(self):
        rows = self.db.execute("SELECT text, start, end, tokens FROM mixtral_chunks(?, 40, 10)", (self.TEXT,)).fetchall()
        listed = json.loads(self.one("SELECT mixtral_chunks(?, 40, 10)", self.TEXT))
        self.assertEqual([(c["text"], c["start"], c["end"], c["tokens"]) for c in listed], rows)

    def test_refused(self):
        self.fails("SELECT mixtral_chunks('x', 'many')", "size", "integer", "many")
        self.fails("SELECT mixtral_chunks('x', 0)", "size")
        self.fails("SELECT mixtral_chunks('x', 10, 10)", "overlap")
        self.fails("SELECT * FROM mixtral_chunks('x')", "mixtral_chunks(text, size [, overlap [, options]])")


class Embedding(Suite):
    def embed(self, text):
        return array.array("f", self.one("SELECT mixtral_embed(?)", text))

    def test_unit_vector(self):
        vector = self.embed("The cat sat on the mat.")
        self.assertEqual(len(vector), json.loads(self.one("SELECT mixtral_models()"))[0]["dim"])
        self.assertAlmostEqual(math.sqrt(sum(x * x for x in vector)), 1, places=4)
        self.assertEqual(vector, self.embed("The cat sat on the mat."))

    def test_near_texts_are_nearer(self):
        def dot(a, b):
            return sum(x * y for x, y in zip(a, b))
        cat, kitten, tax = map(self.embed, ("A cat sleeps on the sofa.", "A kitten is asleep on the couch.",
                                            "Interest rates rose by two percent."))
        self.assertGreater(dot(cat, kitten), dot(cat, tax))


class Options(Suite):
    def test_named_when_refused(self):
        for option, value in (("temprature", 1), ("temperature", "hot"), ("temperature", -1), ("top_p", 2), ("max_tokens", 0),
                              ("seed", -1), ("stop", 5), ("n", 99), ("template", "none such"), ("logit_bias", [1])):
            self.fails("SELECT mixtral_chat('x', json_object(?, json(?)))", option, values=(option, json.dumps(value)))
        self.fails("SELECT mixtral_chat('x', '{\"json_schema\": {}}')", "json_schema")

    def test_malformed(self):
        self.fails("SELECT mixtral_chat('x', '{\"seed\": 1')", "options", "malformed JSON")
        self.fails("SELECT mixtral_chat('x', '[]')", "options", "object", "array")
        self.fails("SELECT mixtral_chat('x', '')", "options", "malformed JSON")
        self.fails("SELECT mixtral_chat('x', '{\"seed\": 1, \"seed\": 2}')", "options", "seed")

    def test_stop(self):
        sql = "SELECT mixtral_complete('1, 2, 3, 4,', '{\"temperature\": 0, \"max_tokens\": 40, \"stop\": \"7\"}')"
        self.assertNotIn("7", self.one(sql))

    def test_a_prompt_that_is_too_long(self):
        message = self.fails("SELECT mixtral_chat(?)", values=("word " * 20000,), kind=sqlite3.DataError)
        self.assertRegex(message, r"\d{4}")


class About(Suite):
    def test_version(self):
        self.assertRegex(self.one("SELECT mixtral_version()"), r"^\d+\.\d+\.\d+$")

    def test_models(self):
        models = json.loads(self.one("SELECT mixtral_models()"))
        self.assertEqual([m["path"] for m in models], [MODEL])
        self.assertEqual(models[0]["name"], self.one("SELECT mixtral_open(?)", MODEL))

    def test_stats(self):
        self.one("SELECT mixtral_chat('x', ?)", GREEDY)
        stats = json.loads(self.one("SELECT mixtral_stats()"))
        self.assertGreater(stats["requests_done"], 0)
        self.assertEqual(stats["requests_running"], 0)

    def test_subtypes(self):
        try:
            self.one("SELECT subtype('x')")
        except sqlite3.OperationalError:
            self.skipTest("this SQLite has no subtype()")
        for call, subtype in (("generate('x', '{\"max_tokens\": 1}')", 74), ("tokenize('x')", 74), ("chunks('x', 5)", 74),
                              ("models()", 74), ("stats()", 74), ("embed('x')", 223)):
            self.assertEqual(self.one(f"SELECT subtype(mixtral_{call})"), subtype, call)

    def test_nothing_but_calls_opens_or_closes(self):
        self.db.execute("CREATE VIEW s AS SELECT mixtral_session_load('x', 'y')")
        self.fails("SELECT * FROM s", "unsafe use of mixtral_session_load")
        self.db.execute("CREATE VIEW w AS SELECT mixtral_session_save('x', 'y', 'z')")
        self.fails("SELECT * FROM w", "unsafe use of mixtral_session_save")
        self.db.execute("CREATE VIEW v AS SELECT mixtral_open('x')")
        self.fails("SELECT * FROM v", "unsafe use of mixtral_open")
        self.db.execute("CREATE TABLE t(x)")
        self.db.execute("CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT mixtral_close(new.x); END")
        self.fails("INSERT INTO t VALUES ('x')", "unsafe use of mixtral_close")


class Sessions(Suite):
    DOCUMENT = "\n".join(f"Line {i} of the contract says that the tenant pays the rent in time." for i in range(30))

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.file, self.key = (os.path.join(folder.name, name) for name in ("contract.session", "session.key"))
        with open(self.key, "wb") as key:
            key.write(os.urandom(32))

    def cached(self, **options):
        options.update(max_tokens=1)
        return self.one("SELECT mixtral_generate(?, ?)->>'cached_tokens'", self.DOCUMENT + "\nWhat?", json.dumps(options))

    def test_a_document_is_read_once(self):
        tokens = self.one("SELECT mixtral_session_save(?, ?, ?, '{\"tenant\": \"saver\"}')", self.file, self.key, self.DOCUMENT)
        self.assertGreater(tokens, 500)
        self.assertEqual(tokens % 32, 0)
        self.assertEqual(os.stat(self.file).st_mode & 0o777, 0o600)
        self.assertEqual(sorted(os.listdir(self.folder)), ["contract.session", "session.key"])
        tenant = os.urandom(8).hex()
        self.assertEqual(self.cached(tenant=tenant), 0)
        other = os.urandom(8).hex()
        self.assertEqual(self.one("SELECT mixtral_session_load(?, ?, ?)", self.file, self.key, json.dumps({"tenant": other})), tokens)
        self.assertGreater(self.cached(tenant=other), tokens - 64)

    def test_messages(self):
        messages = json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": self.DOCUMENT}])
        tokens = self.one("SELECT mixtral_session_save(?, ?, json(?))", self.file, self.key, messages)
        self.assertEqual(self.one("SELECT mixtral_session_load(?, ?)", self.file, self.key), tokens)

    def test_what_fails_leaves_the_old_file(self):
        self.one("SELECT mixtral_session_save(?, ?, ?)", self.file, self.key, self.DOCUMENT)
        with open(self.file, "rb") as file:
            before = file.read()
        save = "SELECT mixtral_session_save(?, ?, ?)"
        self.fails(save, "at least 32 tokens", values=(self.file, self.key, "short"))
        self.fails(save, "key file: expected 32 bytes", values=(self.file, self.file, self.DOCUMENT))
        self.fails(save, "No such file", values=(self.file, self.key + "x", self.DOCUMENT))
        self.fails(save, "No such file", values=("/nowhere/x", self.key, self.DOCUMENT))
        with open(self.file, "rb") as file:
            self.assertEqual(before, file.read())
        self.assertEqual(sorted(os.listdir(self.folder)), ["contract.session", "session.key"])

    def test_what_cannot_be_loaded(self):
        self.one("SELECT mixtral_session_save(?, ?, ?)", self.file, self.key, self.DOCUMENT)
        load = "SELECT mixtral_session_load(?, ?)"
        with open(self.file, "r+b") as file:
            file.seek(5000)
            byte = file.read(1)[0]
            file.seek(5000)
            file.write(bytes([byte ^ 1]))
        self.fails(load, "was changed", values=(self.file, self.key))
        self.fails(load, "it does not begin as one", values=(self.key, self.key))
        self.fails(load, "No such file", values=(self.file + "x", self.key))
        self.fails(load, "expected a regular file", values=(self.folder, self.key))
        self.fails("SELECT mixtral_session_load(?, ?, '{\"max_tokens\": 1}')", "has no use for it", values=(self.file, self.key))
        for nothing in ("SELECT mixtral_session_load(NULL, 'x')", "SELECT mixtral_session_save('x', NULL, 'y')"):
            self.assertIsNone(self.one(nothing))


if __name__ == "__main__":
    harness.main()
