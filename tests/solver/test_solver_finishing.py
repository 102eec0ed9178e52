"""Finishing a solution, with the core and without: the same records, flags and errors; which images repeat."""

import numpy as np
import pytest

from kpl_engine.errors import SolverError
from kpl_engine.solver import cpu
from kpl_engine.solver.finishing import rounding_decides, solution_of
from kpl_engine.solver.guards import input_notices
from kpl_engine.solver.moments import moments_of, squared_lengths

pytestmark = pytest.mark.usefixtures("backend")

HOW = {
    "iterations": 1,
    "converged": True,
    "solver": "schedule",
    "form": "dual",
    "halvings": 0,
    "residual": 0.0,
}


def unit_rows(n, d, seed):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def near_ties(d, seed):
    """Two close proxies among three, and images at margins of 1e-9 .. 1e-4 times their distance from the boundary."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(d, 3))
    W[:, 1] = W[:, 0] + 0.1 * W[:, 1]
    X = np.tile(rng.normal(size=d) + 2 * W[:, 0], (200, 1))
    between = W[:, 0] - W[:, 1]
    X -= np.outer(X @ between, between) / (between @ between)
    X += np.outer(np.logspace(-9, -4, 200) * rng.choice([-1, 1], 200), between)
    return X.astype(np.float32), W


@pytest.mark.parametrize(("d", "seed"), [(5, 0), (40, 1), (97, 2)])
def test_flags_of_rounding_are_those_of_the_formula(d, seed):
    X, W = near_ties(d, seed)
    found = solution_of(W, X, mass=1.0, **HOW)
    D = (W - W.mean(axis=1, keepdims=True)) * len(X)
    scores = X.astype(np.float64) @ D
    order = np.argsort(-scores, axis=1, kind="stable")
    rows = np.arange(len(X))
    margins = scores[rows, order[:, 0]] - scores[rows, order[:, 1]]
    apart = np.linalg.norm(D[:, order[:, 0]] - D[:, order[:, 1]], axis=0)
    ratio = margins / (np.finfo(np.float32).eps * np.linalg.norm(X.astype(np.float64), axis=1) * apart)
    assert (ratio < 0.999).sum() > 20
    assert (ratio > 1.001).sum() > 20
    away = np.abs(ratio - 1) > 1e-3  # the flag of an image on the very bound may go either way
    np.testing.assert_array_equal(found.decided_by_rounding[away], ratio[away] < 1)
    np.testing.assert_array_equal(rounding_decides(X, D, scores)[away], ratio[away] < 1)
    np.testing.assert_array_equal(found.labels[away & (ratio > 1)], order[away & (ratio > 1), 0])


@pytest.mark.parametrize(("n", "d", "c"), [(1, 1, 1), (1, 7, 3), (65, 33, 2), (130, 64, 40)])
def test_records_are_those_of_the_formulas(n, d, c):
    X, W = unit_rows(n, d, seed=n), np.random.default_rng(c).normal(size=(d, c))
    found = solution_of(W, X, mass=0.5 * n, **HOW)
    D = 2 * (W - W.mean(axis=1, keepdims=True))
    for got, exact in (
        (found.proxies, W),
        (found.discriminants, D),
        (found.logits, X.astype(np.float64) @ W),
        (found.scores, X.astype(np.float64) @ D),
    ):
        assert got.dtype == np.float32
        assert got.shape == exact.shape
        assert np.abs(got - exact).max() <= 6e-8 * max(1.0, np.abs(exact).max())  # half an ulp of float32
    np.testing.assert_array_equal(found.labels, (X.astype(np.float64) @ D).argmax(axis=1))
    assert found.labels.dtype == np.int64
    assert found.decided_by_rounding.dtype == np.bool_
    for threads in (1, 3):
        np.testing.assert_array_equal(solution_of(W, X, 0.5 * n, threads, **HOW).scores, found.scores)


@pytest.mark.parametrize("value", [1e39, np.inf, np.nan])
def test_what_leaves_float32_is_an_error(value):
    W = np.ones((4, 2))
    W[3, 1] = value
    with pytest.raises(SolverError, match="proxies overflow"):
        solution_of(W, unit_rows(5, 4, seed=0), mass=1.0, **HOW)


def test_sums_over_images_are_those_of_the_formulas():
    for n, d, c in [(1, 1, 1), (70, 33, 3), (600, 16, 2)]:
        X, P = unit_rows(n, d, seed=n), np.random.default_rng(n).random((n, c))
        exact, sums = X.astype(np.float64), moments_of(X, P)
        assert np.abs(sums.mean - exact.mean(axis=0)).max() < 1e-15
        assert np.abs(sums.XtP - exact.T @ P).max() < 1e-13
        assert np.abs(sums.column_mass - P.sum(axis=0)).max() < 1e-12
        assert abs(sums.mean_square - 1) < 1e-6
        assert np.abs(squared_lengths(X) - (exact**2).sum(axis=1)).max() < 1e-15


def test_images_that_agree_in_the_sampled_columns_alone_are_no_duplicates():
    X = np.tile(unit_rows(1, 768, seed=1), (40, 1))
    X[:, 1] += np.linspace(0, 1e-3, 40, dtype=np.float32)  # column 1 is not among those compared first
    codes = [notice.code for notice in input_notices(X, unit_rows(2, 768, seed=2).T)]
    assert "duplicate_images" not in codes
    X[[7, 9]] = X[3]
    notices = {notice.code: notice.message for notice in input_notices(X, unit_rows(2, 768, seed=2).T)}
    assert notices["duplicate_images"].startswith("2 of 40 ")


def test_the_core_is_used_where_it_is_installed(backend):
    assert (cpu.core() is None) == (backend == "numpy")
