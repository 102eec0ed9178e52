"""The whole method on a real GPU at the published sizes, against float64 and against the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kpl_engine.data
from kpl_engine.config import EngineConfig, MethodConfig, SolverConfig
from kpl_engine.engine import Engine
from kpl_engine.solver import reference
from kpl_engine.solver.device import DeviceSolver
from kpl_engine.solver.devices import using_device
from kpl_engine.solver.select import solve

from .workloads import clip_like

FLOOR = 1e-5  # docs/method.md 3b: what the engine may be away from the float64 schedule


def make(n, d, c, seed):
    X = clip_like(n, d, c, seed)[0]
    texts = clip_like(12 * c, d, c, seed + 1)[0]
    return X, np.split(texts, c)


@pytest.mark.parametrize(("n", "d", "c"), [(138, 768, 2), (516, 768, 5), (662, 768, 2)])
@pytest.mark.parametrize("solver", ["schedule", "auto"])
def test_published_sizes_equal_float64(context, n, d, c, solver):
    X, texts = make(n, d, c, seed=n)
    with using_device(DeviceSolver(context)):
        found = solve(X, texts, "kpl", MethodConfig(solver=solver), device="cuda")
    T = found.text_proxies.proxies
    P = reference.greenkhorn_labels(X.astype(np.float64) @ T)
    exact = X.astype(np.float64) @ reference.schedule(X, T, P)[0]
    np.testing.assert_allclose(found.solution.logits, exact, rtol=0, atol=FLOOR)
    top = np.sort(exact, axis=1)
    decided = top[:, -1] - top[:, -2] > 2 * FLOOR
    np.testing.assert_array_equal(found.solution.labels[decided], exact.argmax(axis=1)[decided])


@pytest.mark.parametrize("method", ["proxy", "inmap", "kpl"])
def test_every_run_gives_the_same_bits(context, method):
    """The first goes kernel by kernel, the second is captured, the third replays the graph."""
    X, texts = make(64, 256, 4, seed=3)
    answers = []
    with using_device(DeviceSolver(context)):
        for _ in range(3):
            answers.append(solve(X, texts, method, device="cuda").solution)
    for other in answers[1:]:
        for name in ("proxies", "logits", "scores", "labels"):
            assert getattr(other, name).tobytes() == getattr(answers[0], name).tobytes(), name


def test_the_demo_on_the_gpu_answers_as_on_the_cpu():
    """Without an encoder for the GPU: pictures are encoded on the CPU, proxies learned on the GPU."""
    folder = Path(kpl_engine.data.__file__).parent
    paths = sorted((folder / "images").rglob("*.png"))[:64]
    answers = []
    for device in ("cpu", "cuda"):
        config = EngineConfig(solver=SolverConfig(device=device))
        with Engine.load(folder / "demo.kpl", "cpu", config) as engine:
            answers.append(engine.classify(paths))
    assert answers[0].labels == answers[1].labels
