"""The rows of the server's figures, for the terminal and for the pages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

__all__ = ["millis", "open_rows", "serving_rows", "share_rows"]

Record = Mapping[str, Any]


def share_rows(shares: Mapping[str, Record]) -> list[str]:
    """Closed loop, a row for each door and rival."""
    lines = [
        "| closed loop, 16 clients | images/s | share of bare | spread | CPU ms/image | CPU share | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in shares.items():
        low, high = row["share_spread"]
        lines.append(
            f"| {name} | {row['images_per_s']:.1f} | {row['share_of_bare']:.1%} | {low:.1%} to {high:.1%} | "
            f"{row['cpu_ms_per_image']:.1f} | {row['cpu_share_of_bare']:.1%} | {millis(row.get('closed_p99_ms'))} |"
        )
    return lines


def open_rows(opened: Record) -> list[str]:
    """Open loop at 70 % of capacity: the median over windows, and beside it what no server could beat."""
    single = {"jpeg": opened["single_jpeg"]["p50_ms"], "pixels": opened["single_pixels"]["p50_ms"]}
    lines = [
        "| open loop at 70 % | rate | p50 | p99 | p99.9 | p99 / single | late starts | codes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in opened["windows"].items():
        tails = {key: [run["latency"][key] for run in runs] for key in ("p50_ms", "p99_ms", "p99.9_ms")}
        said = {key: None if None in values else statistics.median(values) for key, values in tails.items()}
        shown = " | ".join("too few" if value is None else f"{value:.0f} ms" for value in said.values())
        ratio = "-" if said["p99_ms"] is None else f"{said['p99_ms'] / single[name.split()[1]]:.1f}x"
        late, codes = sum(run["late_starts"] for run in runs), [run["codes"] for run in runs]
        lines.append(f"| {name} | {runs[0]['rate']:.1f}/s | {shown} | {ratio} | {late} | {codes} |")
    ideal = opened["ideal_pixels"]
    lines.append(
        f"| a server without any cost, simulated | same | {ideal['p50_ms']:.0f} ms | {ideal['p99_ms']:.0f} ms | "
        f"{ideal['p99.9_ms']:.0f} ms | {ideal['p99_ms'] / single['pixels']:.1f}x | | |"
    )
    return lines


def serving_rows(record: Record) -> list[str]:
    """Both tables of a result file."""
    return [*share_rows(record["shares"]), "", *open_rows(record["open_loop"])]


def millis(value: float | None) -> str:
    """ "-" where it was not measured."""
    return "-" if value is None else f"{value:.1f} ms"
