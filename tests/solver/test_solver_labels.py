"""Label refinement against POT, the reference, and its own definition."""

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kpl_engine.errors import ConfigError, ShapeError
from kpl_engine.solver import reference
from kpl_engine.solver.labels import refine_labels

METHODS = ("softmax", "sinkhorn", "stable_greenkhorn", "stream")

pytestmark = pytest.mark.usefixtures("backend")


def similarities(n, c, seed, spread=0.02):
    random = np.random.default_rng(seed)
    return 0.25 + spread * random.normal(size=(n, c)) + 0.01 * random.normal(size=c)


def log_softmax(S, tau_t=0.01):
    L = S / tau_t
    L = L - L.max(axis=1, keepdims=True)
    return L - np.log(np.exp(L).sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("n", "c", "seed"), [(40, 2, 0), (97, 5, 1), (300, 20, 2), (64, 37, 3)])
@pytest.mark.parametrize("iters", [1, 7, 20, 60])
def test_greedy_steps_follow_pot(n, c, seed, iters):
    S = similarities(n, c, seed)
    oracle = ot.bregman.greenkhorn(
        np.full(n, 1 / n),
        np.full(c, 1 / c),
        M=-log_softmax(S),
        reg=1,
        numItermax=iters,
        stopThr=0,
        warmstart=(np.zeros(n), np.zeros(c)),
        warn=False,
    )
    assert np.abs(refine_labels(S, iters=iters) - oracle).max() < 2e-15


@pytest.mark.parametrize(("n", "c", "seed"), [(60, 3, 0), (200, 10, 1)])
@pytest.mark.parametrize("prior", [None, "skewed"])
@pytest.mark.parametrize("method", ["sinkhorn", "stable_greenkhorn"])
def test_converged_plan_is_pots(n, c, seed, prior, method):
    S = similarities(n, c, seed)
    q = np.full(c, 1 / c) if prior is None else np.arange(1, c + 1) / (c * (c + 1) / 2)
    oracle = ot.sinkhorn(np.full(n, 1 / n), q, M=-S, reg=0.01, method="sinkhorn_log", numItermax=20_000, stopThr=1e-13)
    P = refine_labels(S, method, iters="converged", prior=None if prior is None else q)
    assert np.abs(P - n * oracle).max() < 1e-6
    assert np.abs(P.sum(axis=1) - 1).max() < 1e-14
    assert np.abs(P.mean(axis=0) - q).max() < 1e-8


@pytest.mark.parametrize("seed", range(4))
def test_follows_the_reference_with_gamma_and_prior(seed):
    S = similarities(80, 6, seed)
    prior = np.random.default_rng(seed).dirichlet(np.ones(6))
    assert np.abs(refine_labels(S, "softmax") - reference.softmax_labels(S)).max() < 1e-15
    assert np.abs(refine_labels(S, "stream", prior=prior) - reference.stream_labels(S, prior=prior)).max() < 1e-15
    for gamma, q in ((0.0, None), (0.5, None), (1.0, None), (0.0, prior)):
        options = {"gamma": gamma, "prior": q}
        assert np.abs(refine_labels(S, "sinkhorn", **options) - reference.sinkhorn_labels(S, **options)).max() < 1e-14
        greedy = refine_labels(S, "stable_greenkhorn", **options)
        assert np.abs(greedy - reference.greenkhorn_labels(S, **options)).max() < 1e-14


def test_marginals():
    S = similarities(120, 5, 3)
    assert np.abs(refine_labels(S, "sinkhorn").sum(axis=1) - 1).max() < 1e-14
    assert np.abs(refine_labels(S, "stream").sum(axis=0) - 1 / 5).max() < 1e-15
    greedy = refine_labels(S, "stable_greenkhorn")
    assert abs(greedy.sum() - 1) < 0.2  # about mass 1 and size 1/n: not a plan
    assert greedy.max() < 30 / 120


def test_running_marginals_do_not_drift():
    """After thousands of steps the greedy plan still has the marginals its bookkeeping claims."""
    P = refine_labels(similarities(50, 4, 5), iters=20_000)
    assert np.abs(P.sum(axis=0) - 1 / 4).max() < 1e-13
    assert np.abs(P.sum(axis=1) - 1 / 50).max() < 1e-13


def test_first_index_wins_among_equal_violations():
    P = refine_labels(np.zeros((6, 2)), iters=1)  # both columns hold 3, target 1/2
    np.testing.assert_allclose(P[:, 0], 1 / 12, rtol=1e-15)
    np.testing.assert_allclose(P[:, 1], 1 / 2, rtol=1e-15)
    P = refine_labels(np.zeros((2, 3)), iters=1)  # columns off by 1/3, rows by 1/2
    np.testing.assert_allclose(P, [[1 / 6] * 3, [1 / 3] * 3], rtol=1e-15)


