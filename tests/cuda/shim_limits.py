"""What the pretended GPU can hold at once, and what a launch on a real one is refused for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kpl_engine.cuda.base import DeviceInfo, Features, Launch
from kpl_engine.errors import CudaError, CudaLaunchError

from .shim_objects import ShimKernel

__all__ = ["blocks_per_multiprocessor", "check_args", "check_launch", "clusters_at_once"]

_TYPES = {"i": np.int32, "l": np.int64, "f": np.float32, "d": np.float64, "p": np.uint64}
_THREADS_PER_SM = 2048
_BLOCKS_PER_SM = 32
_SHARED_PER_SM = 233472
_SHARED_RESERVED = 1024  # of each block, by the system


def blocks_per_multiprocessor(info: DeviceInfo, kernel: ShimKernel, block: int, shared_bytes: int) -> int:
    """Blocks of this shape on one multiprocessor; registers are not counted."""
    if block > kernel.max_threads or shared_bytes > info.max_shared_bytes:
        return 0
    warps = -(-block // 32)
    by_shared = _SHARED_PER_SM // (shared_bytes + _SHARED_RESERVED)
    return min(_THREADS_PER_SM // (32 * warps), _BLOCKS_PER_SM, by_shared)


def clusters_at_once(info: DeviceInfo, features: Features, kernel: ShimKernel, launch: Launch) -> int:
    """Clusters of this shape on the whole GPU."""
    if launch.cluster > features.max_cluster:
        return 0
    resident = blocks_per_multiprocessor(info, kernel, launch.block, launch.shared_bytes)
    return resident * info.num_multiprocessors // launch.cluster


def check_launch(info: DeviceInfo, features: Features, kernel: ShimKernel, launch: Launch) -> None:
    """Raises what the driver would."""
    limit = kernel.max_threads
    if not 1 <= launch.block <= limit:
        raise CudaLaunchError(f"{kernel.name}: expected 1 to {limit} threads a block, got {launch.block}")
    if not 1 <= launch.grid < 2**31:
        raise CudaLaunchError(f"{kernel.name}: expected 1 to 2147483647 blocks, got {launch.grid}")
    if not 0 <= launch.shared_bytes <= info.max_shared_bytes:
        raise CudaLaunchError(
            f"{kernel.name}: expected 0 to {info.max_shared_bytes} bytes of shared memory, got {launch.shared_bytes}"
        )
    if not 1 <= launch.cluster <= features.max_cluster or launch.grid % launch.cluster != 0:
        raise CudaLaunchError(
            f"{kernel.name}: expected clusters of 1 to {features.max_cluster} blocks that divide the grid, "
            f"got {launch.cluster} of {launch.grid}"
        )
    if launch.cluster > 1 and clusters_at_once(info, features, kernel, launch) == 0:
        raise CudaLaunchError(f"{kernel.name}: no cluster of {launch} fits {info.num_multiprocessors} SMs")
    if launch.is_cooperative:
        _check_cooperative(info, features, kernel, launch)


def _check_cooperative(info: DeviceInfo, features: Features, kernel: ShimKernel, launch: Launch) -> None:
    if not features.has_cooperative:
        raise CudaError("this driver has no cooperative launches; ask features.has_cooperative first")
    each = blocks_per_multiprocessor(info, kernel, launch.block, launch.shared_bytes)
    at_once = each * info.num_multiprocessors
    if launch.grid > at_once:
        raise CudaLaunchError(
            f"{kernel.name}: a cooperative launch must be resident at once: {at_once} blocks of this shape fit, "
            f"got {launch.grid}"
        )


def check_args(kernel: ShimKernel, args: Sequence[np.generic]) -> None:
    """Exactly the C types of the parameters."""
    if len(args) != len(kernel.types):
        raise CudaLaunchError(f"{kernel.name}: expected {len(kernel.types)} arguments, got {len(args)}")
    for place, (code, value) in enumerate(zip(kernel.types, args, strict=True)):
        if type(value) is not _TYPES[code] and np.dtype(type(value)) != np.dtype(_TYPES[code]):
            raise CudaLaunchError(
                f"{kernel.name}: argument {place}: expected {_TYPES[code].__name__}, got {type(value).__name__}"
            )
