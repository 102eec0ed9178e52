"""The closed form: the fixed point of the schedule, and a condition that says when it is one."""

import numpy as np
import pytest

from kpl_engine.errors import SolverError
from kpl_engine.solver import closed_form, cpu, reference
from kpl_engine.solver.closed_form import (
    first_order,
    project_both_sides,
    regime_fault,
    schedule_fault,
    solve_closed_form,
)
from kpl_engine.solver.labels import refine_labels
from kpl_engine.solver.moments import moments_of
from kpl_engine.solver.proxies import learn_proxies
from kpl_engine.solver.text_proxy import select_text_proxies

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def problem(make_clip_like):
    def build(n, d, c, seed, labels="stable_greenkhorn", **options):
        data = make_clip_like(n, d, c, seed, **options)
        T = select_text_proxies(data.features, data.descriptions).proxies
        return data.features, T, refine_labels(data.features @ T, labels)

    return build


SIZES = [(32, 96, 2), (64, 48, 3), (138, 96, 2), (300, 48, 5), (200, 64, 10), (150, 32, 20)]


@pytest.mark.parametrize(("n", "d", "c"), SIZES)
def test_equals_the_float64_schedule(problem, n, d, c):
    X, T, P = problem(n, d, c, seed=n + c)
    W, _ = reference.schedule(X, T, P)
    Z = X.astype(np.float64) @ W
    differences = Z - Z.mean(axis=1, keepdims=True)
    found = learn_proxies(X, T, P, solver="closed_form")
    np.testing.assert_array_equal(found.labels, Z.argmax(axis=1))
    assert np.abs(found.logits - Z).max() < 1e-7
    scaled = found.scores * (P.sum(dtype=np.float64) / n)
    assert np.abs(scaled - differences).max() < 1e-6 * np.abs(differences).max()
    assert np.abs(np.linalg.norm(found.proxies.astype(float), axis=0) - 1).max() < 2e-7
    assert found.converged
    assert found.residual <= 1e-9
    assert not found.decided_by_rounding.any()


@pytest.mark.parametrize(("n", "d", "c"), SIZES)
def test_is_a_fixed_point_of_one_published_step(problem, n, d, c):
    X, _, P = (a.astype(np.float64) for a in problem(n, d, c, seed=n))
    W = solve_closed_form(X, P, 0.04).W
    stepped, _ = reference.schedule(X, W, P, lr=0.01, iters=1)
    spread = np.abs(W - W.mean(axis=1, keepdims=True)).max()
    assert np.abs(stepped - W).max() < 1e-8 * spread


@pytest.mark.parametrize(("n", "d", "c"), SIZES)
def test_first_order_is_the_reference_formula_and_errs_by_one_over_n(problem, n, d, c):
    X, _, P = (a.astype(np.float64) for a in problem(n, d, c, seed=n))
    mean = X.mean(axis=0)
    u = mean / np.linalg.norm(mean)
    Pi = np.eye(d) - np.outer(u, u)
    matrix = Pi @ X.T @ X @ Pi / n + 0.04 * np.linalg.norm(mean) * np.eye(d)
    W, e = first_order(mean, X.T @ P, lambda F: np.linalg.solve(matrix, F), n, 0.04)
    formula = c * 0.04 / n * reference.closed_form(X, P)
    assert np.abs(e - formula).max() < 1e-12 * np.abs(formula).max()
    exact = solve_closed_form(X, P, 0.04).W
    exact_e = exact - exact.mean(axis=1, keepdims=True)
    gap = np.abs((W - W.mean(axis=1, keepdims=True)) - exact_e).max() / np.abs(exact_e).max()
    assert gap < 2.5 / n
    common = np.abs(W.mean(axis=1) - exact.mean(axis=1)).max()  # dbar: what all classes share beyond -u
    assert common < 1.5 / n * np.abs(exact.mean(axis=1) + u).max()  # measured 1.00 / n


def test_both_factorisations_agree(problem):
    """n < d takes the Woodbury side; padding with zero dimensions moves the other side there."""
    X, T, P = problem(40, 32, 3, seed=1)
    padded = np.hstack([X, np.zeros((40, 30), np.float32)])
    wide = learn_proxies(padded, np.vstack([T, np.zeros((30, 3), np.float32)]), P, solver="closed_form")
    tall = learn_proxies(X, T, P, solver="closed_form")
    np.testing.assert_allclose(wide.scores, tall.scores, atol=1e-6 * np.abs(tall.scores).max())


def test_auto_takes_it_quietly_and_leaves_it_loudly(problem):
    X, T, P = problem(60, 32, 3, seed=2)
    found = learn_proxies(X, T, P)
    assert (found.solver, found.form, found.warnings) == ("closed_form", "closed_form", ())
    for labels in (refine_labels(X @ T, "softmax"), refine_labels(X @ T, "sinkhorn"), np.full((60, 3), 1 / 3)):
        found = learn_proxies(X, T, labels)
        assert found.solver == "schedule"
        assert found.warnings[0].code == "schedule_used"
        with pytest.raises(SolverError, match="closed_form does not hold"):
            learn_proxies(X, T, labels, solver="closed_form")