def test_a_row_wins_over_a_column_of_equal_violation():
    P = refine_labels(np.zeros((2, 2)), iters=1)  # columns and rows hold 1, targets 1/2
    np.testing.assert_allclose(P, [[1 / 4, 1 / 4], [1 / 2, 1 / 2]], rtol=1e-15)


@pytest.mark.parametrize("seed", range(10))
def test_rows_tie_at_the_start_whatever_their_rounding(seed):
    S = 0.002 * np.random.default_rng(seed).normal(size=(8, 16))  # columns are off by about 0.44, every row by 7/8
    changed = np.abs(refine_labels(S, iters=1) - refine_labels(S, iters=0)).max(axis=1) > 1e-12
    assert np.flatnonzero(changed).tolist() == [0]


class _Counting(np.ndarray):
    """An array that counts the elements every ufunc reads or writes."""

    touched = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        inputs = [np.asarray(x) if isinstance(x, _Counting) else x for x in inputs]
        if "out" in kwargs:
            kwargs["out"] = tuple(np.asarray(x) if isinstance(x, _Counting) else x for x in kwargs["out"])
        result = getattr(ufunc, method)(*inputs, **kwargs)
        _Counting.touched += max(np.size(result), *(np.size(x) for x in inputs))
        return np.asarray(result).view(_Counting) if isinstance(result, np.ndarray) else result


def _work_of_a_step(n, c):
    """Elements touched by one more greedy step, counted on the array of logarithms."""
    from kpl_engine.solver.greenkhorn import greenkhorn

    logs = log_softmax(similarities(n, c, 0))
    work = []
    for iters in (10, 110):
        _Counting.touched = 0
        greenkhorn(logs.view(_Counting), np.full(c, 1 / c), iters)
        work.append(_Counting.touched)
    return (work[1] - work[0]) / 100


def test_a_greedy_step_costs_n_plus_c():
    for n, c in ((400, 40), (800, 40), (400, 80), (800, 80)):
        work = _work_of_a_step(n, c)
        assert 0 < work < 12 * (n + c) < n * c


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("iters", [20, "converged"])
def test_infinities_are_defined(method, iters):
    S = similarities(30, 4, 0)
    S[0] = -np.inf
    S[1, 2] = -np.inf
    S[2, 1] = np.inf
    S[3, :2] = np.inf
    S[4] = [np.inf, -np.inf, 0, 0]
    P = refine_labels(S, method, iters=iters)
    assert np.isfinite(P).all()
    assert P[1, 2] == 0
    assert (P[2, [0, 2, 3]] == 0).all()
    assert (P[3, 2:] == 0).all()
    assert P[4, 1] == 0
    if method == "softmax":
        assert P[0].tolist() == [0.25] * 4
        assert P[3, :2].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("method", METHODS)
def test_impossible_class_and_forbidden_class(method):
    S = similarities(30, 3, 0)
    S[:, 1] = -np.inf
    for iters in (20, "converged"):
        P = refine_labels(S, method, iters=iters)
        assert np.isfinite(P).all()
        assert (P[:, 1] == 0).all()
        assert P.sum() > 0
    if method != "softmax":
        Q = similarities(30, 3, 1)
        Q[0] = [np.inf, 0, 0]  # certain of a class that the prior forbids
        P = refine_labels(Q, method, prior=[0, 1, 3])
        assert np.isfinite(P).all()
        if method == "sinkhorn":  # a row without mass gets the prior
            np.testing.assert_allclose(P.sum(axis=1), 1, atol=1e-14)
        assert (P[:, 0] == 0).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    S=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 12), st.integers(1, 6)),
        elements=st.floats(-1e308, 1e308) | st.sampled_from([np.inf, -np.inf, 0.0, 0.3]),
    ),
    method=st.sampled_from(METHODS),
    iters=st.sampled_from([0, 1, 20, "converged"]),
    gamma=st.sampled_from([0.0, 0.7]),
)
def test_never_nan(S, method, iters, gamma):
    before = S.copy()
    P = refine_labels(S, method, gamma=gamma, iters=iters)
    assert P.shape == S.shape
    assert np.isfinite(P).all()
    assert (P >= 0).all()
    np.testing.assert_array_equal(S, before)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(METHODS), n=st.integers(3, 40), c=st.integers(2, 8))
def test_permutations_only_reorder(seed, method, n, c):
    random = np.random.default_rng(seed)
    S, rows, columns = similarities(n, c, seed), random.permutation(n), random.permutation(c)
    P = refine_labels(S, method)
    np.testing.assert_allclose(refine_labels(S[rows][:, columns], method), P[rows][:, columns], rtol=1e-9, atol=1e-15)


