"""Images nearly alike and classes that are equal: where rounding would decide unless told not to."""

from dataclasses import replace

import numpy as np
import pytest

from kpl_engine.config import MethodConfig
from kpl_engine.solver import reference
from kpl_engine.solver.proxies import learn_proxies
from kpl_engine.solver.select import solve

pytestmark = pytest.mark.usefixtures("backend")


def nearly_alike(seed, labels):
    """``(X, T, P)`` with images within a random distance of each other."""
    random = np.random.default_rng(seed)
    n, d, c = (int(random.integers(2, most)) for most in (60, 200, 8))
    spread = 10 ** random.uniform(-4, 0)
    X = random.normal(size=(1, d)) / np.sqrt(d)
    X = X + spread * random.normal(size=(n, d)) / np.sqrt(d) * np.arange(1, d + 1) ** -random.uniform(0, 1.5)
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    T = random.normal(size=(d, c))
    T = (T / np.linalg.norm(T, axis=0)).astype(np.float32)
    if labels == "random":
        return X, T, random.dirichlet(np.ones(c), n)
    return X, T, reference.softmax_labels(X.astype(np.float64) @ T, 0.05)


def halvings_hold(X, T, P, W):
    """Whether the reference keeps its result when each step's residual is known to 1e-15 only, as in another order."""
    noise = np.random.default_rng(0)
    X, V, lr, last = X.astype(np.float64), T.astype(np.float64), 10.0, np.inf
    for _ in range(300):
        R = reference.softmax(X @ V / 0.04) - reference.harden(P)
        G = X.T @ (R + 1e-15 * noise.normal(size=R.shape))
        norm = np.linalg.norm(G)
        lr = lr / 2 if norm > last else lr
        last, V = norm, reference.unit_columns(V - lr / (len(X) * 0.04) * G, V)
    return np.abs(V - W).max() < 1e-9


@pytest.mark.parametrize("labels", ["random", "softmax"])
def test_images_nearly_alike_halve_the_step_as_the_reference_does(labels):
    """K is nearly constant there, so that ‖G‖² as a sum over it has few digits left to compare (5e-5 in Z once)."""
    held = 0
    for seed in range(60):
        X, T, P = nearly_alike(seed, labels)
        W, _ = reference.schedule(X, T, P, iters=300)
        if not halvings_hold(X, T, P, W):
            continue
        held += 1
        for form in ("schedule_dual", "schedule_primal"):
            found = learn_proxies(X, T, P, iters=300, solver=form)
            assert np.abs(found.proxies - W).max() < 1e-6, (seed, form)  # float32 of the result
    assert held > 20


@pytest.mark.parametrize("method", ["proxy", "inmap", "kpl"])
@pytest.mark.parametrize(("seed", "n"), [(0, 24), (2, 40), (3, 64)])
def test_equal_classes_tie_and_say_so(method, seed, n):
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, 64)) + 2.0 * random.normal(size=64)
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    texts = random.normal(size=(2, 6, 64))
    answer = solve(X, [texts[0], texts[1], texts[0]], method)
    if method != "kpl":  # Greenkhorn's greedy steps rescale the first of two equal columns first
        np.testing.assert_array_equal(answer.logits[:, 0], answer.logits[:, 2])
        assert not (answer.labels == 2).any()
        assert answer.decided_by_rounding[answer.labels == 0].all()
    unsure = answer.margins < 1e-7
    assert answer.decided_by_rounding[unsure].all()


@pytest.mark.parametrize("method", ["inmap", "kpl"])
@pytest.mark.parametrize("solver", ["schedule_dual", "schedule_primal"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_copies_of_one_image_leave_nothing_to_decide(method, solver, seed):
    """Every class has the same share of the same image: what tells the proxies apart is rounding."""
    random = np.random.default_rng(seed)
    x = random.normal(size=32)
    X = np.tile(np.float32(x / np.linalg.norm(x)), (64, 1))
    answer = solve(X, list(random.normal(size=(3, 6, 32))), method, MethodConfig(solver=solver))
    assert (answer.margins < 1e-6).all()
    assert answer.decided_by_rounding.all()


def test_a_zero_text_proxy_is_not_taken_for_frozen():
    """The column stays zero in the first step and becomes a direction in the second, however small lr is."""
    X, T, P = np.eye(2), np.zeros((2, 3)), np.tile([1 / 3, 0.1, 0.5], (2, 1))
    options = {"lr": 1e-12, "tau_i": 10.0, "alpha": 2.0, "iters": 2}
    found = learn_proxies(X, T, P, **options)
    assert found.iterations == 2
    np.testing.assert_array_equal(found.labels, learn_proxies(X, T, P, **options, solver="schedule").labels)


def test_a_frozen_schedule_ends_early_with_the_same_answer(make_clip_like):
    """More classes than greedy steps: lr halves away in a hundred steps; here it has arrived by then."""
    data = make_clip_like(300, 64, 30, 3)
    config = MethodConfig(proxy_iters=2000)
    auto = solve(data.features, data.descriptions, "kpl", config)
    full = solve(data.features, data.descriptions, "kpl", replace(config, solver="schedule"))
    assert auto.solution.iterations < 1000
    assert full.solution.iterations > auto.solution.iterations
    assert np.abs(auto.solution.scores - full.solution.scores).max() < 1e-6 * np.abs(full.solution.scores).max()
    np.testing.assert_array_equal(auto.labels, full.labels)
    codes = {note.code for note in auto.warnings}
    assert "schedule_used" in codes
    assert not codes & {"not_converged", "schedule_froze"}


def test_freezing_before_the_fixed_point_is_said(make_clip_like):
    data = make_clip_like(1000, 512, 37, 1000)
    answer = solve(data.features, data.descriptions, "kpl")
    assert answer.solution.iterations < 200
    note = next(note for note in answer.warnings if note.code == "schedule_froze")
    assert "short of a fixed point" in note.message
