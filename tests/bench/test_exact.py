"""The float64 answers of whole methods, against the solver that computes them otherwise."""

import numpy as np
import pytest

from kpl_engine.bench.exact import batch_answers, fewest_images, frozen_answers
from kpl_engine.config import MethodConfig
from kpl_engine.errors import ConfigError
from kpl_engine.solver.select import METHODS, freeze, solve, solve_frozen

SHORT = MethodConfig(proxy_iters=300)


def clip_like(n, d, c, seed):
    """Features of one domain, and descriptions of c classes a little apart in both."""
    rng = np.random.default_rng(seed)
    base, apart = rng.normal(size=d), 0.6 * rng.normal(size=(c, d))
    X = 2 * base + apart[rng.integers(c, size=n)] + rng.normal(size=(n, d))
    texts = [base + apart[j] + rng.normal(size=(9 + j, d)) for j in range(c)]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (X, *texts)]
    return unit[0].astype(np.float32), [each.astype(np.float32) for each in unit[1:]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d", "c"), [(61, 33, 2), (47, 29, 5)])
def test_methods_are_those_of_the_solver(method, n, d, c):
    X, texts = clip_like(n, d, c, seed=n)
    config = MethodConfig() if method == "kpl" else SHORT  # the closed form stands for all 2000 steps
    found = solve(X, texts, method, config).probabilities
    # Scores kept in float32, text proxies too, over temperatures of 0.01 and 0.04; onzeta and the schedule's halvings
    # make more of such rounding.
    tolerance = {"onzeta": 1e-3, "proxy": 1e-4, "inmap": 1e-4}.get(method, 1e-5)
    exact = batch_answers(X, texts, method, config)
    assert np.abs(found - exact).max() < tolerance
    assert np.abs(exact - 1 / c).max() > 0.02  # not all alike


def test_hardened_labels_keep_their_mass():
    """More classes than greedy steps: rows that no step touched are hardened, and count as one each."""
    X, texts = clip_like(100, 24, 24, seed=1)
    found = solve(X, texts, "kpl", SHORT)
    assert found.method_used == "kpl"
    assert np.abs(found.probabilities - batch_answers(X, texts, "kpl", SHORT)).max() < 1e-4


def test_too_few_images_are_answered_by_the_text():
    X, texts = clip_like(12, 20, 3, seed=2)
    assert fewest_images(3, SHORT) == 12
    for method in ("kpl", "proxy", "inmap", "kpl_stream"):
        text = batch_answers(X[:11], texts, "zeroshot", SHORT)
        np.testing.assert_array_equal(batch_answers(X[:11], texts, method, SHORT), text)
        assert np.abs(batch_answers(X, texts, method, SHORT)[:11] - text).max() > 1e-3
    assert fewest_images(3, MethodConfig(min_batch=5)) == 5


def test_frozen_answers_are_the_softmax_of_the_kept_discriminants():
    X, texts = clip_like(40, 31, 3, seed=3)
    frozen = freeze(solve(X, texts, "kpl"))
    exact = frozen_answers(X, frozen)
    powers = np.exp(X.astype(np.float64) @ frozen.discriminants / frozen.temperature)
    np.testing.assert_allclose(exact, powers / powers.sum(axis=1, keepdims=True), rtol=1e-13)
    assert np.abs(solve_frozen(X, frozen).probabilities - exact).max() < 6e-8  # half an ulp of a float32 below 1


def test_options_without_a_reference_are_refused():
    X, texts = clip_like(20, 9, 2, seed=4)
    for config in (MethodConfig(retrieval="per_image"), MethodConfig(ot_iters="converged")):
        with pytest.raises(ConfigError, match="reference"):
            batch_answers(X, texts, "kpl", config)
