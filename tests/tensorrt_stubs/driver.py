"""A GPU that is late on purpose: what is put into a stream happens at `synchronize`, on the host's memory."""

from __future__ import annotations

import ctypes
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from kpl_engine.cuda.base import DeviceInfo, Features
from kpl_engine.errors import CudaError, CudaMemoryError

GPU = "NVIDIA H100 80GB HBM3"


class Memory:
    """Device memory: host memory aligned to 256 bytes, freed once."""

    def __init__(self, driver, nbytes):
        self._held = np.full(nbytes + 256, 0xA5, dtype=np.uint8)
        self.address = -(-self._held.ctypes.data // 256) * 256
        self.nbytes = nbytes
        self._driver = driver
        driver.live[self.address] = nbytes

    def free(self):
        self._driver.live.pop(self.address, None)

    def __del__(self):
        self.free()


class LateDriver:
    """`Driver` on the host. A pinned array that is overwritten before its copy was made gives wrong numbers."""

    def __init__(self, gpu=GPU, capability=(9, 0), num_multiprocessors=132, has_graphs=True):
        self.name = "late"
        self.notes = ()
        self.info = DeviceInfo(0, gpu, capability, num_multiprocessors, 232448, 50 << 20, 80 << 30, 13000)
        self.features = Features(has_graphs=has_graphs, has_cooperative=False, max_cluster=1)
        self.live = {}  # address -> bytes
        self.queue = []
        self.recording = None
        self.num_captures = self.num_replays = 0
        self.capture_error = None
        self.free_bytes = None  # None is plenty
        self.is_closed = False
        self._pinned = []
        self._depth = threading.local()

    def is_current(self):
        return getattr(self._depth, "value", 0) > 0

    @contextmanager
    def current(self):
        assert not self.is_closed
        self._depth.value = getattr(self._depth, "value", 0) + 1
        try:
            yield
        finally:
            self._depth.value -= 1

    def put(self, work):
        """Into the stream, or into the graph that is recorded."""
        (self.queue if self.recording is None else self.recording).append(work)

    def holds(self, address, nbytes):
        return any(start <= address and address + nbytes <= start + size for start, size in self.live.items())

    def _move(self, target, source, nbytes):
        ctypes.memmove(target, source, nbytes)

    def load(self, source):
        return SimpleNamespace(kernel=lambda name: SimpleNamespace(name=name))

    def allocate(self, nbytes):
        if self.free_bytes is not None and nbytes > self.free_bytes:
            raise CudaMemoryError(f"cannot allocate {nbytes} bytes: out of memory", 2)
        return Memory(self, nbytes)

    def pinned(self, shape, dtype):
        array = np.empty(shape, dtype)
        self._pinned.append(array)
        return array

    def _is_pinned(self, array):
        return any(np.shares_memory(array, pinned) for pinned in self._pinned)

    def new_stream(self):
        return SimpleNamespace(handle=0x1234)

    def copy_in(self, address, array, stream):
        assert array.flags.c_contiguous
        assert self.holds(address, array.nbytes)
        held = array if self._is_pinned(array) else array.copy()
        self.put(lambda: self._move(address, held.ctypes.data, held.nbytes))

    def copy_out(self, array, address, stream):
        assert array.flags.c_contiguous
        assert self.holds(address, array.nbytes)
        self.put(lambda: self._move(array.ctypes.data, address, array.nbytes))

    def copy_on(self, target, source, nbytes, stream):
        assert self.holds(target, nbytes)
        assert self.holds(source, nbytes)
        self.put(lambda: self._move(target, source, nbytes))

    def fill(self, address, byte, nbytes, stream):
        assert self.holds(address, nbytes)
        self.put(lambda: ctypes.memset(address, byte, nbytes))

    def launch(self, kernel, launch, args, stream):
        assert kernel.name == "unit_rows"
        self.put(lambda: _unit_rows(*(value.item() for value in args)))

    def capture(self, stream, work):
        assert not self.queue, "a graph is recorded while work is under way"
        if self.capture_error is not None:
            raise self.capture_error
        self.recording = []
        try:
            work()
            recorded = self.recording
        finally:
            self.recording = None
        self.num_captures += 1
        return Recorded(self, recorded)

    def synchronize(self, stream=None):
        if self.is_closed:
            raise CudaError("this driver was closed")
        assert self.recording is None
        while self.queue:
            self.queue.pop(0)()

    def close(self):
        self.is_closed = True


class Recorded:
    def __init__(self, driver, recorded):
        self._driver, self._recorded = driver, recorded

    def launch(self, stream):
        self._driver.num_replays += 1
        self._driver.queue.extend(self._recorded)


def view(address, shape, dtype):
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=dtype).reshape(shape)


def _unit_rows(address, n, d, start, max_error, found):
    rows, counts = view(address, (n, d), np.float32), view(found, (2,), np.uint64)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    bad = np.flatnonzero(~(np.abs(norms - 1) <= max_error))
    good = np.setdiff1d(np.arange(n), bad)
    rows[good] = rows[good] / norms[good, None]
    with np.errstate(over="ignore"):
        counts[0] += np.uint64(len(bad))
    counts[1] = min([*(bad + start).tolist(), counts[1].item()])