def test_dtypes_layouts_and_arguments():
    S = similarities(20, 3, 0).astype(np.float32)
    S.setflags(write=False)
    expected = refine_labels(S)
    assert expected.dtype == np.float32
    assert refine_labels(S.astype(np.float64)).dtype == np.float64
    np.testing.assert_array_equal(refine_labels(np.asfortranarray(S)), expected)
    np.testing.assert_array_equal(refine_labels(np.repeat(S, 2, axis=0)[::2]), expected)
    assert refine_labels(np.array([[1, 0], [0, 1]])).dtype == np.float32
    assert refine_labels(S.astype(np.float16)).dtype == np.float32


def test_extreme_logits_keep_underflowed_columns_alive():
    """A column of exp(-2000) is tiny, not impossible: the log domain still brings it to 1/c."""
    S = np.zeros((10, 2))
    S[:, 1] = -20.0
    P = refine_labels(S, iters=20)
    np.testing.assert_allclose(P.sum(axis=0), [0.5, 0.5], rtol=1e-12)


@pytest.mark.parametrize("method", ["sinkhorn", "stream"])
@pytest.mark.parametrize("iters", [20, "converged"])
def test_denormal_columns_do_not_overflow(method, iters):
    """A column of 1e-322 is scaled up to its target: the factor alone is beyond float64."""
    S = np.zeros((10, 2))
    S[:, 1] = -7.415
    with np.errstate(all="raise", under="ignore"):
        P = refine_labels(S, method, iters=iters)
    assert 0 < np.exp(-741.5) < 1e-320
    np.testing.assert_allclose(P[:, 1], 0.05 if method == "stream" else 0.5, rtol=0.01)
    np.testing.assert_allclose(P.sum(axis=1), 0.1 if method == "stream" else 1.0, rtol=0.01)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"method": "greenkhorn"}, ConfigError, "method"),
        ({"tau_t": 0.0}, ConfigError, "tau_t"),
        ({"tau_t": np.nan}, ConfigError, "tau_t"),
        ({"gamma": 1.5}, ConfigError, "gamma"),
        ({"iters": -1}, ConfigError, "iters"),
        ({"iters": 2.5}, ConfigError, "iters"),
        ({"iters": True}, ConfigError, "iters"),
        ({"iters": "many"}, ConfigError, "iters"),
        ({"prior": [0.5, 0.5]}, ShapeError, "prior"),
        ({"prior": [1, -1, 1]}, ShapeError, "prior"),
        ({"prior": [0, 0, 0]}, ShapeError, "prior"),
        ({"prior": [np.nan, 1, 1]}, ShapeError, "prior"),
        ({"prior": [1, 1, 1], "gamma": 0.5}, ConfigError, "prior"),
    ],
)
def test_bad_options_are_named(options, error, word):
    with pytest.raises(error, match=word):
        refine_labels(similarities(5, 3, 0), **options)


def test_bad_arrays_are_named():
    S = similarities(5, 3, 0)
    S[[1, 4], 0] = np.nan
    with pytest.raises(ShapeError, match=r"2 of 5 rows \(1, 4\)"):
        refine_labels(S)
    for bad in (
        [[1, 2], [3]],
        np.zeros(3),
        np.zeros((0, 3)),
        np.zeros((3, 0)),
        np.array([["a", "b"]]),
        np.zeros((2, 2), complex),
    ):
        with pytest.raises(ShapeError, match="similarities"):
            refine_labels(bad)


def test_prior_is_scaled_to_one():
    S = similarities(30, 3, 0)
    expected = refine_labels(S, prior=[0.125, 0.25, 0.625])
    np.testing.assert_allclose(refine_labels(S, prior=[1.7e308] * 3), refine_labels(S), rtol=1e-12)  # sum overflows
    for scale in (8, 1e-300, 1e308):
        np.testing.assert_allclose(refine_labels(S, prior=np.array([0.125, 0.25, 0.625]) * scale), expected, rtol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    S=hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=st.floats(-1e308, 1e308)),
    tau_t=st.sampled_from([5e-324, 1e-3, 1.0, 1e308]),
)
def test_softmax_at_the_ends_of_float64(S, tau_t):
    P = refine_labels(S, "softmax", tau_t=tau_t)
    with np.errstate(all="ignore"):
        powers = np.exp((S - S.max(axis=1, keepdims=True)) / tau_t)
        expected = powers / powers.sum(axis=1, keepdims=True)
    # An exponent of 745 is known to 1e-13, which is then the relative error of a denormal label.
    np.testing.assert_allclose(P, expected, rtol=1e-12, atol=1e-320)
