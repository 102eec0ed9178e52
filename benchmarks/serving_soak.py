"""Hours of everything at once, and what grows meanwhile.

Beside an open loop that goes through all inputs and both doors, threads send bad requests, leave before the answer,
classify in all three modes over /v1/classify, and load and unload a second model.
"""

from __future__ import annotations

import math
import random
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from load.client import Generator
from serving_processes import Sampler, Served, start_kpl

from kpl_engine.data import demo_bundle

KINDS = ("http-jpeg", "grpc-jpeg", "http-pixels", "grpc-pixels", "http-pixels8", "grpc-pixels8")
WINDOW_S = 15.0  # 120 requests: enough for a p99
_T_8 = 2.306  # 97.5 % quantile of Student's t with 8 degrees of freedom: ten blocks less two


def soak(work: Path, minutes: float, options: list[str]) -> dict[str, Any]:
    """Mixed load for ``minutes``; memory, files, threads and p99 over time, and the slope of memory."""
    repository, state = work / "soak-repository", work / "soak-state"
    shutil.rmtree(repository, ignore_errors=True)
    shutil.rmtree(state, ignore_errors=True)
    repository.mkdir()
    state.mkdir()
    shutil.copytree(demo_bundle(), repository / "second.kpl")
    options = [*options, "--repository", str(repository), "--state-dir", str(state), "--log-level", "warning"]
    with start_kpl([work / "lung.kpl"], work, options, "soak.log") as server, Generator() as generator:
        windows, counts, samples = _run(server, generator, work, minutes * 60)
        is_ready_after = server.process.poll() is None
        after = server.usage()
        code = server.stop()
    return {
        "minutes": minutes,
        "is_running_after": is_ready_after,
        "exit_code": code,
        "counts": dict(counts),
        "windows": windows,
        "usage": samples,
        "usage_after": after,
        "slope": {name: slope_per_hour(samples, name) for name in ("rss_mib", "fds", "threads")},
        "p99_ms": trend([window["latency"]["p99_ms"] for window in windows]),
        "wrong": sum(window["wrong"] for window in windows),
    }


def _run(
    server: Served, generator: Generator, work: Path, seconds: float
) -> tuple[list[dict[str, Any]], Counter[str], list[dict[str, float]]]:
    stop, counts = threading.Event(), Counter[str]()
    pictures = [path.read_bytes() for path in sorted((work / "pictures").glob("*.jpg"))[:8]]
    jobs = [_bad_request, _leave, _modes, _reload]
    threads = [
        threading.Thread(target=_repeat, args=(job, server, pictures, stop, counts, seed), daemon=True)
        for seed, job in enumerate(jobs)
    ]
    windows: list[dict[str, Any]] = []
    with Sampler(server.usage, min(5.0, seconds / 40)) as sampler:
        for thread in threads:
            thread.start()
        end = time.perf_counter() + seconds
        try:
            while (left := end - time.perf_counter()) > 1 and server.process.poll() is None:
                kind = KINDS[len(windows) % len(KINDS)]
                rate = 1.0 if kind.endswith("8") else 8.0  # 8 images/s: a part of what two cores take, so that all fit
                found = generator.ask(
                    payloads=str(work / "payloads" / kind),
                    host="127.0.0.1",
                    port=server.http if kind.startswith("http") else server.grpc,
                    rate=rate,
                    seconds=min(WINDOW_S, left),
                    warm_s=0.0,
                    seed=len(windows),
                )
                windows.append({"kind": kind, **found})
        except KeyboardInterrupt:
            counts["stopped by hand"] += 1  # what was seen until then is reported
        finally:
            stop.set()
            for thread in threads:
                thread.join(90)
    return windows, counts, sampler.samples


Job = Callable[[Served, Sequence[bytes], random.Random], str]


