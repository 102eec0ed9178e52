"""Answers on a GPU against the NumPy twin of solver/finishing.py and the softmax of solver/stages.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kpl_engine.cuda.ops.answer import launch_answer
from kpl_engine.errors import ConfigError
from kpl_engine.solver import reference
from kpl_engine.solver.finishing import _finish

from .tables import make_case, open_table, results, unit, with_rows

ULP = 1.3e-7  # float64 sums in another order differ by 1e-16, which can move a rounding to float32 by one ulp
TAU = 0.04


def proxies_of(case, apart=1e-3, seed=1):
    """W (c, d) float64 of unit length, ``apart`` from one direction, as Greenkhorn labels make them."""
    random = np.random.default_rng(seed)
    c, d = len(case.blocks), case.X.shape[1]
    W = random.normal(size=d) + apart * random.normal(size=(c, d))
    return W / np.linalg.norm(W, axis=1, keepdims=True)


def solve(context, cases, proxies, mass=None, capacity=None):
    table = open_table(context, cases, capacity)
    for i, (case, W) in enumerate(zip(cases, proxies, strict=True)):
        table.write("W", W, i)
        record = np.zeros(1, table.view("record").dtype)
        record["mass"] = len(case.X) if mass is None else mass
        table.write("record", record, i)
    launch_answer(context, table, TAU)
    return results(table)


def check(found, case, W, mass=None):
    with np.errstate(all="ignore"):
        expected, fits = _finish(W.T, case.X, len(case.X) if mass is None else mass)
    assert found.record["fits"] == fits
    np.testing.assert_array_equal(found.out_proxies.T, expected["proxies"])
    # The mean over classes, and hence D, is known to 1e-16 of W; times n / mass.
    scale = len(case.X) / mass if mass and mass > 1e-6 else 1.0
    close = {"rtol": ULP, "atol": 4e-16 * scale}
    np.testing.assert_allclose(found.out_discriminants.T, expected["discriminants"], **close)
    np.testing.assert_allclose(found.out_logits, expected["logits"], **close)
    np.testing.assert_allclose(found.out_scores, expected["scores"], **close)
    np.testing.assert_array_equal(found.out_labels, expected["labels"])
    np.testing.assert_array_equal(found.out_undecided, expected["decided_by_rounding"])
    probabilities = reference.softmax(found.out_scores.astype(float) / TAU)
    np.testing.assert_allclose(found.out_probabilities, probabilities, rtol=ULP, atol=1e-38)
    np.testing.assert_allclose(found.out_probabilities.sum(axis=1, dtype=float), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("n", "d", "c"), [(1, 1, 1), (2, 31, 3), (31, 64, 2), (33, 130, 10), (64, 768, 5), (70, 33, 40), (9, 7, 7)]
)
def test_odd_sizes(seeded_context, n, d, c):
    case = make_case(n, d, c)
    W = proxies_of(case)
    check(solve(seeded_context, [case], [W])[0], case, W)


@pytest.mark.parametrize("mass", [1.0, 0.3, 1e-7, 0.0])
def test_mass_gives_the_scale(checked_context, mass):
    case = make_case(50, 40, 3)
    W = proxies_of(case, 1e-6)
    check(solve(checked_context, [case], [W], mass)[0], case, W, mass)


def test_labels_decided_by_rounding(checked_context):
    """Margins from far below to far above what float32 rounding of a unit feature can move."""
    case = with_rows(make_case(138, 65, 4), zero=[7])
    for apart in (1e-9, 1e-8, 1e-7, 1e-6, 1e-4):
        W = proxies_of(case, apart)
        check(solve(checked_context, [case], [W])[0], case, W)


def test_rows_across_the_differences_are_undecided(checked_context):
    """Half of the rows are exact ties, whose label is chance; the others have wide margins."""
    direction, shift = unit(np.ones(65)).astype(float), np.zeros(65)
    shift[:2] = 1e-3, -1e-3
    X = np.tile(direction, (138, 1)).astype(np.float32)
    X[1::2, 0] = 0.2
    case = replace(make_case(138, 65, 4), X=X)
    found = solve(checked_context, [case], [np.stack([direction + j * shift for j in range(4)])])[0]
    np.testing.assert_array_equal(found.out_undecided, np.arange(138) % 2 == 0)
    assert (found.out_labels[1::2] == 3).all()


@pytest.mark.parametrize(("share", "undecided"), [(0.7, True), (0.99, True), (1.02, False), (1.5, False)])
def test_undecided_ends_where_rounding_of_a_feature_does(checked_context, share, undecided):
    """The margin is ``share`` times what an ulp of x can move; the noise of W adds a thousandth."""
    X = np.zeros((3, 8), np.float32)
    X[:, 0], X[:, 1] = 1.0, share * np.finfo(np.float32).eps
    W = np.zeros((2, 8))
    W[:, 0], W[1, 1] = 1.0, 1e-2
    found = solve(checked_context, [replace(make_case(3, 8, 2), X=X)], [W])[0]
    assert found.out_undecided.tolist() == [undecided] * 3


def test_equal_classes_go_to_the_first_and_are_undecided(checked_context):
    case = make_case(33, 20, 4)
    W = proxies_of(case)[[0, 0, 0, 0]]
    found = solve(checked_context, [case], [W])[0]
    check(found, case, W)
    assert not found.out_labels.any()
    assert found.out_undecided.all()
    assert (found.out_probabilities == 0.25).all()


@pytest.mark.parametrize("bad", [1e39, np.inf, np.nan])
def test_results_beyond_float32_are_recorded(checked_context, bad):
    cases = [make_case(40, 20, 3), make_case(40, 20, 3, seed=1)]
    proxies = [proxies_of(case) for case in cases]
    proxies[0][2, 19] = bad
    found = solve(checked_context, cases, proxies)
    assert found[0].record["fits"] == 0
    check(found[1], cases[1], proxies[1])
    labels = found[0].out_labels
    assert ((labels >= 0) & (labels < 3)).all()


def test_many_problems_of_different_sizes_in_one_launch(checked_context):
    cases = [make_case(n, 33, c) for n, c in [(1, 2), (70, 1), (7, 5), (64, 36), (2, 4)]]
    proxies = [proxies_of(case) for case in cases]
    for found, case, W in zip(solve(checked_context, cases, proxies), cases, proxies, strict=True):
        check(found, case, W)


def test_several_blocks_share_a_large_problem(open_context):
    cases = [make_case(1100, 300, 3), make_case(300, 300, 50), make_case(40, 300, 3)]
    proxies = [proxies_of(case, 1e-7) for case in cases]
    for options in ({"seed": 3, "num_multiprocessors": 9}, {"num_multiprocessors": 1}, {"has_cooperative": False}):
        found = solve(open_context(**options), cases, proxies)
        for result, case, W in zip(found, cases, proxies, strict=True):
            check(result, case, W)
    proxies[0][0, 0] = 1e39  # seen by one block of the team
    assert solve(open_context(), cases, proxies)[0].record["fits"] == 0


def test_a_team_is_free_of_races(open_context):
    case = make_case(600, 300, 3)
    W = proxies_of(case)
    check(solve(open_context(is_checked=True, seed=5), [case], [W])[0], case, W)


def test_the_same_bits_alone_among_others_and_in_any_capacity(open_context):
    case, other = make_case(700, 260, 3), make_case(900, 260, 9)
    W, others = proxies_of(case), proxies_of(other)
    alone = solve(open_context(num_multiprocessors=16), [case], [W])[0]
    among = solve(open_context(seed=7, num_multiprocessors=16), [other, case], [others, W])[1]
    roomy = solve(open_context(num_multiprocessors=16), [case], [W], capacity=other.sizes)[0]
    for found in (among, roomy):
        for name in ("discriminants", "logits", "scores", "probabilities", "labels", "undecided"):
            np.testing.assert_array_equal(getattr(found, f"out_{name}"), getattr(alone, f"out_{name}"))


@pytest.mark.parametrize("tau", [0.0, -1.0, np.inf, np.nan])
def test_a_temperature_out_of_range_is_refused(context, tau):
    table = open_table(context, [make_case(2, 3, 2)])
    with pytest.raises(ConfigError, match="tau"):
        launch_answer(context, table, tau)
