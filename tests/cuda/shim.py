"""`ShimDriver`: the driver port on the CPU, with the kernels of ``kernels/`` compiled for it.

Work waits in its stream until somebody asks for its result, as on a GPU: an array that is read before `synchronize` is
not filled yet, and pinned memory that is changed before is read changed.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from kpl_engine.cuda.base import DeviceInfo, Features, Launch
from kpl_engine.errors import CudaError, CudaMemoryError

from . import shim_build, shim_limits
from .shim_objects import KernelFault, ShimAllocation, ShimEvent, ShimGraph, ShimKernel, ShimModule, ShimStream

__all__ = ["KernelFault", "ShimDriver"]

_ONE_AT_A_TIME = threading.RLock()  # the shim runs one launch in a process


class _Request(ctypes.Structure):
    """`kpl_shim::Request` of launch.cpp."""

    _fields_ = [
        ("invoke", ctypes.c_void_p),
        ("args", ctypes.c_void_p),
        *[
            (name, ctypes.c_uint)
            for name in ("grid", "block", "shared_bytes", "cluster", "is_cooperative", "is_checked")
        ],
        ("seed", ctypes.c_uint64),
    ]


def _library() -> ctypes.CDLL:
    library = shim_build.runtime()
    library.kpl_shim_launch.restype = ctypes.c_char_p
    library.kpl_shim_describe.restype = ctypes.c_char_p
    library.kpl_shim_describe.argtypes = [ctypes.c_uint64]
    library.kpl_shim_allocate.restype = ctypes.c_uint64
    library.kpl_shim_allocate.argtypes = [ctypes.c_uint64]
    library.kpl_shim_release.argtypes = [ctypes.c_uint64]
    return library


@dataclass
class _Memory:
    """What is allocated, by address; what is pinned."""

    live: dict[int, int] = field(default_factory=dict)
    pinned: list[tuple[int, int]] = field(default_factory=list)


class ShimDriver:
    """One pretended GPU.

    Parameters
    ----------
    seed : int
        0 runs threads and blocks in order; every other number in an order of its own.
    is_checked : bool
        Whether every access of a kernel is checked for races and bounds (slower).
    has_graphs, has_cooperative, max_cluster, num_multiprocessors, compute_capability
        What this GPU says of itself.
    max_bytes : int
        Device memory there is.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        is_checked: bool = False,
        has_graphs: bool = True,
        has_cooperative: bool = True,
        max_cluster: int = 8,
        num_multiprocessors: int = 4,
        compute_capability: tuple[int, int] = (9, 0),
        max_shared_bytes: int = 232448,
        max_bytes: int = 4 << 30,
    ) -> None:
        self.seed = seed
        self.is_checked = is_checked
        self._shim = _library()
        self._info = DeviceInfo(
            0, "host shim", compute_capability, num_multiprocessors, max_shared_bytes, 50 << 20, max_bytes, 13000
        )
        self._features = Features(has_graphs, has_cooperative, max_cluster)
        self._memory = _Memory()
        self._queue: list[Callable[[], None]] = []
        self._recording: list[Callable[[], None]] | None = None
        self._fault: BaseException | None = None
        self._handles = itertools.count(1)
        self.num_launches = 0  # kernels run, for tests that count them

    @property
    def name(self) -> str:
        return "host shim"

    @property
    def info(self) -> DeviceInfo:
        return self._info

    @property
    def features(self) -> Features:
        return self._features

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def live_bytes(self) -> int:
        """Device memory that has not been freed."""
        return sum(self._memory.live.values())

    @property
    def num_live(self) -> int:
        """Allocations that have not been freed."""
        return len(self._memory.live)

    def load(self, source: str) -> ShimModule:
        return ShimModule(source, shim_build.kernels(source, self.is_checked))

    def allocate(self, nbytes: int) -> ShimAllocation:
        self._refuse_while_recording("allocate")
        if nbytes <= 0:
            raise CudaError(f"allocate: expected a positive number of bytes, got {nbytes}")
        free = self._info.total_bytes - self.live_bytes
        with _ONE_AT_A_TIME:
            address = int(self._shim.kpl_shim_allocate(nbytes)) if nbytes <= free else 0
        if address == 0:
            raise CudaMemoryError(f"out of memory: asked for {nbytes} bytes, {free} are free")
        self._memory.live[address] = nbytes
        return ShimAllocation(self, address, nbytes)

    def forget(self, allocation: ShimAllocation) -> None:
        """Frees memory behind the work that is queued already, as the driver does."""
        if allocation.address in self._memory.live:
            self._run_queue()
            del self._memory.live[allocation.address]
            with _ONE_AT_A_TIME:
                self._shim.kpl_shim_release(allocation.address)

    def pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        wanted = np.dtype(dtype)
        raw = ctypes.create_string_buffer(max(prod(shape) * wanted.itemsize, 1))
        start = ctypes.addressof(raw)
        extent = (start, start + len(raw))
        self._memory.pinned.append(extent)
        weakref.finalize(raw, self._memory.pinned.remove, extent)
        return np.frombuffer(raw, wanted, prod(shape)).reshape(shape)

    def new_stream(self) -> ShimStream:
        return ShimStream(next(self._handles))

    def copy_in(self, address: int, array: np.ndarray[Any, Any], stream: ShimStream) -> None:
        self._check_copy("copy_in", array)
        self._check_range("copy_in", address, array.nbytes)
        source = array if self._is_pinned(array) else array.copy()
        if source is not array:
            self._refuse_while_recording("copy_in of memory that is not pinned")
        self.enqueue(lambda: self._move(address, source.ctypes.data, source.nbytes, address))

    def copy_out(self, array: np.ndarray[Any, Any], address: int, stream: ShimStream) -> None:
        self._check_copy("copy_out", array)
        self._check_range("copy_out", address, array.nbytes)
        if not self._is_pinned(array):
            self._refuse_while_recording("copy_out to memory that is not pinned")
        self.enqueue(lambda: self._move(array.ctypes.data, address, array.nbytes, address))

    def copy_on(self, target: int, source: int, nbytes: int, stream: ShimStream) -> None:
        self._check_range("copy_on to", target, nbytes)
        self._check_range("copy_on from", source, nbytes)
        self.enqueue(lambda: self._move(target, source, nbytes, target, source))

    def fill(self, address: int, byte: int, nbytes: int, stream: ShimStream) -> None:
        self._check_range("fill", address, nbytes)

        def work() -> None:
            self._check_range("fill", address, nbytes)
            ctypes.memset(address, byte, nbytes)

        self.enqueue(work)

    def launch(self, kernel: ShimKernel, launch: Launch, args: Sequence[np.generic], stream: ShimStream) -> None:
        shim_limits.check_launch(self._info, self._features, kernel, launch)
        shim_limits.check_args(kernel, args)
        values = [np.array(value) for value in args]
        self.enqueue(lambda: self._run(kernel, launch, values))

    def blocks_per_multiprocessor(self, kernel: ShimKernel, block: int, shared_bytes: int) -> int:
        return shim_limits.blocks_per_multiprocessor(self._info, kernel, block, shared_bytes)

    def clusters_at_once(self, kernel: ShimKernel, launch: Launch) -> int:
        return shim_limits.clusters_at_once(self._info, self._features, kernel, launch)

    def new_event(self) -> ShimEvent:
        return ShimEvent()

    def record(self, event: ShimEvent, stream: ShimStream) -> None:
        def work() -> None:
            event.seconds = time.perf_counter()

        self.enqueue(work)

    def elapsed_ms(self, start: ShimEvent, end: ShimEvent) -> float:
        self.synchronize()
        if start.seconds is None or end.seconds is None:
            raise CudaError("elapsed_ms: an event was never recorded")
        return (end.seconds - start.seconds) * 1e3

    def capture(self, stream: ShimStream, work: Callable[[], None]) -> ShimGraph:
        if not self._features.has_graphs:
            raise CudaError("capture: this driver has no graphs; ask features.has_graphs first")
        self._refuse_while_recording("capture")
        self._recording = []
        try:
            work()
            return ShimGraph(self, self._recording)
        finally:
            self._recording = None

    def synchronize(self, stream: ShimStream | None = None) -> None:
        self._refuse_while_recording("synchronize")
        self._run_queue()
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def close(self) -> None:
        self._queue.clear()
        for address in list(self._memory.live):
            self._memory.live.pop(address)
            with _ONE_AT_A_TIME:
                self._shim.kpl_shim_release(address)

    def enqueue(self, work: Callable[[], None]) -> None:
        """Puts work behind what is queued, or into the graph that is being captured."""
        (self._queue if self._recording is None else self._recording).append(work)

    def _run_queue(self) -> None:
        """After a fault the rest is dropped; `synchronize` raises it."""
        with _ONE_AT_A_TIME:
            while self._queue:
                work = self._queue.pop(0)
                try:
                    work()
                except (KernelFault, CudaError) as fault:
                    self._fault = self._fault or fault
                    self._queue.clear()

    def _run(self, kernel: ShimKernel, launch: Launch, values: Sequence[np.ndarray[Any, Any]]) -> None:
        pointers = (ctypes.c_void_p * max(len(values), 1))(*[value.ctypes.data for value in values])
        shape = launch.grid, launch.block, launch.shared_bytes, launch.cluster, launch.is_cooperative
        request = _Request(kernel.invoke, ctypes.addressof(pointers), *shape, self.is_checked, self.seed)
        self.num_launches += 1
        message = self._shim.kpl_shim_launch(ctypes.byref(request))
        if message is not None:
            library = shim_build.library(kernel.source, self.is_checked)
            text = shim_build.with_lines(message.decode(errors="replace"), str(library))
            raise KernelFault(f"{kernel.name} ({launch}, seed {self.seed}): {text}")

    def _move(self, target: int, source: int, nbytes: int, *on_device: int) -> None:
        for address in on_device:  # still there, now that the copy runs
            self._check_range("copy", address, nbytes)
        ctypes.memmove(target, source, nbytes)

    def _check_copy(self, what: str, array: np.ndarray[Any, Any]) -> None:
        if not array.flags.c_contiguous:
            raise CudaError(f"{what}: expected a C-contiguous array, got strides {array.strides} of {array.shape}")

    def _check_range(self, what: str, address: int, nbytes: int) -> None:
        for start, size in self._memory.live.items():
            if start <= address and address + nbytes <= start + size:
                return
        text = self._shim.kpl_shim_describe(address).decode()
        raise CudaError(f"{what}: {nbytes} bytes at {address:#x} are not within one live allocation: {text}")

    def _refuse_while_recording(self, what: str) -> None:
        if self._recording is not None:
            raise CudaError(f"{what} cannot be captured")

    def _is_pinned(self, array: np.ndarray[Any, Any]) -> bool:
        start = array.ctypes.data
        return any(low <= start and start + array.nbytes <= high for low, high in self._memory.pinned)
