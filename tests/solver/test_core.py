"""The compiled core behind `learn_proxies`: its twins, threads, instruction sets, and what a process does around it."""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from kpl_engine.solver import cpu, reference
from kpl_engine.solver.compiled import ScheduleTask, run_compiled, run_many_compiled
from kpl_engine.solver.labels import refine_labels
from kpl_engine.solver.proxies import harden, learn_proxies
from kpl_engine.solver.text_proxy import select_text_proxies

pytestmark = pytest.mark.skipif(cpu.core() is None, reason="the compiled core is not installed")

FORMS = ("dual", "primal")
SIZES = [(1, 8, 2), (9, 33, 3), (64, 17, 1), (70, 48, 5), (140, 96, 2)]


@pytest.fixture
def core():
    """The core, with the instruction set put back afterwards."""
    module = cpu.core()
    best = module.instruction_set()
    yield module
    module.use_instruction_set(best)


@pytest.fixture
def task(make_clip_like):
    def build(n, d, c, seed=0, labels="softmax", **options):
        data = make_clip_like(n, d, c, seed)
        T = select_text_proxies(data.features, data.descriptions).proxies
        P, _ = harden(np.asarray(refine_labels(data.features @ T, labels), dtype=np.float64), 0.6)
        options = {"lr": 10.0, "iters": 40, "tau_i": 0.04, **options}
        return ScheduleTask(data.features, T, P, **options)

    return build


