"""The schedule in feature space with many classes, against the float64 schedule."""

import numpy as np
import pytest

from kpl_engine.cuda.ops.primal import choose_primal
from kpl_engine.cuda.problems import Capacity

from .test_primal import check, make, solve


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
