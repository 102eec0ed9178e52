"""Answers held to the float64 definition of the method (`kpl_engine.solver.reference`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from kpl_engine.bench.records import Check
from kpl_engine.bench.samples import Samples
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.engine import Engine

__all__ = ["Reference", "prepare_frozen"]

Probabilities = npt.NDArray[Any]


class Reference:
    """What the answers must be. The engine is needed while it is made, and not afterwards."""

    def __init__(self, engine: Engine, samples: Samples, settings: BenchSettings) -> None:
        raise NotImplementedError

    def check(
        self,
        answer_of: Callable[[Sequence[int]], Probabilities],
        features_of: Callable[[Sequence[int]], npt.NDArray[Any]] | None = None,
    ) -> Check:
        """Ask for the probabilities (n, c) of pictures chosen anew, and compare."""
        raise NotImplementedError


def prepare_frozen(engine: Engine, samples: Samples, settings: BenchSettings) -> str | None:
    """Fit proxies on the samples where ``mode`` is left open and there are none; the note to tell, or None."""
    raise NotImplementedError
