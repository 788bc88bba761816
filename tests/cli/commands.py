#!/usr/bin/env python3
"""Every command but chat: what it prints, and how it says what was wrong."""
import array
import json
import math
import os
import subprocess
import tempfile
import unittest

import harness
from harness import CLI, MODEL, TINY, VOCAB

TYPES = ("F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS "
         "IQ3_S IQ4_NL IQ4_XS").split()
N_VOCAB = 300  # of TINY
ENGINE_COMMANDS = {"info": (), "chat": (), "complete": ("x",), "embed": ("x",), "tokenize": ("x",), "bench": ()}


class Commands(harness.Suite):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.tiny = cls.synth("tiny.gguf", "--type", "F16")

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder, name)

    @classmethod
    def synth(cls, name, *options):
        """The path of a new small model."""
        done = harness.run("synth", cls.path(name), *TINY, *options)
        assert done.returncode == 0, done.stderr
        return cls.path(name)

    def write(self, name, content):
        with open(self.path(name), "wb") as file:
            file.write(content)
        return self.path(name)

    def read(self, path):
        with open(path, "rb") as file:
            return file.read()


class Info(Commands):
    def facts(self, path):
        """{first words: rest} of each line."""
        lines = self.succeeds("info", path).splitlines()
        return {line[:15].strip(): " ".join(line[15:].split()) for line in lines}

    def test_dense(self):
        facts = self.facts(MODEL)
        self.assertEqual(facts["experts"], "none (dense)")
        self.assertEqual(facts["geometry"], "30 layers, 576 wide, feed-forward 1536")
        self.assertEqual(facts["tensors"], "272")
        self.assertEqual([facts[t].split()[0] for t in ("F32", "Q4_1", "Q8_0")], ["61", "210", "1"])
        self.assertEqual(facts["template"], "chatml")
        self.assertIn("49152 tokens, gpt2", facts["vocabulary"])

    def check_mixture(self, layout, words, n_tensors):
        facts = self.facts(self.synth(f"{layout}.gguf", "--type", "Q4_K", "--layout", layout))
        self.assertEqual(facts["experts"], "4, 2 used for each token; layout " + words)
        self.assertEqual(facts["tensors"], str(n_tensors + 4))
        self.assertEqual([facts[t].split()[0] for t in ("F32", "F16", "Q4_K")], ["3", "1", str(n_tensors)])

    def test_merged(self):
        self.check_mixture("merged", "merged (ffn_*_exps)", 9)

    def test_one_tensor_per_expert(self):
        self.check_mixture("separate", "separate (ffn_*.E)", 6 + 3 * 4)

    def test_memory(self):
        facts = self.facts(self.tiny)
        weights = 2 * 256 * (2 * N_VOCAB + 256 + 2 * 128 + 256 + 3 * 4 * 256 + 4) + 4 * 256 * 3  # F16, and F32 norms
        self.assertEqual(facts["weights"], f"{weights / 2 ** 20:.1f} MiB")
        of_type = {"f16": 2 * 2 * 2 * 64, "bf16": 2 * 2 * 2 * 64, "q8_0": 2 * 2 * (64 + 2 * 2)}
        for name, token in of_type.items():
            self.assertEqual(facts["kv " + name], f"{token} bytes a token, {token * 512 / 1024:.1f} KiB a context")