def test_one_hardened_row_is_enough_to_leave_it(problem):
    X, T, P = problem(60, 32, 3, seed=2)
    P = P.copy()
    P[7] = [0.7, 0, 0]
    with pytest.raises(SolverError, match="1 of 60 label rows"):
        learn_proxies(X, T, P, solver="closed_form")
    assert learn_proxies(X, T, P).solver == "schedule"


def test_more_classes_than_greedy_steps_leave_it(problem):
    X, T, P = problem(200, 32, 40, seed=3)
    with pytest.raises(SolverError, match="closed_form does not hold"):
        learn_proxies(X, T, P, solver="closed_form")
    assert learn_proxies(X, T, P, iters=50).solver == "schedule"


@pytest.mark.parametrize(
    "options",
    [{"iters": 3}, {"iters": 0}, {"lr": 1e-4}, {"iters": 600}, {"lr": 0.1}, {"lr": 1.0}, {"lr": 1e4, "iters": 500}],
)
def test_auto_does_not_jump_to_a_fixed_point_the_steps_would_not_reach(problem, options):
    X, T, P = problem(60, 32, 3, seed=2)
    found = learn_proxies(X, T, P, **options)
    W, _ = reference.schedule(X, T, P, **options)
    assert found.solver == "schedule"
    assert np.abs(found.proxies - W).max() < 1e-6


@pytest.mark.parametrize(("lr", "seed"), [(0.1, 1), (0.1, 2), (0.3, 4)])
def test_short_steps_freeze_before_the_fixed_point(make_clip_like, lr, seed):
    """The halving rule stops such a run where it is: other labels than the fixed point, and auto gives the run's."""
    data = make_clip_like(64, 48, 3, seed, common=1.5, separation=0.1)
    T = select_text_proxies(data.features, data.descriptions).proxies
    P = refine_labels(data.features.astype(np.float64) @ T)
    W, halvings = reference.schedule(data.features, T, P, lr=lr)
    Z = data.features.astype(np.float64) @ W
    found = learn_proxies(data.features, T, P, lr=lr)
    assert halvings > 30
    np.testing.assert_array_equal(found.labels, Z.argmax(axis=1))
    closed = learn_proxies(data.features, T, P, lr=lr, solver="closed_form")
    assert np.mean(closed.labels != found.labels) > 0.02


def test_regime_is_half_of_the_mass_of_a_column(problem):
    X, _, P = problem(60, 48, 2, seed=4)
    scale = 30 / P.sum(axis=0).max()  # c · largest column mass = n
    assert regime_fault(moments_of(X, P * scale * 0.49)) == ""
    assert "labels are not O(1/n)" in regime_fault(moments_of(X, P * scale * 0.51))


def test_projection_is_pi_a_pi():
    random = np.random.default_rng(0)
    A, u = random.normal(size=(6, 6)), random.normal(size=6)
    A, u = A @ A.T, u / np.linalg.norm(u)
    Pi = np.eye(6) - np.outer(u, u)
    assert np.abs(project_both_sides(A, u) - Pi @ A @ Pi).max() < 1e-14


def test_long_steps_may_swing_for_more_steps_than_asked(problem):
    """Near kappa = 1 a swing shrinks by 2/(1 + r) a step: 2000 steps do for r = 112, not for 1120."""
    X, _, P = problem(60, 48, 2, seed=4)
    sums = moments_of(X, P)
    assert schedule_fault(sums, 10.0, 2000, 0.04) == ""
    assert "may stop short" in schedule_fault(sums, 100.0, 2000, 0.04)
    assert schedule_fault(sums, 100.0, 20_000, 0.04) == ""


def test_fewer_images_than_four_per_class_leave_it(problem):
    X, _, P = problem(20, 48, 5, seed=4)
    assert schedule_fault(moments_of(X, P), 10.0, 2000, 0.04) == ""
    assert "19 images" in schedule_fault(moments_of(X[:19], P[:19]), 10.0, 2000, 0.04)


def test_mean_of_rounding_is_no_direction(problem):
    X, T, P = problem(60, 32, 3, seed=2)
    X = np.vstack([X[:30], -X[:30]])
    X[0, 0] += np.spacing(X[0, 0])  # the mean is one rounding error of one feature
    found = learn_proxies(X, T, P, iters=50)
    assert "mean feature is zero" in found.warnings[0].message
    with pytest.raises(SolverError, match="mean feature is zero"):
        learn_proxies(X, T, P, solver="closed_form")


def test_random_regimes_agree_with_the_schedule(make_clip_like):
    """Whatever auto chose, the labels are those of the float64 schedule."""
    random = np.random.default_rng(5)
    chosen = set()
    for seed in range(16):
        n, d, c = int(random.choice([24, 64, 138])), int(random.choice([16, 48])), int(random.choice([2, 3, 10]))
        data = make_clip_like(
            n,
            d,
            c,
            seed,
            common=float(random.choice([0.1, 0.5, 0.9, 2.0])),
            separation=float(random.choice([0.05, 0.4])),
        )
        T = select_text_proxies(data.features, data.descriptions).proxies
        P = refine_labels(data.features.astype(np.float64) @ T)
        W, _ = reference.schedule(data.features, T, P)
        found = learn_proxies(data.features, T, P)
        chosen.add(found.solver)
        Z = data.features.astype(np.float64) @ W
        top = np.sort(Z, axis=1)
        clear = top[:, -1] - top[:, -2] > 1e-3 * np.abs(Z - Z.mean(axis=1, keepdims=True)).max()
        np.testing.assert_array_equal(found.labels[clear], Z.argmax(axis=1)[clear])
    assert chosen == {"schedule", "closed_form"}