def assert_same(first, second):
    """Two runs are the same numbers."""
    np.testing.assert_array_equal(first.W, second.W)
    np.testing.assert_array_equal(first.Z, second.Z)
    assert (first.iterations, first.halvings, first.gradient_norm) == (
        second.iterations,
        second.halvings,
        second.gradient_norm,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n", "d", "c"), SIZES)
@pytest.mark.parametrize("labels", ["softmax", "stable_greenkhorn"])
def test_every_instruction_set_is_the_reference(core, task, form, n, d, c, labels):
    """40 steps on 1 to 5 threads: where rounding decides a halving by then, W is settled to 1e-12."""
    given = task(n, d, c, labels=labels)
    X = given.X.astype(np.float64)
    W, _ = reference.schedule(X, given.T, given.labels, iters=40, alpha=2)
    for name in core.instruction_sets():
        core.use_instruction_set(name)
        assert core.instruction_set() == name
        for threads in range(1, 6):
            found = run_compiled(core, given, form, threads, early_exit=False)
            assert np.abs(found.W - W).max() < 1e-12
            assert np.abs(found.Z - X @ W).max() < 1e-12
            assert found.iterations == 40


@pytest.mark.parametrize("solver", ["schedule_dual", "schedule_primal", "auto"])
def test_learn_proxies_gives_what_numpy_gives(task, solver):
    given = task(140, 96, 3, labels="stable_greenkhorn")
    with cpu.numpy_only():
        slow = learn_proxies(given.X, given.T, given.labels, iters=60, solver=solver)
    fast = learn_proxies(given.X, given.T, given.labels, iters=60, solver=solver)
    assert fast.solver == slow.solver
    assert np.abs(fast.logits - slow.logits).max() <= 1.2e-7  # one float32 ulp of a logit below 1
    assert np.abs(fast.scores - slow.scores).max() <= 1e-6 * np.abs(slow.scores).max()
    np.testing.assert_array_equal(fast.labels, slow.labels)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_threads_give_the_same_bits_and_the_dual_form_any_threads(core, task, form):
    given = task(130, 64, 7, iters=200)
    first = {threads: run_compiled(core, given, form, threads) for threads in range(1, 6)}
    for threads, expected in first.items():
        assert_same(run_compiled(core, given, form, threads), expected)
        if form == "dual":
            assert_same(expected, first[1])
    alone = learn_proxies(given.X, given.T, given.labels, iters=200, solver="schedule_dual", num_threads=1)
    shared = learn_proxies(given.X, given.T, given.labels, iters=200, solver="schedule_dual", num_threads=4)
    np.testing.assert_array_equal(alone.scores, shared.scores)


def test_many_runs_are_the_single_runs_in_their_order(core, task):
    tasks = [task(n, d, c, seed, iters=30 + seed) for seed, (n, d, c) in enumerate(SIZES * 3)]
    forms = [FORMS[index % 2] for index in range(len(tasks))]
    for threads, each in ((1, 1), (2, 1), (4, 1), (2, 2)):
        many = run_many_compiled(core, tasks, forms, threads, each)
        for found, given, form in zip(many, tasks, forms, strict=True):
            assert_same(found, run_compiled(core, given, form, each))
    assert run_many_compiled(core, [], [], 3, 1) == []


def long_task(task, seconds):
    """A task of about that many seconds on one thread, on this machine as busy as it is now."""
    given = task(400, 64, 5, iters=20)
    start = time.perf_counter()
    run_compiled(cpu.core(), given, "dual", 1, early_exit=False)
    steps = int(20 * seconds / (time.perf_counter() - start))
    return ScheduleTask(given.X, given.T, given.labels, given.lr, max(steps, 40), given.tau_i)


def test_other_threads_run_while_the_core_works(core, task):
    """Counted by what the other thread did between start and end of the call, whatever the machine is busy with."""
    given, seen, done = long_task(task, 0.5), [], threading.Event()

    def watch():
        while not done.is_set():
            seen.append(time.perf_counter())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    run_compiled(core, given, "dual", 1, early_exit=False)
    end = time.perf_counter()
    done.set()
    watcher.join()
    margin = (end - start) / 10  # at its ends the call does hold the lock
    inside = [at for at in seen if start + margin < at < end - margin]
    assert len(inside) >= 3, f"the other thread ran {len(inside)} times in {end - start:.2f} s: the lock is held"


def test_two_python_threads_at_once(core, task):
    tasks = [task(90, 40, 4, seed, iters=120) for seed in range(4)]
    expected = [run_compiled(core, given, "dual", 1) for given in tasks]
    failures = []

    def work(index):
        for _ in range(3):
            for form, threads in (("dual", 1), ("dual", 2), ("primal", 1)):
                found = run_compiled(core, tasks[index], form, threads)
                if form == "dual" and not np.array_equal(found.W, expected[index].W):
                    failures.append((index, threads))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("many", [False, True])
def test_ctrl_c_ends_a_long_run(core, task, threads, many):
    """A run asks for it every 50 ms; one of these would take days, the many others a minute."""
    timer = threading.Timer(0.2, _thread.interrupt_main)
    # A process started in the background ignores the signal, and its children do.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def run():
        if many:
            run_many_compiled(core, [task(300, 64, 3, iters=2000)] * 5000, ["dual"] * 5000, threads, 1)
        else:
            run_compiled(core, task(200, 64, 3, iters=10**12), "dual", threads, early_exit=False)
        timer.join()
        time.sleep(10)  # not reached: an interrupt that came too late is still caught here, and the clock tells

    start = time.perf_counter()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - start < 9
    assert_same(run_compiled(core, task(9, 33, 3), "dual", 2), run_compiled(core, task(9, 33, 3), "dual", 1))


def run_script(text):
    """Python in a process of its own; its output. A crash or a hang is an error here."""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SETUP = """
import numpy as np, os, resource, sys
from kpl_engine.solver.proxies import learn_proxies
from kpl_engine.errors import SolverError
random = np.random.default_rng(0)
def problem(n, d, c):
    X = random.normal(size=(n, d)).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return X, np.ascontiguousarray(X[:c].T), np.full((n, c), 1 / c)
def limit_memory(bytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + bytes, used + bytes))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_runs_again():
    """No thread outlives a call, so a child finds nothing locked. Both must answer alike."""
    text = """
arguments = problem(60, 16, 3)
before = learn_proxies(*arguments, solver="schedule_dual", num_threads=3, iters=50)
child = os.fork()
if child == 0:
    after = learn_proxies(*arguments, solver="schedule_dual", num_threads=3, iters=50)
    os._exit(0 if np.array_equal(before.scores, after.scores) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_script(SETUP + text) == "0"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_memory_that_cannot_be_had_is_an_error_not_a_crash():
    """K of 200,000 images is 320 GB."""
    text = """
X, T, P = problem(4, 8, 2)
X, P = np.tile(X, (50_000, 1)), np.tile(P, (50_000, 1))
limit_memory(24 << 20)
try:
    learn_proxies(X, T, P, solver="schedule_dual", iters=1)
except SolverError as error:
    print(error)
again = problem(20, 8, 2)
assert learn_proxies(*again, solver="schedule_dual", iters=5).iterations == 5
"""
    assert "200000 images needs 320 GB" in run_script(SETUP + text)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_threads_that_cannot_be_had_are_an_error_not_a_hang():
    """Four threads a core want more memory for stacks than there is; afterwards fewer threads work."""
    text = """
arguments = problem(60, 16, 3)
limit_memory(24 << 20)
try:
    learn_proxies(*arguments, solver="schedule_dual", num_threads=1000, iters=3)
except SolverError as error:
    print(error)
assert learn_proxies(*arguments, solver="schedule_dual", num_threads=2, iters=5).iterations == 5
"""
    assert "num_threads" in run_script(SETUP + text)


def test_more_steps_than_64_bits_count_end_early(task):
    given = task(9, 33, 1)  # one class settles at once
    for solver in ("schedule_dual", "schedule_primal"):
        assert learn_proxies(given.X, given.T, np.ones((9, 1)), iters=2**70, solver=solver).iterations < 100


def arguments_of(given, **changed):
    n, d, c = given.sizes
    arguments = {
        "X": given.X,
        "T": given.T,
        "P": given.labels,
        "W": np.zeros((d, c)),
        "Z": np.zeros((n, c)),
        "lr": given.lr,
        "tau_i": given.tau_i,
        "iters": given.iters,
        "max_drift": 1e4,
        "early_exit": True,
        "movement": 0.0,
        "threads": 1,
    }
    return {**arguments, **changed}


def read_only(array):
    array.setflags(write=False)
    return array


WRONG = {
    "X of integers": {"X": np.ones((9, 33), dtype=np.int64)},
    "X of float16": {"X": np.ones((9, 33), dtype=np.float16)},
    "X of complex": {"X": np.ones((9, 33), dtype=np.complex128)},
    "X of objects": {"X": np.ones((9, 33), dtype=object)},
    "X of other byte order": {"X": np.ones((9, 33), dtype=np.dtype(np.float32).newbyteorder())},
    "X of one axis": {"X": np.ones(33, dtype=np.float32)},
    "X of three axes": {"X": np.ones((9, 33, 1), dtype=np.float32)},
    "X a list": {"X": [[1.0] * 33] * 9},
    "X none": {"X": None},
    "X empty": {"X": np.ones((0, 33), dtype=np.float32)},
    "X without columns": {"X": np.ones((9, 0), dtype=np.float32)},
    "T of other d": {"T": np.ones((32, 3))},
    "T without columns": {"T": np.ones((33, 0))},
    "P too short": {"P": np.ones((8, 3))},
    "P too narrow": {"P": np.ones((9, 2))},
    "P of one axis": {"P": np.ones(27)},
    "W of float32": {"W": np.ones((33, 3), dtype=np.float32)},
    "W transposed": {"W": np.ones((3, 33))},
    "W in Fortran order": {"W": np.ones((3, 33)).T},
    "W read-only": {"W": read_only(np.ones((33, 3)))},
    "Z of float32": {"Z": np.ones((9, 3), dtype=np.float32)},
    "Z too short": {"Z": np.ones((8, 3))},
    "Z in steps": {"Z": np.ones((9, 6))[:, ::2]},
    "Z read-only": {"Z": read_only(np.ones((9, 3)))},
    "no threads": {"threads": 0},
    "minus threads": {"threads": -3},
    "threads beyond 32 bits": {"threads": 1 << 40},
    "iters beyond 64 bits": {"iters": 1 << 70},
    "iters a float": {"iters": 2.5},
    "lr a word": {"lr": "fast"},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_type_or_value_errors(core, task, wrong):
    """Of the private functions, past every check in Python; nothing is written."""
    for run in (core.run_dual, core.run_primal):
        arguments = arguments_of(task(9, 33, 3), **WRONG[wrong])
        with pytest.raises((TypeError, ValueError)):
            run(**arguments)
        for name in ("W", "Z"):
            if name not in WRONG[wrong]:
                assert not arguments[name].any()


@pytest.mark.parametrize("wrong", WRONG)
def test_one_wrong_problem_of_many_is_an_error(core, task, wrong):
    order = ("X", "T", "P", "W", "Z", "lr", "tau_i", "iters", "max_drift", "movement")
    bad, good = arguments_of(task(9, 33, 3), **WRONG[wrong]), arguments_of(task(9, 33, 3))
    problems = [(*(each[name] for name in order), True, each["threads"]) for each in (good, bad)]
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        core.solve_many(problems, 2)
    assert not good["W"].any()


def test_malformed_problems_are_errors(core, task):
    given = arguments_of(task(9, 33, 3))
    start = (given["X"], given["T"], given["P"], given["W"], given["Z"])
    for problem in ((), start, [*start, 1.0, 1.0, 1, 1.0, 0.0, True, 1], None, (None,) * 12, (*start, *"abcdefg")):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            core.solve_many([problem], 1)
    numbers = (10.0, 0.04, 3, 1e4, 0.0, True, 1)
    for labels in ((), (0,) * 5, (9, 0.01, 0.0, 20, None, 0.6), (0, 0.01, 0.0, 20, np.ones(4), 0.6), "softmax"):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            core.solve_many([(*start[:2], labels, *start[3:], *numbers)], 1)


def test_numbers_without_meaning_do_not_crash(core, task):
    """NaN, zero and infinity where the checks in Python allow none: the call ends, whatever it finds."""
    for run in (core.run_dual, core.run_primal):
        for name in ("lr", "tau_i", "max_drift", "movement"):
            for value in (0.0, -1.0, np.nan, np.inf, -np.inf, 1e308, 5e-324):
                record = run(**arguments_of(task(9, 33, 3), iters=5, **{name: value}))
                assert 0 <= record[0] <= 5
        assert run(**arguments_of(task(9, 33, 3), iters=-5))[0] == 0
        for array in (np.full((9, 33), np.nan), np.full((9, 33), np.inf), np.full((9, 33), 1e300)):
            assert run(**arguments_of(task(9, 33, 3), X=array, iters=5))[0] <= 5


def test_an_unknown_instruction_set_changes_nothing(core):
    before = core.instruction_set()
    for name in ("", "mmx", before + "x"):
        with pytest.raises(ValueError, match="instruction set"):
            core.use_instruction_set(name)
    with pytest.raises(TypeError):
        core.use_instruction_set(None)
    assert core.instruction_set() == before
    assert before == core.instruction_sets()[-1]
