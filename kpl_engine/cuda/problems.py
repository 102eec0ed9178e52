"""Problems in device memory: the table that kernels read, the arrays it points to, the results in one copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float64
from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.errors import ConfigError, ShapeError

__all__ = ["COUNTERS", "NUM_COUNTERS", "PROBLEM", "RECORD", "Capacity", "ProblemTable", "Result"]

COUNTERS = {"text_proxy": 0, "labels": 1, "answer": 2, "schedule": 3, "closed_form": 4}
"""Which counter of a problem belongs to which op."""

NUM_COUNTERS = 64  # kCounters of problem.cuh: as far apart as `_ALIGNMENT` puts the counters of two problems
_ALIGNMENT = 256  # an array starts where any vector load and any bulk copy may start

RECORD = np.dtype(
    [(name, "<i8") for name in ("iterations", "halvings", "converged", "frozen", "num_hardened", "form")]
    + [(name, "<i8") for name in ("fault", "fits")]
    + [(name, "<f8") for name in ("gradient_norm", "mass", "residual", "lr")]
)
"""``kpl::Record`` of kernels/device/problem.cuh."""

_SIZES = ("n", "d", "c", "M", "k")
_ARRAYS: dict[str, tuple[np.dtype[Any], tuple[str, ...]]] = {  # by name: dtype and shape
    "record": (RECORD, ("1",)),
    "counters": (np.dtype("<u4"), ("counters",)),
    **{name: (np.dtype("<f4"), ("c", "d")) for name in ("out_proxies", "out_discriminants", "T")},
    **{name: (np.dtype("<f4"), ("n", "c")) for name in ("out_logits", "out_scores", "out_probabilities")},
    "out_labels": (np.dtype("<i8"), ("n",)),
    "out_undecided": (np.dtype("|u1"), ("n",)),
    "scores": (np.dtype("<f4"), ("M",)),
    "kept": (np.dtype("<i4"), ("c", "k")),
    "X": (np.dtype("<f4"), ("n", "d")),
    "E": (np.dtype("<f4"), ("M", "d")),
    "first": (np.dtype("<i4"), ("c + 1",)),
    "S": (np.dtype("<f8"), ("n", "c")),
    "P": (np.dtype("<f8"), ("n", "c")),
    "W": (np.dtype("<f8"), ("c", "d")),
    "prior": (np.dtype("<f8"), ("c",)),
    "workspace": (np.dtype("<f8"), ("workspace",)),
}
_CLEARED = ("record", "counters")
_RESULTS = ("record", "counters", *(name for name in _ARRAYS if name.startswith("out_")), "T", "scores", "kept", "S")
_POINTERS = (
    *("X", "E", "first", "T", "S", "P", "W", "prior", "scores", "kept", "workspace", "record"),
    *("out_proxies", "out_discriminants", "out_logits", "out_scores", "out_probabilities", "out_labels"),
    "out_undecided",
)

PROBLEM = np.dtype([(name, "<u8") for name in _POINTERS] + [(name, "<i8") for name in _SIZES])
"""``kpl::Problem`` of kernels/device/problem.cuh."""


@dataclass(frozen=True)
class Capacity:
    """The most that the arrays of one problem can hold; ``M`` descriptions in all, ``k`` kept of a class."""

    n: int
    d: int
    c: int
    M: int = 1
    k: int = 1


@dataclass(frozen=True)
class Result:
    """What came of one problem, on the host; see the fields of ``kpl::Problem``."""

    record: dict[str, float | int]
    T: npt.NDArray[np.float32]  # (c, d)
    S: npt.NDArray[np.float64]  # (n, c)
    scores: npt.NDArray[np.float32]  # (M,)
    kept: npt.NDArray[np.int32]  # (c, k)
    out_proxies: npt.NDArray[np.float32]  # (c, d)
    out_discriminants: npt.NDArray[np.float32]  # (c, d)
    out_logits: npt.NDArray[np.float32]  # (n, c)
    out_scores: npt.NDArray[np.float32]  # (n, c)
    out_probabilities: npt.NDArray[np.float32]  # (n, c)
    out_labels: npt.NDArray[np.int64]  # (n,)
    out_undecided: npt.NDArray[np.uint8]  # (n,)


class ProblemTable:
    """``num_problems`` problems of one capacity, with device memory for all of them.

    Sizes of single problems may be anything up to the capacity and change between runs; the addresses do not,
    so a captured graph stays good. Not safe for several threads at once, as its `Context`.

    Parameters
    ----------
    context : Context
    capacity : Capacity
        Sizes start at it.
    num_problems : int
    workspace_doubles : int
        Scratch of one problem: the most that any op of the run asks for.
    external : sequence of str
        Arrays that get no memory here because `bind` will point to others: the encoder's output for ``"X"``, one
        knowledge base for all problems for ``"E"`` and ``"first"``. Not those that `results` brings back.
    """

    def __init__(
        self,
        context: Context,
        capacity: Capacity,
        num_problems: int = 1,
        workspace_doubles: int = 0,
        external: Sequence[str] = (),
    ) -> None:
        if min(num_problems, *astuple(capacity)) < 1 or workspace_doubles < 0:
            raise ConfigError(f"problems: expected counts >= 1, got {num_problems} problems of {capacity}")
        if set(external) - set(_ARRAYS) or set(external) & set(_RESULTS):
            raise ConfigError(f"external: expected arrays other than results, got {', '.join(external)}")
        self.context, self.capacity, self.num_problems = context, capacity, num_problems
        self.workspace_doubles = workspace_doubles
        # Page-locked, so that setting a size or an address does not wait for the device. A copy under way that reads a
        # newer entry is followed by the copy of that entry.
        self._host = context.driver.pinned((num_problems,), PROBLEM)
        self._host[:] = np.zeros(1, PROBLEM)
        for name, size in zip(_SIZES, astuple(capacity), strict=True):
            self._host[name] = size
        self._slots: dict[str, tuple[int, int, Any]] = {}  # by name: first address, bytes apart, owner
        self._strides = {name: _round_up(self._nbytes(name)) for name in _ARRAYS if name not in external}
        self._results = self._allocate([name for name in _RESULTS if name in self._strides])
        self._allocate([name for name in self._strides if name not in self._slots])
        for name in _POINTERS:
            if name in self._slots and name != "prior":
                self._host[name] = [self._slot(name, problem).address for problem in range(num_problems)]
        self._device = context.empty((num_problems,), PROBLEM)
        self._pinned: npt.NDArray[Any] | None = None
        self._is_editing = False
        self._upload()
        self.clear()

    @property
    def device(self) -> DeviceArray:
        """The table itself, the ``const Problem*`` of the kernels."""
        return self._device

    @property
    def sizes(self) -> npt.NDArray[Any]:
        """Present sizes, a copy: fields n, d, c, M, k of (num_problems,) int64."""
        return np.asarray(self._host[list(_SIZES)].copy())

    def counters(self, op: str) -> DeviceArray:
        """The counter of ``op`` in the first problem; those of later problems follow `NUM_COUNTERS` apart."""
        start, _, owner = self._slots["counters"]
        return DeviceArray(start + 4 * COUNTERS[op], (1,), np.dtype("<u4"), owner)

    def set_sizes(self, **sizes: int | Sequence[int]) -> None:
        """Set any of n, c, M, k: one number for all problems or one each. A small copy, in stream order."""
        for name, value in sizes.items():
            if name not in _SIZES or name == "d":
                raise ConfigError(f"set_sizes: expected n, c, M or k, got {name!r}")
            wanted, most = np.asarray(value), int(getattr(self.capacity, name))
            if wanted.shape not in ((), (self.num_problems,)) or wanted.min() < 1 or wanted.max() > most:
                raise ShapeError(
                    f"{name}: expected a size from 1 to {most} or {self.num_problems} of them, got {value}; "
                    "make a table of a larger capacity"
                )
            self._host[name] = wanted
        self._upload()

    def bind(self, name: str, array: DeviceArray, problem: int | None = None) -> None:
        """Let one problem, or all, find ``name`` in memory of the caller, who keeps it alive."""
        if name not in _POINTERS:
            raise ConfigError(f"bind: expected one of {', '.join(_POINTERS)}, got {name!r}")
        self._host[name][slice(None) if problem is None else problem] = array.address
        self._upload()

    def set_prior(self, shares: Float64 | None, problem: int | None = None) -> None:
        """Expected class shares (c,) with sum 1, of one problem or of all; None: uniform."""
        for index in range(self.num_problems) if problem is None else (problem,):
            own = self._slot("prior", index)
            if shares is not None:
                self.context.write(own, np.ascontiguousarray(shares, dtype=np.float64))
            self._host["prior"][index] = 0 if shares is None else own.address
        self._upload()

    def write(self, name: str, array: npt.NDArray[Any], problem: int = 0) -> None:
        """Copy a host array of the problem's present shape, and of the field's dtype, to the device."""
        self.context.write(self.view(name, problem), array)

    def view(self, name: str, problem: int = 0) -> DeviceArray:
        """The array of one problem at its present shape, wherever it is bound."""
        dtype, letters = _ARRAYS[name]
        address = int(self._host[name][problem])
        owner = self._slots[name][2] if name in self._slots else None
        return DeviceArray(address, self._shape(letters, self._host[problem]), dtype, owner)

    def clear(self) -> None:
        """Zero records and barrier counters: before every run, as the first node of a captured one."""
        used = self.num_problems * sum(self._strides[name] for name in _CLEARED)
        self.context.driver.fill(self._results.address, 0, used, self.context.stream)

    def clear_counters(self) -> None:
        """Zero the barrier counters alone: before a launch whose teams differ from those of the launch before."""
        start, stride, _ = self._slots["counters"]
        self.context.driver.fill(start, 0, self.num_problems * stride, self.context.stream)

    def copy_back(self) -> None:
        """Start the one copy of all results into pinned memory; may be captured."""
        self.context.driver.copy_out(self.pinned(), self._results.address, self.context.stream)

    def pinned(self) -> npt.NDArray[Any]:
        """Where `copy_back` writes; allocated at the first call, which must come before a capture."""
        if self._pinned is None:
            self._pinned = self.context.driver.pinned((self._results.nbytes,), np.uint8)
        return self._pinned

    def results(self) -> list[Result]:
        """What the last `copy_back` brought, as arrays of their own; waits for the stream."""
        self.context.driver.synchronize(self.context.stream)
        return [self._result(problem) for problem in range(self.num_problems)]

    def _result(self, problem: int) -> Result:
        arrays = {}
        for name in _RESULTS:
            if name == "counters" or name not in self._slots:
                continue
            own = self._slot(name, problem)
            start = own.address - self._results.address
            arrays[name] = self.pinned()[start : start + own.nbytes].view(own.dtype).reshape(own.shape).copy()
        record = arrays.pop("record")[0]
        return Result({name: record[name].item() for name in RECORD.names or ()}, **arrays)

    def _allocate(self, names: Sequence[str]) -> DeviceArray:
        total = self.num_problems * sum(self._strides[name] for name in names)
        arena = self.context.empty((total,), np.uint8)
        start = arena.address
        for name in names:
            self._slots[name] = (start, self._strides[name], arena.owner)
            start += self.num_problems * self._strides[name]
        return arena

    def _slot(self, name: str, problem: int) -> DeviceArray:
        """The memory the table owns for ``name``, at the problem's present shape."""
        start, stride, owner = self._slots[name]
        dtype, letters = _ARRAYS[name]
        return DeviceArray(start + problem * stride, self._shape(letters, self._host[problem]), dtype, owner)

    def _nbytes(self, name: str) -> int:
        dtype, letters = _ARRAYS[name]
        return prod(self._shape(letters, self._host[0])) * dtype.itemsize

    def _shape(self, letters: tuple[str, ...], sizes: Any) -> tuple[int, ...]:
        counts = {name: int(sizes[name]) for name in _SIZES}
        counts |= {"1": 1, "counters": NUM_COUNTERS, "workspace": self.workspace_doubles, "c + 1": counts["c"] + 1}
        return tuple(counts[letter] for letter in letters)

    @contextmanager
    def editing(self) -> Iterator[None]:
        """Sizes, addresses and priors set inside the block go to the device in one copy at its end."""
        self._is_editing = True
        try:
            yield
        finally:
            self._is_editing = False
        self._upload()

    def _upload(self) -> None:
        if not self._is_editing:
            self.context.write(self._device, self._host)


def _round_up(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