class Complete(Commands):
    PROMPT = "Once upon a time"

    def complete(self, *options, tokens=16):
        return self.succeeds("complete", MODEL, self.PROMPT, "--max-tokens", str(tokens), *options)

    def test_json_is_one_line(self):
        text = self.complete("--json", "--temperature", "0")
        result = json.loads(text)
        self.assertEqual(text.count("\n"), 1)
        self.assertEqual((result["finish_reason"], result["completion_tokens"]), ("length", 16))
        self.assertEqual(result["prompt_tokens"], len(self.succeeds("tokenize", MODEL, self.PROMPT).splitlines()))
        self.assertEqual(result["text"] + "\n", self.complete("--temperature", "0"))

    def test_streams(self):
        command = [CLI, "complete", MODEL, self.PROMPT, "--temperature", "0", "--max-tokens", "40"]
        pieces = []
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            while piece := os.read(process.stdout.fileno(), 1 << 16):
                pieces.append(piece)
        self.assertEqual(process.returncode, 0)
        self.assertGreater(len(pieces), 3)
        self.assertEqual(b"".join(pieces).decode(), self.complete("--temperature", "0", tokens=40))

    def test_the_seed_decides(self):
        texts = [self.complete("--temperature", "1", "--seed", seed) for seed in ("5", "5", "6")]
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])

    def test_option(self):
        self.assertEqual(self.complete("--option", "temperature=0"), self.complete("--temperature", "0"))
        result = json.loads(self.complete("--json", "--option", "n=2", "--option", "seed=3"))
        self.assertEqual(len(result["choices"]), 2)

    def test_wrong_options(self):
        for options, words in ((("--option", "colour=1"), ["option colour", "no such option"]),
                               (("--option", "colour"), ["--option", "NAME=VALUE", "colour"]),
                               (("--colour", "1"), ["no option --colour"]),
                               (("--temperature", "hot"), ["temperature", "hot"]),
                               (("--max-tokens", "-1"), ["max_tokens", "-1"]),
                               (("--max-tokens",), ["--max-tokens", "expected a value"]),
                               (("--threads", "2x"), ["--threads", "1 to 256", "2x"]),
                               (("--kv-pool", "0"), ["--kv-pool", "expected a number"]),
                               (("--kernels", "abacus"), ["abacus", "scalar"])):
            with self.subTest(options=options):
                self.fails("complete", MODEL, "x", *options, words=words)

    def test_an_engine_elsewhere(self):
        socket = "unix:" + self.path("nobody.socket")
        self.fails("complete", socket, "x", words=["nobody.socket"])
        self.fails("complete", socket, "x", "--threads", "1", words=["options of an engine", socket])


