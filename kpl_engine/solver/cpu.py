"""Which code computes on the CPU: the compiled core where it is installed, else NumPy. Chosen here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from kpl_engine.errors import ConfigError
from kpl_engine.solver.checks import check_count

__all__ = ["core", "describe", "numpy_only", "resolve_threads"]

_core: ModuleType | None
try:
    from kpl_engine import _core as _loaded
except ImportError as error:  # a pure install, or a core built for another Python or system
    _core, _reason = None, "" if error.name == "kpl_engine" else f" ({error})"
else:
    _core, _reason = _loaded, ""

_numpy_only: ContextVar[bool] = ContextVar("numpy_only", default=False)


def core() -> ModuleType | None:
    """The extension module ``kpl_engine._core``, or None where NumPy computes."""
    return None if _numpy_only.get() else _core


@contextmanager
def numpy_only() -> Iterator[None]:
    """Within the block this thread computes in NumPy, as if the core were not installed: for tests and benchmarks."""
    token = _numpy_only.set(True)
    try:
        yield
    finally:
        _numpy_only.reset(token)


def describe() -> str:
    """One line for people: the instruction set of the core in use, or why NumPy computes."""
    if _core is None:
        return f"NumPy; the compiled core is not installed{_reason}: install with a C++17 compiler at hand"
    return f"compiled core, {_core.instruction_set()} of {', '.join(_core.instruction_sets())}"


def resolve_threads(num_threads: int | None) -> int:
    """``num_threads``, or as many as the process may use; `ConfigError` unless from 1 to 1024.

    More than four threads a core only wait for each other: that is the most that are used. A
    container's quota of processor time is not seen.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_threads is None:
        return cores
    check_count("num_threads", num_threads, 1)
    if num_threads > 1024:
        raise ConfigError(f"num_threads: expected at most 1024, got {num_threads}")
    return min(int(num_threads), 4 * cores)
