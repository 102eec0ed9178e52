"""The TensorRT package: found, of a version we know, and with a logger that keeps what it says."""

from __future__ import annotations

import importlib
import re
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from kpl_engine.errors import BackendUnavailableError

__all__ = ["describe", "import_tensorrt", "logger_of", "take_errors"]

_OLDEST = (10, 3)
_NEWEST_MAJOR = 11
_MAX_MESSAGES = 50
_HOW = (
    'Install TensorRT 10.3 to 11.x for the CUDA of this machine, for example: pip install "tensorrt-cu13" '
    '(or "tensorrt-cu12"); on a Jetson it comes with JetPack'
)
_lock = threading.Lock()
# TensorRT keeps a pointer to the first logger a process gives it, for good: so there is one, and it is never freed.
_loggers: dict[int, Any] = {}


def import_tensorrt(names: Sequence[str] = ("tensorrt",)) -> Any:
    """The first package of ``names`` that loads, of a version from 10.3 to 11.

    ``tensorrt_lean`` is the 44 MB runtime that runs portable plans and builds none. Open a driver first: without
    one, making a TensorRT object ends the process.

    Raises
    ------
    BackendUnavailableError
        None of them is installed, their libraries do not load, or the version is another.
    """
    reasons = []
    for name in names:
        try:
            library = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            reasons.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        found = str(getattr(library, "__version__", "unknown"))
        numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
        if len(numbers) == 2 and numbers >= _OLDEST and numbers[0] <= _NEWEST_MAJOR:
            return library
        reasons.append(f"{name}: version {found}, expected 10.3 to {_NEWEST_MAJOR}.x")
    raise BackendUnavailableError(f"TensorRT is not available ({'; '.join(reasons)}). {_HOW}")


def describe() -> tuple[bool, str]:
    """Whether TensorRT can be imported, and its version, or why not: for people. Needs no GPU."""
    try:
        library = import_tensorrt(("tensorrt", "tensorrt_lean"))
    except BackendUnavailableError as error:
        return False, str(error)
    return True, f"{library.__name__} {library.__version__}"


def logger_of(library: Any) -> Any:
    """The process's logger for one TensorRT package: it prints nothing and keeps the last errors."""
    with _lock:
        if id(library) not in _loggers:
            _loggers[id(library)] = _make_logger(library)
        return _loggers[id(library)]


def take_errors(logger: Any) -> str:
    """What TensorRT complained of since the last call, on one line."""
    messages: deque[str] = logger.messages
    found = []
    while messages:
        found.append(messages.popleft())
    return "; ".join(found)[:1000]


def _make_logger(library: Any) -> Any:
    class KeptMessages(library.ILogger):  # type: ignore[misc]  # its base is known only now
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.messages: deque[str] = deque(maxlen=_MAX_MESSAGES)

        def log(self, severity: Any, msg: str) -> None:
            # Called from TensorRT's threads. Severities count down from VERBOSE to INTERNAL_ERROR.
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                self.messages.append(" ".join(msg.split()))

    return KeptMessages()