class Tokens(Commands):
    def ids(self, text, *options):
        return [line.split("\t")[0] for line in self.succeeds("tokenize", MODEL, text, *options).splitlines()]

    def test_tokens_are_ids_and_pieces(self):
        lines = self.succeeds("tokenize", MODEL, "Hello wide world").splitlines()
        self.assertEqual("".join(line.split("\t")[1] for line in lines).replace("\u0120", " "), "Hello wide world")
        self.assertTrue(all(line.split("\t")[0].isdigit() for line in lines))

    def test_special_pieces(self):
        self.assertEqual(len(self.ids("<|im_end|>", "--special")), 1)
        self.assertGreater(len(self.ids("<|im_end|>")), 1)

    def test_bos(self):
        self.assertEqual(self.ids("hello", "--bos")[1:], self.ids("hello"))

    def test_lines(self):
        texts = ["a\nb", "tab\there", "back\\slash", "\r", "", "d\u00e9j\u00e0 vu"]
        escaped = [t.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") for t in texts]
        for end in ("\n", ""):  # the last line's newline may lack
            out = self.succeeds("tokenize", MODEL, "--lines", stdin=("\n".join(escaped) + end).encode())
            self.assertEqual(out.split("\n"), [" ".join(self.ids(t)) for t in texts] + [""])

    def test_lines_with_unknown_escapes(self):
        for line in (b"a\\qb\n", b"end\\\n"):
            self.fails("tokenize", MODEL, "--lines", stdin=line, words=["line 1", "\\n, \\t, \\r or \\\\"])

    def test_embed_is_a_unit_vector(self):
        texts = ("A cat.", "A cat.", "Sums of money")
        cat, same, dog = (json.loads(self.succeeds("embed", MODEL, text)) for text in texts)
        self.assertEqual(len(cat), 576)
        self.assertAlmostEqual(math.fsum(x * x for x in cat), 1, places=5)
        self.assertEqual(cat, same)
        self.assertNotEqual(cat, dog)


class Logits(Commands):
    def setUp(self):
        self.ids = self.write("ids", b"1 2\n3\t299 0 7\n")

    def logits(self, *options):
        out = self.path("logits.out")
        self.assertEqual(self.succeeds("logits", self.tiny, "--tokens", self.ids, "--out", out, *options), "")
        return self.read(out)

    def assert_near(self, one, other):
        one, other = array.array("f", one), array.array("f", other)
        largest = max(map(abs, one))
        self.assertGreater(largest, 0)
        self.assertLess(max(abs(a - b) for a, b in zip(one, other, strict=True)), 0.02 * largest)

    def test_size(self):
        self.assertEqual(len(self.logits()), 4 * 6 * N_VOCAB)

    def test_step_and_kernels_agree(self):
        self.assert_near(self.logits(), self.logits("--step"))
        self.assert_near(self.logits(), self.logits("--kernels", "scalar"))

    def test_threads_change_nothing(self):
        for step in ((), ("--step",)):
            self.assertEqual(self.logits("--threads", "1", *step), self.logits("--threads", "2", *step))

    def test_wrong_ids(self):
        for content, words in ((b"1 300", ["id 300", "vocabulary of 300"]), (b"-1", ["-1 is no token id"]),
                               (b"1 two", ["expected token ids"]), (b"", ["expected token ids"]),
                               (b"1 99999999999", ["99999999999 is no token id"])):
            with self.subTest(content=content):
                wrong, out = self.write("wrong", content), self.path("never")
                self.fails("logits", self.tiny, "--tokens", wrong, "--out", out, words=words)
                self.assertFalse(os.path.exists(out))

    def test_wrong_arguments(self):
        out, tokens = ("--out", self.path("never")), ("--tokens", self.ids)
        for args, words in (((*tokens, *out, "--kernels", "abacus"), ["abacus", "scalar"]),
                            ((*tokens, *out, "--threads", "0"), ["--threads", "1 to 256", "got 0"]),
                            ((*tokens, *out, "--colour", "1"), ["no option --colour"]),
                            ((*tokens, *out, "extra"), ["extra"]),
                            (out, ["usage", "--tokens"]), (tokens, ["usage", "--out"]),
                            (("--tokens", self.path("none"), *out), ["cannot read", "none"]),
                            ((*tokens, "--out", self.path("no/folder")), ["cannot write", "no/folder"])):
            with self.subTest(args=args):
                self.fails("logits", self.tiny, *args, words=words)


class Bench(Commands):
    def test_json(self):
        text = self.succeeds("bench", self.tiny, "--json", "--prompt", "16", "--tokens", "16", "--threads", "1")
        figures = json.loads(text)
        self.assertEqual(text.count("\n"), 1)
        self.assertEqual(sorted(figures), ["bandwidth_share", "decode_tokens_per_s", "prefill_tokens_per_s"])
        self.assertTrue(all(figure > 0 for figure in figures.values()), figures)

    def test_text(self):
        text = self.succeeds("bench", self.tiny, "--prompt", "8", "--tokens", "9", "--threads", "2", "--kernels", "scalar")
        self.assertIn("scalar kernels, 2 threads\n", text)
        self.assertRegex(text, r"\nprefill +[\d.]+ tokens/s  \(8 tokens\)\ndecode +[\d.]+ tokens/s  \(9 tokens,")

    def test_wrong_arguments(self):
        for args, words in ((("--prompt", "0"), ["--prompt", "1 to", "got 0"]),
                            (("--tokens", "1x"), ["--tokens", "1x"]),
                            (("--threads", "257"), ["1 to 256", "257"]), (("--colour", "1"), ["no option --colour"]),
                            (("--kernels", "abacus"), ["abacus", "scalar"]), (("extra",), ["extra"])):
            with self.subTest(args=args):
                self.fails("bench", self.tiny, *args, words=words)
        self.fails("bench", words=["usage"])


class Synth(Commands):
    def test_the_seed_decides(self):
        first, same, other = (self.read(self.synth(f"seed{i}", "--seed", s)) for i, s in enumerate(("7", "7", "8")))
        self.assertEqual(first, same)
        self.assertNotEqual(first, other)

    def check_type(self, kind, layout):
        path = self.synth("type.gguf", "--type", kind, "--layout", layout)
        n_tensors = 9 if layout == "merged" else 18
        found = dict(line.split()[:2] for line in self.succeeds("info", path).splitlines() if line.startswith("  "))
        expected = {"F32": 3, "F16": 1}
        expected[kind] = expected.get(kind, 0) + n_tensors
        self.assertEqual(found, {name: str(n) for name, n in expected.items()})

    def test_every_type_in_both_layouts(self):
        self.assertEqual(len(TYPES), 22)
        for kind in TYPES:
            for layout in ("merged", "separate"):
                with self.subTest(kind=kind, layout=layout):
                    self.check_type(kind, layout)

    @unittest.skipUnless(os.path.exists(VOCAB), "run tests/fetch.sh mixtral-vocab")
    def test_vocabulary(self):
        path = self.synth("vocab.gguf", "--vocab", VOCAB, "--vocab-size", "32000", "--type", "Q4_0")
        self.assertIn("32000 tokens, llama", self.succeeds("info", path))
        self.fails("synth", self.path("never"), *TINY, "--vocab", VOCAB, words=["expected 32000", "got 300"])
        self.assertEqual(self.succeeds("tokenize", path, "hello", "--bos"), "1\t<s>\n6312\t\u2581hell\n28709\to\n")

    def test_tied(self):
        self.assertIn("one matrix", self.succeeds("info", self.synth("tied.gguf", "--tied")))

    def test_wrong_arguments(self):
        out = self.path("never")
        for args, words in (((), ["expected the file to write"]),
                            ((out, "--layers", "x"), ["--layers", "1 to 2^30", '"x"']),
                            ((out, "--layers", "0"), ["--layers", '"0"']),
                            ((out, "--type", "Q9"), ["--type", "Q4_K", '"Q9"']),
                            ((out, "--layout", "flat"), ["merged, separate or dense", '"flat"']),
                            ((out, "--seed", "-1"), ["--seed", '"-1"']),
                            ((out, "--rope-base", "1x"), ["--rope-base", '"1x"']),
                            ((out, "--colour", "1"), ["no option --colour"]), ((out, "--seed"), ["--seed", "a value"]),
                            ((out, "extra"), ["one file", "extra"]), ((out, "--vocab", self.path("none")), ["none"]),
                            ((self.path("no/folder"), *TINY), ["folder"])):
            with self.subTest(args=args):
                self.fails("synth", *args, words=words)
                self.assertFalse(os.path.exists(out))


class Program(Commands):
    def test_help(self):
        text = self.succeeds("help")
        for command in (*ENGINE_COMMANDS, "logits", "synth", "version"):
            self.assertRegex(text, rf"(?m)^  {command} ")
        self.assertEqual(text, self.succeeds("--help"))
        self.assertEqual(text, self.succeeds())

    def test_version(self):
        self.assertRegex(self.succeeds("version"), r"\Amixtral \d+\.\d+\.\d+\n\Z")
        self.assertEqual(self.succeeds("version"), self.succeeds("--version"))

    def test_lost_output_is_a_failure(self):
        for command in (["version"], ["help"], ["info", self.tiny], ["complete", self.tiny, "a", "--max-tokens", "2"]):
            with open("/dev/full", "wb") as full:
                done = subprocess.run([harness.CLI, *command], stdout=full, stderr=subprocess.PIPE, check=False)
            self.assertEqual((done.returncode, b"standard output" in done.stderr), (1, True), command)

    def test_errors_are_one_line(self):
        self.fails("a\nb", words=("a?b",))
        self.fails("synth", self.path("x"), "--type", "a\nb", words=("a?b",))
        self.fails("complete", self.tiny, b"\xff", words=("UTF-8",))

    def test_unknown_command(self):
        self.fails("dance", words=["no command dance", "mixtral help"])

    def test_missing_and_extra_arguments(self):
        for command, rest in ENGINE_COMMANDS.items():
            with self.subTest(command=command):
                self.assertRegex(self.fails(command), "expected|usage")
                if rest:
                    self.assertRegex(self.fails(command, MODEL), "expected|usage")
                self.assertRegex(self.fails(command, MODEL, *rest, "extra"), "expected|usage|extra")

    def every_command_fails(self, path, *words):
        for command, rest in ENGINE_COMMANDS.items():
            with self.subTest(command=command, path=path):
                self.fails(command, path, *rest, words=words)
        ids = self.write("ids", b"1")
        self.fails("logits", path, "--tokens", ids, "--out", self.path("never"), words=words)

    def test_missing_file(self):
        self.every_command_fails(self.path("none.gguf"), "none.gguf", "No such file")

    def test_directory(self):
        self.every_command_fails(self.folder, "expected a regular file", "directory")

    def test_no_gguf(self):
        self.every_command_fails(self.write("text", b"It was a dark and stormy night."), "expected", "GGUF")

    def test_truncated_file(self):
        whole = self.read(self.tiny)
        for bytes_left in (0, 3, 10, 24, 200, 5000, len(whole) // 2, len(whole) - 64):
            with self.subTest(bytes_left=bytes_left):
                self.fails("info", self.write("cut.gguf", whole[:bytes_left]), words=["cut.gguf"])
        self.every_command_fails(self.path("cut.gguf"), "cut.gguf")

    def test_corrupt_header(self):
        whole = self.read(self.tiny)
        for name, at in (("version", 4), ("number of tensors", 8), ("number of keys", 16), ("a key's length", 24)):
            with self.subTest(name):
                bad = self.write("bad.gguf", whole[:at] + b"\xff" * 4 + whole[at + 4:])
                self.fails("info", bad, words=["bad.gguf"])


if __name__ == "__main__":
    harness.main()
