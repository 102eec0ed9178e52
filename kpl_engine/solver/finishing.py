"""From proxies to a `Solution`: discriminants, scores, labels, and which labels rounding decided."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from kpl_engine.arrays import Bools, Float64, Floats
from kpl_engine.errors import SolverError
from kpl_engine.solver import cpu
from kpl_engine.solver.base import Solution, as_float32
from kpl_engine.solver.moments import squared_lengths
from kpl_engine.solver.run_notices import OVERFLOW

__all__ = ["discriminants_of", "rounding_decides", "solution_of"]

_NOISE = 1e-12  # what the columns of W, of length 1, are computed to; as in kernels/cpu/linear.cpp
_LEAST_MASS = 1e-6  # class differences of W shrink with the mass of the labels; below this rounding is part of them


def solution_of(W: Float64, X: Floats, mass: float, num_threads: int | None = None, **record: Any) -> Solution:
    """The `Solution` of proxies ``W`` (d, c) float64 for images ``X`` (n, d) and labels of total mass ``mass``.

    ``record`` is how W was found. `SolverError` if W, or what follows from it, left float32. With the
    compiled core one pass over X and the same bits for every number of threads.
    """
    core = cpu.core()
    with np.errstate(all="ignore"):
        if core is None:
            arrays, fits = _finish(W, X, mass)
        else:
            arrays, fits = _finish_compiled(core, W, X, mass, cpu.resolve_threads(num_threads))
    if not fits:
        raise SolverError(OVERFLOW)
    return Solution(**arrays, **record)


def discriminants_of(W: Float64, n: int, mass: float) -> Float64:
    """``(W - mean_j W) n / mass``, (d, c) float64: the part of W that tells classes apart.

    A shift common to all classes changes no label and no probability, so for labels of mass n
    (softmax, sinkhorn) ``softmax(X discriminants / tau_i)`` is ``softmax(X W / tau_i)``. For the
    published labels (mass about 1) the differences are ``e_j = (c tau_i / n)(S + tau_i mu I)^-1 D_j``
    (`closed_form.py`), and the factor n undoes the 1/n: the logits become
    ``c xᵀ (S + tau_i mu I)^-1 D_j``, the posterior of a linear discriminant analysis on the pseudo
    labels, up to the class bias. W must be float64: in float32 the differences are rounding.
    Labels of a mass below 1e-6 say nothing that float64 columns can hold: the factor is then 1.
    """
    return np.asarray((W - W.mean(axis=1, keepdims=True)) * _scale(n, mass), dtype=np.float64)


def _scale(n: int, mass: float) -> float:
    return n / mass if mass > _LEAST_MASS else 1.0


def rounding_decides(X: Floats, discriminants: Float64, scores: Float64, noise: float = 0.0) -> Bools:
    """Rows whose best two classes are closer than rounding can move them.

    A feature is known to half an ulp, relative 6e-8 per entry; the two scores then differ by up to
    ``6e-8 · ‖x‖ · ‖D_a - D_b‖``. Twice that is the bound used here, and ``noise · ‖x‖`` where the
    columns of D are only known to ``noise``. Exact ties are included.
    """
    n, c = scores.shape
    undecided = np.zeros(n, dtype=np.bool_)
    if c == 1:
        return undecided
    eps, rows = float(np.finfo(np.float32).eps), np.arange(n)
    best = scores.argmax(axis=1)
    others = scores.copy()
    others[rows, best] = -np.inf
    second = others.argmax(axis=1)
    margins = scores[rows, best] - others[rows, second]
    rows_lengths = np.sqrt(squared_lengths(X))
    reach, floor = eps * rows_lengths, noise * rows_lengths
    lengths = np.sqrt(np.einsum("ij,ij->j", discriminants, discriminants))
    # ‖D_a - D_b‖ only where ‖D_a‖ + ‖D_b‖ does not already say no, which it nearly always does.
    near = np.flatnonzero(margins <= reach * (lengths[best] + lengths[second]) + floor)
    apart = np.linalg.norm(discriminants[:, best[near]] - discriminants[:, second[near]], axis=0)
    undecided[near] = margins[near] <= reach[near] * apart + floor[near]
    return undecided


def _finish(W: Float64, X: Floats, mass: float) -> tuple[dict[str, Any], bool]:
    """The twin of kernels/cpu/linear.cpp: finish."""
    features = np.asarray(X, dtype=np.float64)
    D = discriminants_of(W, len(X), mass)
    scores = features @ D  # (n, c) float64
    wide = {"proxies": W, "logits": features @ W, "discriminants": D, "scores": scores}
    arrays = {name: as_float32(array) for name, array in wide.items()}
    fits = all(np.isfinite(array).all() for array in arrays.values())
    undecided = rounding_decides(X, D, scores, _NOISE * _scale(len(X), mass))
    decided = {"labels": scores.argmax(axis=1).astype(np.int64), "decided_by_rounding": undecided}
    return {**arrays, **decided}, fits


def _finish_compiled(core: ModuleType, W: Float64, X: Floats, mass: float, threads: int) -> tuple[dict[str, Any], bool]:
    (n, d), c = X.shape, W.shape[1]
    arrays: dict[str, Any] = {
        "proxies": np.empty((d, c), np.float32),
        "discriminants": np.empty((d, c), np.float32),
        "logits": np.empty((n, c), np.float32),
        "scores": np.empty((n, c), np.float32),
        "labels": np.empty(n, np.int64),
        "decided_by_rounding": np.empty(n, np.bool_),
    }
    rows = np.ascontiguousarray(X)
    fits = core.finish(rows, np.ascontiguousarray(W), _scale(n, mass), *arrays.values(), threads)
    return arrays, fits
