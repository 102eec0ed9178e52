"""Shared by the solver tests: back ends, CLIP-like features, and the published loop, written apart from the package."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from kpl_engine.solver import cpu


def _load_generator():
    path = Path(__file__).parents[2] / "benchmarks" / "clip_like.py"
    spec = importlib.util.spec_from_file_location("clip_like", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["clip_like"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module.make_clip_like


_MAKE = _load_generator()


# Of the module, not of the function: Hypothesis refuses fixtures that would not start afresh with each of its examples.
@pytest.fixture(scope="module", params=["core", "numpy"])
def backend(request):
    """Every test of a module with the compiled core and without; with `KPL_REQUIRE_CORE=1` a missing core fails."""
    if request.param == "numpy":
        with cpu.numpy_only():
            yield "numpy"
        return
    if cpu.core() is None:
        if os.environ.get("KPL_REQUIRE_CORE") == "1":
            pytest.fail(f"KPL_REQUIRE_CORE=1, but: {cpu.describe()}")
        pytest.skip(cpu.describe())
    yield "core"


@pytest.fixture(scope="session")
def make_clip_like():
    return _MAKE


def _published_loop(X, T, P, lr=10.0, iters=2000, tau_i=0.04, alpha=0.6):
    """The published schedule in the dtype of X, as a user would write it from the paper."""
    dtype = X.dtype.type
    P = P.astype(X.dtype)
    for i in range(len(P)):
        if P[i].max() > alpha:
            one_hot = np.zeros_like(P[i])
            one_hot[P[i].argmax()] = 1
            P[i] = one_hot
    W = T.astype(X.dtype)
    last = np.inf
    for _ in range(iters):
        logits = X @ W / dtype(tau_i)
        logits = np.exp(logits - logits.max(axis=1, keepdims=True))
        G = X.T @ (logits / logits.sum(axis=1, keepdims=True) - P)
        norm = np.linalg.norm(G)
        if norm > last:
            lr /= 2
        last = norm
        W = W - dtype(lr / (len(X) * tau_i)) * G
        W = W / np.linalg.norm(W, axis=0)
    return W


@pytest.fixture(scope="session")
def published_loop():
    return _published_loop
