"""What `ShimDriver` hands out: the small objects of the driver port."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kpl_engine.errors import CudaModuleError

__all__ = ["KernelFault", "ShimAllocation", "ShimEvent", "ShimGraph", "ShimKernel", "ShimModule", "ShimStream"]


class KernelFault(AssertionError):
    """A kernel did what it must not. No `KplError`: no fall-back of the engine may swallow it."""


class _Owner(Protocol):
    """What these objects need of their driver."""

    def forget(self, allocation: ShimAllocation) -> None:
        """Free it."""

    def enqueue(self, work: Callable[[], None]) -> None:
        """Run it later."""


class _Entry(ctypes.Structure):
    """`kpl_shim::Entry` of cuda.h."""

    _fields_ = [("types", ctypes.c_char_p), ("invoke", ctypes.c_void_p)]


class ShimAllocation:
    """Device memory; poisoned, fenced in and never handed out twice."""

    def __init__(self, driver: _Owner, address: int, nbytes: int) -> None:
        self._driver = driver
        self._address = address
        self._nbytes = nbytes
        self._is_live = True

    @property
    def address(self) -> int:
        return self._address

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def free(self) -> None:
        if self._is_live:
            self._is_live = False
            self._driver.forget(self)

    def __del__(self) -> None:
        self.free()


@dataclass(frozen=True)
class ShimKernel:
    name: str
    source: str
    types: str
    invoke: int
    max_threads: int


class ShimModule:
    def __init__(self, source: str, library: ctypes.CDLL) -> None:
        self._source = source
        self._library = library

    def kernel(self, name: str) -> ShimKernel:
        try:
            entry = _Entry.in_dll(self._library, f"kpl_entry_{name}")
        except ValueError:
            raise CudaModuleError(
                f"kernels/{self._source}.cu has no kernel {name!r}, or no KPL_EXPORT_KERNEL({name}) behind it"
            ) from None
        try:
            max_threads = ctypes.c_int.in_dll(self._library, f"kpl_bound_{name}").value
        except ValueError:
            max_threads = 1024
        return ShimKernel(name, self._source, entry.types.decode(), entry.invoke, max_threads)


@dataclass(frozen=True)
class ShimStream:
    handle: int


@dataclass
class ShimEvent:
    seconds: float | None = None


@dataclass
class ShimGraph:
    driver: _Owner
    work: list[Callable[[], None]]

    def launch(self, stream: ShimStream) -> None:
        for item in self.work:
            self.driver.enqueue(item)
