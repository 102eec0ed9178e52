"""Where the time of one picture goes at a running server: what the server tells with each reply, and the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from kpl_engine.bench.intervals import distribution
from kpl_engine.bench.records import Stages
from kpl_engine.bench.remote import Payloads, RemoteTarget
from kpl_engine.bench.samples import Samples
from kpl_engine.bench.server_model import find_model
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.engine import Engine
from kpl_engine.errors import ServiceError

__all__ = ["measure_served_stages", "split_requests"]

_STAGES = ("decode", "queue", "encode", "solve")
_WARM_REQUESTS, _LEAST_REQUESTS, _MOST_REQUESTS = 10, 20, 100_000
_PATIENCE_S = 60.0

Ask = Callable[[Sequence[int], Sequence[str]], tuple[Any, dict[str, Any]]]


def measure_served_stages(engine: Engine, samples: Samples, settings: BenchSettings, seconds: float) -> Stages:
    """One request of one picture at a time to the server of ``settings.url``, for ``seconds``; see `split_requests`."""
    model = find_model(settings, engine)
    target = RemoteTarget(model, Payloads.of(samples.kind, samples.payloads), 1, _PATIENCE_S)
    try:
        return split_requests(target.ask, len(samples.files), seconds)
    finally:
        target.close()


def split_requests(ask: Ask, num_samples: int, seconds: float) -> Stages:
    """``decode``, ``queue``, ``encode`` and ``solve`` by the server's clock, and ``reply``: the rest by the client's.

    ``decode`` has reading and preprocessing in it, ``queue`` the waits between the threads, ``solve`` text proxies,
    labels and proxies; a stage that did not run is absent. ``reply`` is all that the server's own total does not cover:
    the request written, sent and parsed, the reply written, sent and read. ``unexplained_share`` is what the server's
    stages leave of its total, as a share of the client's. The first requests are left out.

    Raises
    ------
    ServiceError
        No answer, or one that tells no times.
    """
    for i in range(_WARM_REQUESTS):
        _one(ask, i % num_samples)
    found: list[dict[str, float]] = []
    ends = perf_counter() + seconds
    while len(found) < _LEAST_REQUESTS or (perf_counter() < ends and len(found) < _MOST_REQUESTS):
        found.append(_one(ask, len(found) % num_samples))
    order = [name for name in (*_STAGES, "reply") if any(each[name] > 0 for each in found)]
    stages = {name: distribution([each[name] for each in found]) for name in order}
    total = distribution([each["total"] for each in found])
    explained = sum(stage["mean"]["value"] for stage in stages.values())
    return {
        "order": order,
        "stages": stages,
        "total": total,
        "unexplained_share": 1 - explained / total["mean"]["value"],
        "runs_beside": [],
        "device_ms": {},
        "notes": [
            f"{_WARM_REQUESTS} requests before were not counted",
            "the server told its stages; reply is the client's time beyond the server's total",
        ],
    }


def _one(ask: Ask, index: int) -> dict[str, float]:
    """Milliseconds of one request: the client's total, the server's stages, and what is outside the server's total."""
    started = perf_counter()
    _, told = ask([index], ("probabilities",))
    total = (perf_counter() - started) * 1e3
    try:
        server = {name: float(value) for name, value in json.loads(told["timings_ms"]).items()}
        stages = {name: server[name] for name in _STAGES}
        return {**stages, "reply": total - server["total"], "total": total}
    except (KeyError, TypeError, ValueError) as error:
        raise ServiceError(
            f"expected times {', '.join(_STAGES)} and total with the reply, got {told.get('timings_ms')!r:.200}"
        ) from error
