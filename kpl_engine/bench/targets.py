"""What takes the queries of LoadGen: one protocol for this process and for a server elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy.typing as npt

__all__ = ["ANSWERED", "BROKEN", "GONE", "TIMED_OUT", "Done", "Target"]

ANSWERED = frozenset({"200", "OK"})
BROKEN = "broken"  # the connection was
TIMED_OUT = "timed out"
GONE = frozenset({BROKEN, TIMED_OUT, "503", "UNAVAILABLE"})  # nobody is there; 429 is somebody who is busy
Done = Callable[[str], None]


class Target(Protocol):
    """Answers queries of pictures that are named by their index in the samples."""

    @property
    def how(self) -> str:
        """What takes the queries, as the report names it: "Engine.classify", "http://..."."""

    @property
    def most_at_once(self) -> int:
        """Pictures of one call; ``Offline``, whose query holds every picture, is cut into as many calls as it takes."""

    def submit(self, indices: Sequence[int], done: Done) -> None:
        """Begin one query. ``done`` is called once, from any thread, with "OK", "200", or the code of the failure.

        May return when the query is done (this process) or at once (a queue, a server).
        """

    def answer_of(self, indices: Sequence[int]) -> npt.NDArray[Any]:
        """Probabilities (n, c) that one query of these pictures is answered with; raises where it is not answered."""

    def close(self) -> None:
        """Free what it holds; queries under way may fail."""
