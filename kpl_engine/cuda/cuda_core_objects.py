"""What `CudaCoreDriver` hands out: kernels, modules, streams, events and graphs around those of cuda.core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from kpl_engine.cuda.base import DeviceInfo, Kernel, Launch, Stream
from kpl_engine.cuda.failures import no_kernel
from kpl_engine.errors import CudaError, CudaLaunchError

__all__ = [
    "PORTABLE_CLUSTER",
    "Calling",
    "Check",
    "CudaCoreEvent",
    "CudaCoreGraph",
    "CudaCoreKernel",
    "CudaCoreModule",
    "CudaCoreStream",
    "device_info",
    "inner_of",
    "launch_config",
]

PORTABLE_CLUSTER = 8  # blocks; every GPU with clusters takes it
_SHARED_WITHOUT_ASKING = 48 << 10  # bytes a block may have before its kernel opts in to more

# Takes an answer of the bindings, (status, value): raises the status by name or gives the value.
Check = Callable[[tuple[Any, ...]], Any]
# `CudaCoreDriver.calling`.
Calling = Callable[[str], AbstractContextManager[Check]]


class CudaCoreKernel:
    """A kernel, and what it was allowed so far.

    Parameters
    ----------
    name : str
    inner : cuda.core.Kernel
    bindings : module
        ``cuda.bindings.driver``.
    device : CUdevice
    """

    def __init__(self, name: str, inner: Any, bindings: Any, device: Any) -> None:
        self.name = name
        self.inner = inner
        self._cu = bindings
        self._device = device
        self._allowed_shared = _SHARED_WITHOUT_ASKING
        self._allowed_cluster = PORTABLE_CLUSTER
        self._sizes: tuple[int, ...] | None = None
        self.clusters: dict[Launch, int] = {}  # how many run at once, by what was asked

    def allow(self, launch: Launch, check: Check) -> None:
        """Opt in to much shared memory and to clusters above 8 blocks, once each."""
        which = self._cu.CUfunction_attribute
        if launch.shared_bytes > self._allowed_shared:
            self._set(which.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, launch.shared_bytes, check)
            self._allowed_shared = launch.shared_bytes
        if launch.cluster > self._allowed_cluster:
            self._set(which.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1, check)
            self._allowed_cluster = launch.cluster

    def check_arguments(self, args: Sequence[np.generic]) -> None:
        """Raise `CudaLaunchError` unless there is one argument for each parameter, and each of its size.

        The driver copies as many bytes as the parameter has, whatever it is given.
        """
        if self._sizes is None:
            self._sizes = self._parameter_sizes()
        got = tuple(value.dtype.itemsize for value in args)
        if self._sizes and got != self._sizes:
            raise CudaLaunchError(
                f"cannot launch {self.name}: expected arguments of {self._sizes} bytes, got {got}; "
                "the compiled kernels are of another version, or its launcher is wrong"
            )

    def _parameter_sizes(self) -> tuple[int, ...]:
        """Empty where the driver cannot tell (before CUDA 12.4)."""
        try:
            return tuple(int(parameter.size) for parameter in self.inner.arguments_info)
        except (NotImplementedError, RuntimeError):
            return ()

    def _set(self, attribute: Any, value: int, check: Check) -> None:
        check(self._cu.cuKernelSetAttribute(attribute, value, self.inner.handle, self._device))


class CudaCoreModule:
    """A loaded image."""

    def __init__(self, source: str, inner: Any, calling: Calling, bindings: Any, device: Any) -> None:
        self._source = source
        self._inner = inner
        self._calling = calling
        self._cu = bindings
        self._device = device

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name; `CudaModuleError` if there is none."""
        try:
            with self._calling(f"find the kernel {name} in {self._source}"):
                return CudaCoreKernel(name, self._inner.get_kernel(name), self._cu, self._device)
        except CudaError as error:
            if error.code == 500:
                raise no_kernel(name, self._source) from error
            raise


class CudaCoreStream:
    """A stream that does not wait for the default one."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.handle = int(inner.handle)


class CudaCoreEvent:
    """An event with timing."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class CudaCoreGraph:
    """A graph ready to run. What its kernels read and write must be kept by whoever captured it."""

    def __init__(self, inner: Any, calling: Calling) -> None:
        self.inner = inner
        self._calling = calling

    def launch(self, stream: Stream) -> None:
        """Run it once, in order with what else is in ``stream``."""
        with self._calling("launch a CUDA graph"):
            self.inner.launch(inner_of(stream))


def inner_of(wrapped: Any) -> Any:
    """cuda.core's object in one of ours."""
    return wrapped.inner


def launch_config(core: Any, launch: Launch) -> Any:
    """cuda.core's own; it counts the grid in clusters where there are any."""
    clusters = {} if launch.cluster == 1 else {"cluster": launch.cluster}
    return core.LaunchConfig(
        grid=launch.grid // launch.cluster,
        block=launch.block,
        shmem_size=launch.shared_bytes,
        is_cooperative=launch.is_cooperative,
        **clusters,
    )


def device_info(device: Any, ordinal: int, bindings: Any, handle: Any, check: Check) -> DeviceInfo:
    """The GPU as cuda.core and the driver describe it."""
    found = device.properties
    return DeviceInfo(
        ordinal=ordinal,
        name=str(device.name),
        compute_capability=(int(device.compute_capability[0]), int(device.compute_capability[1])),
        num_multiprocessors=int(found.multiprocessor_count),
        max_shared_bytes=int(found.max_shared_memory_per_block_optin),
        l2_bytes=int(found.l2_cache_size),
        total_bytes=int(check(bindings.cuDeviceTotalMem(handle))),
        driver_version=int(check(bindings.cuDriverGetVersion())),
    )
