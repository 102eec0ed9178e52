"""Owners of memory that a driver handed out: given back once, with its last reference."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DeviceMemory", "host_array"]


class DeviceMemory:
    """Device memory; freed by `free` or with the object.

    Parameters
    ----------
    address, nbytes : int
    give_back : callable
        Frees an address; raises nothing.
    """

    def __init__(self, address: int, nbytes: int, give_back: Callable[[int], None]) -> None:
        self.address = address
        self.nbytes = nbytes
        self._finalizer = _give_back_with(self, give_back, address)

    def free(self) -> None:
        """Give the memory back; calling it twice is harmless."""
        self._finalizer()


def host_array(
    address: int, shape: Sequence[int], dtype: np.dtype[Any], give_back: Callable[[int], None]
) -> npt.NDArray[Any]:
    """An array over host memory at ``address``, given back with the last view of it."""
    owner = (ctypes.c_ubyte * max(prod(shape) * dtype.itemsize, 1)).from_address(address)
    _give_back_with(owner, give_back, address)
    made: npt.NDArray[Any] = np.ndarray(tuple(shape), dtype, buffer=memoryview(owner))
    return made


def _give_back_with(owner: Any, give_back: Callable[[int], None], address: int) -> Any:
    finalizer = weakref.finalize(owner, give_back, address)
    # Not at exit: the driver takes back all of a process by itself, and may be gone by then.
    finalizer.atexit = False
    return finalizer
