"""The whole method on a GPU against the CPU: text proxies, labels, proxies and answers in one launch."""

from __future__ import annotations

import dataclasses
from inspect import signature

import numpy as np
import pytest

from kpl_engine import learn_proxies, refine_labels
from kpl_engine.config import MethodConfig
from kpl_engine.cuda.ops.dual import launch_dual
from kpl_engine.errors import CudaMemoryError, ShapeError, SolverError
from kpl_engine.solver import device as device_module
from kpl_engine.solver.device import DeviceSolver
from kpl_engine.solver.device_plan import DevicePlan
from kpl_engine.solver.devices import using_device
from kpl_engine.solver.hardening import harden
from kpl_engine.solver.schedule import MAX_DRIFT
from kpl_engine.solver.select import Problem, solve, solve_many

SIZES = [(12, 5, 2), (64, 96, 3), (33, 40, 5)]


def make_problem(rng, n, d, c, m=7):
    """Images near one of c directions, descriptions near them too; every entry float32."""
    centres = rng.normal(size=(c, d))
    shared = 2.0 * rng.normal(size=d)
    images = shared + centres[rng.integers(c, size=n)] + rng.normal(size=(n, d))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = [shared + centre + rng.normal(size=(m + j, d)) for j, centre in enumerate(centres)]
    return images.astype(np.float32), [(t / np.linalg.norm(t, axis=1, keepdims=True)).astype(np.float32) for t in texts]


def published_float32(X, T, P, iters, lr=10.0, tau_i=0.04):
    """Logits of the published loop as it is run, in float32."""
    W, P, step, last = T.astype(np.float32), P.astype(np.float32), np.float32(lr / (len(X) * tau_i)), np.inf
    for _ in range(iters):
        powers = X @ W / np.float32(tau_i)
        powers = np.exp(powers - powers.max(axis=1, keepdims=True))
        G = X.T @ (powers / powers.sum(axis=1, keepdims=True) - P)
        norm = np.linalg.norm(G)
        step, last = (step / 2 if norm > last else step), norm
        W = W - step * G
        W /= np.linalg.norm(W, axis=0)
    return X @ W


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@pytest.fixture
def device(context):
    return DeviceSolver(context)


@pytest.mark.parametrize(("n", "d", "c"), SIZES)
@pytest.mark.parametrize("method", ["proxy", "inmap", "kpl"])
def test_a_gpu_answers_as_the_cpu(device, rng, method, n, d, c):
    X, texts = make_problem(rng, n, d, c)
    config = MethodConfig(proxy_iters=60)
    expected = solve(X, texts, method, config)
    with using_device(device):
        found = solve(X, texts, method, config, device="cuda")
    np.testing.assert_array_equal(found.text_proxies.proxies, expected.text_proxies.proxies)
    for ours, theirs in zip(found.text_proxies.kept, expected.text_proxies.kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    scale = np.abs(expected.logits).max()
    # float64 sums in another order, rounded to float32 once
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-6 * scale, rtol=0)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=2e-5, rtol=0)
    decided = ~expected.decided_by_rounding
    np.testing.assert_array_equal(found.labels[decided], expected.labels[decided])
    assert found.method_used == expected.method_used == method
    assert found.solution.solver == expected.solution.solver
    assert found.solution.iterations == expected.solution.iterations
    assert [notice.code for notice in found.warnings] == [notice.code for notice in expected.warnings]
    assert found.timings_ms["device"] > 0


@pytest.mark.parametrize("solver", ["auto", "schedule", "schedule_dual", "schedule_primal", "closed_form"])
def test_proxies_of_given_labels(device, rng, solver):
    X, texts = make_problem(rng, 40, 24, 2)
    T = np.stack([block.mean(axis=0) for block in texts], axis=1)
    T /= np.linalg.norm(T, axis=0)
    P = rng.random((40, 2)) / 40
    iters = 40 if solver.startswith("schedule") else 2000
    expected = learn_proxies(X, T, P, iters=iters, solver=solver)
    with using_device(device):
        found = learn_proxies(X, T, P, iters=iters, solver=solver, device="cuda")
    assert (found.solver, found.halvings) == (expected.solver, expected.halvings)
    assert found.form == expected.form or solver == "schedule"  # the cheaper one differs between machines
    scale = np.abs(expected.scores).max()
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6 * scale, rtol=0)
    np.testing.assert_allclose(found.proxies, expected.proxies, atol=2e-7, rtol=0)


