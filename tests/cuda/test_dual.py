"""The schedule in the dual form, in one block, a cluster and a grid, against the float64 schedule."""

import numpy as np
import pytest

from kpl_engine.cuda.ops.dual import choose_dual, launch_dual, workspace_doubles
from kpl_engine.cuda.problems import Capacity, ProblemTable
from kpl_engine.errors import ConfigError
from kpl_engine.solver import reference, runs, schedule
from kpl_engine.solver.compiled import ScheduleTask

LABELS = {
    "softmax": reference.softmax_labels,
    "sinkhorn": reference.sinkhorn_labels,
    "stable_greenkhorn": reference.greenkhorn_labels,
}
VERSIONS = [("registers", None), ("block", None), ("cluster", 2), ("cluster", 4), ("grid", 1), ("grid", 3)]
# Sums in another order than NumPy's: measured 2e-15 after 40 steps. A factor of 500 for unlucky problems.
CLOSE = 1e-12


def make(n, d, c, seed, labels="stable_greenkhorn"):
    """CLIP-like X (n, d) float32, T (d, c) float32, hardened P (n, c) float64."""
    random = np.random.default_rng(seed)
    base, classes = random.normal(size=d), random.normal(size=(c, d))
    X = 2 * base + classes[random.integers(c, size=n)] + 1.5 * random.normal(size=(n, d))
    T = (base + classes + random.normal(size=(c, d))).T
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    T = (T / np.linalg.norm(T, axis=0)).astype(np.float32)
    return X, T, reference.harden(LABELS[labels](X.astype(float) @ T))


def open_table(context, problems):
    n, d, c = (max(sizes) for sizes in zip(*((*X.shape, T.shape[1]) for X, T, P in problems), strict=True))
    table = ProblemTable(context, Capacity(n, d, c), len(problems), workspace_doubles(n, d, c))
    table.set_sizes(n=[len(X) for X, _, _ in problems], c=[T.shape[1] for _, T, _ in problems])
    for i, (X, T, P) in enumerate(problems):
        table.write("X", X, i)
        table.write("T", np.ascontiguousarray(T.T), i)
        table.write("P", np.ascontiguousarray(P, dtype=np.float64), i)
    return table


def solve(context, problems, version=None, blocks=None, prepare=None, **options):
    """[(W (d, c), record)] of several problems in one launch."""
    table = open_table(context, problems)
    size = table.capacity
    plan = choose_dual(context, size.n, size.d, size.c, len(problems), version, blocks)
    assert plan is not None
    if prepare is not None:
        prepare(table)
    launch_dual(context, table, plan, **options)
    found = [context.download(table.view("W", i)).T for i in range(len(problems))]
    table.copy_back()
    return list(zip(found, (result.record for result in table.results()), strict=True))


def expect(problem, lr=10.0, iters=2000, tau_i=0.04, movement=0.0):
    X, T, P = problem
    return schedule.run_dual(X.astype(float), T.astype(float), P, lr, iters, tau_i, movement)


def check(found, problem, tolerance=CLOSE, **options):
    W, record = found
    expected = expect(problem, **options)
    assert np.abs(W - expected.W).max() < tolerance
    assert record["iterations"] == expected.iterations
    assert record["halvings"] == expected.halvings
    assert record["converged"] == expected.converged
    assert record["frozen"] == expected.frozen
    assert record["form"] == 1
    assert abs(record["gradient_norm"] - expected.gradient_norm) <= 1e-9 * len(W)  # rounding of n terms of 1e-16 each
    assert abs(record["mass"] - expected.mass) <= 1e-12 * len(problem[2])
    assert record["lr"] == options.get("lr", 10.0) / 2 ** record["halvings"]


@pytest.mark.parametrize(("version", "blocks"), VERSIONS)
def test_every_version_is_the_schedule_in_any_order_of_threads(seeded_context, version, blocks):
    for n, d, c, labels in ((33, 31, 2, "softmax"), (21, 20, 5, "sinkhorn")):
        problem = make(n, d, c, n, labels)
        check(solve(seeded_context, [problem], version, blocks, iters=12)[0], problem, iters=12)


