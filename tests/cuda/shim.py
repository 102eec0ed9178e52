"""`ShimDriver`: the driver port on the CPU, with the kernels of ``kernels/`` compiled for it.

Work waits in its stream until somebody asks for its result, as on a GPU: an array that is read before `synchronize` is
not filled yet, and pinned memory that is changed before is read changed.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from kpl_engine.cuda.base import DeviceInfo, Features, Launch
from kpl_engine.errors import CudaError, CudaLaunchError, CudaMemoryError, CudaModuleError

from . import shim_build

__all__ = ["KernelFault", "ShimDriver"]

_ONE_AT_A_TIME = threading.RLock()  # the shim runs one launch in a process
_TYPES = {"i": np.int32, "l": np.int64, "f": np.float32, "d": np.float64, "p": np.uint64}
_THREADS_PER_SM = 2048
_BLOCKS_PER_SM = 32
_SHARED_PER_SM = 233472
_SHARED_RESERVED = 1024  # of each block, by the system


class KernelFault(AssertionError):
    """A kernel did what it must not. No `KplError`: no fall-back of the engine may swallow it."""


@dataclass(frozen=True)
class _Request:
    """`kpl_shim::Request` of launch.cpp, with what its pointers point to."""

    invoke: int
    args: Sequence[np.generic]
    launch: Launch
    is_checked: bool
    seed: int


class _RawRequest(ctypes.Structure):
    _fields_ = [
        ("invoke", ctypes.c_void_p),
        ("args", ctypes.c_void_p),
        *[
            (name, ctypes.c_uint)
            for name in ("grid", "block", "shared_bytes", "cluster", "is_cooperative", "is_checked")
        ],
        ("seed", ctypes.c_uint64),
    ]


class _Entry(ctypes.Structure):
    _fields_ = [("types", ctypes.c_char_p), ("invoke", ctypes.c_void_p)]


def _library() -> ctypes.CDLL:
    library = shim_build.runtime()
    library.kpl_shim_launch.restype = ctypes.c_char_p
    library.kpl_shim_describe.restype = ctypes.c_char_p
    library.kpl_shim_describe.argtypes = [ctypes.c_uint64]
    library.kpl_shim_allocate.restype = ctypes.c_uint64
    library.kpl_shim_allocate.argtypes = [ctypes.c_uint64]
    library.kpl_shim_release.argtypes = [ctypes.c_uint64]
    return library


class ShimAllocation:
    """Device memory; poisoned, fenced in and never handed out twice."""

    def __init__(self, driver: ShimDriver, address: int, nbytes: int) -> None:
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
    driver: ShimDriver
    work: list[Callable[[], None]]

    def launch(self, stream: ShimStream) -> None:
        for item in self.work:
            self.driver.enqueue(item)


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
        self.enqueue(lambda: self._move(address, source.ctypes.data, source.nbytes))

    def copy_out(self, array: np.ndarray[Any, Any], address: int, stream: ShimStream) -> None:
        self._check_copy("copy_out", array)
        self._check_range("copy_out", address, array.nbytes)
        if not self._is_pinned(array):
            self._refuse_while_recording("copy_out to memory that is not pinned")
        self.enqueue(lambda: self._move(array.ctypes.data, address, array.nbytes))

    def copy_on(self, target: int, source: int, nbytes: int, stream: ShimStream) -> None:
        self._check_range("copy_on to", target, nbytes)
        self._check_range("copy_on from", source, nbytes)
        self.enqueue(lambda: self._move(target, source, nbytes))

    def fill(self, address: int, byte: int, nbytes: int, stream: ShimStream) -> None:
        self._check_range("fill", address, nbytes)

        def work() -> None:
            self._check_range("fill", address, nbytes)
            ctypes.memset(address, byte, nbytes)

        self.enqueue(work)

    def launch(self, kernel: ShimKernel, launch: Launch, args: Sequence[np.generic], stream: ShimStream) -> None:
        self._check_launch(kernel, launch)
        self._check_args(kernel, args)
        request = _Request(kernel.invoke, list(args), launch, self.is_checked, self.seed)
        self.enqueue(lambda: self._run(kernel, request))

    def blocks_per_multiprocessor(self, kernel: ShimKernel, block: int, shared_bytes: int) -> int:
        if block > kernel.max_threads or shared_bytes > self._info.max_shared_bytes:
            return 0
        warps = -(-block // 32)
        by_shared = _SHARED_PER_SM // (shared_bytes + _SHARED_RESERVED)
        return min(_THREADS_PER_SM // (32 * warps), _BLOCKS_PER_SM, by_shared)

    def clusters_at_once(self, kernel: ShimKernel, launch: Launch) -> int:
        if launch.cluster > self._features.max_cluster:
            return 0
        resident = self.blocks_per_multiprocessor(kernel, launch.block, launch.shared_bytes)
        return resident * self._info.num_multiprocessors // launch.cluster

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

    def _run(self, kernel: ShimKernel, request: _Request) -> None:
        values = [np.array(value) for value in request.args]
        pointers = (ctypes.c_void_p * max(len(values), 1))(*[value.ctypes.data for value in values])
        shape = request.launch
        raw = _RawRequest(
            request.invoke,
            ctypes.addressof(pointers),
            shape.grid,
            shape.block,
            shape.shared_bytes,
            shape.cluster,
            shape.is_cooperative,
            request.is_checked,
            request.seed,
        )
        self.num_launches += 1
        message = self._shim.kpl_shim_launch(ctypes.byref(raw))
        if message is not None:
            library = shim_build.library(kernel.source, request.is_checked)
            text = _with_lines(message.decode(errors="replace"), str(library))
            raise KernelFault(f"{kernel.name} (grid {shape.grid}, block {shape.block}, seed {request.seed}): {text}")

    def _move(self, target: int, source: int, nbytes: int) -> None:
        for address in (target, source):
            if self._is_device(address):
                self._check_range("copy", address, nbytes)
        ctypes.memmove(target, source, nbytes)

    def _is_device(self, address: int) -> bool:
        text = self._shim.kpl_shim_describe(address)
        return b"no device memory" not in text

    def _check_copy(self, what: str, array: np.ndarray[Any, Any]) -> None:
        if not array.flags.c_contiguous:
            raise CudaError(f"{what}: expected a C-contiguous array, got strides {array.strides} of {array.shape}")

    def _check_range(self, what: str, address: int, nbytes: int) -> None:
        for start, size in self._memory.live.items():
            if start <= address and address + nbytes <= start + size:
                return
        text = self._shim.kpl_shim_describe(address).decode()
        raise CudaError(f"{what}: {nbytes} bytes at {address:#x} are not within one live allocation: {text}")

    def _check_launch(self, kernel: ShimKernel, launch: Launch) -> None:
        limit = kernel.max_threads
        if not 1 <= launch.block <= limit:
            raise CudaLaunchError(f"{kernel.name}: expected 1 to {limit} threads a block, got {launch.block}")
        if not 1 <= launch.grid < 2**31:
            raise CudaLaunchError(f"{kernel.name}: expected 1 to 2147483647 blocks, got {launch.grid}")
        if not 0 <= launch.shared_bytes <= self._info.max_shared_bytes:
            raise CudaLaunchError(
                f"{kernel.name}: expected 0 to {self._info.max_shared_bytes} bytes of shared memory, "
                f"got {launch.shared_bytes}"
            )
        if not 1 <= launch.cluster <= self._features.max_cluster or launch.grid % launch.cluster != 0:
            raise CudaLaunchError(
                f"{kernel.name}: expected clusters of 1 to {self._features.max_cluster} blocks that divide the grid, "
                f"got {launch.cluster} of {launch.grid}"
            )
        if launch.cluster > 1 and self.clusters_at_once(kernel, launch) == 0:
            raise CudaLaunchError(f"{kernel.name}: no cluster of {launch} fits {self._info.num_multiprocessors} SMs")
        if launch.is_cooperative:
            self._check_cooperative(kernel, launch)

    def _check_cooperative(self, kernel: ShimKernel, launch: Launch) -> None:
        if not self._features.has_cooperative:
            raise CudaError("this driver has no cooperative launches; ask features.has_cooperative first")
        each = self.blocks_per_multiprocessor(kernel, launch.block, launch.shared_bytes)
        at_once = each * self._info.num_multiprocessors
        if launch.grid > at_once:
            raise CudaLaunchError(
                f"{kernel.name}: a cooperative launch must be resident at once: {at_once} blocks of this shape fit, "
                f"got {launch.grid}"
            )

    def _check_args(self, kernel: ShimKernel, args: Sequence[np.generic]) -> None:
        if len(args) != len(kernel.types):
            raise CudaLaunchError(f"{kernel.name}: expected {len(kernel.types)} arguments, got {len(args)}")
        for place, (code, value) in enumerate(zip(kernel.types, args, strict=True)):
            if type(value) is not _TYPES[code] and np.dtype(type(value)) != np.dtype(_TYPES[code]):
                raise CudaLaunchError(
                    f"{kernel.name}: argument {place}: expected {_TYPES[code].__name__}, got {type(value).__name__}"
                )

    def _refuse_while_recording(self, what: str) -> None:
        if self._recording is not None:
            raise CudaError(f"{what} cannot be captured")

    def _is_pinned(self, array: np.ndarray[Any, Any]) -> bool:
        start = array.ctypes.data
        return any(low <= start and start + array.nbytes <= high for low, high in self._memory.pinned)


def _with_lines(message: str, library: str) -> str:
    """Places in the code, ``[pc 1234]`` in ``message``, as file and line."""

    def place(match: re.Match[str]) -> str:
        address = int(match.group(1))
        for line in Path("/proc/self/maps").read_text().splitlines():
            low, _, rest = line.partition("-")
            high = rest.split()[0]
            if library in line and int(low, 16) <= address < int(high, 16):
                offset = int(rest.split()[2], 16)
                command = ["addr2line", "-i", "-s", "-e", library, hex(address - int(low, 16) + offset)]
                found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")
                return "at " + " in ".join(filter(None, found))
        return ""

    return re.sub(r"\[pc (\d+)\]", place, message)