def test_hardened_rows_run_the_schedule_and_say_so(device, rng):
    X, texts = make_problem(rng, 24, 16, 2)
    T = np.stack([block[0] for block in texts], axis=1)
    P = np.full((24, 2), 1e-3)
    P[3] = 0.9, 0.1
    with using_device(device):
        found = learn_proxies(X, T, P, iters=30, device="cuda")
        with pytest.raises(SolverError, match="1 of 24 label rows exceed alpha"):
            learn_proxies(X, T, P, iters=30, solver="closed_form", device="cuda")
    expected = learn_proxies(X, T, P, iters=30)
    assert found.solver == expected.solver == "schedule"
    assert [notice.code for notice in found.warnings] == [notice.code for notice in expected.warnings]
    assert found.warnings[0].message == expected.warnings[0].message
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-6, rtol=0)


def test_a_graph_gives_the_bits_of_its_launches_for_any_number_of_images(device, rng):
    X, texts = make_problem(rng, 24, 16, 3)
    config = MethodConfig(proxy_iters=25, min_batch=1)
    with using_device(device):
        first = solve(X, texts, "inmap", config, device="cuda")
        (plan,) = device._plans.values()
        assert not plan.is_graph
        again = solve(X, texts, "inmap", config, device="cuda")
        fewer = solve(X[:19], texts, "inmap", config, device="cuda")  # the same bucket
        back = solve(X, texts, "inmap", config, device="cuda")
    assert plan.is_graph
    assert len(device._plans) == 1
    for answer in (again, back):
        np.testing.assert_array_equal(answer.logits, first.logits)
        np.testing.assert_array_equal(answer.discriminants, first.discriminants)
    expected = solve(X[:19], texts, "inmap", config)
    np.testing.assert_allclose(fewer.logits, expected.logits, atol=1e-6 * np.abs(expected.logits).max(), rtol=0)


def test_a_prior_is_data_of_the_graph(device, rng):
    X, texts = make_problem(rng, 30, 16, 3)
    config = MethodConfig(proxy_iters=20, min_batch=1)
    with using_device(device):
        for prior in (None, [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], None):
            found = solve(X, texts, "inmap", config, prior, device="cuda")
            expected = solve(X, texts, "inmap", config, prior)
            tolerance = 1e-6 * np.abs(expected.logits).max()
            np.testing.assert_allclose(found.logits, expected.logits, atol=tolerance, rtol=0)


def test_float16_halves_only_where_labels_can_carry_them(device, rng):
    X, texts = make_problem(rng, 48, 24, 12)
    exact = MethodConfig(proxy_iters=10, solver="schedule_primal")
    split = dataclasses.replace(exact, solver="schedule_split")
    with using_device(device):
        found = solve(X, texts, "inmap", split, device="cuda")
        assert {plan.schedule.version for plan in device._plans.values()} == {"learn_proxies_split"}
        with pytest.raises(SolverError, match="Greenkhorn labels of method 'kpl'"):
            solve(X, texts, "kpl", split, device="cuda")
        T, light = found.text_proxies.proxies, np.full((48, 12), 1 / 576)
        with pytest.raises(SolverError, match="labels of mass 1 for 48 images"):
            learn_proxies(X, T, light, solver="schedule_split", device="cuda")
    expected = solve(X, texts, "inmap", exact)
    P = harden(refine_labels((X @ T).astype(np.float64), "sinkhorn"), 0.6)[0]
    single = np.abs(published_float32(X, T, P, 10) - expected.solution.logits).max()
    difference = np.abs(found.solution.logits - expected.solution.logits).max()
    assert 0 < difference <= max(2 * single, 1e-5)  # docs/method.md 3b; 0 would be float64 after all
    np.testing.assert_array_equal(solve(X, texts, "inmap", split).logits, expected.logits)


def test_what_the_gpu_does_not_compute_is_said(device, rng):
    X, texts = make_problem(rng, 24, 16, 2)
    with using_device(device):
        stream = solve(X, texts, "kpl_stream", device="cuda")
        few = solve(X[:3], texts, "kpl", device="cuda")
    assert stream.warnings[0].code == "solver_on_cpu"
    np.testing.assert_array_equal(stream.logits, solve(X, texts, "kpl_stream").logits)
    assert few.method_used == "zeroshot"
    assert not device._plans


