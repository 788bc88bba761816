#!/usr/bin/python3
"""The sqlite3 shell under valgrind, with the extension and a tiny model: no error, and nothing that is definitely lost.

The engine's threads take turns under valgrind, and what the machine's widest instructions do it does not know: the kernels
are those that it runs (AVX2), and the scalar ones.
"""
import os
import re
import shutil
import subprocess
import tempfile
import unittest

import harness
from harness import EXTENSION, TOP

SHELL = shutil.which("sqlite3")
VALGRIND = shutil.which("valgrind")
CLI = os.path.abspath(os.environ.get("MX_TEST_CLI", os.path.join(TOP, "build", "mixtral")))
GEOMETRY = ("--layers 2 --dim 64 --ff 64 --heads 4 --kv-heads 2 --experts 4 --experts-used 2 --vocab-size 600 --context 512 "
            "--type Q8_0").split()


@unittest.skipIf(os.environ.get("SAN"), "sanitizers and valgrind exclude each other")
@unittest.skipUnless(SHELL and VALGRIND, "there is no sqlite3 or valgrind program")
class Valgrind(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        cls.model = os.path.join(cls.folder, "tiny.gguf")
        subprocess.run([CLI, "synth", cls.model, *GEOMETRY], check=True)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def check(self, script, *expected, errors=()):
        """Runs the script; its rows are `expected`, and each of `errors` is in a message of its own, in this order."""
        log = os.path.join(self.folder, "log")
        done = subprocess.run([VALGRIND, "--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite",
                               "--num-callers=30", f"--log-file={log}", SHELL],
                              input=f".load {EXTENSION}\n{script}\n", env=dict(os.environ, MIXTRAL_MODEL=self.model), text=True,
                              cwd=self.folder, capture_output=True, timeout=120, check=False)
        with open(log, encoding="utf-8", errors="replace") as file:
            report = file.read()
        self.assertGreaterEqual(done.returncode, 0, report)
        self.assertEqual(re.findall(r"ERROR SUMMARY: (\d+) errors", report), ["0"], report)
        self.assertNotRegex(report, r"definitely lost: [1-9]")
        self.assertEqual(done.stdout.splitlines(), [str(row) for row in expected], done.stderr)
        messages = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        self.assertEqual(len(messages), len(errors), done.stderr)
        for message, error in zip(messages, errors):
            self.assertIn(error, message)

    def test_answers(self):
        self.check(f"""
            SELECT mixtral_open('{self.model}', '{{"threads": 2}}');
            SELECT mixtral_chat('hello there', '{{"max_tokens": 6, "seed": 1}}')
                 = mixtral_chat('hello there', '{{"max_tokens": 6, "seed": 1}}');
            SELECT json_array_length(mixtral_generate(
                json('[{{"role": "system", "content": "be brief"}}, {{"role": "user", "content": "hi"}}]'),
                '{{"max_tokens": 5, "n": 3, "logprobs": true, "top_logprobs": 3, "stop": ["zz", "q"],
                   "logit_bias": {{"300": -1}}}}'), '$.choices');
            SELECT length(mixtral_complete('abc', '{{"max_tokens": 5, "ignore_eos": true, "temperature": 0}}')) > 0;
            SELECT mixtral_chat(NULL) IS NULL;
            SELECT mixtral_close('{self.model}');""", "tiny", 1, 3, 1, 1, 1)

    def test_streams(self):
        options = '{"max_tokens": 200, "ignore_eos": true}'
        self.check(f"""
            SELECT count(*) FROM (SELECT piece FROM mixtral_stream('abc', '{options}') LIMIT 2);
            SELECT count(*) > 5 FROM mixtral_stream('abc', '{{"max_tokens": 30, "ignore_eos": true, "n": 2}}');
            CREATE TABLE t(x);
            INSERT INTO t VALUES ('a'), ('b'), (NULL);
            SELECT count(*) FROM t, (SELECT 1 FROM mixtral_stream('abc', '{options}') LIMIT 1);
            SELECT (SELECT count(*) FROM (SELECT 1 FROM mixtral_stream(x, '{options}') LIMIT 1)) FROM t;
            SELECT mixtral_close('{self.model}');""", 2, 1, 3, 1, 1, 0, 1)

    def test_tokens_and_vectors(self):
        self.check(f"""
            SELECT length(mixtral_embed('abc'));
            SELECT mixtral_detokenize(mixtral_tokenize('abc d\u00e9f'));
            SELECT count(*) = mixtral_token_count('abc def') FROM mixtral_tokenize('abc def');
            SELECT text FROM mixtral_chunks('ab cd ef', 3, 1) LIMIT 1;
            SELECT json_valid(mixtral_models()) + json_valid(mixtral_stats()) + (mixtral_version() > '');
            SELECT mixtral_close('{self.model}');""", 256, "abc d\u00e9f", 1, "ab c", 3, 1)

    def test_failures(self):
        broken = os.path.join(self.folder, "broken.gguf")
        with open(self.model, "rb") as source, open(broken, "wb") as target:
            target.write(source.read(20000))
        self.check(f"""
            SELECT mixtral_open('{broken}');
            SELECT mixtral_open('nothing.gguf');
            SELECT mixtral_chat('a', '{{"nonsense": 1}}');
            SELECT mixtral_chat('a', '{{"temperature": "hot"}}');
            SELECT mixtral_chat('a', '{{"template": "chatml"}}');
            SELECT mixtral_chat(json('[{{"role": "assistant", "content": "a"}}]'));
            SELECT mixtral_chat('{"long " * 400}');
            SELECT mixtral_detokenize('[99999]');
            SELECT 1 FROM mixtral_stream('a', '{{"max_tokens": -1}}');
            SELECT mixtral_chat('a', '{{"timeout_ms": 1, "max_tokens": 400, "ignore_eos": true}}');
            SELECT 7;""", 7,
                   errors=("broken.gguf", "nothing.gguf", "nonsense", "temperature", "<|im_start|>", "expected role user",
                           "context", "99999", "max_tokens", "longer than its 1 ms"))

    def test_scalar_kernels_and_more_threads(self):
        self.check(f"""
            SELECT mixtral_open('{self.model}', '{{"kernels": "scalar", "threads": 3, "context": 128}}');
            SELECT length(mixtral_chat('hello there', '{{"max_tokens": 4, "ignore_eos": true}}')) > 0;
            SELECT mixtral_close('{self.model}');
            SELECT mixtral_open('{self.model}', '{{"kernels": "scalar", "threads": 1}}');
            SELECT length(mixtral_embed('x'));""", "tiny", 1, 1, "tiny", 256)

    def test_leaving_in_the_middle(self):
        """Threads that run and a request that is not done when the process ends: what they hold is reachable, not lost."""
        self.check("SELECT 1 FROM mixtral_stream('abc', '{\"max_tokens\": 400, \"ignore_eos\": true}') LIMIT 2;\n.exit", 1, 1)


if __name__ == "__main__":
    harness.main()
