"""One door to the schedule: the compiled core where it is installed, else its NumPy twin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kpl_engine.solver import cost, cpu, schedule
from kpl_engine.solver.compiled import ScheduleTask, run_compiled, run_many_compiled
from kpl_engine.solver.schedule import Form, ScheduleRun

__all__ = ["run_schedule", "run_schedules"]


def run_schedule(task: ScheduleTask, form: Form | None, num_threads: int | None) -> ScheduleRun:
    """Run the schedule in ``form``, or in the one that `cost.choose_form` picks."""
    core, available = cpu.core(), cpu.resolve_threads(num_threads)
    if core is None:
        return _run_numpy(task, form)
    chosen = form or cost.choose_form("core", *task.sizes, task.iters)
    threads = available if num_threads is not None else cost.choose_threads(chosen, *task.sizes, available)
    return run_compiled(core, task, chosen, threads)


def run_schedules(tasks: Sequence[ScheduleTask], form: Form | None, num_threads: int | None) -> list[ScheduleRun]:
    """Independent runs in the order given; with the core they share the threads, one run on one thread."""
    core, available = cpu.core(), cpu.resolve_threads(num_threads)
    if core is None:
        return [_run_numpy(task, form) for task in tasks]
    forms = [form or cost.choose_form("core", *task.sizes, task.iters) for task in tasks]
    return run_many_compiled(core, tasks, forms, available)


def _run_numpy(task: ScheduleTask, form: Form | None) -> ScheduleRun:
    chosen = form or cost.choose_form("numpy", *task.sizes, task.iters)
    run = schedule.run_dual if chosen == "dual" else schedule.run_primal
    with np.errstate(all="ignore"):  # what overflows is refused when the solution is made
        return run(task.X, task.T, task.P, task.lr, task.iters, task.tau_i, task.movement)
