"""What a run used: processor, memory, and of the GPU what its driver tells."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from kpl_engine.bench.records import Resources
from kpl_engine.bench.settings import BenchSettings

__all__ = ["Meter"]


class Meter:
    """Measures between entering and leaving: ``with Meter(settings) as meter: ...; meter.resources(num_samples)``."""

    def __init__(self, settings: BenchSettings | None = None, *, pid: int | None = None, gpu: Any = None) -> None:
        raise NotImplementedError

    def resources(self, num_samples: int) -> Resources:
        """What was used, a sample where it says so. After leaving."""
        raise NotImplementedError

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError
