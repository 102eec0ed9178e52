"""When the next request runs out of time. Pure: no threads, the clock is an argument."""

from __future__ import annotations

import heapq
from collections.abc import Container

__all__ = ["Deadlines"]

_SPARE = 1024  # entries of requests that have left, before the heap is rebuilt


class Deadlines:
    """Deadlines of the requests ``alive``, by arrival. Most requests leave long before theirs: those are forgotten
    when they come to the front, or when they are more than half."""

    def __init__(self, alive: Container[int]) -> None:
        self._alive = alive
        self._heap: list[tuple[float, int]] = []  # deadline (s), arrival

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, deadline_s: float, arrival: int, num_alive: int) -> bool:
        """Whether this is now the nearest."""
        if len(self._heap) > 2 * num_alive + _SPARE:
            self._heap = [entry for entry in self._heap if entry[1] in self._alive]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (deadline_s, arrival))
        return self._heap[0][1] == arrival

    def take_due(self, now: float) -> list[int]:
        """Arrivals whose deadline passed, each once."""
        due = []
        while self._heap and (self._heap[0][1] not in self._alive or self._heap[0][0] <= now):
            arrival = heapq.heappop(self._heap)[1]
            if arrival in self._alive:
                due.append(arrival)
        return due

    def next_in(self, now: float) -> float | None:
        """Seconds to the nearest; None without one."""
        return max(self._heap[0][0] - now, 0.0) if self._heap else None
