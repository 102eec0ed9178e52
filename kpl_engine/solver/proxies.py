"""`learn_proxies`: from features, text proxies and pseudo labels to vision proxies (method.md 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32, Float64, Floats, check_array
from kpl_engine.config import SOLVERS, SolverName
from kpl_engine.errors import ConfigError, ShapeError, SolverError
from kpl_engine.solver.base import Notice, Solution
from kpl_engine.solver.checks import check_between, check_count, check_magnitude
from kpl_engine.solver.closed_form import regime_fault, schedule_fault, solve_closed_form
from kpl_engine.solver.compiled import ScheduleTask
from kpl_engine.solver.finishing import discriminants_of, rounding_decides, solution_of
from kpl_engine.solver.hardening import harden
from kpl_engine.solver.moments import moments_of
from kpl_engine.solver.run_notices import (
    FORMS,
    INVISIBLE,
    closed_form_fails,
    froze,
    hardened_fault,
    not_converged,
    schedule_used,
)
from kpl_engine.solver.runs import run_schedule
from kpl_engine.solver.schedule import ScheduleRun
from kpl_engine.solver.text_proxy import check_features

__all__ = [
    "FORMS",
    "check_options",
    "discriminants_of",
    "harden",
    "learn_proxies",
    "rounding_decides",
    "solution_of_run",
]

_LARGEST_LABEL = 1e12  # squares of gradients stay in float64


def learn_proxies(
    features: npt.ArrayLike,
    text_proxies: npt.ArrayLike,
    labels: npt.ArrayLike,
    lr: float = 10.0,
    iters: int = 2000,
    tau_i: float = 0.04,
    alpha: float = 0.6,
    solver: SolverName = "auto",
    device: str = "cpu",
    num_threads: int | None = None,
) -> Solution:
    """Learn one vision proxy per class from pseudo labels.

    The published schedule: ``W = T``; label rows whose maximum exceeds ``alpha`` become one-hot
    (on a copy); then ``iters`` times ``G = Xᵀ(softmax(X W / tau_i) - P)``, ``lr`` halves if ‖G‖_F
    grew, ``W <- unit columns of W - lr/(n tau_i) G``.

    Parameters
    ----------
    features : (n, d) array_like
        Unit rows, finite. Zero rows are allowed and inform nothing.
    text_proxies : (d, c) array_like
        Start of ``W``.
    labels : (n, c) array_like
        Pseudo labels >= 0, see `refine_labels`.
    lr, iters, tau_i, alpha : numbers
        The schedule; published defaults. ``iters = 0`` returns the text proxies.
    solver : {"auto", "schedule", "schedule_dual", "schedule_primal", "schedule_split", "closed_form"}
        ``schedule`` takes the cheaper of its two exact forms. ``closed_form`` computes the fixed
        point of the schedule directly where that exists (`closed_form.py`). ``auto`` uses it when
        its condition holds and the asked steps would reach it, else the schedule, and says so in
        ``warnings``; it leaves out the steps that are proven not to move the class differences by
        more than 1e-9 of their usual scale (``mass / n``), because lr has halved too often (`schedule.py: is_frozen`).
        ``schedule_split`` lets a GPU make the products of ten and more classes of float16 halves on tensor cores:
        about as exact as float32 arithmetic (docs/method.md 3b), for labels of mass n only; elsewhere it is
        ``schedule_primal``.
    device : {"cpu", "auto", "cuda", "cuda:N"}
        ``auto`` is the first GPU if one can be used, else the CPU. A GPU runs the same forms in float64; its results
        differ from the CPU's by rounding.
    num_threads : int, optional
        Threads of the compiled core; by default as many as pay off, at most one a core. In the dual
        form every number gives the same bits; in the primal form another number adds the gradient
        up in another order (results differ by rounding, about 1e-13). The same number gives the
        same bits again on the same machine.

    Returns
    -------
    Solution

    Raises
    ------
    ShapeError
        Wrong shapes, NaN or infinite values, negative labels.
    ConfigError
        An option out of range.
    SolverError
        ``solver="closed_form"`` where it does not hold, or results beyond float32.
    BackendUnavailableError, CudaError
        A GPU asked for by name cannot be used, or failed.

    Notes
    -----
    Features and text proxies are taken as float32 (float64 ones are rounded first), labels as
    float64. All arithmetic is float64; the results are rounded to float32 once.
    Sources: InMaP, arXiv 2310.19752; KPL, arXiv 2501.11231.
    """
    check_options(lr, iters, tau_i, alpha, solver)
    X, T, P = _check_arrays(features, text_proxies, labels)
    P, num_hardened = harden(P, alpha)
    if device == "cpu":
        return _learn(X, T, P, num_hardened, lr, iters, tau_i, solver, num_threads)
    from kpl_engine.solver.device_plan import Work
    from kpl_engine.solver.devices import choose_device

    gpu, passed_over = choose_device(device)
    if gpu is not None:
        return gpu.learn(X, T, P, num_hardened, Work(None, None, lr, iters, tau_i, solver))
    found = _learn(X, T, P, num_hardened, lr, iters, tau_i, solver, num_threads)
    return found if passed_over is None else replace(found, warnings=(passed_over, *found.warnings))


def _learn(
    X: Float32,
    T: Float32,
    P: Float64,
    num_hardened: int,
    lr: float,
    iters: int,
    tau_i: float,
    solver: SolverName,
    num_threads: int | None,
) -> Solution:
    """`learn_proxies` on the CPU, from checked arrays and hardened labels."""
    if solver not in ("auto", "closed_form"):
        run = run_schedule(ScheduleTask(X, T, P, lr, iters, tau_i), FORMS.get(solver), num_threads)
        return solution_of_run(run, X, iters, num_threads)
    if num_hardened:
        fault = hardened_fault(num_hardened, len(P))
    else:
        found, fault = _closed_form(X, P, lr, iters, tau_i, solver, num_threads)
        if found:
            return found
    if solver == "closed_form":
        raise SolverError(closed_form_fails(fault))
    # The proof of `is_frozen` needs unit columns from the second step on; a zero column may stay zero.
    movement = INVISIBLE * min(1.0, float(P.sum()) / len(X)) if (np.abs(T).max(axis=0) > 0).all() else 0.0
    task = ScheduleTask(X, T, P, lr, iters, tau_i, movement)
    run = run_schedule(task, None, num_threads)
    frozen = froze(X, P, run.W, run.Z, tau_i, run.iterations, run.halvings) if run.frozen else []
    return solution_of_run(run, X, iters, num_threads, schedule_used(fault), *frozen)


def check_options(lr: Any, iters: Any, tau_i: Any, alpha: Any, solver: Any) -> None:
    """`ConfigError` naming the option of `learn_proxies` that is out of range."""
    check_magnitude("lr", lr)
    check_magnitude("tau_i", tau_i)
    check_between("alpha", alpha, -np.inf, np.inf)
    check_count("iters", iters, 0)
    if solver not in SOLVERS:
        raise ConfigError(f"solver: expected one of {list(SOLVERS)}, got {solver!r}")


def _check_arrays(
    features: npt.ArrayLike, text_proxies: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[Float32, Float32, Float64]:
    X = check_features(features)
    T = check_array("text_proxies", text_proxies, (X.shape[1], "c"))
    if T.shape[1] == 0:
        raise ShapeError(f"text_proxies: expected at least one class, got shape {T.shape}")
    P = check_array("labels", labels, (len(X), T.shape[1]), np.float64)
    if P.size and not (P.min() >= 0 and P.max() <= _LARGEST_LABEL):
        raise ShapeError(
            f"labels: expected numbers >= 0, usually up to 1, got {P.min():g} to {P.max():g}; see refine_labels"
        )
    return X, T, P


def solution_of_run(run: ScheduleRun, X: Floats, iters: int, num_threads: int | None, *notes: Notice) -> Solution:
    """The `Solution` of a run of the schedule that was asked for ``iters`` steps."""
    notices = list(notes)
    if not run.converged and not run.frozen and iters > 0:
        notices.append(not_converged(run.iterations))
    return solution_of(
        run.W,
        X,
        run.mass,
        num_threads,
        iterations=run.iterations,
        converged=run.converged,
        solver="schedule",
        form=run.form,
        halvings=run.halvings,
        residual=run.gradient_norm,
        warnings=tuple(notices),
    )


def _closed_form(
    X: Float32, P: Float64, lr: float, iters: int, tau_i: float, solver: SolverName, num_threads: int | None
) -> tuple[Solution | None, str]:
    """The closed form, or None and why it does not hold; for ``auto`` also why the asked steps would not reach it."""
    sums = moments_of(X, P, num_threads)
    fault = regime_fault(sums)
    if not fault and solver == "auto":
        fault = schedule_fault(sums, lr, iters, tau_i)
    if fault:
        return None, fault
    found = solve_closed_form(X, P, tau_i, sums, num_threads)
    if found.fault:
        return None, found.fault
    mass = float(sums.column_mass.sum())
    return solution_of(
        found.W,
        X,
        mass,
        num_threads,
        iterations=found.corrections,
        converged=True,
        solver="closed_form",
        form="closed_form",
        halvings=0,
        residual=found.residual,
    ), ""
