"""What a fat binary holds, read without a driver. Layout as nvcc 13 writes it; NVIDIA publishes none."""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["Entry", "entries", "fits"]

_MAGIC = 0xBA55ED50
_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of all entries
# kind, version, bytes of this header, bytes of the payload, 12 that are skipped, architecture, 8 skipped, flags
_ENTRY = struct.Struct("<HHIQ12xI8xQ")
_KINDS = {1: "ptx", 2: "cubin"}
_STEPS = (80, 90)  # tensor cores, clusters: from here on kernels use them (kernels/device/platform.cuh)
_ARCHITECTURE_SPECIFIC = 0x100000  # sm_90a and its like: runs on that very architecture only


@dataclass(frozen=True)
class Entry:
    """One compiled form; ``architecture`` is 90 for sm_90."""

    kind: str
    architecture: int
    is_specific: bool

    def runs_on(self, compute_capability: tuple[int, int]) -> bool:
        """Code runs on later minor versions of its architecture, PTX is compiled by the driver for any later one."""
        wanted = compute_capability[0] * 10 + compute_capability[1]
        if self.is_specific:
            return self.architecture == wanted
        if self.kind == "ptx":
            return self.architecture <= wanted
        return self.architecture // 10 == wanted // 10 and self.architecture <= wanted


def entries(image: bytes) -> list[Entry]:
    """All forms in the fat binary; `ValueError` when it is no whole one."""
    if len(image) < _HEADER.size:
        raise ValueError("too short for a fat binary")
    magic, _, at, length = _HEADER.unpack_from(image)
    end = at + length
    if magic != _MAGIC or end > len(image):
        raise ValueError("no fat binary, or a part of one")
    found = []
    while at < end:
        if at + _ENTRY.size > end:
            raise ValueError("the fat binary ends inside an entry")
        kind, _, header, payload, architecture, flags = _ENTRY.unpack_from(image, at)
        if header < _ENTRY.size or at + header + payload > end:
            raise ValueError("the fat binary ends inside an entry")
        if kind in _KINDS:
            found.append(Entry(_KINDS[kind], architecture, bool(flags & _ARCHITECTURE_SPECIFIC)))
        at += header + payload
    return found


def fits(image: bytes, compute_capability: tuple[int, int]) -> bool:
    """Whether it holds code for this GPU with all that launchers take for granted on it; False for a damaged one."""
    wanted = compute_capability[0] * 10 + compute_capability[1]
    least = max((step for step in _STEPS if step <= wanted), default=0)
    try:
        return any(entry.runs_on(compute_capability) and entry.architecture >= least for entry in entries(image))
    except ValueError:
        return False
