"""Where the time of one picture goes: one picture a call, one call at a time, so that nothing runs beside."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from kpl_engine.bench.device_time import encode_on_gpu_ms
from kpl_engine.bench.intervals import distribution
from kpl_engine.bench.records import Stages
from kpl_engine.bench.samples import Samples
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.encoder.pipeline import EncodedImages
from kpl_engine.engine import Engine
from kpl_engine.errors import InputError

__all__ = ["measure_stages"]

_ENCODE = ("read", "decode", "preprocess", "encode")
# "device" is the solver's one launch on a GPU, which has the three before it in it.
_ANSWER = ("text_proxies", "labels", "proxies", "device")
_ORDER = ("read", "decode", "preprocess", "threads", "encode", "text_proxies", "labels", "proxies", "device", "record")
_WARM_CALLS, _WARM_S = 10, 0.5
_LEAST_CALLS, _MOST_CALLS = 20, 100_000
_DEVICE_CALLS = 50


@dataclass(frozen=True)
class _Call:
    """Milliseconds of one call."""

    stages: dict[str, float]
    total: float


def measure_stages(engine: Engine, samples: Samples, settings: BenchSettings, seconds: float) -> Stages:
    """The two halves of `Engine.classify`, `Engine.encode` and `Engine.answer`, for ``seconds`` and 20 calls at least.

    Two stages are what these took beside the stages that they time themselves. ``threads``, of `Engine.encode`:
    decoding threads start, hand over and end. (On the calling thread the same functions left 0.02 ms of 3.0 ms beside
    their stages, where `Engine.encode` left 0.86 ms of 6.2 ms: two busy cores, demo bundle.) ``record``, of
    `Engine.answer`: checks, evidence, notices, and the record that is handed back; ``notes`` tell the share of both.
    ``unexplained_share`` is of the mean total, and what is still in none of them. A stage that did not run is absent.

    Files are read from a folder made for the run. The first call, and those that warm up, are told in ``notes`` and not
    counted. ``device_ms`` is by events of the GPU where the encoder is on one.
    """
    with _given(samples) as given:
        call = _caller(engine, samples, settings, given)
        first = call(0)
        warm = _repeat(call, _WARM_S, _WARM_CALLS)
        calls = _repeat(call, seconds, _LEAST_CALLS)
    order = [name for name in _ORDER if any(each.stages.get(name, 0.0) > 0 for each in calls)]
    stages = {name: distribution([each.stages.get(name, 0.0) for each in calls]) for name in order}
    total = distribution([each.total for each in calls])
    explained = sum(stage["mean"]["value"] for stage in stages.values())
    device = None if samples.kind == "features" else encode_on_gpu_ms(engine.encoder, samples.pixels, _DEVICE_CALLS)
    notes = [f"the first call took {first.total:.3g} ms; it and {len(warm)} more were not counted"]
    beside = sum(stages[name]["mean"]["value"] for name in ("threads", "record") if name in stages)
    notes.append(
        f"{beside / total['mean']['value']:.1%} of the mean are what Engine.encode (threads) and Engine.answer "
        "(record) took beside the stages that they time themselves"
    )
    if samples.kind == "files":
        notes.insert(0, "files were read from the page cache, not from a disk")
    return {
        "order": order,
        "stages": stages,
        "total": total,
        "unexplained_share": 1 - explained / total["mean"]["value"],
        "runs_beside": [],
        "device_ms": {} if device is None else {"encode": device},
        "notes": notes,
    }


@contextmanager
def _given(samples: Samples) -> Iterator[list[Any]]:
    """What a call is given for each picture: files on disk, or the arrays themselves."""
    if samples.kind != "files":
        yield list(samples.payloads)
        return
    with tempfile.TemporaryDirectory(prefix="kpl-bench-") as folder:
        paths = [Path(folder) / f"{index:06d}" for index in range(len(samples.files))]
        for path, data in zip(paths, samples.files, strict=True):
            path.write_bytes(data)
        yield paths


def _caller(engine: Engine, samples: Samples, settings: BenchSettings, given: Sequence[Any]) -> Callable[[int], _Call]:
    mode = settings.mode or "frozen"

    def call(index: int) -> _Call:
        one = given[index % len(given)]
        started = perf_counter()
        if samples.kind == "features":
            encoded = EncodedImages.from_features(np.asarray(one)[None])
        else:
            encoded = engine.encode([one])
        middle = perf_counter()
        found = engine.answer(encoded, settings.method, mode, knowledge=settings.knowledge)
        ended = perf_counter()
        if found.failures:
            raise InputError(f"{samples.names[index % len(given)]}: {found.failures[0].message}")
        spent = {name: found.timings_ms[name] for name in (*_ENCODE, *_ANSWER) if name in found.timings_ms}
        if samples.kind == "features":
            middle = started
        else:
            spent["threads"] = (middle - started) * 1e3 - sum(spent[name] for name in _ENCODE)
        spent["record"] = (ended - middle) * 1e3 - sum(spent.get(name, 0.0) for name in _ANSWER)
        return _Call(spent, (ended - started) * 1e3)

    return call


def _repeat(call: Callable[[int], _Call], seconds: float, least: int) -> list[_Call]:
    found: list[_Call] = []
    ends = perf_counter() + seconds
    while len(found) < least or (perf_counter() < ends and len(found) < _MOST_CALLS):
        found.append(call(len(found)))
    return found
