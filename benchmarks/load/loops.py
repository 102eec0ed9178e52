"""Closed and open loops over anything that sends a request."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from .outcomes import Outcome, summarise

Send = Callable[[int], Awaitable[tuple[str, int, bool | None]]]  # index -> code, images, is right


async def closed_loop(send: Send, clients: int, seconds: float, warm_s: float) -> dict[str, Any]:
    """``clients`` of whom each sends when its last request was answered: the rate is what the server can take.

    Its latencies hide queueing (a slow answer delays the next request), so they are no tail latencies. A refused
    client waits 10 ms and comes again: hammering would measure refusals.
    """
    begin = time.perf_counter() + warm_s
    end = begin + seconds
    outcomes: list[Outcome] = []

    async def client(first: int) -> None:
        index = first
        while (started := time.perf_counter()) < end:
            code, images, is_right = await send(index)
            outcomes.append(Outcome(started, started, time.perf_counter(), code, images, is_right))
            index += clients
            if code not in ("200", "OK"):
                await asyncio.sleep(0.01)

    await asyncio.gather(*(client(first) for first in range(clients)))
    return summarise(outcomes, begin, end)


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrivals of a Poisson process of ``rate`` a second, seconds from its start."""
    draw = random.Random(seed)
    at, arrivals = draw.expovariate(rate), []
    while at < seconds:
        arrivals.append(at)
        at += draw.expovariate(rate)
    return arrivals


async def open_loop(
    send: Send, rate: float, seconds: float, warm_s: float, seed: int = 0, patience_s: float = 30.0
) -> dict[str, Any]:
    """Requests at times drawn beforehand, whatever becomes of the earlier ones.

    Latency counts from the drawn time, so a request that this process could only send late, or that waited for a
    connection, is as late as its user would see it. What has no answer ``patience_s`` after the last arrival is
    cancelled and counted under "unanswered".
    """
    begin = time.perf_counter() + 0.05
    outcomes: list[Outcome] = []

    async def one(index: int, scheduled: float) -> None:
        started = time.perf_counter()
        try:
            code, images, is_right = await send(index)
        except asyncio.CancelledError:
            code, images, is_right = "unanswered", 0, None
        outcomes.append(Outcome(scheduled, started, time.perf_counter(), code, images, is_right))

    tasks: list[asyncio.Task[None]] = []
    for index, offset in enumerate(poisson_arrivals(rate, warm_s + seconds, seed)):
        wait = begin + offset - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.ensure_future(one(index, begin + offset)))
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=patience_s)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return summarise(outcomes, begin + warm_s, begin + warm_s + seconds)
