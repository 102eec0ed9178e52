"""The published schedule in its two forms, against the published loop and the float64 reference (method.md 3b)."""

import importlib.util

import numpy as np
import pytest

from kpl_engine.errors import BackendUnavailableError, ConfigError, ShapeError, SolverError
from kpl_engine.solver import reference, schedule
from kpl_engine.solver.labels import refine_labels
from kpl_engine.solver.proxies import harden, learn_proxies
from kpl_engine.solver.text_proxy import select_text_proxies

LABELS = ("softmax", "sinkhorn", "stable_greenkhorn")
FORMS = ("schedule_dual", "schedule_primal")


@pytest.fixture
def problem(make_clip_like):
    def build(n, d, c, seed, labels="stable_greenkhorn"):
        data = make_clip_like(n, d, c, seed)
        T = select_text_proxies(data.features, data.descriptions).proxies
        return data.features, T, refine_labels(data.features @ T, labels)

    return build


def wide(*arrays):
    return [np.asarray(a, dtype=np.float64) for a in arrays]


def hold_to_rule(X, T, P, solver, published_loop):
    """Error within twice that of the published float32 loop or 1e-5, and the same label outside that error."""
    X64, T64, P64 = wide(X, T, P)
    Z = X64 @ published_loop(X64, T64, P64)
    allowed = max(2 * np.abs(X @ published_loop(X, T, P) - Z).max(), 1e-5)
    found = learn_proxies(X, T, P, solver=solver)
    error = np.abs(found.logits - Z).max()
    assert error <= allowed
    assert np.abs(X64 @ found.proxies - Z).max() <= allowed
    top = np.sort(Z, axis=1)
    clear = top[:, -1] - top[:, -2] > error
    np.testing.assert_array_equal(found.labels[clear], Z.argmax(axis=1)[clear])
    return found, Z


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("solver", [*FORMS, "auto"])
@pytest.mark.parametrize(("n", "d", "c", "seed"), [(138, 96, 2, 0), (90, 64, 5, 1), (40, 128, 3, 2)])
def test_the_rule_of_precision(problem, published_loop, n, d, c, seed, labels, solver):
    hold_to_rule(*problem(n, d, c, seed, labels), solver, published_loop)


@pytest.mark.parametrize("n", [662, 1000])
@pytest.mark.parametrize("solver", [*FORMS, "auto"])
def test_collapsed_columns_keep_every_label(problem, published_loop, n, solver):
    """Greenkhorn labels: margins are O(1/n), so every label is compared, not only the clear ones."""
    X, T, P = problem(n, 64, 2, seed=n)
    found, Z = hold_to_rule(X, T, P, solver, published_loop)
    differences = Z - Z.mean(axis=1, keepdims=True)
    np.testing.assert_array_equal(found.labels, Z.argmax(axis=1))
    scale = len(X) / P.sum(dtype=np.float64)
    assert np.abs(found.scores / scale - differences).max() < 1e-6 * np.abs(differences).max()


def test_many_images_keep_every_label(make_clip_like):
    """n = 27,558: margins of 1e-7, below float32 resolution of the logits. Held to 200 float64 steps."""
    data = make_clip_like(27_558, 32, 2, seed=9)
    X = data.features
    T = select_text_proxies(X, data.descriptions).proxies
    P = refine_labels(X @ T)
    W, _ = reference.schedule(X, T, P, iters=200)
    Z = X.astype(np.float64) @ W
    found = learn_proxies(X, T, P, iters=200, solver="schedule")
    assert found.form == "primal"
    top = np.sort(Z, axis=1)
    clear = top[:, 1] - top[:, 0] > 1e-13
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(found.labels[clear], Z.argmax(axis=1)[clear])
    closed = learn_proxies(X, T, P)
    assert closed.solver == "closed_form"
    assert np.mean(closed.labels == found.labels) > 0.9999
    assert np.mean(np.sort(closed.logits, axis=1)[:, 0] == np.sort(closed.logits, axis=1)[:, 1]) > 0.01  # the trap


