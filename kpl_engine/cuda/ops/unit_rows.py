"""Launches ``kernels/unit_rows.cu``: rows to unit length on the device, and which were no unit vectors."""

from __future__ import annotations

import numpy as np

from kpl_engine.cuda.base import Launch
from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.errors import ShapeError

__all__ = ["UnitRows"]

_BLOCK = 256
_WARPS = _BLOCK // 32


class UnitRows:
    """Keeps count over several launches until it is asked.

    Parameters
    ----------
    context : Context
    max_error : float
        How far from 1 the length of a unit row may be.
    """

    def __init__(self, context: Context, max_error: float) -> None:
        self._context, self._max_error = context, max_error
        self._found: DeviceArray | None = None
        self._num_rows = 0

    def scale(self, rows: DeviceArray) -> None:
        """Rows (n, d) float32 to unit length in place; those that are no unit vectors stay and are counted."""
        if rows.dtype != np.float32 or len(rows.shape) != 2 or not 1 <= rows.shape[1] < 1 << 31:
            raise ShapeError(f"rows on the device: expected (n, d) of float32, got {rows.shape} of {rows.dtype}")
        n, d = rows.shape
        if n == 0:
            return
        kernel = self._context.kernel("unit_rows", "unit_rows")
        launch = Launch(grid=-(-n // _WARPS), block=_BLOCK)
        sizes = np.int64(n), np.int32(d), np.int64(self._num_rows)
        self._context.launch(kernel, launch, rows, *sizes, np.float64(self._max_error), self._counters())
        self._num_rows += n

    def take(self) -> tuple[int, int]:
        """How many bad rows there were since the last call, and the place of the first among all rows since; waits.

        The second number means nothing where the first is 0.
        """
        self._num_rows = 0
        if self._found is None:
            return 0, 0
        less_one, first = self._context.download(self._found).tolist()
        self._clear(self._found)
        return (less_one + 1) % (1 << 64), first

    def _counters(self) -> DeviceArray:
        if self._found is None:
            self._found = self._context.empty((2,), np.uint64)
            self._clear(self._found)
        return self._found

    def _clear(self, found: DeviceArray) -> None:
        # All ones: where a count ends one short of its start and a minimum begins
        self._context.driver.fill(found.address, 0xFF, found.nbytes, self._context.stream)