def _repeat(
    job: Job, server: Served, pictures: Sequence[bytes], stop: threading.Event, counts: Counter[str], seed: int
) -> None:
    draw = random.Random(seed)
    while not stop.wait(draw.expovariate(1.0)):
        try:
            said = job(server, pictures, draw)
        except OSError as error:
            said = f"broken ({type(error).__name__})"
        counts[f"{job.__name__.strip('_')}: {said}"] += 1


def _bad_request(server: Served, pictures: Sequence[bytes], draw: random.Random) -> str:
    picture = bytearray(draw.choice(pictures))
    for _ in range(20):
        picture[draw.randrange(len(picture))] = draw.randrange(256)
    header = {"Inference-Header-Content-Length": str(draw.choice([0, 5, 10**9]))}
    path = f"/v2/models/{draw.choice(['lung', 'none', '..%2Fx'])}/infer"
    body = draw.choice([bytes(picture), bytes(picture[: len(picture) // 3]), b"{", b'{"inputs": []}', b""])
    return str(server.post(path, body, header)[0])


def _leave(server: Served, pictures: Sequence[bytes], draw: random.Random) -> str:
    """Send all or part of a request and hang up after up to 60 ms."""
    body = draw.choice(pictures)
    head = "POST /v2/models/lung/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    sent = (head.encode() + body)[: draw.choice([30, len(head) + 1000, 10**9])]
    with socket.create_connection(("127.0.0.1", server.http), timeout=10) as connection:
        connection.sendall(sent)
        time.sleep(draw.random() * 0.06)
    return "left"


def _modes(server: Served, pictures: Sequence[bytes], draw: random.Random) -> str:
    """/v1/classify in one of the three modes."""
    mode = draw.choice(["batch", "frozen", "stream"])
    chosen = draw.sample(list(pictures), 8 if mode == "batch" else 2)
    boundary = "soak-boundary"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in (("model", "lung"), ("mode", mode))
    ]
    for i, picture in enumerate(chosen):
        disposition = f'Content-Disposition: form-data; name="images"; filename="{i}.jpg"'
        parts.append(f"--{boundary}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode() + picture + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    code, _ = server.post("/v1/classify", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    return f"{mode} {code}"


def _reload(server: Served, pictures: Sequence[bytes], draw: random.Random) -> str:
    verb = draw.choice(["load", "load", "unload"])
    time.sleep(5)
    return f"{verb} {server.post(f'/v2/repository/models/second/{verb}')[0]}"


def slope_per_hour(samples: Sequence[Mapping[str, float]], name: str) -> dict[str, float] | None:
    """Least squares through the means of ten blocks of the last four fifths of the time, and 95 % of its confidence.

    Blocks, since neighbouring samples are alike: taken singly they would promise too narrow an interval. The first
    fifth is the working set being filled. None with fewer than twenty samples.
    """
    kept = samples[len(samples) // 5 :]
    if len(kept) < 20:
        return None
    blocks = np.array_split(np.array([[each["at_s"] / 3600, each[name]] for each in kept]), 10)
    hours, values = np.array([block.mean(0) for block in blocks]).T
    centred = hours - hours.mean()
    slope = float(centred @ values / (centred @ centred))
    rest = values - values.mean() - slope * centred
    error = math.sqrt(float(rest @ rest) / 8 / float(centred @ centred))
    scale = 2**20 if name.endswith("_mib") else 1
    return {
        "per_hour": slope * scale,  # bytes for memory
        "low": (slope - _T_8 * error) * scale,
        "high": (slope + _T_8 * error) * scale,
        "first": float(values[0]),
        "last": float(values[-1]),
    }


def trend(values: Sequence[float | None]) -> dict[str, float | None]:
    """Medians of the first and the last third of what is known."""
    known = [value for value in values if value is not None]
    third = max(len(known) // 3, 1)
    return {
        "first_third": float(np.median(known[:third])) if known else None,
        "last_third": float(np.median(known[-third:])) if known else None,
    }
