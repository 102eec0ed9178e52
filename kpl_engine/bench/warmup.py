"""Calls before LoadGen's: the first one, those that warm up, and what rate may be expected of the rest."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from kpl_engine.bench.targets import ANSWERED, Target
from kpl_engine.errors import ServiceError

__all__ = ["ask", "closed_loop_rate", "offline_rate", "warm_up"]

_LEAST_CALLS, _LEAST_S = 10, 1.0
_MOST_CALLS, _MOST_S = 500, 10.0
_LOOP_S, _LEAST_ANSWERS, _MOST_LOOP_S = 2.0, 64, 20.0
_WARM_SHARE = 1 / 4  # of the answers of a closed loop that are not counted
_PATIENCE_S = 120.0
_LEAST_PICTURES, _MOST_PICTURES = 64, 8192


def ask(target: Target, indices: Sequence[int]) -> float:
    """Milliseconds of one query; `ServiceError` with its code where it is not answered."""
    ended = threading.Event()
    codes: list[str] = []

    def done(code: str) -> None:
        codes.append(code)
        ended.set()

    started = perf_counter()
    target.submit(indices, done)
    if not ended.wait(_PATIENCE_S):
        raise ServiceError(f"{target.how}: a query was not answered within {_PATIENCE_S:g} s")
    spent = (perf_counter() - started) * 1e3
    if codes[0] not in ANSWERED:
        raise ServiceError(f"{target.how}: expected an answer to a query before the run, got {codes[0]}")
    return spent


def warm_up(target: Target, num_samples: int, pictures: int, rng: np.random.Generator) -> list[float]:
    """Milliseconds of calls one at a time, ``pictures`` each: 10 of them and 1 s at least, 10 s at most."""
    spent: list[float] = []
    started = perf_counter()
    while True:
        spent.append(ask(target, rng.integers(num_samples, size=pictures).tolist()))
        passed = perf_counter() - started
        is_enough = len(spent) >= _LEAST_CALLS and passed >= _LEAST_S
        if is_enough or len(spent) >= _MOST_CALLS or passed >= _MOST_S:
            return spent


class _ClosedLoop:
    """Clients of whom each asks again when it was answered."""

    def __init__(self, target: Target, num_samples: int, rng: np.random.Generator) -> None:
        self._target = target
        self._draws = iter(rng.integers(num_samples, size=1 << 20).tolist())
        self._left = 0
        self._lock = threading.Lock()
        self._is_ending = False
        self.ended = threading.Event()
        self.codes: list[str] = []
        self.times: list[float] = []  # of the answers

    def begin(self, clients: int) -> None:
        self._left = clients
        for _ in range(clients):
            self._target.submit([next(self._draws)], self._done)

    def end(self) -> None:
        self._is_ending = True
        if not self.ended.wait(_PATIENCE_S):
            raise ServiceError(f"{self._target.how}: queries were not answered within {_PATIENCE_S:g} s")

    def _done(self, code: str) -> None:
        self.codes.append(code)
        if code in ANSWERED:
            self.times.append(perf_counter())
        index = None if self._is_ending else next(self._draws, None)
        if index is not None and (code in ANSWERED or len(self.times) > len(self.codes) / 2):
            self._target.submit([index], self._done)
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self.ended.set()


def closed_loop_rate(target: Target, num_samples: int, clients: int, rng: np.random.Generator) -> float:
    """Queries a second with ``clients`` under way at any time: what the target can take, over 2 s to 20 s.

    `ServiceError` where most of them are refused.
    """
    loop = _ClosedLoop(target, num_samples, rng)
    started = perf_counter()
    loop.begin(clients)
    while not loop.ended.wait(0.05):
        passed = perf_counter() - started
        if passed >= _MOST_LOOP_S or (passed >= _LOOP_S and len(loop.times) >= _LEAST_ANSWERS + clients):
            break
    loop.end()
    times = sorted(loop.times)
    counted = times[int(len(times) * _WARM_SHARE) :]
    if len(counted) < 2 or len(times) < len(loop.codes) / 2:
        raise ServiceError(
            f"{target.how}: a closed loop of {clients} clients got {dict(Counter(loop.codes))}; nobody else may load "
            "it meanwhile, and it must be able to answer one after the other"
        )
    return (len(counted) - 1) / (counted[-1] - counted[0])


def offline_rate(target: Target, num_samples: int, single_ms: float, rng: np.random.Generator) -> float:
    """Pictures a second when all are there at once: as many as take about a second one by one, twice."""
    count = int(np.clip(1e3 / single_ms, _LEAST_PICTURES, _MOST_PICTURES))
    return max(_all_at_once(target, rng.integers(num_samples, size=count).tolist()) for _ in range(2))


def _all_at_once(target: Target, indices: Sequence[int]) -> float:
    parts = [indices[i : i + target.most_at_once] for i in range(0, len(indices), target.most_at_once)]
    codes: list[str] = []
    ended = threading.Event()

    def done(code: str) -> None:
        codes.append(code)
        if len(codes) == len(parts):
            ended.set()

    started = perf_counter()
    for part in parts:
        target.submit(part, done)
    if not ended.wait(_PATIENCE_S) or not ANSWERED.issuperset(codes):
        raise ServiceError(f"{target.how}: expected {len(parts)} answers before the run, got {dict(Counter(codes))}")
    return len(indices) / (perf_counter() - started)
