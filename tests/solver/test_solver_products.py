"""Scores of images: the core against NumPy, and one image alone against the same image among others."""

import numpy as np
import pytest

from kpl_engine.solver import cpu
from kpl_engine.solver.answering import multiply_rows
from kpl_engine.solver.select import freeze, solve, solve_frozen

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize(("n", "d", "c"), [(1, 1, 1), (7, 5, 3), (65, 768, 2), (130, 33, 11)])
def test_products_are_those_of_float64(n, d, c):
    random = np.random.default_rng(n)
    X = random.normal(size=(2 * n, d)).astype(np.float32)[::2]
    T = np.asfortranarray(random.normal(size=(d, c)).astype(np.float32))
    found = multiply_rows(X, T)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, X.astype(np.float64) @ T.astype(np.float64), rtol=0, atol=1e-14 * d)


def test_a_frozen_answer_does_not_depend_on_the_batch(make_clip_like):
    data = make_clip_like(50, 40, 3, 5)
    frozen = freeze(solve(data.features, data.descriptions, "inmap"))
    together = solve_frozen(data.features, frozen)
    for i in (0, 7, 49):
        alone = solve_frozen(data.features[i : i + 1], frozen)
        if cpu.core():
            np.testing.assert_array_equal(alone.logits[0], together.logits[i])
        np.testing.assert_allclose(alone.logits[0], together.logits[i], rtol=0, atol=1e-6)
