"""What only a GPU can show of the kernels: the same bits twice, in a graph as alone, and what float64 says."""

from __future__ import annotations

import numpy as np
import pytest

from kpl_engine.solver import reference

from .workloads import EVERY_KERNEL, LR, STEPS, TAU_I, WORKLOADS, problem


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), f"{name}: up to {np.abs(array - other[name]).max()} apart"


@pytest.mark.parametrize("name", EVERY_KERNEL)
def test_two_runs_give_the_same_bits(small_context, name):
    workload = EVERY_KERNEL[name](small_context)
    runs = []
    for _ in range(2):
        workload.start()
        workload.work()
        runs.append(workload.read())
    assert_same_bits(*runs)
    assert all(np.isfinite(array).all() for array in runs[0].values())


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_graph_gives_the_bits_of_plain_launches(context, name):
    """The capture itself proves that nothing waits for the host: CUDA refuses to capture what does."""
    workload = WORKLOADS[name](context)
    workload.start()
    workload.work()
    plain = workload.read()
    graph = context.driver.capture(context.stream, workload.work)
    for _ in range(2):
        workload.start()
        graph.launch(context.stream)
        assert_same_bits(plain, workload.read())


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name.startswith(("dual", "primal"))])
def test_the_schedule_equals_float64(context, name):
    """Sums in another order part two float64 runs by 1e-15 a step at most here; 1e-10 is far below any wrong step.

    Float16 halves carry 22 bits of each factor: docs/method.md 3b allows 1e-5.
    """
    n, d, c, seeds, step = {"dual": (37, 40, 3, (0, 1), 1), "primal": (70, 44, 3, (5, 6), 9)}[name.split("_")[0]]
    columns = {"one_column": 1, "four_columns": 4, "eight_columns": 8, "wide": 11, "split": 11}
    c = 1 + columns.get(name.partition("_")[2], c - 1)
    if name.startswith("dual_up_to"):
        n, seeds = int(name.rpartition("_")[2]), (0,)
    workload = WORKLOADS[name](context)
    workload.start()
    workload.work()
    found = workload.read()
    for index, seed in enumerate(seeds):
        X, T, P = problem(n - step * index, d, c, seed)
        expected = reference.schedule(X, T, P, lr=LR, iters=STEPS, tau_i=TAU_I)[0]
        tolerance = 1e-5 if name == "primal_split" else 1e-10
        np.testing.assert_allclose(found[f"W{index}"], expected.T, rtol=0, atol=tolerance)


def test_the_closed_form_is_where_the_schedule_ends(context):
    workload = WORKLOADS["closed_form"](context)
    workload.start()
    workload.work()
    X, T, P = problem(90, 48, 3, seed=8, labels="stable_greenkhorn")
    W = workload.read()["W0"].T
    expected = reference.schedule(X, T, P, lr=LR, iters=20_000, tau_i=TAU_I)[0]
    difference = (W - W[:, -1:]) - (expected - expected[:, -1:])
    # Relative to the differences between classes, which are what decides: 1e-9 is the op's own tolerance.
    assert np.abs(difference).max() <= 1e-6 * np.abs(expected - expected[:, -1:]).max()
