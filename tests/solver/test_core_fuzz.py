"""Hostile arrays through the compiled core: one of our errors, or finite numbers that the NumPy twin confirms.

KPL_FUZZ_EXAMPLES sets how many examples each test draws, at random then; without it 40, always the same.
"""

import contextlib
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kpl_engine.errors import KplError, ShapeError
from kpl_engine.solver import cpu
from kpl_engine.solver.labels import refine_labels
from kpl_engine.solver.proxies import learn_proxies
from kpl_engine.solver.text_proxy import select_text_proxies

pytestmark = pytest.mark.skipif(cpu.core() is None, reason="the compiled core is not installed")

EXAMPLES = int(os.environ.get("KPL_FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

LAYOUTS = ("rows", "columns", "steps", "backwards", "read-only", "unaligned", "packed", "swapped", "repeated")
SPECIAL = {"zero": 0.0, "minus zero": -0.0, "denormal": 1e-320, "tiny": 1e-38, "huge": 1e30, "largest": 1.7e308}
BROKEN = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def laid_out(array, layout):
    """The same numbers in another place: a view that is not plain rows."""
    if layout == "columns":
        return np.asfortranarray(array)
    if layout == "steps":
        return np.repeat(np.repeat(array, 2, axis=0), 3, axis=1)[::2, ::3]
    if layout == "backwards":
        return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    if layout == "unaligned":
        memory = b"." + array.tobytes()
        return np.frombuffer(memory, dtype=array.dtype, count=array.size, offset=1).reshape(array.shape)
    if layout == "packed":
        packed = np.zeros(array.shape, dtype=[("number", array.dtype), ("pad", "i1")])
        packed["number"] = array
        return packed["number"]
    if layout == "swapped":
        return array.astype(array.dtype.newbyteorder())
    if layout == "repeated" and len(array):
        return np.broadcast_to(array[:1], array.shape)
    array = array.copy()
    array.setflags(write=layout != "read-only")
    return array


@st.composite
def arrays(draw, shape, specials, positive=False):
    """Normal numbers with a few special entries, rows or columns among them, in any dtype and layout."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    array = random.normal(size=shape) / np.sqrt(max(1, shape[1]))
    if positive:
        array = np.abs(array)
    for name in draw(st.lists(st.sampled_from(sorted(specials)), max_size=2)) if specials and array.size else ():
        rows, columns = (random.integers(size) for size in shape)
        where = draw(st.sampled_from(["entry", "row", "column", "all"]))
        value = specials[name]
        if where == "entry":
            array[rows, columns] = value
        elif where == "row":
            array[rows] = value
        elif where == "column":
            array[:, columns] = value
        else:
            array[:] = value
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float64, np.float64, np.float16]))
    with np.errstate(all="ignore"):
        array = array.astype(dtype)
    return laid_out(array, draw(st.sampled_from(LAYOUTS)))


SIZES = st.tuples(
    st.sampled_from([1, 2, 3, 7, 8, 9, 17, 31, 33, 65]), st.sampled_from([1, 2, 5, 8, 24, 33, 70]), st.integers(1, 9)
)


def outcome(function, *arguments, **options):
    """What the call returns or the KplError it raises; the arguments are left alone."""
    before = [np.array(argument).tobytes() for argument in arguments]
    try:
        found = function(*arguments, **options)
    except KplError as error:
        found = error
    assert [np.array(argument).tobytes() for argument in arguments] == before, "an argument was changed"
    return found


def outcomes(function, *arguments, **options):
    """Of the core and of its NumPy twin."""
    with np.errstate(all="ignore"):
        fast = outcome(function, *arguments, **options)
        with cpu.numpy_only():
            return fast, outcome(function, *arguments, **options)


OPTIONS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([1e-12, 1e-3, 10.0, 1e12]),
        "tau_i": st.sampled_from([1e-12, 1e-3, 0.04, 1.0, 1e12]),
        "alpha": st.sampled_from([-np.inf, 0.0, 0.6, np.inf]),
        "iters": st.sampled_from([0, 1, 2, 5]),
        "solver": st.sampled_from(["schedule_dual", "schedule_primal", "schedule", "closed_form", "auto"]),
        "num_threads": st.integers(1, 3),
    }
)


@fuzz
@given(st.data(), SIZES, OPTIONS)
def test_learn_proxies_survives_every_number(data, sizes, options):
    n, d, c = sizes
    X, T = data.draw(arrays((n, d), SPECIAL | BROKEN)), data.draw(arrays((d, c), SPECIAL | BROKEN))
    P = data.draw(arrays((n, c), SPECIAL | BROKEN, positive=True))
    fast, slow = outcomes(learn_proxies, X, T, P, **options)
    with np.errstate(all="ignore"):
        whole = all(np.isfinite(array.astype(np.float32)).all() for array in (X, T)) and np.isfinite(P).all()
    if not whole:
        assert isinstance(fast, ShapeError)
    if isinstance(fast, ShapeError) or isinstance(slow, ShapeError):
        assert str(fast) == str(slow)
    if isinstance(fast, Exception):
        return
    for array in (fast.proxies, fast.logits, fast.scores, fast.discriminants):
        assert np.isfinite(array).all()
    assert ((fast.labels >= 0) & (fast.labels < c)).all()


@fuzz
@given(st.data(), SIZES, st.sampled_from(["schedule_dual", "schedule_primal"]), st.integers(0, 4), st.integers(1, 3))
def test_the_schedule_is_its_numpy_twin(data, sizes, solver, iters, num_threads):
    """Ordinary numbers, zeros and denormals: steps multiply a rounding by at most a few thousand each.

    Four steps from 1e-16 stay below 1e-5 of a unit column in the worst case seen, below 1e-9 nearly always.
    """
    n, d, c = sizes
    quiet = {name: SPECIAL[name] for name in ("zero", "minus zero", "denormal", "tiny")}
    X, T = data.draw(arrays((n, d), quiet)), data.draw(arrays((d, c), quiet))
    P = data.draw(arrays((n, c), quiet, positive=True))
    fast, slow = outcomes(learn_proxies, X, T, P, solver=solver, iters=iters, tau_i=0.1, num_threads=num_threads)
    if isinstance(slow, Exception):
        assert str(fast) == str(slow)
        return
    assert np.abs(fast.proxies - slow.proxies).max() <= 1e-5
    scale = max(1.0, float(np.abs(slow.logits).max()))
    assert np.abs(fast.logits - slow.logits).max() <= 1e-5 * scale * np.sqrt(d)


@fuzz
@given(st.data(), st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)))
def test_empty_axes_are_named(data, sizes):
    n, d, c = sizes
    X, T, P = (data.draw(arrays(shape, {}, positive=True)) for shape in ((n, d), (d, c), (n, c)))
    fast, slow = outcomes(learn_proxies, X, T, P, iters=2)
    assert isinstance(fast, ShapeError) == (0 in sizes)
    assert isinstance(slow, ShapeError) == (0 in sizes)


@fuzz
@given(
    st.data(),
    st.tuples(st.integers(1, 40), st.integers(1, 9)),
    st.sampled_from(["softmax", "sinkhorn", "stable_greenkhorn", "stream"]),
    st.sampled_from([0, 1, 20, "converged"]),
    st.sampled_from([1e-300, 1e-4, 0.01, 1.0, 1e300]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_labels_survive_every_number(data, shape, method, iters, tau_t, gamma):
    S = data.draw(arrays(shape, SPECIAL | BROKEN))
    if iters == "converged" and method not in ("sinkhorn", "stable_greenkhorn"):
        iters = 3
    fast, slow = outcomes(refine_labels, S, method, tau_t=tau_t, gamma=gamma, iters=iters)
    if isinstance(fast, Exception) or isinstance(slow, Exception):
        assert str(fast) == str(slow)
        return
    assert np.isfinite(fast).all()
    assert (fast >= 0).all()
    if method in ("softmax", "stream") and 1e-4 <= tau_t <= 1:  # logarithms up to 1e4 are known to 1e-12
        rounding = 1e-10 if fast.dtype == np.float64 else 1e-6
        np.testing.assert_allclose(fast, slow, rtol=rounding, atol=rounding * np.abs(slow).max())


@fuzz
@given(st.data(), SIZES, st.integers(1, 6))
def test_text_proxies_survive_every_number(data, sizes, k):
    n, d, c = sizes
    X = data.draw(arrays((n, d), SPECIAL | BROKEN))
    blocks = [data.draw(arrays((1 + (7 * j) % 4, d), SPECIAL)) for j in range(c)]
    fast, slow = outcomes(lambda features: select_text_proxies(features, blocks, k), X)
    if isinstance(fast, Exception) or isinstance(slow, Exception):
        assert isinstance(fast, Exception)  # of several faults either may be named first
        assert isinstance(slow, Exception)
        return
    assert np.isfinite(fast.proxies).all()
    lengths = np.linalg.norm(fast.proxies.astype(np.float64), axis=0)
    assert (np.abs(lengths - 1) < 1e-6).all() | (lengths == 0).any()


def spoiled(draw, array):
    """An array of another shape, dtype or layout than a function asks for, or something else altogether."""
    kind = draw(st.sampled_from(["dtype", "shape", "axes", "steps", "read-only", "empty", "not an array"]))
    if kind == "dtype":
        return array.astype(draw(st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.complex64, object])))
    if kind == "shape":
        return np.zeros([size + draw(st.integers(-1, 1)) for size in array.shape], dtype=array.dtype)
    if kind == "axes":
        return array[None] if draw(st.booleans()) else array.reshape(-1)[0]
    if kind == "steps":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if kind == "read-only":
        return laid_out(array, "read-only")
    return array[:0] if kind == "empty" else draw(st.sampled_from([None, 1.0, "array", [1.0, 2.0], ()]))


def calls(n, d, c):
    """Right arguments of each function of the core that takes arrays."""
    random = np.random.default_rng(n * d * c)
    X, P = random.normal(size=(n, d)).astype(np.float32), random.random((n, c)) / (n * c)
    T, M = np.ascontiguousarray(random.normal(size=(d, c))), 2 * c
    E, offsets = random.normal(size=(M, d)).astype(np.float32), np.arange(0, M + 1, 2)
    narrow = [np.zeros(shape, dtype=np.float32) for shape in ((d, c), (d, c), (n, c), (n, c))]
    schedule = (X, T, P, np.zeros((d, c)), np.zeros((n, c)), 10.0, 0.04, 3, 1e4)
    return {
        "run_dual": (*schedule, True, 0.0, 2),
        "run_primal": (*schedule, True, 0.0, 2),
        "refine_labels": (X, np.zeros((n, d)), "sinkhorn", 0.01, 0.0, 5, np.full(d, 1 / d)),
        "select_text_proxies": (X, E, offsets, 1, 1e6, 2, np.zeros(M), np.zeros(c, np.int64), narrow[0]),
        "rows_fit": (X, 1e6, 2),
        "moments": (X, P, np.zeros(d), np.zeros((c, d)), 2),
        "fixed_point": (X, P, X.mean(axis=0, dtype=float), P.T @ X, np.zeros((d, c)), 0.04, 1e-9, 5, 2),
        "squared_lengths": (X, np.zeros(n), 2),
        "finish": (X, T, 1.0, *narrow, np.zeros(n, np.int64), np.zeros(n, np.bool_), 2),
    }


@fuzz
@given(st.data(), SIZES)
def test_wrong_arrays_into_the_core_itself_are_errors(data, sizes):
    """Every function, one argument spoiled: TypeError, ValueError, or it does what it can; never a crash."""
    for name, right in calls(*sizes).items():
        getattr(cpu.core(), name)(*right)
        which = data.draw(st.integers(0, len(right) - 1))
        wrong = (
            spoiled(data.draw, right[which])
            if isinstance(right[which], np.ndarray)
            else data.draw(st.sampled_from([None, -1, 0, np.nan, 1 << 70, "x"]))
        )
        with contextlib.suppress(TypeError, ValueError):
            getattr(cpu.core(), name)(*right[:which], wrong, *right[which + 1 :])
