"""The driver port: what the engine asks of a CUDA driver, and nothing more.

Two adapters fulfil it, `cuda_core.py` and `pycuda.py`; the tests have a third, which runs the same kernels on the
CPU. Addresses and handles are plain integers, so that TensorRT and ONNX Runtime can share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Allocation", "DeviceInfo", "Driver", "Event", "Features", "Graph", "Kernel", "Launch", "Module", "Stream"]


@dataclass(frozen=True)
class DeviceInfo:
    """One GPU as the driver describes it."""

    ordinal: int
    name: str
    compute_capability: tuple[int, int]
    num_multiprocessors: int
    max_shared_bytes: int  # a block may ask for, after opting in
    l2_bytes: int
    total_bytes: int
    driver_version: int  # as the driver counts: 13000 is 13.0


@dataclass(frozen=True)
class Features:
    """What a driver adapter can do beyond plain launches."""

    has_graphs: bool
    has_cooperative: bool
    max_cluster: int  # blocks of a cluster: 1 without clusters, 8 portable, 16 where the kernel may ask for more


@dataclass(frozen=True)
class Launch:
    """The shape of one launch; ``grid`` and ``cluster`` count blocks, ``block`` threads, all in one dimension."""

    grid: int
    block: int
    shared_bytes: int = 0
    cluster: int = 1
    is_cooperative: bool = False


class Allocation(Protocol):
    """Device memory; freed by `free` or with the object."""

    @property
    def address(self) -> int:
        """Device address, aligned to 256 bytes."""

    @property
    def nbytes(self) -> int:
        """Size asked for."""

    def free(self) -> None:
        """Give the memory back; calling it twice is harmless."""


class Kernel(Protocol):
    """One entry point of a module, ready to launch."""

    @property
    def name(self) -> str:
        """The name in the source."""


class Module(Protocol):
    """One loaded source file of ``kernels/``."""

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name; `CudaModuleError` if there is none."""


class Stream(Protocol):
    """Work in order."""

    @property
    def handle(self) -> int:
        """The driver's CUstream, for TensorRT and ONNX Runtime."""


class Event(Protocol):
    """A point in a stream."""


class Graph(Protocol):
    """Captured work that is launched as one."""

    def launch(self, stream: Stream) -> None:
        """Run it once, in order with what else is in ``stream``."""


class Driver(Protocol):
    """One GPU, opened by one adapter. Calls are asynchronous in their stream unless they say otherwise."""

    @property
    def name(self) -> str:
        """Of the adapter, for people: ``"cuda.core 1.2.2"``."""

    @property
    def info(self) -> DeviceInfo:
        """The GPU."""

    @property
    def features(self) -> Features:
        """What beyond plain launches works here."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should be told once, such as kernels that had to be compiled."""

    def load(self, source: str) -> Module:
        """The compiled form of ``kernels/<source>.cu`` for this GPU; `CudaModuleError` with the compiler's log."""

    def allocate(self, nbytes: int) -> Allocation:
        """Device memory, not cleared; `CudaMemoryError` when there is too little."""

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A host array in page-locked memory, for copies that overlap with work."""

    def new_stream(self) -> Stream:
        """A stream of its own (never the default one: that cannot be captured)."""

    def copy_in(self, address: int, array: npt.NDArray[Any], stream: Stream) -> None:
        """Host to device, C-contiguous; done with ``array`` on return unless it is pinned."""

    def copy_out(self, array: npt.NDArray[Any], address: int, stream: Stream) -> None:
        """Device to host, C-contiguous; ``array`` is filled after `synchronize`."""

    def copy_on(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Device to device."""

    def fill(self, address: int, byte: int, nbytes: int, stream: Stream) -> None:
        """Every byte to ``byte``."""

    def launch(self, kernel: Kernel, launch: Launch, args: Sequence[np.generic], stream: Stream) -> None:
        """Start a kernel. ``args`` are NumPy scalars of exactly the C types of its parameters, pointers as uint64."""

    def blocks_per_multiprocessor(self, kernel: Kernel, block: int, shared_bytes: int) -> int:
        """How many blocks of this shape are resident on one multiprocessor at once; 0 if not even one fits."""

    def clusters_at_once(self, kernel: Kernel, launch: Launch) -> int:
        """How many clusters of this shape run at once; 0 where that cluster size does not work on this GPU."""

    def new_event(self) -> Event:
        """An event with timing."""

    def record(self, event: Event, stream: Stream) -> None:
        """Put the event into the stream."""

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Milliseconds between two recorded events; waits for the second."""

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """What ``work`` puts into ``stream``, as a graph; it is recorded, not run. Needs `Features.has_graphs`."""

    def current(self) -> AbstractContextManager[Any]:
        """Make the GPU's context current in this thread while the block runs, for libraries that take what is current.

        Nests, and calls of the driver may stand inside.
        """

    def synchronize(self, stream: Stream | None = None) -> None:
        """Wait for a stream, or for all; errors of earlier asynchronous work are raised here."""

    def close(self) -> None:
        """Free everything; calling it twice is harmless."""