@pytest.mark.parametrize(("version", "blocks"), VERSIONS)
@pytest.mark.parametrize(
    ("n", "d", "c"), [(1, 1, 1), (1, 5, 2), (2, 31, 3), (31, 64, 1), (33, 130, 4), (64, 31, 10), (96, 64, 2)]
)
def test_odd_sizes(context, version, blocks, n, d, c):
    problem = make(n, d, c, 7 * n + c)
    check(solve(context, [problem], version, blocks, iters=40)[0], problem, iters=40)


@pytest.mark.parametrize("version", ["block", "cluster", "grid"])
def test_more_classes_than_a_warp_has_lanes(checked_context, version):
    problem = make(20, 24, 45, 3)
    check(solve(checked_context, [problem], version, iters=8)[0], problem, iters=8)


@pytest.mark.parametrize(("n", "labels"), [(138, "softmax"), (144, "sinkhorn"), (97, "stable_greenkhorn")])
def test_the_largest_block_takes_every_label(context, n, labels):
    problem = make(n, 96, 2, n, labels)
    found = solve(context, [problem], "registers", iters=40)
    check(found[0], problem, iters=40)


@pytest.mark.parametrize("version", ["registers", "block", "cluster", "grid"])
def test_a_whole_run(context, version):
    """2000 steps. Where lr halves by chance two float64 runs can part (method.md 3a); with these seeds they do not."""
    for seed in (0, 1):
        problem = make(40, 32, 2, seed)
        (W, record), expected = solve(context, [problem], version)[0], expect(problem)
        assert np.abs(W - expected.W).max() < 1e-9  # 1e-10 where halvings differ once the norm is flat to rounding
        assert record["converged"] == expected.converged


@pytest.mark.parametrize("n", [200, 301])
def test_images_beyond_registers(context, n):
    problem = make(n, 40, 3, n)
    for version, blocks in (("block", None), ("cluster", 8), ("grid", 4)):
        check(solve(context, [problem], version, blocks, iters=15)[0], problem, iters=15)


@pytest.mark.parametrize(("version", "blocks"), [("block", None), ("cluster", 2), ("grid", 2)])
def test_what_does_not_fit_shared_memory_lies_in_the_workspace(open_context, version, blocks):
    """16 KB: rows of K, then labels and state, then (but in a cluster) R."""
    for n, c in ((90, 2), (90, 9)):
        context = open_context(max_shared_bytes=16 << 10, is_checked=True)
        problem = make(n, 30, c, n + c)
        check(solve(context, [problem], version, blocks, iters=10)[0], problem, iters=10)


@pytest.mark.parametrize("version", ["registers", "block", "cluster", "grid"])
def test_many_problems_of_different_sizes(context, version):
    problems = [make(n, 24, c, n, "sinkhorn") for n, c in ((5, 2), (40, 3), (17, 1), (33, 4), (40, 2))]
    for found, problem in zip(solve(context, problems, version, 2, iters=20), problems, strict=True):
        check(found, problem, iters=20)


@pytest.mark.parametrize("version", ["registers", "block", "cluster", "grid"])
def test_the_same_bits_in_every_run_and_order(open_context, version):
    problem = make(50, 32, 3, 0)
    runs_of = [solve(open_context(seed=seed), [problem], version, iters=60)[0][0] for seed in (0, 1, 2)]
    for other in runs_of[1:]:
        np.testing.assert_array_equal(other, runs_of[0])


@pytest.mark.parametrize("version", ["registers", "cluster", "grid"])
def test_early_exit_is_the_full_run_bit_for_bit(context, version):
    problem = make(15, 8, 12, 1)
    (W, record), (full, full_record) = (
        solve(context, [problem], version, early_exit=early, iters=900)[0] for early in (True, False)
    )
    assert 10 < record["iterations"] < 900
    assert full_record["iterations"] == 900
    assert record["converged"] == 1
    assert record["halvings"] == full_record["halvings"]
    np.testing.assert_array_equal(W, full)


def drifting(seed):
    """Soft labels: steps shorten the columns, which multiplies an error of their length in every step."""
    random = np.random.default_rng(seed)
    X, T = random.normal(size=(12, 3)), random.normal(size=(3, 3))
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    T = (T / np.linalg.norm(T, axis=0)).astype(np.float32)
    return X, T, reference.softmax(X.astype(float) @ T)


