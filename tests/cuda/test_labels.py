"""Pseudo labels on a GPU: similarities against float64 products, labels against the NumPy twin on those."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from kpl_engine.cuda.ops.labels import launch_labels
from kpl_engine.errors import ConfigError
from kpl_engine.solver import reference
from kpl_engine.solver.hardening import harden
from kpl_engine.solver.labels import _refine_numpy

from .tables import make_case, open_table, results, with_rows

METHODS = ["softmax", "sinkhorn", "stable_greenkhorn", "stream"]
# Other orders of sums and other exp and log: roundings, times up to 50 sweeps; logarithms of 700 lose 1e-13.
CLOSE = 1e-11


@dataclass(frozen=True)
class Options:
    method: str = "stable_greenkhorn"
    tau_t: float = 0.01
    gamma: float = 0.0
    iters: int | str = 20
    alpha: float | None = 0.6


def text_of(case, seed=1):
    """T (c, d) float32: a noisy direction of each class."""
    random = np.random.default_rng(seed)
    T = np.stack([block.mean(axis=0) for block in case.blocks]) + 0.1 * random.normal(size=(len(case.blocks), 1))
    return np.ascontiguousarray(T / np.linalg.norm(T, axis=1, keepdims=True), dtype=np.float32)


def solve(context, cases, options, priors=None, texts=None, capacity=None):
    """[(S, P, record)] of several problems in one launch."""
    table = open_table(context, cases, capacity)
    for i, case in enumerate(cases):
        table.write("T", text_of(case) if texts is None else texts[i], i)
        if priors is not None:
            table.set_prior(priors[i], i)
    launch_labels(context, table, *vars(options).values())
    records = [result.record for result in results(table)]
    views = [[context.download(table.view(name, i)) for name in ("S", "P")] for i in range(len(cases))]
    return [(*view, record) for view, record in zip(views, records, strict=True)]


def check(found, case, options, prior=None, text=None):
    S, P, record = found
    T = text_of(case) if text is None else text
    np.testing.assert_allclose(S, case.X.astype(float) @ T.T.astype(float), rtol=0, atol=1e-14)  # unit rows
    expected = _refine_numpy(S, options.method, options.tau_t, options.gamma, options.iters, prior)
    expected, hardened = harden(expected, np.inf if options.alpha is None else options.alpha)
    assert np.isfinite(P).all()
    np.testing.assert_allclose(P, expected, rtol=CLOSE, atol=1e-290)  # below, denormal numbers lose digits
    assert record["num_hardened"] == hardened
    np.testing.assert_allclose(record["mass"], expected.sum(), rtol=CLOSE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("n", "d", "c"), [(1, 1, 1), (2, 31, 3), (31, 64, 2), (33, 130, 10), (64, 768, 5), (70, 33, 40), (70, 800, 5)]
)
def test_odd_sizes(checked_context, method, n, d, c):
    case, options = make_case(n, d, c), Options(method)
    check(solve(checked_context, [case], options)[0], case, options)


def test_greedy_steps_follow_the_definition(context):
    """The reference recomputes every marginal in every step; the kernel carries them along."""
    case = make_case(138, 64, 5)
    S, P, _ = solve(context, [case], Options(alpha=None, iters=60))[0]
    np.testing.assert_allclose(P, reference.greenkhorn_labels(S, iters=60), rtol=1e-9, atol=1e-290)


def test_certain_images_tie_as_on_the_cpu(context):
    """Rows told apart from the other classes to the last bits tie with each other and with their column: how the
    running sums round chooses the next line, and another one is a label off by 1/n."""
    options, off = Options(alpha=None, iters=10), 0
    for seed in range(24):
        random = np.random.default_rng(seed)
        n, c = int(random.integers(20, 67)), int(random.integers(2, 5))
        text = random.normal(size=(c, 64))
        X = text[random.integers(c, size=n)] + random.normal(size=(n, 64))
        X, text = ((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in (X, text))
        S, P, _ = solve(context, [replace(make_case(n, 64, c), X=X)], options, texts=[text])[0]
        off += np.abs(P - _refine_numpy(S, options.method, options.tau_t, 0.0, options.iters, None)).max() > 0.01 / n
    # None on the shim; a GPU's exp may round elsewhere. Scaling the old masses by a factor took other steps in 7.
    assert off <= 2


@pytest.mark.parametrize("method", METHODS)
def test_seeds_give_the_same_bits(open_context, method):
    case = make_case(65, 40, 7)
    runs = [solve(open_context(is_checked=True, seed=seed), [case], Options(method))[0] for seed in (0, 1, 2)]
    check(runs[0], case, Options(method))
    for S, P, record in runs[1:]:
        np.testing.assert_array_equal(S, runs[0][0])
        np.testing.assert_array_equal(P, runs[0][1])
        assert record == runs[0][2]


@pytest.mark.parametrize("method", ["sinkhorn", "stable_greenkhorn", "stream"])
@pytest.mark.parametrize("tau_t", [0.1, 1e-6])
@pytest.mark.parametrize("prior", [[0.7, 0.2, 0.1], [0.5, 0.0, 0.5], [0.0, 0.0, 1.0]])
def test_prior(checked_context, method, prior, tau_t):
    """At the lower temperature the images of a class without a share have no other to go to."""
    case, shares = make_case(37, 20, 3), np.array(prior)
    options = Options(method, tau_t, iters=3 if method == "stable_greenkhorn" else 20, alpha=None)
    found = solve(checked_context, [case], options, [shares])[0]
    check(found, case, options, shares)
    if method == "stream" and tau_t == 0.1:
        np.testing.assert_allclose(found[1].sum(axis=0), prior, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("gamma", [0.3, 1.0])
@pytest.mark.parametrize("method", ["sinkhorn", "stable_greenkhorn"])
def test_gamma(checked_context, method, gamma):
    case, options = make_case(37, 20, 3), Options(method, gamma=gamma, tau_t=0.05)
    check(solve(checked_context, [case], options)[0], case, options)


@pytest.mark.parametrize("c", [3, 40])
def test_converged_plan(checked_context, c):
    case, options = make_case(90, 20, c), Options("sinkhorn", 0.1, iters="converged", alpha=None)
    found = solve(checked_context, [case], options)[0]
    expected = _refine_numpy(
        found[0], *[getattr(options, name) for name in ("method", "tau_t", "gamma", "iters")], None
    )
    # A sweep more or less, where the gap is next to the tolerance, moves the plan by that tolerance of 1e-10.
    np.testing.assert_allclose(found[1], expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found[1].sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(found[1].sum(axis=0), 90 / c, rtol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tau_t", [1e-310, 1e-300, 1e-6, 1e6])
def test_hostile_temperatures(checked_context, method, tau_t):
    """Tiny ones underflow all but the best class, and their logarithms overflow; huge ones make all rows uniform.

    Four steps: where labels are one-hot, a row step opens a gap of its column of the same size, and rounding would
    choose the sixth.
    """
    case, options = make_case(23, 31, 4), Options(method, tau_t, iters=4)
    check(solve(checked_context, [case], options)[0], case, options)


@pytest.mark.parametrize("method", METHODS)
def test_hostile_images(checked_context, method):
    """Rows of zeros, duplicates, fewer images than classes, classes alike: ties go to the first."""
    options = Options(method, alpha=0.2)
    alike = with_rows(make_case(12, 9, 3), zero=[0, 5], same=[1, 2, 3, 11])
    few, single = with_rows(make_case(3, 9, 8), zero=[0, 1, 2]), make_case(1, 9, 2)
    cases, texts = [alike, few, single], [text_of(alike), text_of(few), text_of(single)]
    texts[0][2] = texts[0][0]
    for found, case, text in zip(solve(checked_context, cases, options, texts=texts), cases, texts, strict=True):
        check(found, case, options, text=text)


@pytest.mark.parametrize("iters", [20, "converged"])
@pytest.mark.parametrize("method", METHODS)
def test_features_that_are_no_numbers_end_in_a_mass_that_is_none(checked_context, method, iters):
    """Nothing loops or leaves its arrays, and the problem beside is solved as ever."""
    cases, options = [make_case(12, 9, 3), make_case(12, 9, 3, seed=1)], Options(method, 0.1, iters=iters)
    cases[0].X[4, 2] = np.nan
    bad, good = solve(checked_context, cases, options)
    assert np.isnan(bad[2]["mass"])
    if iters != "converged":
        check(good, cases[1], options)


@pytest.mark.parametrize("alpha", [None, 0.9, 0.5, 0.0])
def test_hardening(checked_context, alpha):
    case = with_rows(make_case(40, 24, 2), zero=[3])  # a row of zeros is exactly (0.5, 0.5): not above 0.5
    options = Options("softmax", 0.05, alpha=alpha)
    found = solve(checked_context, [case], options)[0]
    check(found, case, options)
    assert (found[1][3] == (1.0, 0.0)).all() == (alpha == 0.0)


@pytest.mark.parametrize("iters", [0, 1, 7])
@pytest.mark.parametrize("method", ["sinkhorn", "stable_greenkhorn"])
def test_number_of_steps(checked_context, method, iters):
    case, options = make_case(30, 16, 3), Options(method, iters=iters, alpha=None)
    check(solve(checked_context, [case], options)[0], case, options)


def test_a_row_goes_before_a_column_with_the_same_gap(checked_context):
    """Two images between two classes: all four gaps are exactly 1/2."""
    case, options = with_rows(make_case(2, 5, 2), zero=[0, 1]), Options(iters=1, alpha=None)
    found = solve(checked_context, [case], options)[0]
    np.testing.assert_array_equal(found[1], [[0.25, 0.25], [0.5, 0.5]])


def test_steps_end_where_no_gap_is_left(context):
    case = make_case(1, 3, 1)
    assert solve(context, [case], Options(iters=2**62))[0][1] == 1.0


def test_many_problems_of_different_sizes_in_one_launch(checked_context):
    cases = [make_case(n, 33, c) for n, c in [(3, 2), (70, 1), (7, 5), (64, 36), (2, 4)]]
    priors = [None, None, np.array([0.1, 0.3, 0.2, 0.2, 0.2]), None, np.array([0.0, 0.5, 0.5, 0.0])]
    for method in METHODS:
        options = Options(method)
        used = [None] * 5 if method == "softmax" else priors
        for found, case, prior in zip(solve(checked_context, cases, options, used), cases, used, strict=True):
            check(found, case, options, prior)


@pytest.mark.parametrize("method", METHODS)
def test_several_blocks_share_a_large_problem(open_context, method):
    """Few classes, and many, whose column sums are met in two stages; with teams, one for both problems, and none."""
    options = Options(method, tau_t=0.05)
    for cases in ([make_case(1100, 300, 3), make_case(9, 300, 2)], [make_case(300, 64, 500), make_case(40, 64, 3)]):
        for place in ({"seed": 3, "num_multiprocessors": 12}, {"num_multiprocessors": 1}, {"has_cooperative": False}):
            for found, case in zip(solve(open_context(**place), cases, options), cases, strict=True):
                check(found, case, options)


@pytest.mark.parametrize("method", ["sinkhorn", "stable_greenkhorn"])
def test_a_team_is_free_of_races(open_context, method):
    case, options = make_case(700, 257, 3), Options(method, iters=5)
    check(solve(open_context(is_checked=True, seed=5), [case], options)[0], case, options)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits_alone_among_others_and_in_any_capacity(open_context, method):
    case, other, options = make_case(700, 260, 3), make_case(900, 260, 9), Options(method)
    alone = solve(open_context(num_multiprocessors=16), [case], options)[0]
    among = solve(open_context(seed=7, num_multiprocessors=16), [other, case], options)[1]
    roomy = solve(open_context(num_multiprocessors=16), [case], options, capacity=other.sizes)[0]
    for found in (among, roomy):
        np.testing.assert_array_equal(found[0], alone[0])
        np.testing.assert_array_equal(found[1], alone[1])
        assert found[2] == alone[2]


@pytest.mark.parametrize(
    "wrong", [{"method": "greenkhorn"}, {"tau_t": 0.0}, {"gamma": 1.5}, {"iters": -1}, {"iters": "some"}], ids=str
)
def test_options_out_of_range_are_refused(context, wrong):
    table = open_table(context, [make_case(2, 3, 2)])
    with pytest.raises(ConfigError, match="expected"):
        launch_labels(context, table, **wrong)
