"""Which device learns the proxies: the one place where the solver opens a GPU.

``"cpu"`` is the CPU; ``"cuda"`` and ``"cuda:N"`` are that GPU or an error; ``"auto"`` takes the first GPU that
works, else the CPU. A GPU is opened once for a process and shared; calls take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from kpl_engine.cuda.context import Context
from kpl_engine.cuda.select import explain_absence, open_driver, parse_device
from kpl_engine.errors import BackendUnavailableError, CudaError
from kpl_engine.solver.base import Notice
from kpl_engine.solver.device import DeviceSolver

__all__ = ["choose_beside", "choose_device", "using_device"]

_open: dict[int, DeviceSolver] = {}
_opening = threading.Lock()
_given: ContextVar[DeviceSolver | None] = ContextVar("kpl_engine_device", default=None)


@contextmanager
def using_device(solver: DeviceSolver) -> Iterator[None]:
    """Within the block every GPU asked for is this one: for hosts with a context of their own, and for tests."""
    token = _given.set(solver)
    try:
        yield
    finally:
        _given.reset(token)


def choose_device(device: str) -> tuple[DeviceSolver | None, Notice | None]:
    """The GPU asked for, or None for the CPU, then with a notice where ``auto`` passed over a GPU that is there.

    Raises
    ------
    BackendUnavailableError, CudaError
        A GPU asked for by name cannot be used.
    ConfigError
        Not a device.
    """
    kind, ordinal = parse_device(device)
    if kind == "cpu":
        return None, None
    given = _given.get()
    if given is not None:
        return given, None
    if kind == "cuda":
        return _shared(ordinal), None
    if explain_absence() is not None:
        return None, None  # a machine without a GPU has nothing to fall back from
    try:
        return _shared(0), None
    except (BackendUnavailableError, CudaError) as error:
        return None, Notice(
            "solver_on_cpu", f"device auto: proxies are learned on the CPU, not on the GPU: {error!s:.300}"
        )


def choose_beside(device: str, context: Context | None) -> tuple[DeviceSolver | None, Notice | None]:
    """`choose_device`, where ``"same"`` is the GPU of ``context``, the encoder's, or the CPU if that has none."""
    if device != "same":
        return choose_device(device)
    return (None if context is None else DeviceSolver(context)), None


def _shared(ordinal: int) -> DeviceSolver:
    with _opening:
        if ordinal not in _open:
            _open[ordinal] = DeviceSolver(Context(open_driver(f"cuda:{ordinal}")))
        return _open[ordinal]
