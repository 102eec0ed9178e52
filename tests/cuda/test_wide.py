"""The schedule in feature space with many classes, against the float64 schedule."""

import numpy as np
import pytest

from kpl_engine.cuda.ops.primal import choose_primal
from kpl_engine.cuda.problems import Capacity
from kpl_engine.solver import reference, schedule

from .test_primal import CLOSE, check, make, solve


@pytest.mark.parametrize(
    ("n", "d", "c", "labels"),
    [
        (1, 3, 10, "softmax"),
        (138, 64, 10, "sinkhorn"),
        (64, 31, 33, "softmax"),
        (33, 130, 12, "stable_greenkhorn"),
        (130, 20, 70, "sinkhorn"),
        (7, 1030, 2, "softmax"),
    ],
)
def test_steps_are_those_of_the_definition(context, n, d, c, labels):
    problem, options = make(n, d, c, n + c, labels), (10.0, 6, 0.04)
    assert choose_primal(context, Capacity(n, d, c)).kernel == "learn_proxies_wide"
    (found,) = solve(context, [problem], options=options)
    check(found, problem, options)


@pytest.mark.parametrize("num_blocks", [1, 3, 8])
def test_any_grid_takes_the_same_steps(checked_context, num_blocks):
    problem, options = make(40, 20, 11, 5), (10.0, 2, 0.04)
    (found,) = solve(checked_context, [problem], num_blocks, options=options)
    check(found, problem, options)


def test_no_order_of_threads_changes_a_bit(open_context):
    problem, options = make(20, 9, 10, 6), (10.0, 2, 0.04)
    runs = [solve(open_context(is_checked=True, seed=seed), [problem], 2, options=options)[0] for seed in range(3)]
    for W, record in runs[1:]:
        np.testing.assert_array_equal(W, runs[0][0])
        assert record == runs[0][1]
    check(runs[0], problem, options)


def loop_in_float32(X, T, P, iters, tau_i=0.04, lr=10.0):
    """The published loop as a user would write it: what method.md 3b measures errors against."""
    W, last = T.copy(), np.inf
    P = P.astype(np.float32)
    for _ in range(iters):
        Z = X @ W / np.float32(tau_i)
        Z = np.exp(Z - Z.max(axis=1, keepdims=True))
        G = X.T @ (Z / Z.sum(axis=1, keepdims=True) - P)
        norm = np.linalg.norm(G)
        lr, last = lr / 2 if norm > last else lr, norm
        W = W - np.float32(lr / (len(X) * tau_i)) * G
        W = W / np.linalg.norm(W, axis=0)
    return W


def halves_of(values, scale):
    high = (values * scale).astype(np.float16).astype(float)
    return high / scale, (values * scale - high).astype(np.float16).astype(float) / scale


def product_of_halves(A, B, right_scale):
    (a, b), (c, d) = halves_of(A, 64.0), halves_of(B, right_scale)
    return a @ c + a @ d + b @ c


@pytest.mark.parametrize(("n", "d", "c"), [(1, 3, 10), (138, 64, 10), (70, 31, 33), (40, 130, 140)])
def test_one_step_of_halves(context, n, d, c):
    """Against the same halves in float64: what is left is float32, 1e-7 of each sum. The step is 1/(n tau) of it."""
    X, T, P = problem = make(n, d, c, n + c)
    ((W, record),) = solve(context, [problem], is_split_allowed=True, options=(0.1, 1, 0.04))
    Z = product_of_halves(X.astype(float), T.astype(float), 64.0)
    G = product_of_halves(X.T.astype(float), reference.softmax(Z / 0.04) - P, 1024.0)
    expected = T - 0.1 / (n * 0.04) * G
    expected /= np.linalg.norm(expected, axis=0)
    assert np.abs(W - expected).max() < 1e-6
    assert abs(record["gradient_norm"] / np.linalg.norm(G) - 1) < 1e-5
    assert record["form"] == 2


@pytest.mark.parametrize(("n", "d", "c", "labels"), [(60, 24, 12, "softmax"), (50, 31, 10, "sinkhorn")])
def test_halves_are_as_good_as_float32(context, n, d, c, labels):
    """method.md 3b: no farther from the float64 schedule than twice the published loop in float32, or 1e-5."""
    X, T, P = problem = make(n, d, c, n + c, labels)
    expected = schedule.run_primal(X.astype(float), T.astype(float), P, 10.0, 100, 0.04)
    ((W, _),) = solve(context, [problem], is_split_allowed=True, options=(10.0, 100, 0.04))
    allowed = np.abs(X @ loop_in_float32(X, T, P, 100) - expected.Z).max()
    assert np.abs(X.astype(float) @ W - expected.Z).max() <= max(2 * allowed, 1e-5)


