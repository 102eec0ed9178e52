"""Where float32 leaves nothing to decide by: margins below its rounding, directions that cancel."""

import numpy as np

from kpl_engine.solver.proxies import rounding_decides
from kpl_engine.solver.text_proxy import select_text_proxies


def test_a_margin_below_the_rounding_of_the_feature_is_undecided():
    features = np.array([[1.0, 1e-9], [1.0, 1e-3], [1.0, 0.0]])
    discriminants = np.array([[0.0, 0.0], [1.0, -1.0]])  # scores differ by twice the second entry
    undecided = rounding_decides(features, discriminants, features @ discriminants)
    assert undecided.tolist() == [True, False, True]


def test_descriptions_that_cancel_to_rounding_leave_the_best_one():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 7)) + 1.0
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    one = rng.normal(size=7)
    # Not exact negatives: scaling to unit length in float32 leaves a residue that is no direction.
    found = select_text_proxies(features, {"a": np.stack([3 * one, -7 * one + 1e-7]), "b": rng.normal(size=(3, 7))})
    unit = one / np.linalg.norm(one)
    best = unit if found.kept[0][0] == 0 else -unit
    assert np.abs(found.proxies[:, 0] - best).max() < 1e-6
