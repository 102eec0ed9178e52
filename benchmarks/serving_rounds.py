"""Closed loops in turn: the bare encoder, our two doors, the rivals; then open loops below and above capacity."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from load.client import Generator, Worker
from serving_processes import Sampler, Served, foreign_cpu

CLIENTS = 16  # twice the largest batch: while one runs the next is there
MAX_BATCH = 8
Samples = dict[str, list[dict[str, Any]]]


@dataclass
class Bench:
    """What runs side by side. ``rivals`` may be empty."""

    work: Path
    generator: Generator
    bare: Worker
    kpl: Served
    rivals: Sequence[Served]
    notes: list[str] = field(default_factory=list)

    def load(self, server: Served, payloads: str, **job: Any) -> dict[str, Any]:
        """One job of the generator, with the server's CPU seconds an image."""
        port = server.http if payloads.startswith("http") else server.grpc
        before = server.usage()["cpu_s"]
        folder = str(self.work / "payloads" / payloads)
        found = self.generator.ask(payloads=folder, host="127.0.0.1", port=port, **job)
        found["server_cpu_s_per_image"] = (server.usage()["cpu_s"] - before) / max(found["images"], 1)
        if found["wrong"]:
            raise SystemExit(f"{server.name} {payloads}: {found['wrong']} of {found['checked']} answers are wrong")
        return found


def run_rounds(bench: Bench, rounds: int, seconds: float) -> Samples:
    """``rounds`` times each in turn, so that what else the machine does meets all of them."""
    closed = {"clients": CLIENTS, "seconds": seconds, "warm_s": min(1.5, seconds / 3)}
    turns: dict[str, Any] = {
        "bare decode": lambda: bench.bare.ask(what="decode", seconds=seconds),
        "kpl http jpeg": lambda: bench.load(bench.kpl, "http-jpeg", **closed),
        "kpl grpc jpeg": lambda: bench.load(bench.kpl, "grpc-jpeg", **closed),
        "bare tensor": lambda: bench.bare.ask(what="tensor", seconds=seconds),
        "kpl http pixels": lambda: bench.load(bench.kpl, "http-pixels", **closed),
        "kpl grpc pixels": lambda: bench.load(bench.kpl, "grpc-pixels", **closed),
    }
    for rival in bench.rivals:
        for door in ("http", "grpc"):
            turns[f"{rival.name} {door} pixels"] = lambda rival=rival, door=door: bench.load(
                rival, f"{door}-rival", **closed
            )
    samples: Samples = {name: [] for name in turns}
    for number in range(rounds):
        order = list(turns.items())
        for name, turn in order if number % 2 == 0 else reversed(order):
            with foreign_cpu() as others:
                found = turn()
            samples[name].append({**found, "foreign_cpu_cores": others.cores})
    return samples


def shares(samples: Samples) -> dict[str, dict[str, Any]]:
    """Medians over rounds; shares are medians of the ratio *within* a round, which what slows a round leaves alone."""
    table: dict[str, dict[str, Any]] = {}
    for name, runs in samples.items():
        bare = samples["bare decode" if name.endswith(("decode", "jpeg")) else "bare tensor"]
        ratios = [run["images_per_s"] / base["images_per_s"] for run, base in zip(runs, bare, strict=True)]
        cpu = "cpu_s_per_image" if name.startswith("bare") else "server_cpu_s_per_image"
        row = {
            "images_per_s": statistics.median(run["images_per_s"] for run in runs),
            "share_of_bare": statistics.median(ratios),
            "share_spread": [min(ratios), max(ratios)],
            "cpu_ms_per_image": statistics.median(run[cpu] for run in runs) * 1e3,
            "cpu_share_of_bare": statistics.median(
                base["cpu_s_per_image"] / run[cpu] for run, base in zip(runs, bare, strict=True)
            ),
            "foreign_cpu_cores": max(run["foreign_cpu_cores"] for run in runs),
        }
        if "latency" in runs[0]:
            tails = [run["latency"]["p99_ms"] for run in runs if run["latency"]["p99_ms"] is not None]
            row["closed_p99_ms"] = statistics.median(tails) if tails else None
        table[name] = row
    return table


def run_open(bench: Bench, capacity: Mapping[str, float], seconds: float, windows: int) -> dict[str, Any]:
    """At 70 % of what the closed loop took: ours with JPEG files, then ours and the rivals' with pixels in turn.

    ``capacity`` has "jpeg" and "pixels"; rivals get the arrivals that we get, at the same times.
    """
    single = bench.load(bench.kpl, "http-jpeg", clients=1, seconds=max(seconds / 6, 3), warm_s=0.5)["latency"]
    single_pixels = bench.load(bench.kpl, "http-pixels", clients=1, seconds=max(seconds / 6, 3), warm_s=0.5)["latency"]
    kinds = [("kpl jpeg", bench.kpl, "http-jpeg", 0.7 * capacity["jpeg"])]
    kinds += [("kpl pixels", bench.kpl, "http-pixels", 0.7 * capacity["pixels"])]
    kinds += [(f"{each.name} pixels", each, "http-rival", 0.7 * capacity["pixels"]) for each in bench.rivals]
    runs: Samples = {name: [] for name, *_ in kinds}
    for seed in range(windows):
        for name, server, payloads, rate in kinds:
            with foreign_cpu() as others:
                found = bench.load(server, payloads, rate=rate, seconds=seconds, warm_s=2.0, seed=seed)
            runs[name].append({**found, "rate": rate, "foreign_cpu_cores": others.cores})
    return {"single_jpeg": single, "single_pixels": single_pixels, "windows": runs}


def run_overload(bench: Bench, capacity: float, seconds: float) -> dict[str, Any]:
    """Twice the capacity: goodput, refusals, memory over time."""
    with Sampler(bench.kpl.usage, 0.5) as memory:
        found = bench.load(bench.kpl, "http-jpeg", rate=2 * capacity, seconds=seconds, warm_s=2.0)
    # what is there after two seconds is the working set; growth after that is what would go on
    settled = [sample["rss_mib"] for sample in memory.samples if sample["at_s"] > 2] or [0.0]
    found["goodput_share"] = found["images_per_s"] / capacity
    found["rss_mib"] = {"first": settled[0], "last": settled[-1], "most": max(settled)}
    return found


def ideal_open_loop(
    batch_s: Mapping[str, float], rate: float, requests: int = 200_000, seed: int = 1
) -> dict[str, Any]:
    """Latency of a server without any cost of its own, by simulation: what no server on this encoder can beat.

    Poisson arrivals wait in one line; whenever the encoder is free it takes all that wait, up to the largest batch,
    for the measured seconds ``batch_s`` of that size.
    """
    sizes = {int(size): value for size, value in batch_s.items()}
    largest, draw = max(sizes), random.Random(seed)
    at, arrivals = 0.0, []
    for _ in range(requests):
        at += draw.expovariate(rate)
        arrivals.append(at)
    waits, free, head = [], 0.0, 0
    while head < requests:
        free = max(free, arrivals[head])
        size = 1
        while size < largest and head + size < requests and arrivals[head + size] <= free:
            size += 1
        free += sizes[size]
        waits += [free - arrivals[head + i] for i in range(size)]
        head += size
    waits.sort()
    return {f"p{q}_ms": waits[int(q / 100 * requests)] * 1e3 for q in (50, 99, 99.9)}