def test_halves_in_any_order(open_context):
    problem, options = make(40, 20, 11, 5), (10.0, 2, 0.04)
    runs = [solve(open_context(is_checked=True, seed=seed), [problem], 3, True, options)[0] for seed in range(3)]
    for W, record in runs[1:]:
        np.testing.assert_array_equal(W, runs[0][0])
        assert record == runs[0][1]


def test_halves_only_where_allowed_and_possible(open_context):
    context, capacity = open_context(), Capacity(300, 64, 40)
    assert choose_primal(context, capacity, is_split_allowed=True).kernel == "learn_proxies_split"
    assert choose_primal(context, capacity).kernel == "learn_proxies_wide"
    old, small = open_context(compute_capability=(7, 5)), open_context(max_shared_bytes=96 * 1024)
    assert choose_primal(old, capacity, is_split_allowed=True).kernel == "learn_proxies_wide"
    assert choose_primal(small, capacity, is_split_allowed=True).kernel == "learn_proxies_wide"


@pytest.mark.parametrize("is_split_allowed", [False, True])
def test_several_problems_zero_proxies_and_equal_classes(context, is_split_allowed):
    X, T, P = make(33, 12, 12, 4)
    T[:, 3], P[:, 3] = T[:, 1], P[:, 1]
    T[:, 5] = 0.0
    X[7] = 0.0
    problems = [(X, T, P), make(20, 12, 10, 2)]
    options, tolerance = (10.0, 4, 0.04), 1e-5 if is_split_allowed else CLOSE
    found = solve(context, problems, None, is_split_allowed, options)
    for (W, _), (X, T, P) in zip(found, problems, strict=True):
        expected = schedule.run_primal(X.astype(float), T.astype(float), P, *options)
        assert np.abs(W - expected.W).max() < tolerance
    np.testing.assert_array_equal(found[0][0][:, 3], found[0][0][:, 1])


def test_steps_proven_not_to_matter_are_left_out(context):
    X, T, P = problem = make(30, 8, 11, 1, "stable_greenkhorn")
    movement = 1e-9 * min(1.0, P.sum() / len(P))
    expected = schedule.run_primal(X.astype(float), T.astype(float), P, 10.0, 2000, 0.04, movement)
    ((W, record),) = solve(context, [problem], options=(10.0, 2000, 0.04), movement=1e-9)
    assert record["frozen"] == expected.frozen == 1
    assert np.abs(W - expected.W).max() < 1e-8


@pytest.mark.parametrize("is_split_allowed", [False, True])
def test_no_steps_give_the_text_proxies(context, is_split_allowed):
    X, T, P = make(9, 10, 12, 1)
    ((W, record),) = solve(context, [(X, T, P)], None, is_split_allowed, (10.0, 0, 0.04))
    np.testing.assert_array_equal(W, T)
    assert (record["iterations"], record["converged"]) == (0, 0)


def test_without_cooperative_launches_one_block_does_it(open_context):
    problem, options = make(20, 12, 10, 4), (10.0, 3, 0.04)
    context = open_context(has_cooperative=False)
    assert choose_primal(context, Capacity(20, 12, 10)).launch.grid == 1
    check(solve(context, [problem], options=options)[0], problem, options)


@pytest.mark.parametrize("is_split_allowed", [False, True])
def test_rows_in_several_ranges(context, is_split_allowed):
    problem, options = make(300, 20, 11, 1), (10.0, 3, 0.04)
    assert choose_primal(context, Capacity(300, 20, 11), is_split_allowed, 3).extra == 2
    ((W, _),) = solve(context, [problem], 3, is_split_allowed, options)
    X, T, P = problem
    expected = schedule.run_primal(X.astype(float), T.astype(float), P, *options)
    assert np.abs(W - expected.W).max() < (1e-6 if is_split_allowed else CLOSE)


@pytest.mark.parametrize("is_split_allowed", [False, True])
def test_a_column_that_vanishes_keeps_what_it_has(context, is_split_allowed):
    X, T, P = make(6, 12, 10, 1)
    T[:, 5] = 0.0
    ((W, _),) = solve(context, [(np.zeros_like(X), T, P)], None, is_split_allowed, (10.0, 2, 0.04))
    assert np.abs(W - T).max() < 1e-7  # T is a unit vector in float32 only
    assert not W[:, 5].any()
