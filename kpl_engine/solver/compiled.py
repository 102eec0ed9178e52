"""The schedule as the compiled core runs it: every step in one call, without the interpreter's lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from kpl_engine.arrays import Float64, Floats
from kpl_engine.config import LabelMethod, OtIters
from kpl_engine.errors import SolverError
from kpl_engine.solver.schedule import FLAT, MAX_DRIFT, Form, ScheduleRun

__all__ = ["LabelChoice", "ScheduleTask", "run_compiled", "run_many_compiled"]

_METHODS: tuple[LabelMethod, ...] = ("softmax", "sinkhorn", "stable_greenkhorn", "stream")  # as in kernels/cpu/core.h
_MOST_STEPS = 2**62  # more than any run takes; the core counts in 64 bits
_Record = tuple[int, int, float, float, bool, bool, float, int, float, float]


@dataclass(frozen=True)
class LabelChoice:
    """How labels are made from ``X T``: the options of `refine_labels`, then hardening above ``alpha``."""

    method: LabelMethod
    tau_t: float
    gamma: float
    iters: OtIters
    prior: Float64 | None  # (c,) shares that sum to 1
    alpha: float

    def as_tuple(self) -> tuple[int, float, float, int, Float64 | None, float]:
        iters = -1 if self.iters == "converged" else min(int(self.iters), _MOST_STEPS)
        return _METHODS.index(self.method), self.tau_t, self.gamma, iters, self.prior, self.alpha


@dataclass(frozen=True)
class ScheduleTask:
    """What a run of the schedule starts from: ``X`` (n, d), ``T`` (d, c), and ``labels``.

    These are hardened labels (n, c) float64, or how to make them from ``X T``.
    """

    X: Floats
    T: Floats
    labels: Float64 | LabelChoice
    lr: float
    iters: int
    tau_i: float
    movement: float = 0.0  # stop when no column can move by more than this any more; 0 takes every step

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.X), self.X.shape[1], self.T.shape[1]


def run_compiled(
    core: ModuleType, task: ScheduleTask, form: Form, threads: int, *, early_exit: bool = True
) -> ScheduleRun:
    """One run from given labels on ``threads`` threads that share the work of every step.

    ``early_exit=False`` takes every step even where no bit changes any more; the result is the same.
    """
    W, Z = _outputs(task)
    run = core.run_dual if form == "dual" else core.run_primal
    P = np.ascontiguousarray(task.labels, dtype=np.float64)
    lr, tau_i, iters, max_drift, movement = _numbers(task)
    record = run(task.X, task.T, P, W, Z, lr, tau_i, iters, max_drift, early_exit, movement, threads)
    return _as_run(W, Z, record, form)


def run_many_compiled(
    core: ModuleType, tasks: Sequence[ScheduleTask], forms: Sequence[Form], threads: int, threads_each: int
) -> list[ScheduleRun]:
    """Independent runs, labels included, dealt out to ``threads`` threads as they come free.

    Each run is shared by ``threads_each`` threads.
    """
    outputs = [_outputs(task) for task in tasks]
    problems = [
        (task.X, task.T, _labels(task), W, Z, *_numbers(task), form == "dual", threads_each)
        for task, form, (W, Z) in zip(tasks, forms, outputs, strict=True)
    ]
    try:
        records = core.solve_many(problems, threads)
    except MemoryError as error:
        raise SolverError(_too_large(tasks, forms)) from error
    except RuntimeError as error:  # std::system_error
        raise SolverError(
            f"num_threads: expected threads that the system can start, got {threads} x {threads_each} ({error}); "
            "use fewer"
        ) from error
    return [_as_run(W, Z, record, form) for (W, Z), record, form in zip(outputs, records, forms, strict=True)]


def _too_large(tasks: Sequence[ScheduleTask], forms: Sequence[Form]) -> str:
    most = max((task.sizes[0] for task, form in zip(tasks, forms, strict=True) if form == "dual"), default=0)
    need = f"the dual form of {most} images needs {8e-9 * most * most:.3g} GB" if most else "the primal form"
    return f"the schedule: expected memory for it, got none ({need}); use solver='schedule_primal' or fewer images"


def _labels(task: ScheduleTask) -> Float64 | tuple[int, float, float, int, Float64 | None, float]:
    if isinstance(task.labels, LabelChoice):
        return task.labels.as_tuple()
    return np.ascontiguousarray(task.labels, dtype=np.float64)


def _numbers(task: ScheduleTask) -> tuple[float, float, int, float, float]:
    return task.lr, task.tau_i, min(task.iters, _MOST_STEPS), MAX_DRIFT, task.movement


def _outputs(task: ScheduleTask) -> tuple[Float64, Float64]:
    n, d, c = task.sizes
    return np.empty((d, c)), np.empty((n, c))  # float64


def _as_run(W: Float64, Z: Float64, record: _Record, form: Form) -> ScheduleRun:
    iterations, halvings, norm, last_change, settled, frozen, mass, hardened, label_seconds, seconds = record
    converged = settled or last_change <= FLAT
    return ScheduleRun(
        W, Z, iterations, halvings, norm, converged, form, mass, frozen, hardened, label_seconds, seconds
    )