def test_many_problems_share_a_launch(device, rng):
    sizes = [(24, 16, 3), (17, 16, 3), (40, 16, 3), (24, 12, 2), (4, 16, 3)]
    config = MethodConfig(proxy_iters=20, min_batch=5)
    problems = [Problem(*make_problem(rng, *size), "inmap", config) for size in sizes]
    problems[1] = dataclasses.replace(problems[1], prior=[0.5, 0.3, 0.2])
    problems.append(Problem(problems[0].features, problems[0].knowledge, "onzeta", config))
    with using_device(device):
        before = device.context.driver.num_launches if hasattr(device.context.driver, "num_launches") else None
        found = solve_many(problems, device="cuda")
    if before is not None:  # text proxies, labels, K, steps and answer of three groups: (24, 17), (40), (24, 12)
        assert device.context.driver.num_launches - before <= 15
    for problem, answer in zip(problems, found, strict=True):
        expected = solve(problem.features, problem.knowledge, problem.method, config, problem.prior)
        tolerance = 1e-6 * np.abs(expected.logits).max()
        np.testing.assert_allclose(answer.logits, expected.logits, atol=tolerance, rtol=0)
        assert answer.method_used == expected.method_used
    assert found[5].warnings[0].code == "solver_on_cpu"


def test_bases_of_one_launch_outlive_it_however_many_they_are(device, rng, monkeypatch):
    monkeypatch.setattr(device_module, "_MAX_BASES", 1)
    config = MethodConfig(proxy_iters=5, min_batch=1)
    problems = [Problem(*make_problem(rng, 24, 16, 3), "inmap", config) for _ in range(4)]
    kept, run = [], DevicePlan.run
    monkeypatch.setattr(DevicePlan, "run", lambda plan: kept.append(len(device._bases)) or run(plan))
    with using_device(device):
        solve_many(problems, device="cuda")
    assert kept == [4]  # when the kernels start, which read them all
    assert len(device._bases) == 1


def test_many_problems_name_the_bad_one(device, rng):
    good = Problem(*make_problem(rng, 24, 16, 3), "inmap", MethodConfig(proxy_iters=5))
    bad = dataclasses.replace(good, features=np.full((24, 16), np.nan, np.float32))
    with using_device(device), pytest.raises(ShapeError, match="problem 1: features"):
        solve_many([good, bad], device="cuda")


@pytest.mark.parametrize("device_name", ["auto", "cuda"])
def test_a_gpu_without_memory_falls_back_only_for_auto(open_context, rng, device_name):
    X, texts = make_problem(rng, 24, 16, 3)
    with using_device(DeviceSolver(open_context(max_bytes=20_000))):
        if device_name == "cuda":
            with pytest.raises(CudaMemoryError):
                solve(X, texts, "inmap", device=device_name)
            return
        found = solve(X, texts, "inmap", device=device_name)
    assert found.warnings[0].code == "solver_on_cpu"
    assert "memory" in found.warnings[0].message
    np.testing.assert_array_equal(found.logits, solve(X, texts, "inmap").logits)


@pytest.mark.parametrize(
    "options",
    [
        {"has_graphs": False},
        {"has_cooperative": False, "max_cluster": 1, "has_graphs": False},  # as pycuda
        {"compute_capability": (7, 5), "max_cluster": 1, "max_shared_bytes": 65536},
    ],
)
@pytest.mark.parametrize("method", ["inmap", "kpl"])
def test_adapters_and_gpus_that_can_do_less_answer_alike(open_context, rng, options, method):
    X, texts = make_problem(rng, 160, 24, 3)
    config = MethodConfig(proxy_iters=8)
    expected = solve(X, texts, method, config)
    with using_device(DeviceSolver(open_context(**options))):
        for _ in range(2):
            found = solve(X, texts, method, config, device="cuda")
            tolerance = 1e-6 * np.abs(expected.logits).max()
            np.testing.assert_allclose(found.logits, expected.logits, atol=tolerance, rtol=0)


def test_cpu_and_gpu_let_the_same_drift_pass():
    assert signature(launch_dual).parameters["max_drift"].default == MAX_DRIFT
