"""The rows of each measured table, from the record of its result file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rivals_report import page_lines
from tables_serving import serving_rows

__all__ = ["PROSE", "TABLES", "cold_start", "end_to_end", "learn_proxies"]

Record = Mapping[str, Any]
LABELS = "stable_greenkhorn"  # those of the method `kpl`


def learn_proxies(record: Record) -> list[str]:
    """Ratios over the PyTorch loop; the limit is arithmetic, or with two classes reading."""
    lines = [
        "| n, d, c | PyTorch loop | NumPy loop | `schedule` | `kpl` | `kpl`, ms | error: PyTorch, ours | "
        "agreement: PyTorch, ours | of the limit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size, rivals in _by_size(record).items():
        torch, numpy, schedule, kpl = (rivals[name] for name in ("torch float32", "numpy float32", "schedule", "auto"))
        limit = schedule["reading_ms" if size[2] == 2 else "limit_ms"] if "limit_ms" in schedule else None
        share = "–" if limit is None else f"{limit / schedule['median_ms']:.0%}".replace("%", " %")
        lines.append(
            f"| {', '.join(map(str, size))} | {_long_ms(torch['median_ms'])} | {_times(numpy)} | {_times(schedule)} | "
            f"**{kpl['speedup_over_torch']:.0f}x** | {_two_digits(kpl['median_ms'])} | "
            f"{_power(torch['max_error'])}, {_power(kpl['max_error'])} | "
            f"{_share(torch['label_agreement'])}, {_share(kpl['label_agreement'])} | {share} |"
        )
    return lines


def learn_proxies_prose(record: Record) -> list[str]:
    """The figures that stand in the sentences below that table."""
    sizes = _by_size(record)
    first, last = (sizes[key] for key in (min(sizes), max(sizes)))
    before = [row["text + labels"]["median_ms"] for row in (first, last)]
    bare = [row["schedule, no core"]["speedup_over_torch"] for row in sizes.values()]
    return [
        f"({2 * record['rates_per_core']['multiply_adds'] / 1e9:.0f} GFLOP/s each)",
        f"{before[0]:.2f} ms (n = {min(sizes)[0]:,}) to {before[1]:.0f} ms (n = {max(sizes)[0]:,})",
        f"Without the compiled core `schedule` reached {min(bare):.1f}x to {max(bare):.0f}x",
    ]


def _by_size(record: Record) -> dict[tuple[int, int, int], dict[str, Any]]:
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for row in record["rows"]:
        if row["labels"] == LABELS:
            found.setdefault((row["n"], row["d"], row["c"]), {})[row["rival"]] = row
    return found


def end_to_end(record: Record) -> list[str]:
    """Stages in milliseconds, a row for each number of images."""
    stages = ("read", "decode", "preprocess", "encode", "total")
    method = ("text_proxies", "labels", "proxies")
    lines = [
        f"| images | {' | '.join((*stages, *method)).replace('_', ' ')} |",
        "|" + "---|" * (1 + len(stages) + len(method)),
    ]
    for count, row in record["median_ms"].items():
        shown = [f"{row[stage]:.1f}" if row[stage] < 10 else f"{row[stage]:,.0f}" for stage in stages]
        shown += ["–" if not row[stage] else f"{row[stage]:.{1 if row[stage] >= 1 else 2}f}" for stage in method]
        lines.append(f"| {count} | {' | '.join(shown)} |")
    return lines


def cold_start(record: Record) -> list[str]:
    """Seconds since the process was started, a row for each bundle."""
    lines = ["| bundle | import | load and verify | first answer | total | resident |", "|---|---|---|---|---|---|"]
    for name, row in record["median"].items():
        lines.append(
            f"| {name} | {row['import_s']:.2f} s | {row['load_s']:.2f} s | {row['first_answer_s']:.2f} s | "
            f"**{row['total_s']:.2f} s** | {row['resident_mb']:.0f} MB |"
        )
    return lines


def cold_start_prose(record: Record) -> list[str]:
    """The size of the environment."""
    return [f"({record['environment_mb']:.0f} MB environment, no torch)"]


def _times(row: Record) -> str:
    value = row["speedup_over_torch"]
    return f"{value:.1f}x" if value < 10 else f"{value:.0f}x"


def _long_ms(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms < 10_000 else f"{ms / 1e3:.0f} s"


def _two_digits(ms: float) -> str:
    return f"{ms:.2f}" if ms < 1 else f"{ms:.1f}" if ms < 10 else f"{ms:.0f}"


def _power(value: float) -> str:
    digits, _, power = f"{value:.0e}".partition("e")
    return f"{digits}e{int(power)}"


def _share(value: float) -> str:
    return "100 %" if value == 1 else f"{value * 100:.1f} %"


TABLES: dict[str, Callable[[Record], list[str]]] = {
    "learn_proxies": learn_proxies,
    "end_to_end": end_to_end,
    "cold_start": cold_start,
    "serving": serving_rows,
    "rivals": page_lines,
}
PROSE: dict[str, Callable[[Record], list[str]]] = {
    "learn_proxies": learn_proxies_prose,
    "cold_start": cold_start_prose,
}
