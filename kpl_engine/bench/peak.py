"""The highest rate of ``Server`` whose 99th percentile keeps the bound, and the curve of the rates tried."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

from kpl_engine.bench.channel import Job
from kpl_engine.bench.child import Child, ChildError
from kpl_engine.bench.records import Probe
from kpl_engine.bench.scenarios import Progress
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.errors import ServiceError

__all__ = ["find_peak", "search"]

_FIRST_SHARE = 0.7  # of the capacity of a closed loop
_STEP = 1.4
_MOST_STEPS = 12  # 1.4^-12: a fiftieth of the first rate
_CLOSE = 1.05  # the peak is known to so much; two runs at one rate differ by as much


def find_peak(
    settings: BenchSettings,
    on_probe: Callable[[Probe], None],
    progress: Progress | None = None,
    *,
    start: Callable[[Job], Child] = Child,
) -> tuple[float | None, list[Probe]]:
    """The peak in queries a second, None where no rate keeps the bound, and every rate tried in order.

    All rates are tried in one process, whose answers are checked before the first and after each.

    Raises
    ------
    ServiceError
        The process failed or was lost, or an answer was wrong; ``on_probe`` has had what was measured.
    """
    probes: list[Probe] = []
    with tempfile.TemporaryDirectory(prefix="kpl-bench-") as folder:
        job = Job(settings, None, Path(folder))
        with start(job) as child:
            told = _wait_for(child, "capacity", progress)
            # One query alone already takes longer: the first rate is told, and lower ones could only say the same.
            is_hopeless = float(told["alone_ms"]) > settings.latency_bound_ms

            def probe(rate: float) -> bool:
                child.tell(repr(rate))
                found: Probe = _wait_for(child, "probe", progress)["record"]
                probes.append(found)
                on_probe(found)
                return found["keeps_bound"]

            peak = search(probe, _FIRST_SHARE * float(told["qps"]), 1 if is_hopeless else _MOST_STEPS)
    return peak, probes


def search(probe: Callable[[float], bool], first: float, most_steps: int = _MOST_STEPS) -> float | None:
    """The highest rate that ``probe`` said yes to, known to 5 %: bracketed by factors of 1.4, then bisected.

    None where even ``first`` / 50 was too much. ``first`` x 50 is as high as it looks. ``most_steps`` ends the
    bracketing earlier.
    """
    low: float | None = None
    high: float | None = None
    rate = first
    for _ in range(most_steps):
        if probe(rate):
            low = rate
            if high is not None:
                break
            rate *= _STEP
        else:
            high = rate
            if low is not None:
                break
            rate /= _STEP
    while low is not None and high is not None and high / low > _CLOSE:
        rate = sqrt(low * high)
        if probe(rate):
            low = rate
        else:
            high = rate
    return low


def _wait_for(child: Child, kind: str, progress: Progress | None) -> dict[str, Any]:
    try:
        for message in child.messages():
            if message["kind"] == kind:
                return message
            if message["kind"] == "progress" and progress is not None:
                progress(message["what"], message["share"])
            elif message["kind"] == "end":
                raise ServiceError(f"the search for the peak ended: {message['error']}")
    except ChildError as error:
        raise ServiceError(f"the search for the peak ended: {error}") from None
    raise ServiceError("the search for the peak ended without a word")