@pytest.mark.parametrize("labels", LABELS)
def test_both_forms_are_the_reference_in_float64(problem, labels):
    """Before the halving rule is decided by rounding, the forms agree step for step."""
    X, T, P = wide(*problem(70, 48, 3, 4, labels))
    P, _ = harden(P, 0.6)
    for iters in (1, 2, 5, 40):
        W, halvings = reference.schedule(X, T, P, iters=iters)
        for run in (schedule.run_dual, schedule.run_primal):
            found = run(X, T, P, 10.0, iters, 0.04)
            assert np.abs(found.Z - X @ W).max() < 1e-12
            assert np.abs(found.W - W).max() < 1e-12
            assert found.halvings == halvings
            assert found.iterations == iters


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_early_exit_is_the_full_run_bit_for_bit(problem, form, monkeypatch):
    run = {"dual": schedule.run_dual, "primal": schedule.run_primal}[form]
    problems = [wide(*problem(64, 48, 5, seed)) for seed in range(4)]
    stopped = [run(*each, 10.0, 2000, 0.04) for each in problems]
    assert min(found.iterations for found in stopped) < 1500
    monkeypatch.setattr(schedule, "_same", lambda new, old: False)
    for found, each in zip(stopped, problems, strict=True):
        full = run(*each, 10.0, 2000, 0.04)
        assert full.iterations == 2000
        np.testing.assert_array_equal(found.Z, full.Z)
        np.testing.assert_array_equal(found.W, full.W)
        assert found.halvings == full.halvings


@pytest.mark.parametrize(("n", "d", "c", "tau_i", "lr"), [(8, 2, 5, 0.5, 1000.0), (12, 3, 3, 0.1, 10.0)])
@pytest.mark.parametrize("seed", [3, 19, 20, 35, 36])
def test_shortening_steps_do_not_let_the_dual_form_drift(n, d, c, tau_i, lr, seed, monkeypatch):
    """Soft labels: steps shorten the columns, which multiplies an error of their length in every step."""
    random = np.random.default_rng(seed)
    X, T = random.normal(size=(n, d)), random.normal(size=(d, c))
    X, T = X / np.linalg.norm(X, axis=1, keepdims=True), T / np.linalg.norm(T, axis=0)
    P = reference.softmax(X @ T)
    W, _ = reference.schedule(X, T, P, lr=lr, iters=600, tau_i=tau_i, alpha=2)
    found = schedule.run_dual(X, T, P, lr, 600, tau_i)
    assert np.abs(found.W - W).max() < 1e-10
    assert np.abs(found.Z - X @ found.W).max() < 1e-11
    assert np.abs(np.linalg.norm(found.W, axis=0) - 1).max() < 1e-14
    monkeypatch.setattr(schedule, "MAX_DRIFT", np.inf)
    if (seed, n) in ((19, 8), (20, 12), (36, 12)):  # measured 0.18, 0.19 and 0.61
        assert np.abs(schedule.run_dual(X, T, P, lr, 600, tau_i).W - W).max() > 0.1


def test_unit_columns_and_record(problem):
    X, T, P = problem(60, 32, 4, 5, "sinkhorn")
    for solver in FORMS:
        found = learn_proxies(X, T, P, solver=solver)
        assert np.abs(np.linalg.norm(found.proxies.astype(float), axis=0) - 1).max() < 2e-7
        assert found.solver == "schedule"
        assert "schedule_" + found.form == solver
        assert {a.dtype for a in (found.proxies, found.logits, found.scores, found.discriminants)} == {
            np.dtype(np.float32)
        }
        # mass n: the scores are the logits up to a shift of each row
        shift = found.scores - found.logits
        assert np.abs(shift - shift[:, :1]).max() < 1e-6


def test_no_steps_give_the_text_proxies(problem):
    X, T, P = problem(30, 16, 3, 6)
    for solver in (*FORMS, "auto"):
        found = learn_proxies(X, T, P, iters=0, solver=solver)
        np.testing.assert_allclose(found.proxies, T, atol=1e-7)
        np.testing.assert_allclose(found.logits, X @ T, atol=1e-6)
        assert found.iterations == 0


def test_start_need_not_have_unit_columns(problem):
    X, T, P = wide(*problem(30, 16, 3, 6, "softmax"))
    T = T * [0.5, 3.0, 1.7]
    W, _ = reference.schedule(X, T, P, iters=9)
    for run in (schedule.run_dual, schedule.run_primal):
        assert np.abs(run(X, T, harden(P, 0.6)[0], 10.0, 9, 0.04).W - W).max() < 1e-12


