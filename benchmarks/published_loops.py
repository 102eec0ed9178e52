"""The published schedule as one would write it from the paper: the rivals of `learn_proxies.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["numpy_loop", "torch_loop"]


def torch_loop(X: torch.Tensor, T: torch.Tensor, P: torch.Tensor) -> torch.Tensor:
    """2000 steps, float32: ``W`` (d, c) from features (n, d), text proxies (d, c) and labels (n, c)."""
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