def test_margins_of_rounding_are_flagged(problem):
    X, T, P = problem(60, 32, 2, seed=4)
    found = learn_proxies(X, T, P)
    between = found.discriminants[:, 0] - found.discriminants[:, 1]
    X = np.vstack([X, X[0] - (X[0] @ between) / (between @ between) * between])  # on the boundary, to float32
    again = learn_proxies(X, T, np.vstack([P, [[0.5 / 60, 0.5 / 60]]]))
    assert not again.decided_by_rounding[:60].any()
    same = learn_proxies(X, np.repeat(T[:, :1], 2, axis=1), np.full((61, 2), 1 / 122))
    assert same.decided_by_rounding.all()
    assert (same.labels == 0).all()


@pytest.mark.parametrize(("n", "d", "c"), [*SIZES, (700, 64, 2)])
def test_core_and_numpy_agree_and_threads_change_no_bit(problem, n, d, c):
    X, T, P = problem(n, d, c, seed=n)
    found = learn_proxies(X, T, P, solver="closed_form")
    with cpu.numpy_only():
        plain = learn_proxies(X, T, P, solver="closed_form")
    np.testing.assert_array_equal(found.labels, plain.labels)
    np.testing.assert_array_equal(found.decided_by_rounding, plain.decided_by_rounding)
    assert found.iterations == plain.iterations
    for name in ("proxies", "logits", "discriminants", "scores"):
        ours, theirs = getattr(found, name), getattr(plain, name)
        assert np.abs(ours - theirs).max() < 2e-7 * np.abs(theirs).max()  # float32 rounding of equal float64 numbers
    for num_threads in (1, 3):
        again = learn_proxies(X, T, P, solver="closed_form", num_threads=num_threads)
        np.testing.assert_array_equal(again.scores, found.scores)
        np.testing.assert_array_equal(again.proxies, found.proxies)


def test_layout_of_the_features_changes_no_bit(problem):
    X, T, P = problem(90, 33, 3, seed=3)
    expected = learn_proxies(X, T, P)
    gaps = np.full((180, 99), np.nan, np.float32)
    gaps[::2, ::3] = X
    backwards = np.ascontiguousarray(X[::-1])[::-1]
    readonly = X.copy()
    readonly.flags.writeable = False
    for features in (np.asfortranarray(X), gaps[::2, ::3], backwards, readonly, X.astype(np.float64)):
        found = learn_proxies(features, T, np.asfortranarray(P))
        np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("n", [30, 200])
def test_classes_with_equal_labels_stay_equal(problem, n, backend):
    """The core answers with the first of them, undecided; BLAS may round a column by its place in a tile."""
    X, T, P = problem(n, 40, 7, seed=5)
    P = P.copy()
    P[:, 6] = P[:, 0]
    found = learn_proxies(X, T, P, solver="closed_form")
    np.testing.assert_array_equal(found.scores[:, 0], found.scores[:, 6])
    if backend == "core":
        np.testing.assert_array_equal(found.decided_by_rounding, found.labels == 0)
        assert 0 in found.labels
        assert 6 not in found.labels


def test_where_float32_fails_the_matrix_is_made_in_float64(problem, monkeypatch):
    X, _, P = problem(60, 32, 3, seed=2)
    expected = solve_closed_form(X, P, 0.04)
    made = []
    attempt = closed_form._attempt

    def failing(X, P, tau_i, sums, last):
        if last is np.float64:
            made.append(last)
            return attempt(X, P, tau_i, sums, last)
        return closed_form.ClosedForm(np.zeros((32, 3)), 0, np.inf, "lost in float32")

    monkeypatch.setattr(closed_form, "_attempt", failing)
    monkeypatch.setattr(closed_form, "_compiled", lambda core, *arguments: failing(*arguments))
    found = solve_closed_form(X, P, 0.04)
    assert made == [np.float64]
    spread = np.abs(expected.W - expected.W.mean(axis=1, keepdims=True)).max()
    assert np.abs(found.W - expected.W).max() < 3e-9 * spread  # both within 1e-9 of the same point
    assert found.fault == ""


def test_a_matrix_that_is_not_positive_is_the_same_fault_as_ever(problem):
    X, T, P = problem(60, 32, 3, seed=2)
    P = np.asarray(P, dtype=np.float64)
    singular = np.repeat(X[:, :1], 32, axis=1)  # rank one, and a ridge below its rounding
    with pytest.raises(SolverError, match="closed_form does not hold"):
        learn_proxies(singular * 1e11, T, P, tau_i=1e-12, solver="closed_form")
