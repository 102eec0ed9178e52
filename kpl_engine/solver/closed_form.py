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
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kpl_engine.arrays import Float64, Floats
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
_MAX_CORRECTIONS = 6  # slower contraction marks the edge of the regime, where the schedule may stop elsewhere
_TOLERANCE = 1e-9  # of the class differences; float64 leaves about 1e-11
_MIN_STEP = 16.0  # see schedule_fault; the published lr gives 10 mu / (0.04 c), about 110 for two classes
_LOG_SETTLED = 25.0  # a schedule has settled when its slowest error has shrunk by exp(-25) = 1e-11


@dataclass(frozen=True)
class ClosedForm:
    """``W`` (d, c) float64 with unit columns, and how the corrections went."""

    W: Float64
    corrections: int
    residual: float
    fault: str  # empty when the fixed point was reached


def regime_fault(X: Floats, P: Float64, num_hardened: int) -> str:
    """Why the closed form does not hold for these labels, or an empty string.

    The tested condition: no row hardened, the mean feature is not zero, and
    ``c · max_j Σ_i P_ij <= n/2`` (published labels have 1 there). `solve_closed_form` adds the
    decisive numerical test, that its corrections contract.
    """
    n, c = P.shape
    if num_hardened:
        return f"{num_hardened} of {n} label rows exceed alpha and were hardened"
    if not has_direction(X.mean(axis=0, dtype=np.float64), float(np.mean(np.square(X, dtype=np.float64))) * X.shape[1]):
        return "the mean feature is zero"
    ratio = c * float(P.sum(axis=0).max()) / n
    if ratio > _MAX_MASS_RATIO:
        return (
            f"labels are not O(1/n): c · (largest column mass) / n is {ratio:.3g}, at most {_MAX_MASS_RATIO} expected"
        )
    return ""


def schedule_fault(X: Floats, c: int, lr: float, iters: int, tau_i: float) -> str:
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
    n = len(X)
    mean = X.mean(axis=0, dtype=np.float64)
    mu = float(np.linalg.norm(mean))
    spread = max(float(np.einsum("ij,ij->", X, X, dtype=np.float64)) / n - mu * mu, 0.0)  # trace of S >= λ
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


def first_order(
    mean: Float64, XtP: Float64, inverse: Callable[[Float64], Float64], n: float, tau_i: float
) -> tuple[Float64, Float64]:
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


def solve_closed_form(X: Floats, P: Float64, tau_i: float) -> ClosedForm:
    """The fixed point of the schedule, from one factorisation and a few corrections.

    ``X`` (n, d), ``P`` (n, c) float64 within `regime_fault`. Costs one d×d or n×n inverse,
    whichever is smaller, and O(n d c) a correction.
    """
    features = np.asarray(X, dtype=np.float64)  # (n, d)
    n = len(features)
    mean = features.mean(axis=0)
    mu = float(np.linalg.norm(mean))
    try:
        inverse = _inverse(features, mean / mu, tau_i * mu)
    except np.linalg.LinAlgError:
        return ClosedForm(np.zeros((features.shape[1], P.shape[1])), 0, np.inf, "the ridge is lost in rounding")
    W, _ = first_order(mean, features.T @ P, inverse, n, tau_i)
    residual, corrections = np.inf, 0
    while corrections < _MAX_CORRECTIONS:
        G = features.T @ (softmax(features @ W, tau_i) - P)
        lengths = np.linalg.norm(G, axis=0)
        if not (lengths > 0).all():
            return ClosedForm(W, corrections, residual, "the gradient of a class vanished")
        gap = -G / lengths - W  # (d, c)
        common = gap.mean(axis=1, keepdims=True)
        differences = np.abs(W - W.mean(axis=1, keepdims=True)).max()
        # Differences below 1e-14 are rounding of unit columns: the classes are the same direction.
        now = float(np.abs(gap - common).max() / differences) if differences > 1e-14 else 0.0
        if now <= _TOLERANCE:
            return ClosedForm(W, corrections, now, "")
        if now > 0.5 * residual:
            return ClosedForm(W, corrections, now, f"corrections stopped shrinking at a relative error of {now:.1e}")
        W = W + common + mu * tau_i * inverse(gap - common)
        W /= np.linalg.norm(W, axis=0)
        residual, corrections = now, corrections + 1
    return ClosedForm(W, corrections, residual, f"not within {_TOLERANCE:g} after {corrections} corrections")


def _inverse(features: Float64, u: Float64, ridge: float) -> Callable[[Float64], Float64]:
    """``(Pi XᵀX Pi / n + ridge I)^-1`` as a function; explicit, for its condition number is below 1/ridge.

    For n < d by Woodbury: ``(F - Bᵀ (n ridge I + B Bᵀ)^-1 B F) / ridge`` with ``B = X Pi``.
    """
    n, d = features.shape
    if d <= n:
        matrix = project_both_sides(features.T @ features / n, u)
        matrix[np.diag_indices(d)] += ridge
        explicit = np.linalg.inv(matrix)  # (d, d) float64
        return lambda F: np.asarray(explicit @ F, dtype=np.float64)
    B = features - np.outer(features @ u, u)  # (n, d)
    small = np.linalg.inv(B @ B.T + n * ridge * np.eye(n))  # (n, n)
    return lambda F: np.asarray((F - B.T @ (small @ (B @ F))) / ridge, dtype=np.float64)


def project_both_sides(second_moment: Float64, u: Float64) -> Float64:
    """``Pi A Pi`` with ``Pi = I - u uᵀ`` and symmetric A (d, d), as a new array in O(d²)."""
    Au = second_moment @ u
    projected = second_moment - np.outer(u, Au) - np.outer(Au, u) + (u @ Au) * np.outer(u, u)
    return np.asarray(projected, dtype=np.float64)
