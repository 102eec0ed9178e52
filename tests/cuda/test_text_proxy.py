"""Text proxies on a GPU against the NumPy twin of the solver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kpl_engine.cuda.ops.text_proxy import launch_text_proxy
from kpl_engine.errors import ConfigError
from kpl_engine.solver.text_proxy import _select_numpy, as_knowledge

from .tables import make_case, open_table, results

ULP = 1.3e-7  # float64 sums in another order differ by 1e-16, which can move a rounding to float32 by one ulp


def solve(context, cases, capacity=None):
    table = open_table(context, cases, capacity)
    launch_text_proxy(context, table)
    return results(table)


def check(found, case):
    expected = _select_numpy(case.X, as_knowledge(case.blocks), case.k)
    np.testing.assert_allclose(found.T, expected.proxies.T, rtol=ULP, atol=1e-9)
    np.testing.assert_allclose(found.scores, np.concatenate(expected.scores), rtol=ULP, atol=1e-9)
    for j, kept in enumerate(expected.kept):
        filled = np.full(case.k, -1)
        filled[: len(kept)] = case.first[j] + kept
        np.testing.assert_array_equal(found.kept[j], filled)


@pytest.mark.parametrize(
    ("n", "d", "c", "k"),
    [(1, 1, 1, 1), (1, 31, 3, 2), (2, 64, 2, 8), (31, 130, 10, 5), (33, 31, 3, 1), (64, 768, 2, 8), (138, 64, 5, 50)],
)
def test_odd_sizes(seeded_context, n, d, c, k):
    case = make_case(n, d, c, k)
    check(solve(seeded_context, [case])[0], case)


def test_all_descriptions_are_kept_best_first(checked_context):
    case = make_case(9, 33, 4, k=9)
    found = solve(checked_context, [case])[0]
    check(found, case)
    assert sorted(found.kept[found.kept >= 0]) == list(range(len(case.E)))


def test_equal_descriptions_keep_the_lower_index_first(checked_context):
    case = make_case(17, 65, 2, k=3, counts=[6, 4])
    same = case.blocks[0][[2, 0, 2, 1, 2, 0]]
    case = replace(case, blocks=[same, np.repeat(case.blocks[1][:1], 4, axis=0)])
    found = solve(checked_context, [case])[0]
    check(found, case)
    assert found.kept[1].tolist() == [6, 7, 8]


@pytest.mark.parametrize("rows", [[[1.0, 0], [-1, 0]], [[0, 0], [0, 0]]], ids=["opposed", "zero"])
def test_a_mean_image_of_zero_keeps_the_first(checked_context, rows):
    case = make_case(2, 2, 2, k=2, counts=[5, 3])
    case = replace(case, X=np.array(rows, np.float32))
    found = solve(checked_context, [case])[0]
    check(found, case)
    assert found.kept.tolist() == [[0, 1], [5, 6]]
    assert np.isfinite(found.T).all()


@pytest.mark.parametrize("rest", [0.0, 2e-7])
def test_descriptions_that_cancel_leave_the_best_alone(checked_context, rest):
    """Also where rounding of float32 leaves a rest, which is no direction."""
    case = make_case(5, 40, 2, k=2, counts=[2, 3])
    opposite = -case.blocks[0][0]
    opposite[3] += np.float32(rest)
    case = replace(case, blocks=[np.stack([opposite, case.blocks[0][0]]), case.blocks[1]])
    found = solve(checked_context, [case])[0]
    check(found, case)
    best = case.E[found.kept[0, 0]]
    np.testing.assert_allclose(found.T[0], best, rtol=ULP, atol=1e-7)  # best is a unit vector to float32 rounding only


def test_descriptions_of_zeros_give_a_proxy_of_zeros(checked_context):
    case = make_case(5, 40, 2, counts=[2, 3])
    case = replace(case, blocks=[np.zeros((2, 40), np.float32), case.blocks[1]])
    found = solve(checked_context, [case])[0]
    assert not found.T[0].any()
    assert np.linalg.norm(found.T[1]) > 0.99


def test_many_problems_of_different_sizes_in_one_launch(checked_context):
    cases = [make_case(n, 33, c, k) for n, c, k in [(1, 2, 3), (40, 1, 8), (7, 5, 1), (64, 3, 4), (2, 4, 2)]]
    for found, case in zip(solve(checked_context, cases), cases, strict=True):
        check(found, case)


def test_several_blocks_share_a_large_problem(open_context):
    """Rows, descriptions and classes are shared by the blocks of a team; large and small problems at once."""
    cases = [
        make_case(700, 260, 3, k=5, counts=[500, 9, 80]),
        make_case(30, 260, 70, k=2, counts=[20] * 70),
        make_case(5, 260, 2),
    ]
    for options in ({}, {"seed": 3, "num_multiprocessors": 9}, {"num_multiprocessors": 1}, {"has_cooperative": False}):
        for found, case in zip(solve(open_context(**options), cases), cases, strict=True):
            check(found, case)


def test_a_team_is_free_of_races(open_context):
    case = make_case(300, 257, 3, k=3, counts=[400, 300, 30])
    check(solve(open_context(is_checked=True, seed=5), [case])[0], case)


def test_the_same_bits_alone_among_others_and_in_any_capacity(open_context):
    case, other = make_case(700, 260, 3, counts=[400, 30, 90]), make_case(900, 260, 9)
    alone = solve(open_context(num_multiprocessors=16), [case])[0]
    among = solve(open_context(seed=7, num_multiprocessors=16), [other, case])[1]
    larger = replace(case.sizes, n=2000, c=5, M=900, k=9)
    roomy = solve(open_context(seed=2, num_multiprocessors=16), [case], larger)[0]
    for found in (among, roomy):
        for name in ("T", "scores", "kept"):
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))


def test_features_beyond_shared_memory_are_refused(open_context):
    context = open_context(max_shared_bytes=49152)
    case = make_case(2, 6145, 1)
    with pytest.raises(ConfigError, match="shared memory"):
        launch_text_proxy(context, open_table(context, [case]))
    narrow = make_case(2, 6144, 1)
    check(solve(context, [narrow])[0], narrow)
