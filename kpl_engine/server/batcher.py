"""Which images go through an encoder next. Pure: no threads, no I/O, the clock is an argument."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from itertools import count
from typing import Generic, Protocol, TypeVar

from kpl_engine.server.parts import Lane

__all__ = ["Batcher", "Line", "Waiting", "batch_size", "padded_size"]

_FEWEST_DEAD = 16  # entries that `forget` leaves in the heap before it is rebuilt


class Waiting(Protocol):
    """What waits in a line. ``is_dropped``: nobody wants it any more."""

    @property
    def deadline_s(self) -> float:
        """Past this it is not worth serving."""

    @property
    def is_dropped(self) -> bool:
        """Its request is over."""


T = TypeVar("T", bound=Waiting)
_Entry = tuple[int, int, int, T]  # priority, arrival, order of `put`


class Line(Generic[T]):
    """Things in the order (priority, arrival, `put`). Whoever drops some of them says how many (`forget`)."""

    def __init__(self) -> None:
        self._heap: list[_Entry[T]] = []
        self._num_live = 0
        self._order = count()

    def __len__(self) -> int:
        return self._num_live

    def put(self, item: T, priority: int, arrival: int) -> None:
        """``priority`` 1 before 2 before 3; ``arrival`` is the rank of its request."""
        heapq.heappush(self._heap, (priority, arrival, next(self._order), item))
        self._num_live += 1

    def take(self, most: int, now: float) -> tuple[list[T], list[T]]:
        """The first ``most`` worth serving, and those before them whose deadline passed."""
        entries, expired = self._pop(most, now)
        return [entry[3] for entry in entries], expired

    def take_sized(self, lane: Lane, now: float) -> tuple[list[T], list[T]]:
        """As `take`, as many as ``lane`` runs at once."""
        entries, expired = self._pop(lane.buckets[-1], now)
        size = batch_size(lane, len(entries))
        for entry in entries[size:]:
            heapq.heappush(self._heap, entry)
        self._num_live += len(entries) - size
        return [entry[3] for entry in entries[:size]], expired

    def forget(self, num_items: int) -> None:
        """So many of those in the line have become ``is_dropped``; their memory is given back soon."""
        self._num_live -= num_items
        if len(self._heap) - self._num_live > max(self._num_live, _FEWEST_DEAD):
            self._heap = [entry for entry in self._heap if not entry[3].is_dropped]
            heapq.heapify(self._heap)

    def _pop(self, most: int, now: float) -> tuple[list[_Entry[T]], list[T]]:
        entries: list[_Entry[T]] = []
        expired: list[T] = []
        while self._heap and len(entries) < most:
            entry = heapq.heappop(self._heap)
            if entry[3].is_dropped:
                continue
            self._num_live -= 1
            if entry[3].deadline_s <= now:
                expired.append(entry[3])
            else:
                entries.append(entry)
        return entries, expired


class Batcher(Generic[T]):
    """A line for each encoder. An encoder that frees up takes the largest batch that waits: no delay is added."""

    def __init__(self) -> None:
        self._lines: OrderedDict[Lane, Line[T]] = OrderedDict()  # those that wait, the next to be served first

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def put(self, lane: Lane, item: T, priority: int, arrival: int) -> None:
        """See `Line.put`."""
        line = self._lines.get(lane)
        if line is None:
            line = self._lines[lane] = Line()
        line.put(item, priority, arrival)

    def next_lane(self, instance: int) -> Lane | None:
        """The lane whose turn it is among those that have something waiting for this instance."""
        for lane, line in self._lines.items():
            if len(line) and instance < len(lane.encoders):
                return lane
        return None

    def take(self, lane: Lane, now: float) -> tuple[list[T], list[T]]:
        """A batch of ``lane``, and those that expired; then it is the turn of another."""
        line = self._lines.pop(lane)
        batch, expired = line.take_sized(lane, now)
        if len(line):
            self._lines[lane] = line
        return batch, expired

    def forget(self, lane: Lane, num_items: int) -> None:
        """See `Line.forget`."""
        line = self._lines.get(lane)
        if line is not None and num_items:
            line.forget(num_items)
            if not len(line):
                del self._lines[lane]


def batch_size(lane: Lane, num_waiting: int) -> int:
    """How many of ``num_waiting`` images to run: a GPU all that fit, a CPU the largest bucket that they fill.

    A CPU's time grows with the batch, so padding would be paid in full; on a GPU it is nearly free.
    """
    if lane.pads:
        return min(num_waiting, lane.buckets[-1])
    return max((bucket for bucket in lane.buckets if bucket <= num_waiting), default=0)


def padded_size(lane: Lane, num_images: int) -> int:
    """Rows the encoder is given for ``num_images``: one of the sizes it was warmed with."""
    return _first_at_least(lane.buckets, num_images) if lane.pads else num_images


def _first_at_least(buckets: Sequence[int], num_images: int) -> int:
    return next((bucket for bucket in buckets if bucket >= num_images), num_images)
