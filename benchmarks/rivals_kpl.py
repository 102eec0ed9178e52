"""The engine itself among the rivals: as `import kpl_engine` gives it, with the threads that all have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kpl_engine import DecodeConfig, EncoderConfig, Engine, EngineConfig, KnowledgeBase, MethodConfig, SolverConfig
from kpl_engine.config import SolverName
from kpl_engine.solver.select import solve

__all__ = ["Kpl"]


class Kpl:
    """``solver`` as in `MethodConfig`: the default answers by the closed form where that is the schedule's limit."""

    def __init__(self, work: Path, threads: int, batch: int, device: str, solver: SolverName = "auto") -> None:
        self._threads, self._device = threads, device
        self._method = MethodConfig(solver=solver)
        self._work, self._batch = work, batch
        self._engine: Engine | None = None
        self.settings = {"solver": solver, "batch": batch, "spinning": EncoderConfig().allow_spinning}

    def open_pictures(self) -> None:
        """The bundle, for the two tasks that need an encoder."""
        config = EngineConfig(
            encoder=EncoderConfig(num_threads=self._threads, batch_size=self._batch),
            decode=DecodeConfig(num_threads=self._threads),
            solver=SolverConfig(num_threads=self._threads),
        )
        self._engine = Engine.load(self._work / "lung.kpl", self._device, config)

    def features(self, pictures: Sequence[bytes]) -> Any:
        """(n, d) float32."""
        return self._opened().encode(pictures).features

    def labels(self, pictures: Sequence[bytes]) -> Any:
        """(n,) class indices."""
        engine = self._opened()
        classes = list(engine.knowledge().classes)
        return np.array([classes.index(label) for label in engine.classify(pictures).labels])

    def open_adaptation(self, X: Any, texts: Sequence[Any]) -> Any:
        """What `adapt` is called with."""
        return X, KnowledgeBase.from_arrays(texts)

    def adapt(self, problem: Any) -> tuple[Any, Any]:
        """Labels (n,) and logits (n, c) of the method ``kpl``."""
        X, base = problem
        answer = solve(X, base, "kpl", self._method, num_threads=self._threads, device=self._device)
        return answer.labels, None if answer.solution is None else answer.solution.logits

    def _opened(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("open_pictures was not called")
        return self._engine
