"""What the NVIDIA driver says of itself, asked through ctypes: cheap, and safe on a machine without one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kpl_engine.cuda.failures import failure

__all__ = ["Gpu", "Probe", "load_driver", "probe"]

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """One GPU by its ordinal."""

    name: str
    compute_capability: tuple[int, int]


@dataclass(frozen=True)
class Probe:
    """What was found; ``absence`` says why CUDA cannot be used, and is empty when it can."""

    absence: str
    driver_version: int = 0  # 13000 is 13.0; 0 when unknown
    gpus: tuple[Gpu, ...] = ()


def load_driver() -> Any:
    """The driver library; `OSError` where there is none."""
    return ctypes.CDLL(_LIBRARY)


def probe(load: Callable[[], Any] = load_driver) -> Probe:
    """Ask the driver. Initialises it, opens no context, raises nothing.

    Parameters
    ----------
    load : callable
        Gives the driver library; tests pass their own.
    """
    try:
        library = load()
    except OSError:
        return Probe(
            f"no NVIDIA driver: {_LIBRARY} was not found. Install the driver, or start the container with GPUs "
            "(docker run --gpus all)"
        )
    version = ctypes.c_int()
    try:
        library.cuDriverGetVersion(ctypes.byref(version))
        status = library.cuInit(0)
        if status:
            return Probe(str(failure(status, "initialise CUDA")), version.value)
        return Probe("", version.value, _gpus(library))
    except _DriverError as error:
        return Probe(str(error), version.value)
    except AttributeError as error:
        return Probe(f"{_LIBRARY} is no CUDA driver, or one older than CUDA 12: {error}", version.value)


class _DriverError(Exception):
    pass


def _gpus(library: Any) -> tuple[Gpu, ...]:
    def ask(function: Any, *arguments: Any) -> None:
        status = function(*arguments)
        if status:
            raise _DriverError(str(failure(status, "list the GPUs")))

    count = ctypes.c_int()
    ask(library.cuDeviceGetCount, ctypes.byref(count))
    found = []
    for ordinal in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        major, minor = ctypes.c_int(), ctypes.c_int()
        ask(library.cuDeviceGet, ctypes.byref(device), ordinal)
        ask(library.cuDeviceGetName, name, len(name), device)
        ask(library.cuDeviceGetAttribute, ctypes.byref(major), _MAJOR, device)
        ask(library.cuDeviceGetAttribute, ctypes.byref(minor), _MINOR, device)
        found.append(Gpu(name.value.decode(errors="replace"), (major.value, minor.value)))
    return tuple(found)
