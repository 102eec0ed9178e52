"""What a set of features must be answered with: each method in float64, from `kpl_engine.solver.reference` alone.

Letters as in docs/method.md: ``X (n, d)`` features, ``T (d, c)`` text proxies, ``W (d, c)`` vision proxies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kpl_engine.arrays import Float32, Float64, Floats
from kpl_engine.config import MethodConfig, MethodName
from kpl_engine.errors import ConfigError
from kpl_engine.solver import reference
from kpl_engine.solver.base import FrozenProxies

__all__ = ["batch_answers", "fewest_images", "frozen_answers"]


def frozen_answers(X: Floats, frozen: FrozenProxies) -> Float64:
    """``softmax(X discriminants / temperature)``, (n, c) float64; the discriminants as they are kept, in float32."""
    return reference.softmax(X.astype(np.float64) @ frozen.discriminants.astype(np.float64) / frozen.temperature)


def fewest_images(c: int, config: MethodConfig) -> int:
    """Images below which a batch is answered by its text proxies (method.md 5)."""
    return 4 * c if config.min_batch is None else config.min_batch


def batch_answers(X: Floats, classes: Sequence[Float32], method: MethodName, config: MethodConfig) -> Float64:
    """Probabilities (n, c) float64 of the images of one call, answered together (method.md 4).

    Parameters
    ----------
    X : (n, d)
        Unit rows.
    classes : sequence of (m, d)
        Embedded descriptions of each class.
    method, config
        ``retrieval`` "mean" and a number of ``ot_iters``, as by default; `ConfigError` for others.
    """
    if config.retrieval != "mean" or config.ot_iters == "converged":
        raise ConfigError("the float64 reference has retrieval 'mean' and a number of ot_iters; check with these")
    X = X.astype(np.float64)
    T, _ = reference.text_proxies(X, classes, config.k)
    S = X @ T
    if method == "onzeta":
        return reference.onzeta(X, T, None, config.tau_t, config.tau_i)[0]
    if method == "zeroshot" or len(X) < fewest_images(len(classes), config):
        return reference.softmax(S / config.tau_t)
    if method == "kpl_stream":
        P = reference.stream_labels(S, config.tau_t)
        # c tau_i (S + tau_i mu I)^-1 D is the discriminant, and softmax(X discriminant / tau_i) the answer.
        return reference.softmax(len(classes) * X @ reference.closed_form(X, P, config.tau_i))
    P = _labels(S, method, config)
    W, _ = reference.schedule(X, T, P, config.lr, config.proxy_iters, config.tau_i, config.alpha)
    mass = reference.harden(P, config.alpha).sum()
    # Of labels of mass 1 the classes differ by O(1/n) in W; the answer has their differences at the scale of mass n.
    discriminants = (W - W.mean(axis=1, keepdims=True)) * (len(X) / mass)
    return reference.softmax(X @ discriminants / config.tau_i)


def _labels(S: Float64, method: MethodName, config: MethodConfig) -> Float64:
    if method == "proxy":
        return reference.softmax_labels(S, config.tau_t)
    iters = int(config.ot_iters)
    if method == "inmap":
        return reference.sinkhorn_labels(S, config.tau_t, config.gamma, iters)
    return reference.greenkhorn_labels(S, config.tau_t, config.gamma, iters)
