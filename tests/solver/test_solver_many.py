"""`solve_many`: independent problems, each as `solve` gives it, in their order."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from kpl_engine.config import MethodConfig
from kpl_engine.errors import ConfigError, ShapeError
from kpl_engine.solver import cpu
from kpl_engine.solver.select import Problem, solve, solve_many
from kpl_engine.solver.stages import prepare

METHODS = ("zeroshot", "proxy", "inmap", "kpl", "kpl_stream", "onzeta")


@pytest.fixture
def problems(make_clip_like):
    found = []
    for seed, (n, d, c) in enumerate(((40, 32, 2), (64, 48, 5), (33, 17, 3), (9, 16, 2))):
        data = make_clip_like(n, d, c, seed)
        found += [Problem(data.features, data.descriptions, method) for method in METHODS]
        found.append(Problem(data.features, data.descriptions, "kpl", MethodConfig(solver="schedule")))
        found.append(Problem(data.features, data.descriptions, "kpl", MethodConfig(solver="schedule_primal")))
        found.append(Problem(data.features, data.descriptions, "proxy", MethodConfig(retrieval="per_image")))
        found.append(Problem(data.features, data.descriptions, "inmap", None, np.arange(1.0, c + 1)))
        found.append(Problem(data.features, data.descriptions, "inmap", MethodConfig(ot_iters="converged", gamma=0.5)))
    return found


def as_solved(problem, num_threads):
    return solve(problem.features, problem.knowledge, problem.method, problem.config, problem.prior, num_threads)


@pytest.mark.parametrize("num_threads", [1, 2, 3, None])
def test_many_are_the_single_answers_bit_for_bit(problems, num_threads):
    for problem, answer in zip(problems, solve_many(problems, num_threads), strict=True):
        alone = as_solved(problem, 1)
        assert answer.method == alone.method == problem.method
        assert answer.method_used == alone.method_used
        np.testing.assert_array_equal(answer.labels, alone.labels)
        np.testing.assert_array_equal(answer.logits, alone.logits)
        np.testing.assert_array_equal(answer.proxies, alone.proxies)
        assert [note.code for note in answer.warnings] == [note.code for note in alone.warnings]
        assert (answer.solution is None) == (alone.solution is None)
        if answer.solution:
            assert answer.solution.iterations == alone.solution.iterations


def test_the_core_and_numpy_agree(problems):
    """To 300 steps: later the halving rule may be decided by rounding, where the reference differs from itself."""
    problems = [replace(each, config=replace(each.config or MethodConfig(), proxy_iters=300)) for each in problems]
    with cpu.numpy_only():
        plain = solve_many(problems, 2)
    for problem, fast, slow in zip(problems, solve_many(problems, 2), plain, strict=True):
        assert np.abs(fast.logits - slow.logits).max() < 1e-6 * max(1.0, np.abs(slow.logits).max())
        differ = fast.labels != slow.labels
        assert not (differ & ~fast.decided_by_rounding).any(), problem.method


def test_timings_are_of_each_problem(problems):
    for answer in solve_many(problems[:9], 2):
        assert set(answer.timings_ms) == {"text_proxies", "labels", "proxies"}
        assert all(0 <= spent < 60_000 for spent in answer.timings_ms.values())
        if answer.method_used == "inmap":
            assert min(answer.timings_ms.values()) > 0


def test_which_problems_run_in_the_core():
    X = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    knowledge = [X[:4], X[4:9]]
    assert prepare(Problem(X, knowledge, "inmap")).runs_schedule
    assert prepare(Problem(X, knowledge, "kpl", MethodConfig(solver="schedule_dual"))).runs_schedule
    assert not prepare(Problem(X, knowledge, "kpl")).runs_schedule
    assert not prepare(Problem(X, knowledge, "inmap", MethodConfig(retrieval="per_image"))).runs_schedule
    assert not prepare(Problem(X[:3], knowledge, "inmap")).runs_schedule  # too few images


def test_an_error_says_which_problem(problems):
    bad = np.full((5, 32), np.nan, dtype=np.float32)
    with pytest.raises(ShapeError, match="problem 2: features"):
        solve_many([problems[0], problems[1], Problem(bad, problems[0].knowledge)])
    with pytest.raises(ConfigError, match="problem 1: method"):
        solve_many([problems[0], Problem(problems[0].features, problems[0].knowledge, "best")])
    with pytest.raises(ConfigError, match="num_threads"):
        solve_many(problems, 0)
    for wrong in (None, problems[0], iter(problems)):
        with pytest.raises(ConfigError, match="problems: expected a list"):
            solve_many(wrong)
    with pytest.raises(ConfigError, match="problem 0: expected a Problem"):
        solve_many([problems[0].features])
    assert solve_many([]) == []
    assert len({*problems}) == len(problems)


def test_two_callers_at_once(problems):
    expected = [as_solved(problem, 1).logits for problem in problems]
    failures = []

    def call():
        for answer, logits in zip(solve_many(problems, 2), expected, strict=True):
            if not np.array_equal(answer.logits, logits):
                failures.append(answer.method)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures
