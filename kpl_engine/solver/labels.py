"""Pseudo labels from similarities: softmax, Sinkhorn, greedy Sinkhorn, column-normalised (method.md 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float64, Floats, check_array
from kpl_engine.config import LabelMethod, OtIters
from kpl_engine.errors import ConfigError, ShapeError
from kpl_engine.solver import cpu
from kpl_engine.solver.checks import check_between, check_count, check_positive
from kpl_engine.solver.greenkhorn import greenkhorn
from kpl_engine.solver.softmax import check_rows, log_softmax

__all__ = ["column_targets", "refine_labels", "resolve_prior"]

_MAX_SWEEPS = 5000  # a plan at tau_t = 0.01 needs tens to hundreds; the cap only bounds infeasible input
_CONVERGED = -1  # what the compiled core takes for iters="converged"
_MOST_ITERS = 2**62  # more than any run takes; the compiled core counts in 64 bits
_PLAN_TOLERANCE = 1e-10  # column error of a "converged" plan as a share of all images; far below float32


def refine_labels(
    similarities: npt.ArrayLike,
    method: LabelMethod = "stable_greenkhorn",
    tau_t: float = 0.01,
    gamma: float = 0.0,
    iters: OtIters = 20,
    prior: npt.ArrayLike | None = None,
) -> Floats:
    """Turn cosine similarities into pseudo labels.

    With ``p = softmax(S / tau_t)`` and column sums ``s_j = Σ_i p_ij``:

    ========================  ==================================================================
    ``softmax``               p. Rows sum to 1.
    ``sinkhorn``              InMaP: from p/n, ``iters`` sweeps of columns to ``q_j`` then rows to
                              ``1/n``; times n. Rows sum to 1.
    ``stable_greenkhorn``     KPL as published: from p (mass n), ``iters`` greedy steps, each
                              moving the one column or row that is furthest from ``q_j`` or
                              ``1/n``; no final rescaling. Not a transport plan: with
                              c <= iters the entries end at about 1/n and the mass at about 1.
    ``stream``                ``q_j p_ij / s_j`` (method.md 3d). Columns sum to ``q_j``.
    ========================  ==================================================================

    Targets are ``q_j = 1/c``; with ``gamma > 0``, ``q_j ∝ s_j^gamma``; with ``prior``, the prior.

    Parameters
    ----------
    similarities : (n, c) array_like
        Real numbers. -inf marks an impossible class, a row of only -inf is uniform, +inf entries
        share the mass of their row.
    method : {"softmax", "sinkhorn", "stable_greenkhorn", "stream"}
    tau_t : float
        Temperature, > 0.
    gamma : float
        Class-prior exponent, 0 to 1.
    iters : int or "converged"
        Sweeps or greedy steps. ``"converged"`` gives the transport plan that both `sinkhorn` and
        `stable_greenkhorn` tend to, with rows rescaled to 1: another result than 20 steps, and
        what `stable_greenkhorn` should be given when c > 20.
    prior : (c,) array_like, optional
        Expected class shares; scaled to sum to 1. Zeros are allowed and leave a class without labels. It
        replaces ``gamma``, so giving both is an error.

    Returns
    -------
    (n, c) float32, or float64 when ``similarities`` is float64. Never NaN.

    Raises
    ------
    ShapeError
        NaN (the rows are named), an empty array, or a prior of the wrong length or content.
    ConfigError
        An option out of range.

    Notes
    -----
    Everything is computed in float64. A class that is impossible for every image keeps mass 0
    whatever its target; so does, except with `stable_greenkhorn`, which works with logarithms, one
    whose probabilities all underflow (a cosine 745 tau_t below the best).
    The same input on the same machine gives the same bits, whatever the layout of the array, in the compiled
    core; one thread computes. Core and NumPy agree to a few roundings, except where two lines of
    `stable_greenkhorn` are equally far off to the last bit: rounding then chooses the step.
    Sources: InMaP, arXiv 2310.19752; KPL, arXiv 2501.11231; greedy Sinkhorn,
    arXiv 1705.09634.
    """
    _check_options(method, tau_t, gamma, iters)
    narrow = getattr(similarities, "dtype", None) == np.float32
    values = check_array("similarities", similarities, ("n", "c"), np.float32 if narrow else np.float64, finite=False)
    if 0 in values.shape:
        raise ShapeError(f"similarities: expected at least one image and one class, got shape {values.shape}")
    shares = None if method == "softmax" else resolve_prior(prior, values.shape[1], gamma)
    labels = np.empty(values.shape, np.float64 if np.asarray(similarities).dtype.type is np.float64 else np.float32)
    core = cpu.core()
    if core is None:
        check_rows("similarities", values, finite=False)
        labels[:] = _refine_numpy(values, method, float(tau_t), gamma, iters, shares)
    else:
        count = _CONVERGED if isinstance(iters, str) else min(int(iters), _MOST_ITERS)
        if not core.refine_labels(values, labels, method, float(tau_t), float(gamma), count, shares):
            check_rows("similarities", values, finite=False)
    return labels


def resolve_prior(prior: npt.ArrayLike | None, num_classes: int, gamma: float = 0.0) -> Float64 | None:
    """Prior as (c,) float64 summing to 1, or None; `ShapeError` when it cannot be one."""
    if prior is None:
        return None
    if gamma > 0:
        raise ConfigError(f"prior and gamma = {gamma}: expected one of them, got both; a prior needs gamma = 0")
    shares: Float64 = check_array("prior", prior, (num_classes,), np.float64)
    if (shares < 0).any() or not shares.any():
        raise ShapeError(
            f"prior: expected {num_classes} shares >= 0 with a sum above 0, got {shares.tolist()}; "
            "give the expected share of each class"
        )
    shares = shares / shares.max()  # so that no sum of huge shares overflows
    return np.asarray(shares / shares.sum(), dtype=np.float64)


def column_targets(sums: Float64, gamma: float, prior: Float64 | None) -> Float64:
    """Target mass of each column, summing to 1: the prior, ``∝ s_j^gamma``, or ``1/c``."""
    if prior is not None:
        return prior
    if gamma > 0:
        powers = sums**gamma  # (c,) float64; 0 stays 0, an impossible class gets nothing
        return np.asarray(powers / powers.sum(), dtype=np.float64)
    return np.full(len(sums), 1.0 / len(sums))


def _check_options(method: Any, tau_t: Any, gamma: Any, iters: Any) -> None:
    if method not in ("softmax", "sinkhorn", "stable_greenkhorn", "stream"):
        raise ConfigError(f"method: expected 'softmax', 'sinkhorn', 'stable_greenkhorn' or 'stream', got {method!r}")
    check_positive("tau_t", tau_t)
    check_between("gamma", gamma, 0, 1)
    if not (isinstance(iters, str) and iters == "converged"):
        check_count("iters ('converged' or a count)", iters, 0)


def _refine_numpy(
    values: Floats, method: LabelMethod, tau_t: float, gamma: float, iters: OtIters, shares: Float64 | None
) -> Float64:
    """The plain twin of the compiled core (kernels/cpu/labels.h), and what runs where that is not installed."""
    logs = log_softmax(values, tau_t)  # (n, c) float64
    if method == "softmax":
        return np.asarray(np.exp(logs), dtype=np.float64)
    return _balanced(logs, method, column_targets(np.exp(logs).sum(axis=0), gamma, shares), iters)


def _balanced(logs: Float64, method: LabelMethod, targets: Float64, iters: OtIters) -> Float64:
    if method == "stream":
        labels = np.exp(logs)
        return _scaled(labels, labels.sum(axis=0), targets)
    if iters == "converged":
        return _converged_plan(np.exp(logs), targets)
    if method == "sinkhorn":
        return _sinkhorn(np.exp(logs), targets, iters)
    return greenkhorn(logs, targets, iters)


def _scaled(labels: Float64, sums: Float64, wanted: Floats | float) -> Float64:
    """``labels · wanted / sums``, 0 where there is nothing to scale.

    Divided first: ``wanted / sums`` alone overflows when a column holds denormal numbers only.
    """
    return np.asarray(labels / np.where(sums > 0, sums, 1.0) * wanted, dtype=np.float64)


def _sinkhorn(labels: Float64, targets: Float64, iters: int) -> Float64:
    n = len(labels)
    labels = labels / n
    for _ in range(iters):
        labels = _scaled(labels, labels.sum(axis=0), targets)
        labels = _scaled(labels, labels.sum(axis=1, keepdims=True), 1.0 / n)
    return _filled(labels * n, targets)


def _converged_plan(labels: Float64, targets: Float64) -> Float64:
    """Sweeps until every column is at its target; the plan itself is scaled, for its entries stay below 1.

    Potentials would overflow when -inf entries leave no plan with these marginals.
    """
    n = len(labels)
    wanted = np.where(labels.any(axis=0), targets * n, 0.0)  # (c,) an impossible class leaves its share to the others
    total = wanted.sum()
    wanted = wanted * (n / total) if total > 0 else wanted
    for _ in range(_MAX_SWEEPS):
        sums = labels.sum(axis=0)
        if np.abs(sums - wanted).max() <= _PLAN_TOLERANCE * n:
            break
        labels = _scaled(labels, sums, wanted)
        labels = _scaled(labels, labels.sum(axis=1, keepdims=True), 1.0)
    return _filled(labels, targets)


def _filled(labels: Float64, targets: Float64) -> Float64:
    """Rows left without mass (all of it lay in forbidden classes) get the column targets."""
    empty = labels.sum(axis=1) == 0
    labels[empty] = targets
    return labels