@pytest.mark.parametrize("solver", [*FORMS, "auto"])
def test_degenerate_inputs_are_defined(solver):
    random = np.random.default_rng(0)
    cases = {
        "one image": random.normal(size=(1, 8)),
        "fewer images than classes": random.normal(size=(2, 8)),
        "all zero": np.zeros((6, 8)),
        "a zero row": np.vstack([random.normal(size=(5, 8)), np.zeros((1, 8))]),
        "zero mean": np.vstack([np.eye(8)[:3], -np.eye(8)[:3]]),
        "duplicates": np.tile(random.normal(size=(1, 8)), (7, 1)),
    }
    for name, rows in cases.items():
        X = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        for c in (1, 2, 4):
            T = np.linalg.qr(random.normal(size=(8, 8)))[0][:, :c]
            for P in (refine_labels(X @ T), refine_labels(X @ T, "softmax"), np.zeros((len(X), c))):
                found = learn_proxies(X, T, P, solver=solver, iters=300)
                for value in (found.proxies, found.logits, found.scores, found.discriminants):
                    assert np.isfinite(value).all(), name
                assert ((found.labels >= 0) & (found.labels < c)).all()
                if name == "all zero":
                    assert (found.decided_by_rounding == (c > 1)).all()


def test_a_column_that_vanishes_keeps_its_direction():
    """One image, one step with eta G = W exactly: the norm is 0 and the direction stays."""
    X, T, P = np.array([[1.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 0.5]])
    for run in (schedule.run_dual, schedule.run_primal):
        found = run(X, T, P, 2.0, 1, 1.0)  # R = (1/2, 0), eta = 2
        np.testing.assert_array_equal(found.W, T)
        np.testing.assert_array_equal(found.Z, X @ T)
    np.testing.assert_array_equal(reference.schedule(X, T, P, lr=2.0, iters=1, tau_i=1.0)[0], T)


def test_small_temperatures_do_not_overflow(problem):
    X, T, P = problem(30, 16, 3, 6, "softmax")
    for solver in FORMS:
        assert np.isfinite(learn_proxies(X, T, P, tau_i=1e-5, iters=20, solver=solver).proxies).all()


@pytest.mark.parametrize("tau_i", [1e-3, 1.6e-3, 1e-4])
def test_exponents_past_the_range_of_exp_are_shifted(problem, tau_i):
    """Logits of 600 to 10,000: e to their power is beyond float64, the softmax is not."""
    X, T, P = problem(30, 16, 3, 6, "softmax")
    for iters in (1, 3):
        W, _ = reference.schedule(X, T, P, iters=iters, tau_i=tau_i)
        for solver in FORMS:
            found = learn_proxies(X, T, P, tau_i=tau_i, iters=iters, solver=solver)
            assert np.abs(found.proxies - W).max() < 1e-6


def test_a_flat_gradient_norm_counts_as_converged(problem):
    X, T, P = wide(*problem(60, 32, 4, 5))
    for run in (schedule.run_dual, schedule.run_primal):
        short, long = (run(X, T, P, 10.0, iters, 0.04) for iters in (3, 60))
        assert not short.converged
        assert long.converged
        assert long.iterations == 60  # not the early exit, which also says so


def test_permutations_only_reorder(problem):
    X, T, P = problem(80, 32, 4, 8)
    rows, columns = np.random.default_rng(1).permutation(80), [2, 0, 3, 1]
    for solver in (*FORMS, "auto"):
        straight = learn_proxies(X, T, P, solver=solver)
        turned = learn_proxies(X[rows], T[:, columns], P[rows][:, columns], solver=solver)
        np.testing.assert_allclose(turned.proxies, straight.proxies[:, columns], atol=1e-6)
        np.testing.assert_array_equal(np.array(columns)[turned.labels], straight.labels[rows])


