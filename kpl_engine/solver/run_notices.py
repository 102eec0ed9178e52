"""What a run of the schedule should tell: that it was used, that it froze, that it still moved."""

from __future__ import annotations

import numpy as np

from kpl_engine.arrays import Float64, Floats
from kpl_engine.config import SolverName
from kpl_engine.solver.base import Notice
from kpl_engine.solver.schedule import Form
from kpl_engine.solver.softmax import softmax

__all__ = [
    "FORMS",
    "INVISIBLE",
    "OVERFLOW",
    "closed_form_fails",
    "froze",
    "hardened_fault",
    "not_converged",
    "schedule_used",
]

FORMS: dict[SolverName, Form] = {
    "schedule_dual": "dual",
    "schedule_primal": "primal",
    "schedule_split": "primal",
}
INVISIBLE = 1e-9  # movement of the discriminants far below their float32 rounding, 6e-8
OVERFLOW = (
    "the proxies overflow: expected lr / tau_i, labels and text proxies of ordinary size, got results beyond "
    "float32; use unit features and proxies, labels up to 1 and lr near 10"
)
SPLIT_MASS = (
    "schedule_split: expected labels of mass n (softmax, Sinkhorn), whose class differences float16 halves can carry, "
    "got {}; use solver='schedule' or 'auto'"
)
_FAR_FROM_FIXED = 1e-3  # distance of a unit column from the fixed point that is worth a word


def hardened_fault(num_hardened: int, n: int) -> str:
    """Why labels with confident rows have no closed form."""
    return f"{num_hardened} of {n} label rows exceed alpha and were hardened"


def closed_form_fails(fault: str) -> str:
    """The error of ``solver="closed_form"`` where it does not hold."""
    return f"closed_form does not hold here: {fault}; use solver='schedule' or 'auto'"


def schedule_used(fault: str) -> Notice:
    """``auto`` ran the schedule."""
    return Notice("schedule_used", f"the closed form does not hold ({fault}), so the published schedule was run")


def not_converged(iterations: int) -> Notice:
    """The run ended while it moved."""
    return Notice("not_converged", f"the gradient norm still moved after {iterations} steps; raise iters or lower lr")


def froze(X: Floats, P: Float64, W: Float64, Z: Float64, tau_i: float, iterations: int, halvings: int) -> list[Notice]:
    """Tells a frozen schedule, ``W`` (d, c), whose steps shrank to nothing on the way from one that arrived."""
    G = np.asarray(X, dtype=np.float64).T @ (softmax(Z, tau_i) - P)  # (d, c)
    lengths = np.linalg.norm(G, axis=0)
    gap = float(np.linalg.norm(G / np.where(lengths > 0, lengths, 1.0) + W, axis=0).max())
    if gap <= _FAR_FROM_FIXED:
        return []
    text = (
        f"by step {iterations} lr was too small ({halvings} halvings) for any later step to matter, {gap:.2g} "
        "short of a fixed point (unit columns); the published schedule ends there too"
    )
    return [Notice("schedule_froze", text)]
