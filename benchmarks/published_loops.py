"""The published method as one would write it from the paper, in PyTorch and in NumPy: what the engine is measured
against.

The loops are the schedule alone (`learn_proxies.py`), `torch_method` and `numpy_method` all that stands between
features and labels: text proxies, the greedy steps of the labels, the schedule. float32 throughout; torch is imported
where it is used, so that a process of the NumPy loop is measured without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["numpy_loop", "numpy_method", "torch_loop", "torch_method"]


def torch_loop(X: torch.Tensor, T: torch.Tensor, P: torch.Tensor) -> torch.Tensor:
    """2000 steps, float32: ``W`` (d, c) from features (n, d), text proxies (d, c) and labels (n, c)."""
    import torch

    P = P.clone()
    hard = P.max(dim=1).values > 0.6
    P[hard] = torch.nn.functional.one_hot(P[hard].argmax(dim=1), P.shape[1]).to(P.dtype)
    W, lr, last = T.clone(), 10.0, float("inf")
    for _ in range(2000):
        G = X.T @ (torch.softmax(X @ W / 0.04, dim=1) - P)
        norm = torch.linalg.norm(G).item()
        if norm > last:
            lr /= 2
        last = norm
        W = torch.nn.functional.normalize(W - lr / (len(X) * 0.04) * G, dim=0)
    return W


def numpy_loop(X: Any, T: Any, P: Any) -> Any:
    """`torch_loop` in NumPy, float32 throughout."""
    P = P.copy()
    hard = P.max(axis=1) > 0.6
    P[hard] = np.eye(P.shape[1], dtype=np.float32)[P[hard].argmax(axis=1)]
    W, lr, last = T.copy(), 10.0, np.inf
    for _ in range(2000):
        Z = X @ W / np.float32(0.04)
        Z = np.exp(Z - Z.max(axis=1, keepdims=True))
        G = X.T @ (Z / Z.sum(axis=1, keepdims=True) - P)
        norm = np.linalg.norm(G)
        if norm > last:
            lr /= 2
        last = norm
        W = W - np.float32(lr / (len(X) * 0.04)) * G
        W = W / np.linalg.norm(W, axis=0)
    return W


def torch_method(X: torch.Tensor, texts: Sequence[torch.Tensor], adapts: bool = True) -> torch.Tensor:
    """Logits (n, c) of the method ``kpl`` from features (n, d) and c blocks of embedded descriptions (m, d).

    Without ``adapts`` the text proxies answer alone: what is left to do for a single picture.
    """
    import torch

    columns = []
    for block in texts:
        best = (X @ block.T).mean(dim=0).topk(min(8, len(block))).indices
        columns.append(torch.nn.functional.normalize(block[best].mean(dim=0), dim=0))
    T = torch.stack(columns, dim=1)
    if not adapts:
        return X @ T
    n, c = len(X), T.shape[1]
    P = torch.softmax(X @ T / 0.01, dim=1)
    for _ in range(20):
        columns_sum, rows_sum = P.sum(dim=0), P.sum(dim=1)
        column_gaps, row_gaps = (columns_sum - 1 / c).abs(), (rows_sum - 1 / n).abs()
        if column_gaps.max() > row_gaps.max():
            j = column_gaps.argmax()
            P[:, j] *= 1 / c / columns_sum[j]
        else:
            i = row_gaps.argmax()
            P[i] *= 1 / n / rows_sum[i]
    return X @ torch_loop(X, T, P)


def numpy_method(X: Any, texts: Sequence[Any], adapts: bool = True) -> Any:
    """`torch_method` in NumPy."""
    columns = []
    for block in texts:
        best = np.argsort(-(X @ block.T).mean(axis=0), kind="stable")[:8]
        average = block[best].mean(axis=0)
        columns.append(average / np.linalg.norm(average))
    T = np.stack(columns, axis=1)
    if not adapts:
        return X @ T
    n, c = len(X), T.shape[1]
    P = np.exp((X @ T) / np.float32(0.01) - ((X @ T) / np.float32(0.01)).max(axis=1, keepdims=True))
    P /= P.sum(axis=1, keepdims=True)
    for _ in range(20):
        columns_sum, rows_sum = P.sum(axis=0), P.sum(axis=1)
        column_gaps, row_gaps = np.abs(columns_sum - 1 / c), np.abs(rows_sum - 1 / n)
        if column_gaps.max() > row_gaps.max():
            j = column_gaps.argmax()
            P[:, j] *= 1 / c / columns_sum[j]
        else:
            i = row_gaps.argmax()
            P[i] *= 1 / n / rows_sum[i]
    return X @ numpy_loop(X, T, P)
