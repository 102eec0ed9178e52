"""The machine and the versions that a result names."""

from __future__ import annotations

from kpl_engine.bench.records import Machine
from kpl_engine.engine import Engine

__all__ = ["describe_machine", "num_threads", "versions"]


def describe_machine() -> Machine:
    """Processor, memory, system, GPUs, clock governor, load."""
    raise NotImplementedError


def versions() -> dict[str, str]:
    """Versions of this package and of what it computes with; what is not installed is absent."""
    raise NotImplementedError


def num_threads(engine: Engine) -> int:
    """Threads of the encoder."""
    raise NotImplementedError
