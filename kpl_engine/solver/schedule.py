"""The published schedule of Multimodal Proxy Learning in NumPy, in two exact forms (method.md 3, 3a, 3b).

The plain twin of the compiled core (`compiled.py`), and what runs where that is not installed.

Both carry their whole state in float64. Two reasons, both measured: with `stable_greenkhorn`
labels the columns of ``W`` differ by O(1/n) only, so float32 rounding becomes part of the answer;
and the halving rule compares norms that agree to 1e-9, so in float32 it is noise that decides when
the step shrinks. In float64 both forms follow the reference to about 1e-12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kpl_engine.arrays import Bools, Float64, Floats

__all__ = ["FLAT", "MAX_DRIFT", "Form", "ScheduleRun", "row_blocks", "run_dual", "run_primal"]

Form = Literal["dual", "primal"]
_SAFE_EXPONENT = 600.0  # exp overflows float64 above 709; no row maximum is subtracted below this bound
_BLOCK_BYTES = 1 << 20  # one float64 block of rows stays in a 1-2 MiB L2 cache between its two products
_RESIDENT_BYTES = 1 << 28  # float64 copy of the features held whole up to 256 MiB, else made block by block
_FEW_DIGITS = 0.05  # share of its terms below which Σ R∘H, images being nearly alike, has too few digits left
MAX_DRIFT = 1e4  # ulps of column length that the dual form lets pass before it measures: errors stay below 1e-11
FLAT = 1e-6  # relative change of the gradient norm over the last step below which the run has settled


@dataclass(frozen=True)
class ScheduleRun:
    """Where a run of the schedule ended. ``W`` (d, c) and ``Z = X W`` (n, c) are float64."""

    W: Float64
    Z: Float64
    iterations: int
    halvings: int
    gradient_norm: float
    converged: bool
    form: Form
    mass: float  # Σ P, hardened
    frozen: bool = False  # stopped because the steps left were proven not to move W by more than `movement`
    num_hardened: int = 0  # rows of labels, where they were made in the same call
    label_seconds: float = 0.0
    seconds: float = 0.0  # labels included


class _StepSize:
    """``lr / (n tau_i)``, halved whenever the gradient norm grew. It never grows back."""

    def __init__(self, X: Floats, c: int, lr: float, tau_i: float, movement: float) -> None:
        n = len(X)
        self.lr, self._scale, self._movement = lr, 1.0 / (n * tau_i), movement
        longest = float(np.einsum("ij,ij->i", X, X, dtype=np.float64).max())
        self._slack = n * np.sqrt(c) * longest * movement / tau_i
        self.norm, self.last_change, self.halvings = np.inf, np.inf, 0

    def after(self, norm: float) -> float:
        if norm > self.norm:
            self.lr, self.halvings = self.lr / 2, self.halvings + 1
        self.last_change = abs(norm - self.norm) / norm if norm > 0 else 0.0
        self.norm = norm
        return self.lr * self._scale

    @property
    def is_flat(self) -> bool:
        return self.last_change <= FLAT

    def is_frozen(self, left: int) -> bool:
        """Whether ``left`` more steps are proven not to move any unit column by more than ``movement``.

        lr never grows, a step moves a unit column by at most ``2 eta ‖g_j‖``, and while W moves by
        ``movement`` the norm grows by at most ``n sqrt(c) max‖x_i‖² movement / tau_i``.
        """
        return bool(2.0 * left * self.lr * self._scale * (self.norm + self._slack) <= self._movement)


def run_dual(
    X: Floats, T: Floats, P: Float64, lr: float, iters: int, tau_i: float, movement: float = 0.0
) -> ScheduleRun:
    """The schedule in the span of the images: ``Z = X W`` and ``K = X Xᵀ`` only.

    With ``R = softmax(Z / tau_i) - P``, ``H = K R``, ``eta = lr / (n tau_i)``::

        ‖G‖² = Σ R∘H,   s_j² = ‖w_j‖² - 2 eta Σ_i Z_ij R_ij + eta² Σ_i R_ij H_ij
        Z <- (Z - eta H) / s,   A <- (A - eta R) / s,   t <- t / s,   W = T diag(t) + Xᵀ A

    Everything is stored class by class, (c, n), so that sums over images run along memory.

    Notes
    -----
    Exact early exit: the next step is a function of (Z, A, t, lr, last norm, ‖w‖²). When a step
    changes no bit of Z, A and t, its norm is the one the next step will find, which then does not
    grow, so lr stays and no later step changes anything. Not tried on the first step, where
    ``‖w_j‖²`` still becomes 1. An update below half an ulp of every entry leaves the bits alone,
    so this test covers that case too.

    ``s`` takes ``‖w_j‖`` to be 1. A rounding error of that length is divided by ``s²`` in every step:
    it dies out where steps lengthen the columns (s > 1, the usual case), and grows where they shorten
    them (labels softer than ``softmax(X W / tau_i)``; without the remedy runs of 600 steps were off by up
    to 0.6). Its bound is carried along, and past ``MAX_DRIFT`` the run starts afresh from
    ``W`` itself, scaled to unit columns, with the same lr and norm.
    """
    features = np.asarray(X, dtype=np.float64)  # (n, d) float64
    n, c = P.shape
    K = features @ features.T  # (n, n) float64
    Z = np.ascontiguousarray((features @ T).T, dtype=np.float64)  # (c, n)
    targets = np.ascontiguousarray(P.T)  # (c, n)
    start, A, t = np.asarray(T, dtype=np.float64), np.zeros((c, n)), np.ones(c)
    squared, drift = np.einsum("ij,ij->j", start, start), 1.0  # (c,) ‖T_j‖², then 1
    shift = _needs_shift(features, T, tau_i)
    step, done, settled, frozen = _StepSize(X, c, lr, tau_i, movement), 0, False, False
    while done < iters and not settled:
        R = _residual(Z, targets, tau_i, shift)
        H = R @ K  # K is symmetric, so this is (K R)ᵀ
        RH = np.einsum("ji,ji->j", R, H)
        if RH.sum() < _FEW_DIGITS * np.abs(R * H).sum():
            RH = np.square(R @ features).sum(axis=1)  # ‖G_j‖², as it is written
        eta = step.after(float(np.sqrt(max(RH.sum(), 0.0))))
        if movement > 0 and done > 0 and step.is_frozen(iters - done):
            frozen = True
            break
        lengths = squared - 2 * eta * np.einsum("ji,ji->j", Z, R) + eta * eta * RH  # (c,) s_j²
        moves = lengths > 0  # a column that vanished keeps its previous direction
        lengths = np.where(moves, lengths, 1.0)
        drift = float(((drift + 1.0 + eta * eta * RH) / lengths).max())
        s, etas = np.sqrt(lengths)[:, None], np.where(moves, eta, 0.0)[:, None]
        new_Z, new_A, new_t = (Z - etas * H) / s, (A - etas * R) / s, t / s[:, 0]
        settled = done > 0 and _same(new_Z, Z) and _same(new_A, A) and _same(new_t, t)
        Z, A, t, squared = new_Z, new_A, new_t, np.where(moves, 1.0, squared)
        done += 1
        if drift > MAX_DRIFT:
            start = _with_lengths(start * t + features.T @ A.T, squared)
            Z = np.ascontiguousarray((features @ start).T)
            A, t, drift = np.zeros((c, n)), np.ones(c), 1.0
    W = _with_lengths(start * t + features.T @ A.T, squared)
    Z, converged = np.ascontiguousarray(Z.T), settled or step.is_flat
    return ScheduleRun(W, Z, done, step.halvings, step.norm, converged, "dual", float(P.sum()), frozen)


def run_primal(
    X: Floats, T: Floats, P: Float64, lr: float, iters: int, tau_i: float, movement: float = 0.0
) -> ScheduleRun:
    """The schedule as published, ``W <- unit(W - eta Xᵀ(softmax(X W / tau_i) - P))``.

    The rows are taken in blocks that stay in cache between the two products, so a step reads the
    features once. Early exit as in `run_dual`: when no bit of W changed.
    """
    n, c = P.shape
    W = np.array(T, dtype=np.float64)  # (d, c)
    shift = _needs_shift(X, T, tau_i)
    blocks = row_blocks(n, W.shape[0])
    resident = np.asarray(X, dtype=np.float64) if X.size * 8 <= _RESIDENT_BYTES else X
    targets = [np.ascontiguousarray(P[rows].T) for rows in blocks]  # (c, b) each
    step, done, settled, frozen = _StepSize(X, c, lr, tau_i, movement), 0, False, False
    while done < iters and not settled:
        G = np.zeros((c, W.shape[0]))  # (c, d) float64
        for rows, target in zip(blocks, targets, strict=True):
            part = np.asarray(resident[rows], dtype=np.float64)  # (b, d)
            G += _residual(W.T @ part.T, target, tau_i, shift) @ part
        eta = step.after(float(np.linalg.norm(G)))
        if movement > 0 and done > 0 and step.is_frozen(iters - done):
            frozen = True
            break
        moved = W - eta * G.T
        norms = np.sqrt(np.einsum("ij,ij->j", moved, moved))
        new_W = np.where(norms > 0, moved / np.where(norms > 0, norms, 1.0), W)
        settled = _same(new_W, W)
        W = new_W
        done += 1
    Z = np.concatenate([np.asarray(X[rows], dtype=np.float64) @ W for rows in blocks])
    return ScheduleRun(W, Z, done, step.halvings, step.norm, settled or step.is_flat, "primal", float(P.sum()), frozen)


def row_blocks(n: int, d: int) -> list[slice]:
    """Rows in blocks of about 1 MiB of float64."""
    size = max(64, _BLOCK_BYTES // (8 * d))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _needs_shift(X: Floats, T: Floats, tau_i: float) -> bool:
    """Whether logits can reach the range where exp overflows: |x·w| <= max‖x‖ · max(1, ‖T_j‖)."""
    longest = np.sqrt(np.einsum("ij,ij->i", X, X, dtype=np.float64).max())
    widest = np.sqrt(np.einsum("ij,ij->j", T, T, dtype=np.float64).max())
    return bool(longest * max(1.0, widest) / tau_i > _SAFE_EXPONENT)


def _residual(Z: Float64, P: Float64, tau_i: float, shift: bool) -> Float64:
    """``softmax(Z / tau_i) - P`` of class-major (c, n) arrays."""
    powers = Z / tau_i
    if shift:
        powers -= powers.max(axis=0)
    np.exp(powers, out=powers)
    powers /= powers.sum(axis=0)
    powers -= P
    return powers


def _same(new: Float64, old: Float64) -> bool:
    equal: Bools = new == old
    return bool(equal.all())


def _with_lengths(W: Float64, squared: Float64) -> Float64:
    """Columns of W scaled to the squared lengths given; a zero column stays zero."""
    norms = np.einsum("ij,ij->j", W, W)
    return np.asarray(W * np.sqrt(squared / np.where(norms > 0, norms, 1.0)), dtype=np.float64)
