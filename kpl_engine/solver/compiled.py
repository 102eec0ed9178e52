"""The schedule as the compiled core runs it: every step in one call, without the interpreter's lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from kpl_engine.arrays import Float64, Floats
from kpl_engine.solver.schedule import FLAT, MAX_DRIFT, Form, ScheduleRun

__all__ = ["ScheduleTask", "run_compiled", "run_many_compiled"]


@dataclass(frozen=True)
class ScheduleTask:
    """What a run of the schedule starts from: ``X`` (n, d), ``T`` (d, c), hardened ``P`` (n, c) float64."""

    X: Floats
    T: Floats
    P: Float64
    lr: float
    iters: int
    tau_i: float
    movement: float = 0.0  # stop when no column can move by more than this any more; 0 takes every step

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.X), self.X.shape[1], self.P.shape[1]


def run_compiled(
    core: ModuleType, task: ScheduleTask, form: Form, threads: int, *, early_exit: bool = True
) -> ScheduleRun:
    """One run on ``threads`` threads that share the work of every step.

    ``early_exit=False`` takes every step even where no bit changes any more; the result is the same.
    """
    W, Z = _outputs(task)
    run = core.run_dual if form == "dual" else core.run_primal
    P = np.ascontiguousarray(task.P)
    record = run(
        task.X, task.T, P, W, Z, task.lr, task.tau_i, task.iters, MAX_DRIFT, early_exit, task.movement, threads
    )
    return _as_run(W, Z, record, form)


def run_many_compiled(
    core: ModuleType, tasks: Sequence[ScheduleTask], forms: Sequence[Form], threads: int
) -> list[ScheduleRun]:
    """Independent runs, each on one thread, dealt out to ``threads`` threads as they come free."""
    outputs = [_outputs(task) for task in tasks]
    problems = [
        (task.X, task.T, np.ascontiguousarray(task.P), W, Z, *_numbers(task), form == "dual")
        for task, form, (W, Z) in zip(tasks, forms, outputs, strict=True)
    ]
    records = core.run_many(problems, threads)
    return [_as_run(W, Z, record, form) for (W, Z), record, form in zip(outputs, records, forms, strict=True)]


def _numbers(task: ScheduleTask) -> tuple[float, float, int, float, float]:
    return task.lr, task.tau_i, task.iters, MAX_DRIFT, task.movement


def _outputs(task: ScheduleTask) -> tuple[Float64, Float64]:
    n, d, c = task.sizes
    return np.empty((d, c)), np.empty((n, c))  # float64


def _as_run(W: Float64, Z: Float64, record: tuple[int, int, float, float, bool, bool], form: Form) -> ScheduleRun:
    iterations, halvings, norm, last_change, settled, frozen = record
    return ScheduleRun(W, Z, iterations, halvings, norm, settled or last_change <= FLAT, form, frozen)
