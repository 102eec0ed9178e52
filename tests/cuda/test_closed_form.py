"""The closed form on the device, against its twin in float64 and the long schedule."""

import numpy as np
import pytest

from kpl_engine.cuda.base import Features
from kpl_engine.cuda.ops.closed_form import choose_team, fault_text, launch_closed_form, workspace_doubles
from kpl_engine.cuda.problems import Capacity, ProblemTable
from kpl_engine.errors import ConfigError
from kpl_engine.solver import reference
from kpl_engine.solver.closed_form import regime_fault, schedule_fault, solve_closed_form
from kpl_engine.solver.moments import moments_of

# Both stop within 1e-9 of the same fixed point, relative to the class differences. Measured: 4e-12 at most.
CLOSE = 2e-9
SIZES = [(2, 31, 2), (31, 1, 2), (33, 31, 2), (64, 48, 3), (37, 64, 1), (138, 130, 2), (150, 32, 14), (90, 768, 5)]


def make(n, d, c, seed, common=2.0):
    """CLIP-like X (n, d) float32, T (d, c) float32 and Greenkhorn labels (n, c) float64."""
    random = np.random.default_rng(seed)
    base, classes = random.normal(size=d), random.normal(size=(c, d))
    X = common * base + classes[random.integers(c, size=n)] + 1.5 * random.normal(size=(n, d))
    T = (base + classes + random.normal(size=(c, d))).T
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    T = (T / np.linalg.norm(T, axis=0)).astype(np.float32)
    return X, T, reference.greenkhorn_labels(X.astype(float) @ T)


def solve(context, problems, team=1, tau_i=0.04, lr=10.0, iters=2000, auto=False, hardened=0):
    """[(W (d, c), record, fault)] of several (X, P) in one launch."""
    n, d, c = (max(sizes) for sizes in zip(*((*X.shape, P.shape[1]) for X, P in problems), strict=True))
    table = ProblemTable(context, Capacity(n, d, c), len(problems), workspace_doubles(n, d, c))
    table.set_sizes(n=[len(X) for X, _ in problems], c=[P.shape[1] for _, P in problems])
    for i, (X, P) in enumerate(problems):
        table.write("X", X, i)
        table.write("P", np.ascontiguousarray(P), i)
    if hardened:
        table.copy_back()
        record = np.zeros(1, table.view("record").dtype)
        record["num_hardened"] = hardened
        table.write("record", record)
    launch_closed_form(context, table, tau_i, lr, iters, auto, team)
    proxies = [context.download(table.view("W", i)).T for i in range(len(problems))]
    table.copy_back()
    records = [result.record for result in table.results()]
    texts = [fault_text(r, len(X), P.shape[1], lr, iters) for r, (X, P) in zip(records, problems, strict=True)]
    return list(zip(proxies, records, texts, strict=True))


def expect(X, P, tau_i=0.04, lr=10.0, iters=2000, auto=False):
    """What the twin says: the solution, and why there is none."""
    sums = moments_of(X, P)
    fault = regime_fault(sums) or (schedule_fault(sums, lr, iters, tau_i) if auto else "")
    if fault:
        return None, fault
    found = solve_closed_form(X, P, tau_i, sums)
    return found, found.fault


def check(found, X, P, **options):
    W, record, fault = found
    expected, wanted = expect(X, P, **options)
    assert fault == wanted
    assert record["form"] == 3
    assert record["converged"] == (not wanted)
    if wanted:
        return
    differences = np.abs(expected.W - expected.W.mean(axis=1, keepdims=True)).max()
    assert np.abs(W - expected.W).max() <= CLOSE * max(differences, 1e-7)  # one class differs from no other
    assert np.abs(np.linalg.norm(W, axis=0) - 1).max() < 1e-14
    assert record["iterations"] == expected.corrections
    assert record["residual"] <= 1e-9
    assert abs(record["mass"] - P.sum()) < 1e-13 * max(P.sum(), 1)


