"""The driver port through cuda.core, NVIDIA's Python interface, and through cuda.bindings where it lacks something.

The GPU's primary context is used, the one that torch, TensorRT and ONNX Runtime share; it is made current for the
length of each call, and what was current before comes back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from kpl_engine.cuda.base import Allocation, Event, Features, Graph, Kernel, Launch, Module, Stream
from kpl_engine.cuda.cuda_core_objects import (
    PORTABLE_CLUSTER,
    Check,
    CudaCoreEvent,
    CudaCoreGraph,
    CudaCoreKernel,
    CudaCoreModule,
    CudaCoreStream,
    device_info,
    inner_of,
    launch_config,
)
from kpl_engine.cuda.failures import UNFIT_IMAGE, failure, number_of
from kpl_engine.cuda.guard import Guard, check_array, check_launch
from kpl_engine.cuda.images import Images
from kpl_engine.cuda.memory import DeviceMemory, host_array
from kpl_engine.errors import BackendUnavailableError, CudaError, CudaModuleError, KplError

__all__ = ["CudaCoreDriver", "open_cuda_core"]

# Where the GPU has clusters but cannot place this one: invalid value, not supported, invalid cluster size.
_NO_SUCH_CLUSTER = frozenset({1, 801, 912})
_HOST_MEMORY = 1  # CU_MEMORYTYPE_HOST: page-locked by whomever


class CudaCoreDriver:
    """One GPU through cuda.core: see `kpl_engine.cuda.base.Driver` for what each method promises.

    Parameters
    ----------
    core, bindings : modules
        ``cuda.core`` and ``cuda.bindings.driver``.
    errors : tuple of exception types
        What they raise.
    ordinal : int
    images : Images
    name : str
        Of the adapter, for people.
    """

    def __init__(
        self, core: Any, bindings: Any, errors: tuple[type[BaseException], ...], ordinal: int, images: Images, name: str
    ) -> None:
        self._core = core
        self._cu = bindings
        self._images = images
        self.name = name
        self._guard = Guard(errors, number_of)
        self._memory: weakref.WeakSet[DeviceMemory] = weakref.WeakSet()
        self._others: weakref.WeakSet[Any] = weakref.WeakSet()  # cuda.core objects with close()
        action = f"open cuda:{ordinal}"
        with self._guard(action):
            check = self._checker(action)
            before = check(bindings.cuCtxGetCurrent())
            self._device = core.Device(ordinal)
            self._device.set_current()
            self._handle = check(bindings.cuDeviceGet(ordinal))
            self._context = check(bindings.cuCtxGetCurrent())
            try:
                self.info = device_info(self._device, ordinal, bindings, self._handle, check)
                has_cooperative = bool(self._device.properties.cooperative_launch)
            finally:
                bindings.cuCtxSetCurrent(before)
        major = self.info.compute_capability[0]
        max_cluster = 1 if major < 9 else 16 if major in {9, 10} else PORTABLE_CLUSTER
        self.features = Features(has_graphs=True, has_cooperative=has_cooperative, max_cluster=max_cluster)

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of how the kernels got here, each once: a cache that keeps nothing, say."""
        return self._images.notes

    @contextmanager
    def calling(self, action: str) -> Iterator[Check]:
        """Inside the block the context is current and errors are named; it is given a check of answers."""
        with self._guard(action):
            check = self._checker(action)
            check(self._cu.cuCtxPushCurrent(self._context))
            try:
                yield check
            finally:
                self._cu.cuCtxPopCurrent()

    def load(self, source: str) -> Module:
        """The best image of ``kernels/<source>.cu`` that the driver takes."""
        refused = CudaModuleError(f"no image of the kernel source {source}")
        for image in self._images.candidates(source):
            make = getattr(self._core.ObjectCode, f"from_{image.kind}")
            try:
                with self.calling(f"load {source} ({image.origin})"):
                    inner = make(image.code, name=source)
                    _ = inner.handle  # only this loads it
                    return CudaCoreModule(source, inner, self.calling, self._cu, self._handle)
            except CudaModuleError as error:
                if error.code not in UNFIT_IMAGE:
                    raise
                refused = error
        raise refused

    def allocate(self, nbytes: int) -> Allocation:
        """By cuMemAlloc: aligned to 256 bytes; giving it back waits for the work that may still use it."""
        with self.calling(f"allocate {nbytes} bytes on {self.info.name}") as check:
            address = int(check(self._cu.cuMemAlloc(nbytes)))
        made = DeviceMemory(address, nbytes, self._give_back)
        self._memory.add(made)
        return made

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A page-locked array. It outlives `close`: it is given back with the last view of it."""
        nbytes = max(prod(shape) * np.dtype(dtype).itemsize, 1)
        with self.calling(f"lock {nbytes} bytes of host memory") as check:
            address = int(check(self._cu.cuMemHostAlloc(nbytes, 0)))
        return host_array(address, shape, np.dtype(dtype), self._give_back_host)

    def new_stream(self) -> Stream:
        with self.calling("make a stream"):
            inner = self._device.create_stream(options=self._core.StreamOptions(nonblocking=True))
        self._others.add(inner)
        return CudaCoreStream(inner)

    def copy_in(self, address: int, array: npt.NDArray[Any], stream: Stream) -> None:
        check_array(array, "copy to the device")
        if not array.nbytes:
            return  # whether the driver takes a copy of nothing is not written anywhere
        with self.calling(f"copy {array.nbytes} bytes to the device") as check:
            is_pinned = self._refuse_recording(array, stream, check)
            check(self._cu.cuMemcpyHtoDAsync(address, array.ctypes.data, array.nbytes, stream.handle))
            if not is_pinned:
                # The driver may read pageable memory later: the manual leaves open when it is done with it.
                check(self._cu.cuStreamSynchronize(stream.handle))

    def copy_out(self, array: npt.NDArray[Any], address: int, stream: Stream) -> None:
        check_array(array, "copy from the device")
        if not array.nbytes:
            return
        with self.calling(f"copy {array.nbytes} bytes from the device") as check:
            self._refuse_recording(array, stream, check)
            check(self._cu.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, stream.handle))

    def copy_on(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        with self.calling(f"copy {nbytes} bytes on the device") as check:
            if nbytes:
                check(self._cu.cuMemcpyDtoDAsync(target, source, nbytes, stream.handle))

    def fill(self, address: int, byte: int, nbytes: int, stream: Stream) -> None:
        with self.calling(f"fill {nbytes} bytes on the device") as check:
            if nbytes:
                check(self._cu.cuMemsetD8Async(address, byte, nbytes, stream.handle))

    def launch(self, kernel: Kernel, launch: Launch, args: Sequence[np.generic], stream: Stream) -> None:
        check_launch(kernel.name, launch, args, self.info, self.features)
        with self.calling(f"launch {kernel.name}") as check:
            own = cast(CudaCoreKernel, kernel)
            own.check_arguments(args)
            own.allow(launch, check)
            self._core.launch(inner_of(stream), launch_config(self._core, launch), own.inner, *args)

    def blocks_per_multiprocessor(self, kernel: Kernel, block: int, shared_bytes: int) -> int:
        if shared_bytes > self.info.max_shared_bytes:
            return 0
        with self.calling(f"ask how many blocks of {kernel.name} fit") as check:
            own = cast(CudaCoreKernel, kernel)
            own.allow(Launch(1, block, shared_bytes), check)
            return int(own.inner.occupancy.max_active_blocks_per_multiprocessor(block, shared_bytes))

    def clusters_at_once(self, kernel: Kernel, launch: Launch) -> int:
        if launch.cluster > self.features.max_cluster or launch.shared_bytes > self.info.max_shared_bytes:
            return 0
        if launch.cluster == 1:
            blocks = self.blocks_per_multiprocessor(kernel, launch.block, launch.shared_bytes)
            return blocks * self.info.num_multiprocessors
        own = cast(CudaCoreKernel, kernel)
        if launch not in own.clusters:  # plans ask again while a graph is recorded, and it names the default stream
            own.clusters[launch] = self._ask_clusters(own, launch)
        return own.clusters[launch]

    def _ask_clusters(self, kernel: CudaCoreKernel, launch: Launch) -> int:
        try:
            with self.calling(f"ask how many clusters of {kernel.name} fit") as check:
                kernel.allow(launch, check)
                config, stream = launch_config(self._core, launch), self._device.default_stream
                return int(kernel.inner.occupancy.max_active_clusters(config, stream=stream))
        except CudaError as error:
            if error.code in _NO_SUCH_CLUSTER:
                return 0
            raise

    def new_event(self) -> Event:
        with self.calling("make an event"):
            inner = self._device.create_event(options=self._core.EventOptions(timing_enabled=True))
        self._others.add(inner)
        return CudaCoreEvent(inner)

    def record(self, event: Event, stream: Stream) -> None:
        with self.calling("record an event"):
            inner_of(stream).record(inner_of(event))

    def elapsed_ms(self, start: Event, end: Event) -> float:
        with self.calling("read the time between two events"):
            inner_of(end).sync()
            return float(inner_of(end) - inner_of(start))

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        action = "record a CUDA graph"
        with self.calling(action):
            builder = inner_of(stream).create_graph_builder()
            # Relaxed: a kernel's first launch loads it, which is no part of the graph and must be allowed meanwhile.
            builder.begin_building("relaxed")
        try:
            work()  # outside the guard: its errors are its own
            with self.calling(action):
                inner = builder.end_building().complete()
        except BaseException:
            with suppress(Exception), self.current():  # the stream must leave the recording, whatever came of it
                builder.end_building()
            raise
        finally:
            with suppress(Exception), self.current():
                builder.close()
        self._others.add(inner)
        return CudaCoreGraph(inner, self.calling)

    @contextmanager
    def current(self) -> Iterator[None]:
        action = "make the GPU's context current"
        with self._guard(action):
            self._checker(action)(self._cu.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            self._cu.cuCtxPopCurrent()

    def synchronize(self, stream: Stream | None = None) -> None:
        with self.calling("finish the work on the GPU") as check:
            # Not Device.sync: that is a call of the CUDA runtime, whose errors have other names.
            check(self._cu.cuCtxSynchronize() if stream is None else self._cu.cuStreamSynchronize(stream.handle))

    def close(self) -> None:
        """Free memory, graphs, events and streams. The primary context stays: others in the process may use it."""
        if self._guard.is_closed:
            return
        for allocation in list(self._memory):
            allocation.free()
        with suppress(KplError), self.calling("close the driver"):
            for inner in list(self._others):
                with suppress(Exception):  # nothing is left to do about a stream of a lost context
                    inner.close()
        self._guard.is_closed = True

    def _checker(self, action: str) -> Check:
        def check(answer: tuple[Any, ...]) -> Any:
            if int(answer[0]):
                raise failure(int(answer[0]), action)
            return answer[1] if len(answer) > 1 else None

        return check

    def _refuse_recording(self, array: npt.NDArray[Any], stream: Stream, check: Check) -> bool:
        """Whether ``array`` is page-locked. If not, a graph would read or write its address long after: `CudaError`."""
        attribute = self._cu.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
        status, kind = self._cu.cuPointerGetAttribute(attribute, array.ctypes.data)
        if not int(status) and int(kind) == _HOST_MEMORY:
            return True
        if int(check(self._cu.cuStreamIsCapturing(stream.handle))):
            raise CudaError("cannot record a copy of pageable memory in a CUDA graph: copy from or to a pinned() array")
        return False

    def _give_back(self, address: int) -> None:
        self._quietly(self._cu.cuMemFree, address)

    def _give_back_host(self, address: int) -> None:
        self._quietly(self._cu.cuMemFreeHost, address)

    def _quietly(self, free: Callable[[int], Any], address: int) -> None:
        """Memory of a lost context is lost with it: there is nobody to tell."""
        if not int(self._cu.cuCtxPushCurrent(self._context)[0]):
            free(address)
            self._cu.cuCtxPopCurrent()


def open_cuda_core(ordinal: int, images: Images) -> CudaCoreDriver:
    """GPU ``ordinal`` through the installed cuda.core. `BackendUnavailableError` or `CudaError` if it does not open."""
    try:
        import cuda.core
        from cuda.bindings import driver
        from cuda.core._utils.cuda_utils import CUDAError
    except ImportError as error:
        raise BackendUnavailableError(
            f'cuda.core does not load: {error}. Install it again: pip install --force-reinstall "kpl-engine[cuda]"'
        ) from error
    # Beside CUDAError: a function or library that is missing is a RuntimeError, a grid that is too large a ValueError.
    errors = (CUDAError, RuntimeError, ValueError)
    return CudaCoreDriver(cuda.core, driver, errors, ordinal, images, f"cuda.core {cuda.core.__version__}")
