"""The definition of correct: method.md written out in float64, as literally as possible.

Nothing here is fast, and nothing is guarded beyond what the method defines: the modules beside
this one are checked against it. Letters: ``X (n, d)`` features, ``T (d, c)`` text proxies,
``W (d, c)`` vision proxies, ``P (n, c)`` pseudo labels, ``S = X T`` similarities. Inputs of any
float dtype are taken to float64 first; results are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float64, Ints

__all__ = [
    "closed_form",
    "closed_form_from_sums",
    "greenkhorn_labels",
    "harden",
    "onzeta",
    "schedule",
    "sinkhorn_labels",
    "softmax",
    "softmax_labels",
    "stream_labels",
    "text_proxies",
]

_Array = npt.NDArray[np.floating[Any]]


def softmax(Z: npt.ArrayLike) -> Float64:
    """Rows of ``exp(Z)`` scaled to sum to 1."""
    Z = np.asarray(Z, dtype=np.float64)
    powers = np.exp(Z - Z.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)


def unit_columns(W: Float64, previous: Float64) -> Float64:
    """Columns to unit length; a column that vanished keeps its previous direction."""
    norms = np.linalg.norm(W, axis=0)
    return np.where(norms > 0, W / np.where(norms > 0, norms, 1.0), previous)


def text_proxies(X: _Array, blocks: Sequence[_Array], k: int = 8) -> tuple[Float64, list[Ints]]:
    """Method.md 1: per class the k descriptions with the largest mean cosine, averaged, normalised."""
    X = X.astype(np.float64)
    columns, kept = [], []
    for block in blocks:
        E = block.astype(np.float64)  # (m, d)
        best = np.argsort(-(X @ E.T).mean(axis=0), kind="stable")[:k]
        average = E[best].mean(axis=0)
        columns.append(average / np.linalg.norm(average))
        kept.append(best)
    return np.stack(columns, axis=1), kept


def _targets(P: Float64, gamma: float, prior: npt.ArrayLike | None) -> Float64:
    c = P.shape[1]
    if prior is not None:
        q = np.asarray(prior, dtype=np.float64)
        return np.asarray(q / q.sum(), dtype=np.float64)
    if gamma > 0:
        q = P.sum(axis=0) ** gamma
        return np.asarray(q / q.sum(), dtype=np.float64)
    return np.full(c, 1.0 / c)


def softmax_labels(S: _Array, tau_t: float = 0.01) -> Float64:
    """Method.md 2, ``softmax``."""
    return softmax(S.astype(np.float64) / tau_t)


def sinkhorn_labels(
    S: _Array, tau_t: float = 0.01, gamma: float = 0.0, iters: int = 20, prior: npt.ArrayLike | None = None
) -> Float64:
    """Method.md 2, ``sinkhorn``: sweeps of columns to q and rows to 1/n, finally times n."""
    n = len(S)
    P = softmax_labels(S, tau_t) / n
    q = _targets(P, gamma, prior)
    for _ in range(iters):
        P = P / P.sum(axis=0) * q
        P = P / P.sum(axis=1, keepdims=True) / n
    return P * n


def greenkhorn_labels(
    S: _Array, tau_t: float = 0.01, gamma: float = 0.0, iters: int = 20, prior: npt.ArrayLike | None = None
) -> Float64:
    """Method.md 2, ``stable_greenkhorn``: greedy steps from mass n towards mass 1."""
    n = len(S)
    P = softmax_labels(S, tau_t)
    q = _targets(P, gamma, prior)
    for _ in range(iters):
        columns, rows = P.sum(axis=0), P.sum(axis=1)
        column_gaps, row_gaps = np.abs(columns - q), np.abs(rows - 1.0 / n)
        if column_gaps.max() > row_gaps.max():
            j = column_gaps.argmax()
            P[:, j] *= q[j] / columns[j]
        else:
            i = row_gaps.argmax()
            P[i] *= (1.0 / n) / rows[i]
    return P


def stream_labels(S: _Array, tau_t: float = 0.01, prior: npt.ArrayLike | None = None) -> Float64:
    """Method.md 3d: ``q_j p_ij / s_j``."""
    P = softmax_labels(S, tau_t)
    return np.asarray(P / P.sum(axis=0) * _targets(P, 0.0, prior), dtype=np.float64)


def harden(P: _Array, alpha: float = 0.6) -> Float64:
    """A copy in which rows whose maximum exceeds alpha are one-hot."""
    hardened = P.astype(np.float64)
    for i in np.flatnonzero(hardened.max(axis=1) > alpha):
        best = hardened[i].argmax()
        hardened[i] = 0.0
        hardened[i, best] = 1.0
    return hardened


def schedule(
    X: _Array,
    T: _Array,
    P: _Array,
    lr: float = 10.0,
    iters: int = 2000,
    tau_i: float = 0.04,
    alpha: float = 0.6,
) -> tuple[Float64, int]:
    """Method.md 3, the published schedule: ``W`` and the number of halvings."""
    X, W, P = X.astype(np.float64), T.astype(np.float64), harden(P, alpha)
    n, previous, halvings = len(X), np.inf, 0
    for _ in range(iters):
        G = X.T @ (softmax(X @ W / tau_i) - P)
        norm = np.linalg.norm(G)
        if norm > previous:
            lr, halvings = lr / 2, halvings + 1
        previous = float(norm)
        W = unit_columns(W - lr / (n * tau_i) * G, W)
    return W, halvings


def closed_form_from_sums(mean: Float64, second_moment: Float64, XtP: Float64, tau_i: float = 0.04) -> Float64:
    """Method.md 3c: ``(S + tau_i mu I)^-1 D`` from ``mean(x)``, ``mean(x xᵀ)`` and ``XᵀP``."""
    d = len(mean)
    mu = np.linalg.norm(mean)
    u = mean / mu
    Pi = np.eye(d) - np.outer(u, u)
    S = Pi @ second_moment @ Pi
    D = Pi @ (XtP - XtP.mean(axis=1, keepdims=True))
    return np.asarray(np.linalg.solve(S + tau_i * mu * np.eye(d), D), dtype=np.float64)


def closed_form(X: _Array, P: _Array, tau_i: float = 0.04) -> Float64:
    """Method.md 3c: predictions are the argmax of ``X`` times this (d, c) matrix."""
    X, P = X.astype(np.float64), P.astype(np.float64)
    return closed_form_from_sums(X.mean(axis=0), X.T @ X / len(X), X.T @ P, tau_i)


def onzeta(
    X: _Array, T: _Array, horizon: int | None = None, tau_t: float = 0.01, tau_i: float = 0.04
) -> tuple[Float64, Float64, Float64]:
    """Method.md 6: answers (n, c) in the order of the rows, then the final ``W`` and ``rho``."""
    X, T = X.astype(np.float64), T.astype(np.float64)
    c = T.shape[1]
    W, rho, answers = T.copy(), np.zeros(c), []
    N = len(X) if horizon is None else horizon
    for i, x in enumerate(X, start=1):
        p = softmax(x[None] @ T / tau_t + rho)[0]  # softmax · exp(rho), rescaled
        v = softmax(x[None] @ W / tau_i)[0]
        b = 0.8 * min(1.0, np.sqrt(i / N))
        answers.append(b * v + (1 - b) * p)
        rho = np.maximum(0.0, rho - 20 / np.sqrt(i) * (p - 1 / c))
        W = unit_columns(W - 0.5 / np.sqrt(i) / tau_i * np.outer(x, v - p), W)
    return np.array(answers), W, rho
