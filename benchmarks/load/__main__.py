"""Reads jobs from standard input, one JSON object a line, and prints what came of each, one a line.

A process of its own, so that its interpreter's lock and its pauses are not the server's. `client.Generator` starts it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
from pathlib import Path
from typing import Any

from kpl_engine.bench.doors import Door, GrpcDoor, HttpDoor

from .loops import closed_loop, open_loop
from .payloads import PayloadSet

_sets: dict[str, PayloadSet] = {}


def _payloads(folder: str) -> PayloadSet:
    if folder not in _sets:
        _sets[folder] = PayloadSet(Path(folder))
    return _sets[folder]


def _open(payloads: PayloadSet, job: dict[str, Any]) -> Door:
    host, port = job["host"], job["port"]
    if payloads.door == "grpc":
        return GrpcDoor(host, port)
    return HttpDoor(host, port, f"/v2/models/{payloads.model}/infer")


async def _run(job: dict[str, Any]) -> dict[str, Any]:
    payloads = _payloads(job["payloads"])
    door = _open(payloads, job)
    check_every = job.get("check_every", 1)

    async def send(index: int) -> tuple[str, int, bool | None]:
        which = index % len(payloads.bodies)
        answer = await door.send(payloads.bodies[which], payloads.headers[which])
        is_good = answer.code in ("200", "OK")
        is_right = payloads.is_right(which, answer) if is_good and index % check_every == 0 else None
        return answer.code, payloads.num_images[which], is_right

    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        if "rate" in job:
            found = await open_loop(send, job["rate"], job["seconds"], job["warm_s"], job.get("seed", 0))
        else:
            found = await closed_loop(send, job["clients"], job["seconds"], job["warm_s"])
    finally:
        await door.close()
    after = resource.getrusage(resource.RUSAGE_SELF)
    found["generator_cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def main() -> None:
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
