"""The fixed point of the schedule for labels of size O(1/n), without the 2000 steps (method.md 3c).

Derivation. A fixed point of ``W <- unit(W - eta G)`` has ``W_j = unit(-G_j)``, whatever eta. Write
``x̄`` for the mean feature, ``mu = ‖x̄‖``, ``u = x̄/mu``, ``Pi = I - u uᵀ``, ``S = Pi XᵀX Pi / n``. With
labels of size O(1/n) the softmax is all but uniform, so ``-G_j = -(n/c) x̄ + O(1)``: every column
is ``-u`` plus something small, ``W_j = unit(-u + dbar + e_j)`` with ``Σ_j e_j = 0``, both orthogonal
to u. To first order ``softmax_ij = 1/c (1 + x_i·e_j / tau_i)``, and dividing ``-G_j`` by its length
``n mu / c`` leaves

    dbar = c / (n mu) · mean_j(Pi XᵀP_j),
    e_j  = -(S e_j) / (mu tau_i) + c / (n mu) · D_j,     D_j = Pi(XᵀP_j - mean_k XᵀP_k)
         => e_j = (c tau_i / n) (S + tau_i mu I)^-1 D_j.

Nothing here used the mass of the labels; e_j is linear in P. The neglected terms are O(1/n)
relative (measured: 2e-2 at n = 32, 1e-3 at n = 662). They are put back by a few Newton-like
corrections, each of which evaluates the exact G once and solves with the matrix above: the error
falls by a factor of about n a correction, and the result equals the float64 schedule to 1e-10 of
the class differences. A correction that does not shrink the error means that the labels were not
in this regime.

The matrix is only the slope of those corrections: an error of it slows them, and leaves their end
where it was. So it is made and factored in float32, which halves the work and needs no float64 copy
of the features; G is float64. Its error of about 1e-6, relative to the ridge, is far below the 1/n
of a correction for all but huge n. Where the factorisation or the corrections fail, both are
done again in float64, so that what is refused is refused for reasons of the labels.

With the compiled core all of it is one call (kernels/cpu/fixed_point.cpp) on a Cholesky factor; its twin
in NumPy, `_attempt`, inverts explicitly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from kpl_engine.arrays import Float64, Floats
from kpl_engine.solver import cpu
from kpl_engine.solver.moments import Moments, moments_of, row_blocks
from kpl_engine.solver.softmax import softmax

__all__ = [
    "ClosedForm",
    "first_order",
    "has_direction",
    "project_both_sides",
    "regime_fault",
    "schedule_fault",
    "solve_closed_form",
]

_MAX_MASS_RATIO = 0.5  # c · (largest column mass) / n; the expansion is in this number, 1/n for published labels
_MAX_CORRECTIONS = 5  # slower contraction marks the edge of the regime, where the schedule may stop elsewhere
_TOLERANCE = 1e-9  # of the class differences; float64 leaves about 1e-11
_MIN_STEP = 16.0  # see schedule_fault; the published lr gives 10 mu / (0.04 c), about 110 for two classes
_LOG_SETTLED = 25.0  # a schedule has settled when its slowest error has shrunk by exp(-25) = 1e-11

_Inverse = Callable[[Float64], Float64]


@dataclass(frozen=True)
class ClosedForm:
    """``W`` (d, c) float64 with unit columns, and how the corrections went."""

    W: Float64
    corrections: int
    residual: float
    fault: str  # empty when the fixed point was reached


def regime_fault(sums: Moments) -> str:
    """Why the closed form does not hold for these labels, or an empty string.

    The tested condition, beside that no row is hardened: the mean feature is not zero, and
    ``c · max_j Σ_i P_ij <= n/2`` (published labels have 1 there). `solve_closed_form` adds the
    decisive numerical test, that its corrections contract.
    """
    if not has_direction(sums.mean, sums.mean_square):
        return "the mean feature is zero"
    ratio = len(sums.column_mass) * float(sums.column_mass.max()) / sums.n
    if ratio > _MAX_MASS_RATIO:
        return (
            f"labels are not O(1/n): c · (largest column mass) / n is {ratio:.3g}, at most {_MAX_MASS_RATIO} expected"
        )
    return ""


def schedule_fault(sums: Moments, lr: float, iters: int, tau_i: float) -> str:
    """Why ``iters`` steps at ``lr`` might not reach the fixed point, or an empty string.

    Along a direction where S has eigenvalue λ a step of the schedule multiplies the error by
    ``1 - r/(1+r) (1 + κ)`` with ``r = lr mu / (tau_i c)`` and ``κ = λ/(mu tau_i)``. Three things
    can stop it short; the bounds are on the safe side, since a schedule is only slower.

    * Long steps: with κ near 1 the error swings with a factor down to ``-(r-1)/(r+1)``, and the
      gradient norm need not grow, so nothing halves.
    * Stiffness: where the norm does grow, halving brings r down until the stiffest direction
      contracts; the softest (λ = 0) then shrinks by ``1/(1+r)`` a step.
    * Short steps: the norm may also grow from one step to the next on the way to the fixed point,
      and then every step halves, so that the run freezes where it is. With r < 2 that is usual
      and half of the labels can differ. With r >= 16 and at least four images per class 11 of
      47,204 labels did (in one of 361 random problems, margins below 1 % of the score range); the
      class differences agreed to 2e-4 in nine problems of ten and to 6e-2 in the worst.
    """
    n, c, mu = sums.n, len(sums.column_mass), float(np.linalg.norm(sums.mean))
    spread = max(sums.mean_square - mu * mu, 0.0)  # trace of S >= λ
    r = lr * mu / (tau_i * c)
    if r < _MIN_STEP:
        return f"lr · mu / (tau_i c) is {r:.3g}, below {_MIN_STEP:g}: such steps can freeze before the fixed point"
    if n < 4 * c:
        return f"{n} images are fewer than four per class: their steps can freeze before the fixed point"
    rate = min(2.0 / (1.0 + r), 1.0 / (4.0 * (1.0 + spread / (mu * tau_i))))
    if iters * np.log1p(rate) < _LOG_SETTLED:
        return f"{iters} steps at lr = {lr:g} may stop short of the fixed point"
    return ""


def has_direction(mean: Float64, mean_square: float) -> bool:
    """Whether the mean feature is more than float32 rounding of features with this mean squared length."""
    return bool(np.linalg.norm(mean) > np.finfo(np.float32).eps * np.sqrt(mean_square))


def first_order(mean: Float64, XtP: Float64, inverse: _Inverse, n: float, tau_i: float) -> tuple[Float64, Float64]:
    """``W = unit(-u + dbar + e)`` and ``e``, both (d, c), from sums over images.

    ``inverse`` applies ``(S + tau_i mu I)^-1``.
    """
    c = XtP.shape[1]
    mu = float(np.linalg.norm(mean))
    u = mean / mu
    projected = XtP - np.outer(u, u @ XtP)  # (d, c)
    average = projected.mean(axis=1, keepdims=True)
    e = c * tau_i / n * inverse(projected - average)
    W = c / (n * mu) * average + e - u[:, None]
    return W / np.linalg.norm(W, axis=0), e


def solve_closed_form(
    X: Floats, P: Float64, tau_i: float, sums: Moments | None = None, num_threads: int | None = None
) -> ClosedForm:
    """The fixed point of the schedule, from one factorisation and a few corrections.

    ``X`` (n, d), ``P`` (n, c) float64 within `regime_fault`; ``sums`` are their `moments_of`. Costs
    one d×d or n×n factorisation, whichever is smaller, and O(n d c) a correction.
    """
    sums = moments_of(X, P, num_threads) if sums is None else sums
    core = cpu.core()
    if core is None or X.dtype != np.float32:
        found = _attempt(X, P, tau_i, sums, np.float32)
    else:
        found = _compiled(core, X, P, tau_i, sums, cpu.resolve_threads(num_threads))
    return _attempt(X, P, tau_i, sums, np.float64) if found.fault else found


def _compiled(core: ModuleType, X: Floats, P: Float64, tau_i: float, sums: Moments, threads: int) -> ClosedForm:
    """`_attempt` in one call; X float32. Every number of threads gives the same bits."""
    W = np.empty(sums.XtP.shape)  # (d, c) float64
    XtP = np.ascontiguousarray(sums.XtP.T)  # (c, d)
    arrays = np.ascontiguousarray(X), np.ascontiguousarray(P), sums.mean, XtP, W
    ending, corrections, residual = core.fixed_point(*arrays, tau_i, _TOLERANCE, _MAX_CORRECTIONS, threads)
    return ClosedForm(W, corrections, residual, _fault(ending, residual))


def _attempt(X: Floats, P: Float64, tau_i: float, sums: Moments, dtype: type[np.floating[Any]]) -> ClosedForm:
    """The closed form in NumPy with its matrix in ``dtype``."""
    mu = float(np.linalg.norm(sums.mean))
    try:
        with np.errstate(all="ignore"):  # what leaves float32 is done again in float64
            inverse = _inverse(X, sums.mean / mu, tau_i * mu, dtype)
            return _fixed_point(X, P, tau_i, sums, inverse)
    except np.linalg.LinAlgError:
        return ClosedForm(np.zeros(sums.XtP.shape), 0, np.inf, _fault(4, np.inf))


def _fault(ending: int, residual: float) -> str:
    """What the ending of a fixed point means; the numbers are those of kernels/cpu/closed_form.h."""
    return (
        "",
        "the gradient of a class vanished",
        f"corrections stopped shrinking at a relative error of {residual:.1e}",
        f"not within {_TOLERANCE:g} after {_MAX_CORRECTIONS} corrections",
        "the ridge is lost in rounding",
    )[ending]


def _fixed_point(X: Floats, P: Float64, tau_i: float, sums: Moments, inverse: _Inverse) -> ClosedForm:
    mu = float(np.linalg.norm(sums.mean))
    W, _ = first_order(sums.mean, sums.XtP, inverse, sums.n, tau_i)
    residual, corrections = np.inf, 0
    while True:
        G = _gradient(X, W, P, tau_i)
        lengths = np.linalg.norm(G, axis=0)
        if not (lengths > 0).all():
            return ClosedForm(W, corrections, residual, _fault(1, residual))
        gap = -G / lengths - W  # (d, c)
        common = gap.mean(axis=1, keepdims=True)
        differences = np.abs(W - W.mean(axis=1, keepdims=True)).max()
        # Differences below 1e-14 are rounding of unit columns: the classes are the same direction.
        now = float(np.abs(gap - common).max() / differences) if differences > 1e-14 else 0.0
        if now <= _TOLERANCE:
            return ClosedForm(W, corrections, now, "")
        if not now <= 0.5 * residual:  # NaN as well
            return ClosedForm(W, corrections, now, _fault(2, now))
        if corrections == _MAX_CORRECTIONS:
            return ClosedForm(W, corrections, now, _fault(3, now))
        W = W + common + mu * tau_i * inverse(gap - common)
        W /= np.linalg.norm(W, axis=0)
        residual, corrections = now, corrections + 1


def _gradient(X: Floats, W: Float64, P: Float64, tau_i: float) -> Float64:
    """``Xᵀ(softmax(X W / tau_i) - P)``, (d, c)."""
    G, start = np.zeros(W.shape), 0
    for part in row_blocks(X, np.float64):
        G += part.T @ (softmax(part @ W, tau_i) - P[start : start + len(part)])
        start += len(part)
    return G


def _inverse(X: Floats, u: Float64, ridge: float, dtype: type[np.floating[Any]]) -> _Inverse:
    """``(Pi XᵀX Pi / n + ridge I)^-1`` as a function; explicit, for its condition number is below 1/ridge.

    For n < d by Woodbury with ``B = X Pi``: ``(F - Bᵀ (n ridge I + B Bᵀ)^-1 B F) / ridge``. Else without
    the projections, ``M = (XᵀX / n + ridge I)^-1``: along u the answer is ``u uᵀF / ridge``, across it
    ``M (F - λ u)`` with the λ that leaves nothing along u.
    """
    n, d = X.shape
    if n < d:
        features = X.astype(dtype, copy=False)
        along = features @ u.astype(dtype)  # (n,)
        small = features @ features.T - along[:, None] * along
        small.flat[:: n + 1] += n * ridge
        explicit = np.linalg.inv(small).astype(np.float64)  # (n, n)
        B = X.astype(np.float64) - np.outer(X.astype(np.float64) @ u, u)  # (n, d)
        return lambda F: np.asarray((F - B.T @ (explicit @ (B @ F))) / ridge, dtype=np.float64)
    moment = np.zeros((d, d), dtype)
    for part in row_blocks(X, dtype):
        moment += part.T @ part  # the product of a matrix with itself is one syrk
    moment /= n
    moment.flat[:: d + 1] += ridge
    M = np.linalg.inv(moment).astype(np.float64)  # (d, d)
    z = M @ u / (u @ M @ u)

    def inverse(F: Float64) -> Float64:
        solved = M @ F
        return np.asarray(solved - np.outer(z, u @ solved) + np.outer(u, u @ F) / ridge, dtype=np.float64)

    return inverse


def project_both_sides(second_moment: Floats, u: Floats) -> Floats:
    """``Pi A Pi`` with ``Pi = I - u uᵀ`` and symmetric A (d, d), as a new array in O(d²)."""
    Au = second_moment @ u
    half = Au - (u @ Au) / 2 * u
    pair = np.stack([u, half])  # Pi A Pi = A - u halfᵀ - half uᵀ
    projected: Floats = second_moment - pair.T @ pair[::-1]
    return projected
