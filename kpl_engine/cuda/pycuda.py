"""The driver port through pycuda: where that is what the machine has (JetPack), or the host program uses it already.

A pycuda context that is current on the GPU is used, else the primary one; no new one is ever made. pycuda has no
graphs, no cooperative launches and no clusters: `Features` says so.
"""

from __future__ import annotations

import atexit
import ctypes
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.cuda.base import Allocation, DeviceInfo, Event, Features, Graph, Kernel, Launch, Module, Stream
from kpl_engine.cuda.failures import UNFIT_IMAGE
from kpl_engine.cuda.guard import Guard, check_array, check_launch
from kpl_engine.cuda.images import Images
from kpl_engine.cuda.memory import DeviceMemory
from kpl_engine.cuda.occupancy import resident_blocks
from kpl_engine.cuda.probe import load_driver
from kpl_engine.cuda.pycuda_objects import (
    PycudaEvent,
    PycudaKernel,
    PycudaModule,
    PycudaStream,
    inner_of,
    status_reader,
)
from kpl_engine.errors import BackendUnavailableError, CudaLaunchError, CudaModuleError, KplError

__all__ = ["PycudaDriver", "open_pycuda"]


class PycudaDriver:
    """One GPU through pycuda: see `kpl_engine.cuda.base.Driver` for what each method promises.

    Parameters
    ----------
    library : module
        ``pycuda.driver``, initialised.
    ordinal : int
    images : Images
    name : str
        Of the adapter, for people.
    number_of : callable
        From an exception of pycuda to the driver's status.
    """

    features = Features(has_graphs=False, has_cooperative=False, max_cluster=1)

    def __init__(
        self, library: Any, ordinal: int, images: Images, name: str, number_of: Callable[[BaseException], int]
    ) -> None:
        self._cu = library
        self._images = images
        self.name = name
        self._guard = Guard((library.Error,), number_of, self._keep_for_ever)
        self._memory: weakref.WeakSet[DeviceMemory] = weakref.WeakSet()
        self._inner: weakref.WeakSet[Any] = weakref.WeakSet()
        with self._guard(f"open cuda:{ordinal}"):
            device = library.Device(ordinal)
            current = library.Context.get_current()
            is_here = current is not None and library.Context.get_device() == device
            self._context = current if is_here else _primary_context(ordinal, device)
            self._limits = device.get_attribute
            self.info = self._describe(ordinal, device)

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of how the kernels got here, each once: a cache that keeps nothing, say."""
        return self._images.notes

    @contextmanager
    def calling(self, action: str) -> Iterator[None]:
        """Inside the block the context is current and errors are named."""
        with self._guard(action):
            self._context.push()
            try:
                yield
            finally:
                self._cu.Context.pop()

    def load(self, source: str) -> Module:
        """The best image of ``kernels/<source>.cu`` that the driver takes."""
        refused = CudaModuleError(f"no image of the kernel source {source}")
        for image in self._images.candidates(source):
            code = image.code + b"\0" if image.kind == "ptx" else image.code  # the driver reads PTX as a C string
            try:
                with self.calling(f"load {source} ({image.origin})"):
                    return PycudaModule(source, self._tracked(self._cu.module_from_buffer(code)), self.calling)
            except CudaModuleError as error:
                if error.code not in UNFIT_IMAGE:
                    raise
                refused = error
        raise refused

    def allocate(self, nbytes: int) -> Allocation:
        with self.calling(f"allocate {nbytes} bytes on {self.info.name}"):
            inner = self._tracked(self._cu.mem_alloc(nbytes))
        made = DeviceMemory(int(inner), nbytes, partial(self._give_back, inner))
        self._memory.add(made)
        return made

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        wanted = np.dtype(dtype)
        with self.calling(f"lock {prod(shape) * wanted.itemsize} bytes of host memory"):
            flat: npt.NDArray[Any] = self._cu.pagelocked_empty((max(prod(shape), 1),), wanted)
            self._tracked(flat.base)
        return flat[: prod(shape)].reshape(shape)

    def new_stream(self) -> Stream:
        with self.calling("make a stream"):
            return PycudaStream(self._tracked(self._cu.Stream(1)))  # CU_STREAM_NON_BLOCKING

    def copy_in(self, address: int, array: npt.NDArray[Any], stream: Stream) -> None:
        check_array(array, "copy to the device")
        with self.calling(f"copy {array.nbytes} bytes to the device"):
            if array.nbytes:
                self._cu.memcpy_htod_async(address, array, inner_of(stream))
                if not self._is_pinned(array):
                    # The driver may read pageable memory later: the manual leaves open when it is done with it.
                    inner_of(stream).synchronize()

    def copy_out(self, array: npt.NDArray[Any], address: int, stream: Stream) -> None:
        check_array(array, "copy from the device")
        with self.calling(f"copy {array.nbytes} bytes from the device"):
            if array.nbytes:
                self._cu.memcpy_dtoh_async(array, address, inner_of(stream))

    def copy_on(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        with self.calling(f"copy {nbytes} bytes on the device"):
            if nbytes:
                self._cu.memcpy_dtod_async(target, source, nbytes, inner_of(stream))

    def fill(self, address: int, byte: int, nbytes: int, stream: Stream) -> None:
        with self.calling(f"fill {nbytes} bytes on the device"):
            if nbytes:
                self._cu.memset_d8_async(address, byte, nbytes, inner_of(stream))

    def launch(self, kernel: Kernel, launch: Launch, args: Sequence[np.generic], stream: Stream) -> None:
        check_launch(kernel.name, launch, args, self.info, self.features)
        with self.calling(f"launch {kernel.name}"):
            own: Any = kernel
            self._allow(own, launch.shared_bytes)
            types = tuple(value.dtype for value in args)
            if own.types != types:
                own.inner.prepare(types)
                own.types = types
            shape = ((launch.grid, 1), (launch.block, 1, 1), inner_of(stream))
            own.inner.prepared_async_call(*shape, *args, shared_size=launch.shared_bytes)

    def blocks_per_multiprocessor(self, kernel: Kernel, block: int, shared_bytes: int) -> int:
        if shared_bytes > self.info.max_shared_bytes:
            return 0
        with self.calling(f"ask how many blocks of {kernel.name} fit"):
            of_kernel, of_gpu = self._cu.function_attribute, self._cu.device_attribute
            has = inner_of(kernel).get_attribute
            if block > has(of_kernel.MAX_THREADS_PER_BLOCK):
                return 0
            # pycuda does not pass on the driver's own answer.
            return resident_blocks(
                block,
                registers=has(of_kernel.NUM_REGS),
                shared_bytes=shared_bytes + has(of_kernel.SHARED_SIZE_BYTES),
                max_threads=self._limits(of_gpu.MAX_THREADS_PER_MULTIPROCESSOR),
                max_registers=self._limits(of_gpu.MAX_REGISTERS_PER_MULTIPROCESSOR),
                max_shared=self._limits(of_gpu.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
                reserved_shared=self._limits(of_gpu.RESERVED_SHARED_MEMORY_PER_BLOCK),
                max_blocks=self._limits(of_gpu.MAX_BLOCKS_PER_MULTIPROCESSOR),
            )

    def clusters_at_once(self, kernel: Kernel, launch: Launch) -> int:
        if launch.cluster > 1:
            return 0
        return self.blocks_per_multiprocessor(kernel, launch.block, launch.shared_bytes) * self.info.num_multiprocessors

    def new_event(self) -> Event:
        with self.calling("make an event"):
            return PycudaEvent(self._tracked(self._cu.Event()))

    def record(self, event: Event, stream: Stream) -> None:
        with self.calling("record an event"):
            inner_of(event).record(inner_of(stream))

    def elapsed_ms(self, start: Event, end: Event) -> float:
        with self.calling("read the time between two events"):
            inner_of(end).synchronize()
            return float(inner_of(start).time_till(inner_of(end)))

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        raise CudaLaunchError("cannot record a CUDA graph: pycuda has none; launch the work, or install cuda-core")

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._guard("make the GPU's context current"):
            self._context.push()
        try:
            yield
        finally:
            self._cu.Context.pop()

    def synchronize(self, stream: Stream | None = None) -> None:
        with self.calling("finish the work on the GPU"):
            (self._cu.Context if stream is None else inner_of(stream)).synchronize()

    def close(self) -> None:
        """Free the memory. Streams and events go with their last reference, and so does the context."""
        for allocation in list(self._memory):
            allocation.free()
        self._guard.is_closed = True

    def _describe(self, ordinal: int, device: Any) -> DeviceInfo:
        of_gpu = self._cu.device_attribute
        major, minor = device.compute_capability()
        return DeviceInfo(
            ordinal=ordinal,
            name=str(device.name()),
            compute_capability=(int(major), int(minor)),
            num_multiprocessors=int(self._limits(of_gpu.MULTIPROCESSOR_COUNT)),
            max_shared_bytes=int(self._limits(of_gpu.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)),
            l2_bytes=int(self._limits(of_gpu.L2_CACHE_SIZE)),
            total_bytes=int(device.total_memory()),
            driver_version=int(self._cu.get_driver_version()),
        )

    def _allow(self, kernel: PycudaKernel, shared_bytes: int) -> None:
        if shared_bytes > kernel.allowed_shared:
            kernel.inner.set_attribute(self._cu.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
            kernel.allowed_shared = shared_bytes

    def _is_pinned(self, array: npt.NDArray[Any]) -> bool:
        owner: Any = array
        while isinstance(owner, np.ndarray):
            owner = owner.base
        return isinstance(owner, self._cu.PagelockedHostAllocation)

    def _tracked(self, inner: Any) -> Any:
        self._inner.add(inner)
        return inner

    def _keep_for_ever(self) -> None:
        """The destructors of pycuda end the process when the driver refuses them, as it does in a lost context."""
        for inner in list(self._inner):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inner))

    def _give_back(self, inner: Any, address: int) -> None:
        """Memory of a lost context is lost with it: there is nobody to tell."""
        with suppress(self._cu.Error, KplError):
            self._context.push()
            try:
                inner.free()
            finally:
                self._cu.Context.pop()


_primary: dict[int, Any] = {}


def _primary_context(ordinal: int, device: Any) -> Any:
    """Retained once for the process: page-locked arrays may outlive a driver, and are lost with their context.

    Released at exit by name: pycuda's destructor takes a primary context for one of its own, and complains.
    """
    if ordinal not in _primary:
        _primary[ordinal] = device.retain_primary_context()
        atexit.register(_primary[ordinal].detach)
    return _primary[ordinal]


def open_pycuda(ordinal: int, images: Images) -> PycudaDriver:
    """GPU ``ordinal`` through the installed pycuda. `BackendUnavailableError` or `CudaError` if it does not open."""
    try:
        import pycuda
        import pycuda.driver as library
    except ImportError as error:
        raise BackendUnavailableError(
            f"pycuda does not load: {error}. Build it again for this driver: pip install --force-reinstall pycuda"
        ) from error
    number_of = status_reader(load_driver())
    try:
        library.init()
    except library.Error as error:
        raise Guard((), number_of).named(error, "initialise CUDA") from error
    return PycudaDriver(library, ordinal, images, f"pycuda {pycuda.VERSION_TEXT}", number_of)