@pytest.mark.parametrize(("n", "d", "c"), SIZES)
@pytest.mark.parametrize("team", [1, 2, 5])
def test_equals_the_twin(open_context, n, d, c, team):
    """One block, a cluster, and a grid of a size that no cluster has."""
    X, _, P = make(n, d, c, seed=n + d)
    context = open_context(num_multiprocessors=8, max_cluster=8 if team == 2 else 1)
    check(solve(context, [(X, P)], min(team, -(-n // 4)))[0], X, P)


@pytest.mark.parametrize("seed", range(4))
def test_is_the_end_of_the_long_schedule(context, seed):
    X, T, P = make(80, 40, 3, seed)
    W, _ = reference.schedule(X, T, P)
    found, _, fault = solve(context, [(X, P)], team=4)[0]
    assert fault == ""
    spread = np.abs(W - W.mean(axis=1, keepdims=True)).max()
    assert np.abs(found - W).max() < 1e-4 * spread  # lr has halved on the way: the steps stop 1e-5 short at most
    stepped, _ = reference.schedule(X.astype(float), found, P, lr=0.01, iters=1)
    assert np.abs(stepped - found).max() < 1e-8 * spread


@pytest.mark.parametrize("team", [1, 2, 3])
def test_every_order_of_threads_gives_the_same_bits_and_no_race(open_context, team):
    X, _, P = make(29, 37, 3, seed=6)
    answers = []
    for seed in (0, 1, 2):
        context = open_context(is_checked=True, seed=seed, max_cluster=2)
        ((W, record, _),) = solve(context, [(X, P)], team)
        check((W, record, ""), X, P)
        answers.append(W.tobytes())
    assert len(set(answers)) == 1


@pytest.mark.parametrize("shared_bytes", [16_000, 20_000, 24_000])
def test_rows_that_do_not_fit_are_streamed(open_context, shared_bytes):
    """With 16,000 bytes not even the vectors of a pass lie in shared memory."""
    X, _, P = make(75, 130, 6, seed=8)
    context = open_context(max_shared_bytes=shared_bytes, is_checked=shared_bytes == 20_000)
    for team in (1, 3):
        check(solve(context, [(X, P)], team)[0], X, P)


def test_rows_that_no_vector_load_may_read(checked_context):
    X, _, P = make(40, 33, 2, seed=9)
    check(solve(checked_context, [(X, P)])[0], X, P)


def test_too_many_classes_for_the_shared_memory_are_a_fault(open_context):
    X, _, P = make(400, 8, 60, seed=1)
    context = open_context(max_shared_bytes=12_000)
    assert solve(context, [(X, P)])[0][2] == "60 classes need more shared memory than this GPU has"


def test_many_problems_of_several_sizes(context):
    """More problems than teams; each answer has the bits of the problem alone."""
    sizes = [(33, 2), (64, 3), (5, 2), (12, 4), (61, 1), (30, 5), (64, 3)]
    problems = [make(n, 24, c, seed)[::2] for seed, (n, c) in enumerate(sizes)]
    for team in (1, 2, 3):
        answers = solve(context, problems, team)
        for found, (X, P) in zip(answers, problems, strict=True):
            check(found, X, P)
    alone = solve(context, problems[1:2], team=3)[0][0]
    np.testing.assert_array_equal(answers[1][0], alone)


def test_a_cooperative_grid_with_fewer_teams_than_problems(open_context):
    problems = [make(40, 24, 3, seed)[::2] for seed in range(5)]
    context = open_context(max_cluster=1, num_multiprocessors=1, max_shared_bytes=100_000)
    for found, (X, P) in zip(solve(context, problems, team=8), problems, strict=True):
        check(found, X, P)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1},
        {"lr": 1.0},
        {"iters": 3},
        {"iters": 0},
        {"iters": 600},
        {"lr": 1e4, "iters": 500},
        {"lr": 100.0},
        {"lr": 100.0, "iters": 20_000},
        {},
    ],
)
def test_what_the_steps_would_not_reach_is_refused_in_the_words_of_the_twin(context, options):
    X, _, P = make(60, 48, 2, seed=4)
    check(solve(context, [(X, P)], team=3, auto=True, **options)[0], X, P, auto=True, **options)
    check(solve(context, [(X, P)], team=3, **options)[0], X, P)


def test_few_images_per_class_are_refused(context):
    X, _, P = make(20, 48, 5, seed=4)
    check(solve(context, [(X, P)], auto=True)[0], X, P, auto=True)
    X, P = X[:19], P[:19]
    found = solve(context, [(X, P)], auto=True)[0]
    check(found, X, P, auto=True)
    assert found[2].startswith("19 images")


@pytest.mark.parametrize("team", [1, 4])
def test_labels_out_of_the_regime_are_refused(context, team):
    X, T, P = make(60, 32, 3, seed=2)
    S = X.astype(float) @ T
    scale = 30 / (3 * P.sum(axis=0).max())  # c · largest column mass = n/2
    for labels in (reference.softmax_labels(S), np.full((60, 3), 1 / 3), P * scale * 1.01):
        found = solve(context, [(X, labels)], team)[0]
        check(found, X, labels)
        assert "not O(1/n)" in found[2]
    assert "hardened" in solve(context, [(X, P)], team, hardened=7)[0][2]


def test_heavy_labels_inside_the_regime_end_as_in_the_twin(context):
    """Some contract, some stall, some are not done after five corrections."""
    endings = set()
    for seed in range(6):
        X, _, P = make(24, 16, 3, seed, common=0.3)
        for share in (0.01, 0.05, 0.2, 0.45):
            labels = P * (share * 24 / (3 * P.sum(axis=0).max()))
            found = solve(context, [(X, labels)])[0]
            expected, fault = expect(X, labels)
            endings.add(fault.split(" ")[0])
            assert found[2].split(" ")[0] == fault.split(" ")[0]
            assert found[1]["residual"] == pytest.approx(expected.residual, rel=1e-3, abs=1e-9)
    assert endings >= {"", "corrections"}


def test_a_mean_of_rounding_is_no_direction(context):
    X, _, P = make(60, 32, 3, seed=2)
    X = np.vstack([X[:30], -X[:30]])
    X[0, 0] += np.spacing(X[0, 0])
    assert solve(context, [(X, P)])[0][2] == "the mean feature is zero"


def test_a_gradient_that_vanishes(context):
    """One class whose labels are all of the mass: softmax - P is zero in every row."""
    X, _, _ = make(12, 8, 1, seed=3)
    P = np.zeros((12, 1))
    P[:4], X[4:] = 1.0, 0.0  # rows of zeros inform nothing; in the others P is the softmax
    found = solve(context, [(X, P)])[0]
    assert found[2] == expect(X, P)[1] == "the gradient of a class vanished"


def test_a_ridge_below_rounding_is_refused(context):
    X, _, P = make(60, 32, 3, seed=2)
    few, labels = X[:20], P[:20]  # what is left of the ridge has to tell the directions apart that no image has
    assert solve(context, [(few, labels)], tau_i=1e-12)[0][2] == "the ridge is lost in rounding"
    assert expect(few, labels, tau_i=1e-12)[1] != ""


def test_images_of_one_direction_need_no_ridge(context):
    """Nothing lies across u but the rounding of the labels: every proxy is -u. The CPU's factorisation refuses."""
    X, _, P = make(60, 32, 3, seed=2)
    X = np.repeat(np.abs(X[:, :1]), 32, axis=1) * np.float32(1e11)
    W, _, fault = solve(context, [(X, P)], tau_i=1e-12)[0]
    assert fault == ""
    np.testing.assert_allclose(W, -1 / np.sqrt(32), rtol=1e-12)


def test_beyond_float32_all_is_done_again_in_float64(context):
    X, _, P = make(40, 32, 3, seed=2)
    W, record, fault = solve(context, [(X * np.float32(1e25), P)], tau_i=0.04e25)[0]
    expected = solve_closed_form(X, P, 0.04)
    assert fault == ""
    spread = np.abs(expected.W - expected.W.mean(axis=1, keepdims=True)).max()
    # The features are rounded to float32 anew: 6e-8 of their length, by 1 / (ridge / spread) at most 10.
    assert np.abs(W - expected.W).max() < 1e-6 * spread
    assert record["residual"] <= 1e-9


@pytest.mark.parametrize("team", [1, 4])
def test_classes_with_equal_labels_have_equal_proxies(context, team):
    X, _, P = make(60, 40, 7, seed=5)
    for first, second in ((0, 6), (2, 4)):
        labels = P.copy()
        labels[:, second] = labels[:, first]
        W, _, fault = solve(context, [(X, labels)], team)[0]
        assert fault == ""
        np.testing.assert_array_equal(W[:, first], W[:, second])


def test_the_team_follows_the_gpu(open_context):
    info = open_context(num_multiprocessors=132).driver.info
    both, clusters, grids, none = (
        Features(True, True, 16),
        Features(True, False, 8),
        Features(True, True, 1),
        Features(False, False, 1),
    )
    capacity = Capacity(662, 768, 2)
    assert choose_team(info, both, capacity, 1) == 16
    assert choose_team(info, clusters, capacity, 1) == 8
    assert choose_team(info, grids, capacity, 1) == 42
    assert choose_team(info, none, capacity, 1) == 1
    assert choose_team(info, both, Capacity(64, 768, 4), 1000) == 1
    assert choose_team(info, both, Capacity(27_558, 768, 2), 1) == 132


def test_what_cannot_run_is_refused(open_context):
    X, _, P = make(24, 16, 2, seed=1)
    context = open_context(has_cooperative=False, max_cluster=1)
    with pytest.raises(ConfigError, match="team: expected 1,"):
        solve(context, [(X, P)], team=2)
    with pytest.raises(ConfigError, match="team: expected 1 to 6"):
        solve(context, [(X, P)], team=7)
    with pytest.raises(ConfigError, match="tau_i > 0"):
        solve(context, [(X, P)], tau_i=0.0)
    table = ProblemTable(context, Capacity(24, 16, 2), 1, workspace_doubles(24, 16, 2) - 1)
    with pytest.raises(ConfigError, match="workspace: expected at least"):
        launch_closed_form(context, table, 0.04, 10.0, 2000, False)
