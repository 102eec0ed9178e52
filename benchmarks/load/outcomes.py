"""What became of each request, and what that says: rates, quantiles, refusals, late starts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ANSWERED = frozenset({"200", "OK"})
REFUSED = frozenset({"429", "503", "RESOURCE_EXHAUSTED", "UNAVAILABLE"})
LATE_S = 1e-3  # asyncio wakes up to a millisecond after the time it was asked for


@dataclass(frozen=True)
class Outcome:
    """One request; times are seconds of one clock.

    ``scheduled`` is when it was due: in an open loop an arrival drawn beforehand, in a closed loop the moment its
    client became free. ``is_right`` None: the answer was not looked at.
    """

    scheduled: float
    started: float
    done: float
    code: str
    num_images: int = 1
    is_right: bool | None = None


def quantile(ordered: Sequence[float], q: float) -> float | None:
    """The smallest value that at least a share ``q`` does not exceed; None with fewer than 1 / (1 - q) values.

    No interpolation: a tail is a value that was seen.
    """
    if not ordered or len(ordered) < round(1 / (1 - q)):
        return None
    return ordered[max(math.ceil(q * len(ordered)) - 1, 0)]


def latencies(values: Sequence[float]) -> dict[str, Any]:
    """Milliseconds of seconds: count, mean, p50, p90, p99, p99.9, most."""
    ordered = sorted(values)
    found: dict[str, Any] = {"count": len(ordered)}
    if ordered:
        found["mean_ms"] = sum(ordered) / len(ordered) * 1e3
        found["max_ms"] = ordered[-1] * 1e3
    for name, q in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("p99.9_ms", 0.999)):
        value = quantile(ordered, q)
        found[name] = None if value is None else value * 1e3
    return found


def _rate(good: Sequence[Outcome], begin: float, end: float) -> float:
    """Images a second answered between ``begin`` and ``end``.

    A server that works in batches answers in steps, and a window that cuts a step is wrong by up to one batch. So time
    runs from the last answer before the window to the last one inside it, unless the window ends in a pause longer
    than any inside it: then the server had stopped, and the pause counts.
    """
    inside = sorted((each for each in good if begin <= each.done < end), key=lambda each: each.done)
    if not inside:
        return 0.0
    first = max((each.done for each in good if each.done < begin), default=begin)
    times = [first, *(each.done for each in inside)]
    longest = max(after - before for before, after in itertools.pairwise(times))
    last = times[-1] if end - times[-1] <= longest else end
    return sum(each.num_images for each in inside) / (last - first)


def summarise(outcomes: Sequence[Outcome], begin: float, end: float) -> dict[str, Any]:
    """The window from ``begin`` to ``end`` (seconds of the same clock).

    Rates count what was *answered* inside the window. Latencies are of the requests *scheduled* inside it, from
    their schedule to their answer, however late that came: leaving out those that were late would be the omission
    that this generator exists to avoid.
    """
    inside = [each for each in outcomes if begin <= each.scheduled < end]
    good = [each for each in outcomes if each.code in ANSWERED]
    refused = [each for each in inside if each.code in REFUSED]
    late = [each for each in inside if each.started - each.scheduled > LATE_S]
    seconds = end - begin
    return {
        "seconds": seconds,
        "requests": len(inside),
        "images": sum(each.num_images for each in good),
        "codes": dict(Counter(each.code for each in inside)),
        "images_per_s": _rate(good, begin, end),
        "offered_images_per_s": sum(each.num_images for each in inside) / seconds,
        "checked": sum(each.is_right is not None for each in outcomes),
        "wrong": sum(each.is_right is False for each in outcomes),
        "latency": latencies([each.done - each.scheduled for each in inside if each.code in ANSWERED]),
        "refusal": latencies([each.done - each.scheduled for each in refused]),
        "late_starts": len(late),
        "latest_start_ms": max((each.started - each.scheduled for each in inside), default=0.0) * 1e3,
    }
