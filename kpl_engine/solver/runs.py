"""One door to the schedule: the compiled core where it is installed, else its NumPy twin."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from kpl_engine.arrays import Float64, Floats
from kpl_engine.solver import cost, cpu, schedule
from kpl_engine.solver.compiled import LabelChoice, ScheduleTask, run_many_compiled
from kpl_engine.solver.hardening import harden
from kpl_engine.solver.labels import refine_labels
from kpl_engine.solver.schedule import Form, ScheduleRun

__all__ = ["run_schedule", "run_schedules"]


def run_schedule(task: ScheduleTask, form: Form | None, num_threads: int | None) -> ScheduleRun:
    """Run the schedule in ``form``, or in the one that `cost.choose_form` picks, and its labels before it if asked."""
    core, available = cpu.core(), cpu.resolve_threads(num_threads)
    if core is None:
        return _run_numpy(task, form)
    chosen = form or cost.choose_form("core", *task.sizes, task.iters)
    threads = available if num_threads is not None else cost.choose_threads(chosen, *task.sizes, available)
    return run_many_compiled(core, [task], [chosen], 1, threads)[0]


def run_schedules(
    tasks: Sequence[ScheduleTask], forms: Sequence[Form | None], num_threads: int | None
) -> list[ScheduleRun]:
    """Independent runs in the order given; with the core they share the threads, one run on one thread."""
    core, available = cpu.core(), cpu.resolve_threads(num_threads)
    if core is None:
        return [_run_numpy(task, form) for task, form in zip(tasks, forms, strict=True)]
    chosen = [
        form or cost.choose_form("core", *task.sizes, task.iters) for task, form in zip(tasks, forms, strict=True)
    ]
    return run_many_compiled(core, tasks, chosen, available, 1)


def _run_numpy(task: ScheduleTask, form: Form | None) -> ScheduleRun:
    chosen = form or cost.choose_form("numpy", *task.sizes, task.iters)
    run = schedule.run_dual if chosen == "dual" else schedule.run_primal
    start = time.perf_counter()
    P, num_hardened = _make_labels(task, task.labels) if isinstance(task.labels, LabelChoice) else (task.labels, 0)
    label_seconds = time.perf_counter() - start
    with np.errstate(all="ignore"):  # what overflows is refused when the solution is made
        found = run(task.X, task.T, P, task.lr, task.iters, task.tau_i, task.movement)
    _join_equal_classes(task.T, P, found)
    seconds = time.perf_counter() - start
    return dataclasses.replace(found, num_hardened=num_hardened, label_seconds=label_seconds, seconds=seconds)


def _join_equal_classes(T: Floats, P: Float64, run: ScheduleRun) -> None:
    """Classes with the same start and the same labels have the same proxies; rounding may have parted them."""
    first: dict[bytes, int] = {}
    for j in range(T.shape[1]):
        i = first.setdefault(T[:, j].tobytes() + P[:, j].tobytes(), j)
        if i < j:
            run.W[:, j], run.Z[:, j] = run.W[:, i], run.Z[:, i]


def _make_labels(task: ScheduleTask, choice: LabelChoice) -> tuple[Float64, int]:
    similarities = np.asarray(task.X, dtype=np.float64) @ task.T  # (n, c) float64
    P = refine_labels(similarities, choice.method, choice.tau_t, choice.gamma, choice.iters, choice.prior)
    return harden(P, choice.alpha)