@pytest.mark.parametrize("version", ["registers", "block", "cluster", "grid"])
def test_drift_is_bounded_by_starting_afresh(context, version):
    strayed = 0.0
    for seed in (19, 20, 35, 36):
        X, T, P = drifting(seed)
        W, _ = reference.schedule(X, T, P, iters=600, tau_i=0.1, alpha=2)
        found = solve(context, [(X, T, P)], version, iters=600, tau_i=0.1)[0][0]
        assert np.abs(found - W).max() < 1e-10
        assert np.abs(np.linalg.norm(found, axis=0) - 1).max() < 1e-14
        free = solve(context, [(X, T, P)], version, iters=600, tau_i=0.1, max_drift=np.inf)[0][0]
        strayed = max(strayed, np.abs(free - W).max())
    assert strayed > 1e-3  # or the bound was not needed


def test_fresh_starts_without_races(checked_context):
    problem = drifting(20)
    for version, blocks in VERSIONS:
        W, record = solve(checked_context, [problem], version, blocks, iters=40, tau_i=0.1, max_drift=3.0)[0]
        assert np.abs(W - expect(problem, iters=40, tau_i=0.1).W).max() < CLOSE
        assert record["iterations"] == 40


@pytest.mark.parametrize("version", ["registers", "block", "cluster", "grid"])
def test_a_frozen_run_stops(context, version):
    """A small lr: with ever fewer steps left the proof comes to hold, at a step that rounding does not decide."""
    problem = make(20, 16, 3, 5)
    share = problem[2].sum() / 20
    assert share < 0.2  # Greenkhorn labels: the kernel scales what may move by their mass
    options = {"lr": 1e-5, "iters": 60}
    found = solve(context, [problem], version, movement=0.02 / share, **options)[0]
    check(found, problem, movement=0.02, **options)
    assert 1 < found[1]["iterations"] < 60
    assert found[1]["frozen"] == 1


def test_a_zero_text_proxy_takes_every_step(context):
    X, T, P = make(20, 16, 3, 5, "softmax")
    options = {"lr": 1e-5, "iters": 60, "movement": 0.02}
    assert solve(context, [(X, T, P)], "registers", **options)[0][1]["frozen"] == 1
    T[:, 2] = 0
    W, record = solve(context, [(X, T, P)], "registers", **options)[0]
    assert (record["frozen"], record["iterations"]) == (0, 60)
    assert np.abs(W - expect((X, T, P), 1e-5, 60).W).max() < CLOSE


@pytest.mark.parametrize(("version", "blocks"), VERSIONS)
def test_degenerate_features(context, version, blocks):
    X, T, P = make(24, 16, 3, 2)
    cases = {
        "all zero": np.zeros_like(X),
        "zero rows": np.where(np.arange(24)[:, None] % 3 == 0, np.float32(0), X),
        "duplicates": np.repeat(X[:4], 6, axis=0),
        "one image many times": np.repeat(X[:1], 24, axis=0),
    }
    for name, rows in cases.items():
        problem = (np.ascontiguousarray(rows), T, P)
        W, record = solve(context, [problem], version, blocks, iters=30)[0]
        expected = expect(problem, iters=30)
        assert np.abs(W - expected.W).max() < 1e-11, name  # nearly equal images: cancellation in s costs digits
        assert record["iterations"] == expected.iterations, name


def test_images_nearly_alike_take_the_norm_of_the_gradient(context):
    """Σ R∘H keeps 1e-4 of its terms: without ‖XᵀR‖ the halvings are those of rounding."""
    random = np.random.default_rng(8)
    base = random.normal(size=40)
    X = base + 1e-3 * random.normal(size=(30, 40))
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    T = np.linalg.qr(base[:, None] + random.normal(size=(40, 3)))[0].astype(np.float32)
    problem = (X, T, reference.harden(reference.sinkhorn_labels(X.astype(float) @ T)))
    for version, blocks in VERSIONS:
        check(solve(context, [problem], version, blocks, iters=60)[0], problem, tolerance=1e-10, iters=60)


@pytest.mark.parametrize("version", ["registers", "cluster", "grid"])
def test_equal_classes_have_equal_proxies(checked_context, version):
    X, T, P = make(25, 18, 2, 4, "softmax")
    T, P = T[:, [0, 1, 0, 1, 0]], P[:, [0, 1, 0, 1, 0]] / [3, 2, 3, 2, 3]
    P[3, 4] = P[3, 0] / 2  # class 4 has other labels than 0 and 2
    W, _ = solve(checked_context, [(X, T, P)], version, iters=30)[0]
    np.testing.assert_array_equal(W[:, 2], W[:, 0])
    np.testing.assert_array_equal(W[:, 3], W[:, 1])
    assert np.abs(W[:, 4] - W[:, 0]).max() > 1e-6
    assert np.abs(W - runs.run_schedule(ScheduleTask(X, T, P, 10.0, 30, 0.04), "dual", 1).W).max() < CLOSE


