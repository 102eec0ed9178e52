"""A driver with its one stream, its loaded kernels and arrays on the device: what every launch needs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.cuda.base import Allocation, Driver, Kernel, Launch, Module, Stream
from kpl_engine.errors import ShapeError

__all__ = ["Context", "DeviceArray"]


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A C-contiguous array in device memory. ``owner`` keeps the memory alive; views share it."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def argument(self) -> np.generic:
        """What a kernel is given for it."""
        pointer: np.generic = np.uint64(self.address)
        return pointer

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3}


class Context:
    """Not safe for several threads at once: each thread opens its own, or takes its turn, ``with context.turn``.

    Parameters
    ----------
    driver : Driver
        Closed with the context.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.stream: Stream = driver.new_stream()
        self._modules: dict[str, Module] = {}
        self._kernels: dict[tuple[str, str], Kernel] = {}
        self._lock = threading.Lock()
        self.turn = threading.RLock()

    def kernel(self, source: str, name: str) -> Kernel:
        """Kernel ``name`` of ``kernels/<source>.cu``, loaded at its first use."""
        with self._lock:
            if (source, name) not in self._kernels:
                if source not in self._modules:
                    self._modules[source] = self.driver.load(source)
                self._kernels[source, name] = self._modules[source].kernel(name)
            return self._kernels[source, name]

    def launch(self, kernel: Kernel, launch: Launch, *args: np.generic | DeviceArray | None) -> None:
        """Start a kernel in the context's stream; ``None`` is the null pointer."""
        plain = [_argument(value) for value in args]
        self.driver.launch(kernel, launch, plain, self.stream)

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """An array on the device, not cleared."""
        wanted = np.dtype(dtype)
        owner: Allocation = self.driver.allocate(max(prod(shape) * wanted.itemsize, 1))
        return DeviceArray(owner.address, tuple(shape), wanted, owner)

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """An array on the device with every byte zero."""
        array = self.empty(shape, dtype)
        self.driver.fill(array.address, 0, array.nbytes, self.stream)
        return array

    def upload(self, array: npt.NDArray[Any]) -> DeviceArray:
        """A copy of ``array`` on the device."""
        target = self.empty(array.shape, array.dtype)
        self.write(target, array)
        return target

    def write(self, target: DeviceArray, array: npt.NDArray[Any]) -> None:
        """Copy a host array of the same shape and dtype into ``target``."""
        if array.shape != target.shape or array.dtype != target.dtype:
            raise ShapeError(
                f"copy to the device: expected {target.shape} of {target.dtype}, got {array.shape} of {array.dtype}"
            )
        self.driver.copy_in(target.address, np.ascontiguousarray(array), self.stream)

    def download(self, array: DeviceArray) -> npt.NDArray[Any]:
        """A copy of ``array`` on the host; waits for the stream."""
        found = np.empty(array.shape, array.dtype)
        self.driver.copy_out(found, array.address, self.stream)
        self.driver.synchronize(self.stream)
        return found

    def concatenate(self, parts: Sequence[DeviceArray]) -> DeviceArray:
        """A new array with the rows of all ``parts``, which agree in dtype and in all but the first size."""
        first = parts[0]
        if any(part.dtype != first.dtype or part.shape[1:] != first.shape[1:] for part in parts):
            raise ShapeError(
                f"concatenate: expected rows of {first.shape[1:]} {first.dtype}, got other ones among them"
            )
        whole = self.empty((sum(part.shape[0] for part in parts), *first.shape[1:]), first.dtype)
        place = whole.address
        for part in parts:
            self.driver.copy_on(place, part.address, part.nbytes, self.stream)
            place += part.nbytes
        return whole

    def close(self) -> None:
        """Free everything; calling it twice is harmless."""
        self.driver.close()

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _argument(value: np.generic | DeviceArray | None) -> np.generic:
    if isinstance(value, DeviceArray):
        return value.argument
    null: np.generic = np.uint64(0)
    return null if value is None else value
