#!/usr/bin/env python3
"""A mixture made of the default model by sparse upcycling says what the model says, in both expert layouts."""
import os
import subprocess

import harness
import numpy as np

UPCYCLE = os.path.join(harness.BUILD, "tests", "tools", "upcycle")
MOST_DIVERGENCE = 2 * 2.7e-3  # each of the two is as far from the float32 model as its rounded activations make it
PROMPT = "The capital of France is"


class Upcycle(harness.Suite):
    def complete(self, model):
        return harness.run("complete", model, PROMPT, "--max-tokens", 1, "--temperature", 0)

    def test_the_mixture_says_the_same(self):
        with open(os.path.join(harness.HERE, "smollm2", "text.ids"), encoding="ascii") as file:
            ids = file.read().split()
        dense = self.logits(harness.MODEL, ids)
        for layout in ("merged", "separate"):
            mixture = self.path(layout)
            subprocess.run([UPCYCLE, harness.MODEL, mixture, "--experts", "4", "--experts-used", "2", "--layout", layout],
                           check=True, stdout=subprocess.DEVNULL)
            self.assertIn(b"experts", harness.run("info", mixture))
            mixed = self.logits(mixture, ids)
            log_p, log_q = harness.log_probabilities(dense), harness.log_probabilities(mixed)
            divergence = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
            agreement = (dense.argmax(1) == mixed.argmax(1)).mean()
            print(f"{layout}: KL {divergence:.1e}, top-1 {agreement:.3f}", flush=True)
            self.assertLess(divergence, MOST_DIVERGENCE)
            self.assertGreater(agreement, 0.95)
            self.assertEqual(self.complete(mixture), self.complete(harness.MODEL))
            os.unlink(mixture)


harness.main()