def test_no_steps_leave_the_text_proxies(context):
    problem = make(20, 16, 3, 0)
    for version, blocks in VERSIONS:
        W, record = solve(context, [problem], version, blocks, iters=0)[0]
        assert np.abs(W - problem[1]).max() < 1e-15
        assert (record["iterations"], record["converged"], record["frozen"]) == (0, 0, 0)


def test_small_temperatures_do_not_overflow(context):
    for c in (2, 3):
        problem = make(20, 16, c, 5, "softmax")
        W, _ = reference.schedule(*problem, iters=3, tau_i=1e-4, alpha=2)
        found = solve(context, [problem], "registers", iters=3, tau_i=1e-4)[0][0]
        assert np.abs(found - W).max() < 1e-9  # exponents of 10,000: a rounding of 1e-16 is 1e-12 in the softmax


def test_labels_beyond_float64_leave_no_finite_proxies(context):
    """As the twin: the run ends, and what it leaves is refused where results go to float32."""
    X, T, P = make(12, 8, 2, 0)
    P[5, 1] = np.inf
    for version, blocks in VERSIONS:
        W, record = solve(context, [(X, T, P)], version, blocks, iters=5)[0]
        assert not np.isfinite(W).all()
        assert record["mass"] == np.inf


def test_solved_problems_are_left_alone(context):
    problems = [make(20, 12, 2, seed) for seed in range(4)]

    def mark(table):
        for i, (fault, form) in enumerate([(0, 3), (2, 3), (0, 0), (0, 3)]):
            record = np.zeros(1, table.view("record", i).dtype)
            record["fault"], record["form"] = fault, form
            table.write("record", record, i)
            table.write("W", np.full((2, 12), 7.0), i)

    for version in ("registers", "block", "cluster", "grid"):
        found = solve(context, problems, version, 2, mark, iters=9, only_if_fault=True)
        for i in (0, 3):
            assert (found[i][0] == 7).all()
            assert found[i][1]["iterations"] == 0
        for i in (1, 2):
            assert np.abs(found[i][0] - expect(problems[i], iters=9).W).max() < CLOSE


def test_the_choice_follows_the_gpu(open_context):
    hopper = open_context(num_multiprocessors=132, max_cluster=16)
    assert choose_dual(hopper, 138, 768, 2).kernel == "dual_144"
    assert choose_dual(hopper, 64, 768, 4, 1000).kernel == "dual_64"
    assert choose_dual(hopper, 64, 768, 16, 1000).kernel != "dual_64"  # its classes are a warp's lanes
    assert (choose_dual(hopper, 662, 768, 2).version, choose_dual(hopper, 662, 768, 2).blocks) == ("cluster", 16)
    assert choose_dual(hopper, 3000, 768, 2).version == "grid"
    turing = open_context(max_shared_bytes=64 << 10, compute_capability=(7, 5), max_cluster=1, num_multiprocessors=40)
    assert choose_dual(turing, 662, 768, 2).version == "grid"
    plain = open_context(max_shared_bytes=48 << 10, max_cluster=1, has_cooperative=False, compute_capability=(7, 5))
    assert choose_dual(plain, 662, 768, 2).version == "block"
    assert choose_dual(plain, 64, 768, 5000) is None


def test_problems_of_another_plan_are_refused(context):
    problems = [make(20, 12, 2, 0)]
    table = open_table(context, problems)
    for sizes in ((19, 12, 2, 1), (20, 12, 2, 2), (20, 12, 1, 1)):
        with pytest.raises(ConfigError, match="choose_dual"):
            launch_dual(context, table, choose_dual(context, *sizes))
    with pytest.raises(ConfigError, match="workspace"):
        launch_dual(context, table, choose_dual(context, 200, 12, 2))
    with pytest.raises(ConfigError, match="iters"):
        launch_dual(context, table, choose_dual(context, 20, 12, 2), iters=-1)
