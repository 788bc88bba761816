#!/usr/bin/env python3
"""Texts and their ids in the vocabularies of Mixtral (SentencePiece) and SmolLM2 (byte-level BPE), as llama.cpp has them."""
import os

import harness


class Tokenizer(harness.Suite):
    def check(self, model, name):
        with open(os.path.join(harness.HERE, "tokenizer", name), "rb") as file:
            lines = file.read().split(b"\n")
        texts, expected = lines[0:-1:2], [line.decode() for line in lines[1:-1:2]]
        got = harness.run("tokenize", model, "--lines", input=b"\n".join(texts) + b"\n").decode().splitlines()
        self.assertGreater(len(texts), 100)
        self.assertEqual(len(got), len(texts))
        for text, ids, right in zip(texts, got, expected):
            self.assertEqual(ids.replace(",", " ").split(), right.replace(",", " ").split(), text)

    def test_mixtral(self):
        self.check(harness.MIXTRAL_VOCAB, "mixtral-spm.txt")

    def test_smollm2(self):
        self.check(harness.MODEL, "smollm-bpe.txt")


harness.main()
