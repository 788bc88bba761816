#!/usr/bin/env python3
"""Logits beside a forward pass in double precision: every tensor type, kernel set and expert layout, as a prompt and in steps.

Models of float weights must agree with the exact values; those of quantised ones with the values that come of rounding activations
to 8 bits as the engine does. A sum that ends near a half may be rounded the other way by one kernel set, and what follows
from that is then as far off as rounding is (one such flip changes the rounding of all that depends on it): so each set is held to the
size of the rounding, and the sets together to float32's.
"""
import statistics

import numpy as np

import harness
import reference

FLOATS = ["F32", "F16", "BF16"]
QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS",
             "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"]
FLOAT_BAR = 3e-7    # normalised squared error, median over tokens
ROUNDED_BAR = 4e-4  # of one kernel set
MIDDLE_BAR = 1e-6   # of the middle one of all sets and ways of reading
SHAPE = ["--layers", 1, "--dim", 256, "--ff", 512, "--heads", 4, "--kv-heads", 2, "--vocab-size", 512, "--context", 512]
IDS = [1] + [(i * 7919 + 13) % 509 + 3 for i in range(47)]


class Logits(harness.Suite):
    def check(self, model, bar, *arguments):
        """Both ways of reading on all kernel sets; the bytes of each."""
        exact, all_bytes, errors = reference.logits(model, IDS, rounded=bar != FLOAT_BAR), [], []
        for kernels in harness.kernel_sets():
            for mode in ([], ["--step"]):
                got = self.logits(model, IDS, "--kernels", kernels, *mode, *arguments)
                errors.append(harness.squared_error(exact, got))
                self.assertLessEqual(errors[-1], bar, (kernels, mode))
                all_bytes.append(got.tobytes())
        self.assertLessEqual(statistics.median_low(errors), MIDDLE_BAR)
        return all_bytes

    def test_every_type_in_both_layouts(self):
        for name in FLOATS + QUANTISED:
            with self.subTest(type=name):
                bar = FLOAT_BAR if name in FLOATS else ROUNDED_BAR
                merged = self.synth("merged", "--type", name, *SHAPE, "--layout", "merged")
                separate = self.synth("separate", "--type", name, *SHAPE, "--layout", "separate")
                self.assertEqual(self.check(merged, bar), self.check(separate, bar))

    def test_threads_change_nothing(self):
        model = self.synth("model", "--type", "Q4_K", *SHAPE)
        one = self.logits(model, IDS, "--threads", 1)
        np.testing.assert_array_equal(one, self.logits(model, IDS, "--threads", 2))
        np.testing.assert_array_equal(one, self.logits(model, IDS, "--threads", 3))

    def test_mixed_types(self):
        model = self.synth("model", "--type", "Q4_K", "--embedding-type", "Q6_K", "--output-type", "F16", "--router-type",
                           "F16", *SHAPE)
        self.check(model, ROUNDED_BAR)

    def test_dense(self):
        self.check(self.synth("model", "--type", "F32", *SHAPE, "--layout", "dense"), FLOAT_BAR)

    def test_other_geometries(self):
        for changes in (["--kv-heads", 4], ["--kv-heads", 1], ["--head-dim", 32], ["--experts", 5, "--experts-used", 3],
                        ["--tied"], ["--rope-base", 500], ["--layers", 3]):
            with self.subTest(changes=changes):
                self.check(self.synth("model", "--type", "F32", *SHAPE, *changes), FLOAT_BAR)


harness.main()
