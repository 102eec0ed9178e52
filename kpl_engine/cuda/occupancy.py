"""How many blocks a multiprocessor holds at once, from its limits, for adapters that cannot ask the driver."""

from __future__ import annotations

__all__ = ["resident_blocks"]

_WARP = 32
_REGISTER_UNIT = 256  # registers are given to warps in units of this many, since compute capability 3.5
_SHARED_UNIT = 128  # bytes; 256 before compute capability 8.0, which can only make the answer too high by rounding


def resident_blocks(
    block: int,
    *,
    registers: int,
    shared_bytes: int,
    max_threads: int,
    max_registers: int,
    max_shared: int,
    reserved_shared: int,
    max_blocks: int,
) -> int:
    """The least of what threads, registers, shared memory and the number of blocks allow; 0 if not even one fits.

    Parameters
    ----------
    block : int
        Threads of a block.
    registers : int
        Of a thread.
    shared_bytes : int
        Of a block, static and dynamic.
    max_threads, max_registers, max_shared, max_blocks : int
        Of a multiprocessor.
    reserved_shared : int
        Bytes the system takes of each block.

    Notes
    -----
    CUDA C++ Programming Guide, "Hardware Multithreading". Warps are dealt to four schedulers, each with a quarter of
    the registers, so a block's warps must fit by quarters.
    """
    warps = -(-block // _WARP)
    found = [max_blocks, max_threads // (warps * _WARP)]
    if registers:
        of_warp = -(-registers * _WARP // _REGISTER_UNIT) * _REGISTER_UNIT
        warps_held = max_registers // 4 // of_warp * 4
        found.append(warps_held // warps)
    shared = -(-(shared_bytes + reserved_shared) // _SHARED_UNIT) * _SHARED_UNIT
    if shared:
        found.append(max_shared // shared)
    return max(0, min(found))