def test_arguments_stay_and_layouts_do_not_matter(problem):
    X, T, P = problem(40, 16, 3, 9)
    copies = [a.copy() for a in (X, T, P)]
    for array in (X, T, P):
        array.setflags(write=False)
    expected = learn_proxies(X, T, P, solver="schedule")
    for array, copy in zip((X, T, P), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert not np.shares_memory(expected.proxies, T)
    found = learn_proxies(np.repeat(X, 2, axis=1)[:, ::2], np.asfortranarray(T), P.T.copy().T, solver="schedule")
    np.testing.assert_allclose(found.proxies, expected.proxies, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"lr": 0}, ConfigError, "lr"),
        ({"lr": np.nan}, ConfigError, "lr"),
        ({"tau_i": -1}, ConfigError, "tau_i"),
        ({"tau_i": 1e-300}, ConfigError, "tau_i"),
        ({"lr": 1e300}, ConfigError, "lr"),
        ({"iters": -1}, ConfigError, "iters"),
        ({"iters": 1.5}, ConfigError, "iters"),
        ({"alpha": np.nan}, ConfigError, "alpha"),
        ({"solver": "fast"}, ConfigError, "solver"),
        ({"device": "cuda"}, BackendUnavailableError, "device"),
        ({"device": "cuda:1"}, BackendUnavailableError, "device"),
    ],
)
def test_bad_options_are_named(problem, options, error, word):
    with pytest.raises(error, match=word):
        learn_proxies(*problem(10, 8, 2, 0), **options)


def test_bad_arrays_are_named(problem):
    X, T, P = problem(10, 8, 2, 0)
    nan = X.copy()
    nan[4] = np.nan
    with pytest.raises(ShapeError, match=r"rows \(4\)"):
        learn_proxies(nan, T, P)
    with pytest.raises(ShapeError, match="text_proxies"):
        learn_proxies(X, T.T, P)
    with pytest.raises(ShapeError, match="labels"):
        learn_proxies(X, T, P.T)
    with pytest.raises(ShapeError, match="labels"):
        learn_proxies(X, T, -P)
    with pytest.raises(ShapeError, match="labels"):
        learn_proxies(X, T, P * 1e20)
    with pytest.raises(ShapeError, match="labels"):
        learn_proxies(X, T, P * np.nan)
    with pytest.raises(ShapeError, match="text_proxies"):
        learn_proxies(X, T[:, :0], P[:, :0])


def test_results_beyond_float32_are_refused_and_long_rows_named(problem):
    X, T, P = problem(10, 8, 2, 0)
    for solver in (*FORMS, "auto"):
        with pytest.raises(SolverError, match="overflow"):
            learn_proxies(X, T * 1e34, P * 1e-5, iters=0, solver=solver)
    with pytest.raises(ShapeError, match=r"length 1e\+13"):
        learn_proxies(X * 1e13, T, P)


@pytest.mark.parametrize("mass", [0.0, 5e-324, 1e-300, 1e-9])
def test_labels_without_mass_leave_finite_scores(problem, mass):
    X, T, P = problem(20, 8, 3, 0)
    for solver in (*FORMS, "auto"):
        found = learn_proxies(X, T, np.float64(P) * mass, solver=solver, iters=200)
        assert np.abs(found.scores).max() < 2


def test_hardening_is_strict_and_on_a_copy():
    P = np.array([[0.6, 0.4], [0.61, 0.39], [0.3, 0.7], [0.7, 0.7]])
    hardened, count = harden(P, 0.6)
    assert count == 3
    assert hardened.tolist() == [[0.6, 0.4], [1, 0], [0, 1], [1, 0]]
    assert P[1, 0] == 0.61


@pytest.mark.torch
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch (the export extra) is not installed")
@pytest.mark.parametrize("labels", LABELS)
def test_the_rule_of_precision_against_torch(problem, published_loop, labels):
    torch = importlib.import_module("torch")
    X, T, P = problem(64, 48, 3, 11, labels)
    Z = np.float64(X) @ published_loop(*wide(X, T, P))
    x, W, p = (torch.from_numpy(a.copy()) for a in (X, T, P))
    hard = p.max(dim=1).values > 0.6
    p[hard] = torch.nn.functional.one_hot(p[hard].argmax(dim=1), 3).float()
    lr, last = 10.0, float("inf")
    for _ in range(2000):
        G = x.T @ (torch.softmax(x @ W / 0.04, dim=1) - p)
        norm = float(torch.linalg.norm(G))
        lr = lr / 2 if norm > last else lr
        last = norm
        W = torch.nn.functional.normalize(W - lr / (len(x) * 0.04) * G, dim=0)
    allowed = max(2 * np.abs((x @ W).numpy() - Z).max(), 1e-5)
    for solver in (*FORMS, "auto"):
        assert np.abs(learn_proxies(X, T, P, solver=solver).logits - Z).max() <= allowed
