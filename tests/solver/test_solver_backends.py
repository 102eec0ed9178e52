"""The compiled core and its NumPy twin: the same answers on fresh input, and for every layout and number of threads."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import numpy as np
import pytest

from kpl_engine.errors import ShapeError
from kpl_engine.knowledge import KnowledgeBase
from kpl_engine.solver import cpu
from kpl_engine.solver.labels import refine_labels
from kpl_engine.solver.text_proxy import check_features, select_text_proxies

METHODS = ("softmax", "sinkhorn", "stable_greenkhorn", "stream")

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def core(backend):
    """The core, with the instruction set put back afterwards."""
    if backend == "numpy":
        pytest.skip("compares the core with NumPy")
    module = cpu.core()
    best = module.instruction_set()
    yield module
    module.use_instruction_set(best)


def fresh_random():
    """Other numbers in every run; pytest prints the seed of one that fails."""
    seed = np.random.SeedSequence().entropy
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def similarities(n, c, seed):
    random = np.random.default_rng(seed)
    return 0.25 + 0.02 * random.normal(size=(n, c)) + 0.01 * random.normal(size=c)


def fresh_similarities(random):
    """Any size and spread, some classes forbidden to some images."""
    n, c = random.integers(1, 70), random.integers(1, 12)
    S = 0.25 + random.choice([0.005, 0.02, 0.05]) * random.normal(size=(n, c))
    if random.random() < 0.3:
        S[random.random(S.shape) < 0.1] = -np.inf
    return S


def rounding_chooses(S, iters, **options):
    """Whether some greedy step had two lines at equal distance to 1e-13: then either is a right choice."""
    n, c = S.shape
    q = np.full(c, 1 / c) if options.get("prior") is None else options["prior"]
    for done in range(iters):
        P = refine_labels(S, iters=done, **options)
        gaps = np.concatenate([np.abs((P.sum(axis=1) if done else np.ones(n)) - 1 / n), np.abs(P.sum(axis=0) - q)])
        top = np.sort(gaps[np.concatenate([P.sum(axis=1) > 0, P.sum(axis=0) > 0])])[::-1][:2]
        if len(top) == 2 and top[0] - top[1] < 1e-13 and (done or gaps[n:].max() > gaps[:n].max() - 1e-13):
            return True
    return False


def test_labels_of_core_and_numpy_agree_on_fresh_input(core):
    """Every method and instruction set against the NumPy twin.

    Logarithms down to -60 are known to 1e-14, and so are the labels made from them; 60 sweeps or steps add to it.
    """
    random, compared = fresh_random(), 0
    for _ in range(40):
        S = fresh_similarities(random)
        prior = random.dirichlet(np.full(S.shape[1], 5.0)) if random.random() < 0.3 else None
        for method, iters in itertools.product(METHODS, (0, 1, 20)):
            with cpu.numpy_only():
                expected = refine_labels(S, method, iters=iters, prior=prior)
                if method == "stable_greenkhorn" and rounding_chooses(S, iters, prior=prior):
                    continue
            compared += method == "stable_greenkhorn"
            for name in core.instruction_sets():
                core.use_instruction_set(name)
                np.testing.assert_allclose(refine_labels(S, method, iters=iters, prior=prior), expected, 2e-12, 1e-300)
    assert compared > 60


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_layout_gives_the_same_labels(dtype, backend):
    S = similarities(37, 5, 0).astype(dtype)
    expected = {method: refine_labels(S, method) for method in METHODS}
    packed = np.zeros(S.shape, dtype=[("s", dtype), ("pad", "i1")])  # numbers that are not aligned
    packed["s"] = S
    read_only = S.copy()
    read_only.setflags(write=False)
    layouts = (
        np.asfortranarray(S),
        np.repeat(np.repeat(S, 2, axis=0), 3, axis=1)[::2, ::3],
        np.ascontiguousarray(S[::-1, ::-1])[::-1, ::-1],
        packed["s"],
        read_only,
        S.astype(S.dtype.newbyteorder()),
    )
    for layout in layouts:
        for method in METHODS:
            found = refine_labels(layout, method)
            if backend == "core":
                np.testing.assert_array_equal(found, expected[method])
            else:  # NumPy adds up in the order of the memory; 20 sweeps pass a few roundings on
                np.testing.assert_allclose(found, expected[method], rtol=2e-14 if dtype == np.float64 else 1.2e-7)
            assert found.dtype == dtype
            assert found.flags.c_contiguous
    broadcast = np.broadcast_to(S[:1], S.shape)  # rows that are one row
    np.testing.assert_array_equal(refine_labels(broadcast), refine_labels(broadcast.copy()))


def test_many_calls_at_once_give_the_bits_of_one():
    S = similarities(200, 7, 4)
    with ThreadPoolExecutor(4) as pool:
        contexts = [copy_context() for _ in range(64)]  # a thread does not inherit which back end was chosen
        found = list(pool.map(lambda context: context.run(refine_labels, S), contexts))
    for labels in found:
        np.testing.assert_array_equal(labels, refine_labels(S))


def random_knowledge(random, d, c):
    blocks = [random.normal(size=(random.integers(1, 30), d)).astype(np.float32) for _ in range(c)]
    return KnowledgeBase.from_arrays(blocks)


def test_proxies_of_core_and_numpy_agree_on_fresh_input(core):
    """Scores are sums of d products of a mean over n images, all in float64: a few hundred roundings at most."""
    random = fresh_random()
    for _ in range(40):
        n, d = random.integers(1, 600), random.integers(2, 90)
        X = (0.1 + random.normal(size=(n, d))).astype(np.float32) / np.float32(np.sqrt(d))
        base, k = random_knowledge(random, d, random.integers(1, 6)), int(random.integers(1, 12))
        with cpu.numpy_only():
            expected = select_text_proxies(X, base, k)
        for name in core.instruction_sets():
            core.use_instruction_set(name)
            found = select_text_proxies(X, base, k)
            np.testing.assert_allclose(np.concatenate(found.scores), np.concatenate(expected.scores), 0, 5e-14)
            assert [kept.tolist() for kept in found.kept] == [kept.tolist() for kept in expected.kept]
            np.testing.assert_allclose(found.proxies, expected.proxies, rtol=1.2e-7, atol=1e-13)  # one float32 rounding


def test_every_layout_gives_the_same_proxies(make_clip_like, backend):
    data = make_clip_like(300, 37, 3, seed=8)
    X, base = data.features, KnowledgeBase.from_arrays(list(data.descriptions))
    expected = select_text_proxies(X, base)
    packed = np.zeros(X.shape, dtype=[("x", np.float32), ("pad", "i1")])  # numbers that are not aligned
    packed["x"] = X
    for layout in (
        np.asfortranarray(X),
        np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3],
        np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1],
        packed["x"],
        X.astype(X.dtype.newbyteorder()),
        X.astype(np.float64),
    ):
        found = select_text_proxies(layout, base)
        if backend == "core":
            np.testing.assert_array_equal(found.proxies, expected.proxies)
            np.testing.assert_array_equal(np.concatenate(found.scores), np.concatenate(expected.scores))
        else:  # NumPy adds up in the order of the memory
            np.testing.assert_allclose(np.concatenate(found.scores), np.concatenate(expected.scores), 0, 1e-15)


def test_many_images_are_read_by_several_threads(monkeypatch):
    """Above 4 million numbers; the bits do not depend on how many threads there are."""
    random = np.random.default_rng(9)
    X = random.normal(size=(5000, 1000)).astype(np.float32)
    base = random_knowledge(random, 1000, 2)
    found = select_text_proxies(X, base)
    monkeypatch.setattr(cpu, "resolve_threads", lambda num_threads: 1)
    np.testing.assert_array_equal(select_text_proxies(X, base).proxies, found.proxies)
    X[4999, 999] = np.nan
    with pytest.raises(ShapeError, match=r"1 of 5000 rows \(4999\)"):
        select_text_proxies(X, base)
    with pytest.raises(ShapeError, match=r"1 of 5000 rows \(4999\)"):
        check_features(X)
