"""What a run of the schedule costs: the model that chooses its form and its threads.

A step takes a sum of terms, each a count of work with the seconds one unit of it takes on one core:

    dual     once n² d;  a step  1, n c, n², n² (c - 1), and the n² beyond a core's cache
                         (calls; exponentials; reading K; products; reading K from further away)
    primal               a step  1, n c, c d, n d and n d (c - 1)
                         (calls; exponentials; moving W; reading X; products)

The NumPy twin computes all c columns and pays its calls again for each block of rows. The seconds are fitted to
measured steps by `benchmarks/calibrate_solver.py`, which also counts how often the model picks the slower form;
its last result lies in `benchmarks/results/`. Another machine scales all terms alike to first order, which leaves
the choice as it is.
"""

from __future__ import annotations

from typing import Literal

from kpl_engine.solver.schedule import Form, row_blocks

__all__ = ["Plan", "choose_form", "choose_threads", "step_seconds", "terms"]

Plan = Literal["core", "numpy"]

_SECONDS: dict[tuple[Plan, Form], dict[str, float]] = {
    ("core", "dual"): {"1": 3.9e-8, "nc": 1.31e-9, "nn": 1.0e-11, "nnc": 1.76e-11, "beyond": 6.2e-11},
    ("core", "primal"): {"1": 0.0, "nc": 1.20e-9, "cd": 6.7e-10, "nd": 7.6e-11, "ndc": 4.60e-11},
    ("numpy", "dual"): {"1": 2.1e-5, "nc": 5.2e-9, "nn": 1.8e-10, "nnc": 3.7e-11, "beyond": 3.8e-10},
    ("numpy", "primal"): {"1": 0.0, "blocks": 1.07e-5, "nc": 9.5e-9, "cd": 3.8e-9, "nd": 5.3e-10, "ndc": 5.8e-11},
}
_CACHED = 1 << 17  # numbers of K, 1 MiB, that stay in the cache of one core from step to step
_GRAM_SECONDS = 2e-11  # one multiply-add of K = X Xᵀ, both halves
_MEETING_SECONDS = 1e-6  # the threads wait for each other: two to five times a step


def terms(plan: Plan, form: Form, n: int, d: int, c: int) -> dict[str, float]:
    """Counts of work in one step, under the names of `_SECONDS`."""
    columns = c - 1 if plan == "core" else max(c, 8)  # BLAS takes about as long for 2 columns as for 8
    if form == "dual":
        beyond = max(0, n * n - _CACHED)
        return {"1": 1, "nc": n * c, "nn": n * n, "nnc": n * n * columns, "beyond": beyond}
    counts = {"1": 1.0, "nc": n * c, "cd": c * d, "nd": n * d, "ndc": n * d * columns}
    return counts if plan == "core" else {**counts, "blocks": len(row_blocks(n, d))}


def step_seconds(plan: Plan, form: Form, n: int, d: int, c: int) -> float:
    """Predicted seconds of one step on one core."""
    seconds = _SECONDS[plan, form]
    return sum(count * seconds[name] for name, count in terms(plan, form, n, d, c).items())


def choose_form(plan: Plan, n: int, d: int, c: int, iters: int) -> Form:
    """The form whose ``iters`` steps, with what it does once, are predicted to take less."""
    dual = n * n * d * _GRAM_SECONDS + iters * step_seconds(plan, "dual", n, d, c)
    return "dual" if dual <= iters * step_seconds(plan, "primal", n, d, c) else "primal"


def choose_threads(form: Form, n: int, d: int, c: int, available: int) -> int:
    """How many of the ``available`` threads are predicted to share one run in the least time."""
    work = step_seconds("core", form, n, d, c)
    meetings = 2 if form == "dual" else 5
    useful = max(1, int(work / (meetings * _MEETING_SECONDS)))
    return max(1, min(available, useful))
