"""What the golden suites share: the program, its logits, the measures of error, and the report's last line.

numpy and gguf come from build/python, where tests/run has put them (PYTHONPATH).
"""
import os
import re
import subprocess
import sys
import tempfile
import unittest

import numpy as np

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(TOP, os.environ.get("BUILD", "build"))
CLI = os.path.abspath(os.environ.get("MX_TEST_CLI", os.path.join(BUILD, "mixtral")))
CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
MODEL = os.environ.get("MX_TEST_MODEL", os.path.join(CACHE, "mixtral", "SmolLM2-135M-Instruct.Q4_1.gguf"))
MIXTRAL_VOCAB = os.environ.get("MX_TEST_MIXTRAL_VOCAB", os.path.join(BUILD, "tests", "mixtral-vocab.gguf"))
SANITIZED = bool(os.environ.get("SAN"))


def run(*arguments, **more):
    return subprocess.run([CLI, *map(str, arguments)], check=True, stdout=subprocess.PIPE, **more).stdout


def kernel_sets():
    """The sets that this machine runs, from the error about one that no machine has."""
    failed = subprocess.run([CLI, "complete", MIXTRAL_VOCAB, "", "--kernels", "none"], capture_output=True, text=True)
    return re.search(r"this machine runs \(([^)]*)\)", failed.stderr).group(1).split(", ")


class Suite(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def synth(self, name, *arguments):
        path = self.path(name)
        run("synth", path, *arguments)
        return path

    def logits(self, model, ids, *arguments):
        """float32 [n_tokens, n_vocab]"""
        tokens, out = self.path("ids"), self.path("logits")
        with open(tokens, "w", encoding="ascii") as file:
            file.write(" ".join(map(str, ids)))
        run("logits", model, "--tokens", tokens, "--out", out, *arguments)
        return np.fromfile(out, dtype=np.float32).reshape(len(ids), -1)


def squared_error(exact, got):
    """Median over tokens of sum((got - exact)^2) / sum(exact^2): a near-tied router may choose another expert for a token."""
    exact, got = exact.astype(np.float64), got.astype(np.float64)
    return float(np.median(((got - exact) ** 2).sum(1) / (exact ** 2).sum(1)))


def log_probabilities(logits):
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def main():
    result = unittest.main(exit=False, verbosity=2).result
    failed, skipped = len(result.failures) + len(result.errors), len(result.skipped)
    sys.stderr.flush()
    print(f"{result.testsRun - failed - skipped} passed, {failed} failed, {skipped} skipped", flush=True)
    sys.exit(1 if failed else 0)
