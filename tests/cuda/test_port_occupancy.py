"""Blocks that a multiprocessor holds: worked out by hand from the limits of compute capability 9.0."""

import pytest

from kpl_engine.cuda.occupancy import resident_blocks

HOPPER = {
    "max_threads": 2048,
    "max_registers": 65536,
    "max_shared": 228 << 10,
    "reserved_shared": 1024,
    "max_blocks": 32,
}


@pytest.mark.parametrize(
    ("block", "registers", "shared_bytes", "blocks"),
    [
        (32, 16, 0, 32),  # the number of blocks
        (1024, 32, 0, 2),  # threads
        (1024, 33, 0, 1),  # 40 registers a thread after rounding: 48 warps fit, 64 do not
        (1024, 65, 0, 0),  # 72 registers a thread: 28 warps fit
        (128, 40, 0, 12),
        (256, 255, 0, 1),
        (33, 32, 0, 32),  # two warps
        (96, 128, 0, 5),
        (128, 16, 227 << 10, 1),
        (128, 16, 113 << 10, 2),
        (128, 16, (113 << 10) + 1, 1),  # the kilobyte that the system takes of each block counts
    ],
)
def test_the_scarcest_decides(block, registers, shared_bytes, blocks):
    assert resident_blocks(block, registers=registers, shared_bytes=shared_bytes, **HOPPER) == blocks
