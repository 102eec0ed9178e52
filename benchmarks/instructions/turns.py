"""The cases of the server: requests from submission to answer, in one thread.

    python -m instructions.turns count CASE ...    each between two calls of `os.getppid`, as `callgrind.measure` wants
    python -m instructions.turns trace CASE ...    prints the bytecodes of each Python function, as JSON

Each case is warmed up before: caches and the interpreter's own specialisation are then as in a server that runs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from instructions.doubles import SQUARE, Desk

__all__ = ["CASES", "ROUNDS"]

ROUNDS = 40  # of what a case does, counted; as many before to warm up
_TRACED_ROUNDS = 15
_KEPT = 25  # functions of a case
_ROW = np.full((1, 4), 0.5, np.float32)


def one_image(desk: Desk) -> None:
    """A request meets an idle server."""
    job = desk.ask(pixels=[SQUARE])
    desk.encode()
    desk.solve()
    job.future.result(0)


def waiting_images(desk: Desk) -> None:
    """Eight requests wait, and go through encoder and solver together."""
    jobs = [desk.ask(pixels=[SQUARE]) for _ in range(8)]
    desk.encode()
    desk.solve()
    for job in jobs:
        job.future.result(0)


def encoded_images(desk: Desk) -> None:
    """A request with four pictures to decode."""
    job = desk.ask(images=[b"x"] * 4)
    for _ in range(4):
        desk.decode()
    desk.encode()
    desk.solve()
    job.future.result(0)


def features(desk: Desk) -> None:
    """A request that passes the encoder over."""
    job = desk.ask(features=_ROW)
    desk.solve()
    job.future.result(0)


def crowd(desk: Desk) -> None:
    """24 requests of 1 to 3 images for two models, in all priorities; every fourth is cancelled while it waits."""
    jobs = [
        desk.ask(model=("m", "other")[i % 2], pixels=[SQUARE] * (1 + i % 3), priority=i % 4, timeout_s=30.0 - i)
        for i in range(24)
    ]
    for job in jobs[::4]:
        job.cancel()
    desk.empty()
    for i, job in enumerate(jobs):
        if i % 4:
            job.future.result(0)


CASES: dict[str, Callable[[Desk], None]] = {
    case.__name__: case for case in (one_image, waiting_images, encoded_images, features, crowd)
}


def _repeat(case: Callable[[Desk], None], desk: Desk, rounds: int) -> None:
    for _ in range(rounds):
        case(desk)


def _count(names: list[str]) -> None:
    gc.disable()
    for name in names:
        case, desk = CASES[name], Desk()
        _repeat(case, desk, ROUNDS)
        os.getppid()
        _repeat(case, desk, ROUNDS)
        os.getppid()


class _Bytecodes:
    """A trace function that counts the bytecodes of each function."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, frame: FrameType, event: str, _: Any) -> _Bytecodes:
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            code = frame.f_code
            self.counts[f"{Path(code.co_filename).stem}.{getattr(code, 'co_qualname', code.co_name)}"] += 1
        return self


def _trace(names: list[str]) -> dict[str, dict[str, int]]:
    found = {}
    for name in names:
        case, desk, bytecodes = CASES[name], Desk(), _Bytecodes()
        _repeat(case, desk, _TRACED_ROUNDS)
        sys.settrace(bytecodes)
        _repeat(case, desk, _TRACED_ROUNDS)
        sys.settrace(None)
        found[name] = dict(bytecodes.counts.most_common(_KEPT))
    return found


if __name__ == "__main__":
    if sys.argv[1] == "count":
        _count(sys.argv[2:])
        features_here = np._core._multiarray_umath.__cpu_features__
        print(" ".join(sorted(name for name, has in features_here.items() if has)))
    else:
        print(json.dumps(_trace(sys.argv[2:])))
