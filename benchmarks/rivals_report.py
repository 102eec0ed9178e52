"""From the turns of a run to medians and ratios, and the lines that are printed and kept."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rivals_list import ADAPT, ENCODE, OURS

from kpl_engine.bench.intervals import percentile

__all__ = ["page_lines", "rows_of", "show_rivals", "table_lines"]

QUIET_CORES = 0.05  # other processes that kept more busy than this may have moved a figure
TITLES = {ENCODE: "pictures to features", ADAPT: "features to labels", "whole": "pictures to labels"}
Turn = dict[str, Any]


def rows_of(task: str, size: Any, turns: Mapping[str, Sequence[Turn]]) -> list[dict[str, Any]]:
    """One row a rival. ``ratio`` is its time over ours *within* a round, which what slows a round leaves alone: above 1
    the rival is slower. Its spread is the smallest and largest of the rounds."""
    base = next((runs for name, runs in turns.items() if name in (OURS, f"{OURS}, CUDA")), None)
    if base is None:  # without ours there is nothing to compare with
        return []
    num_pictures = size if isinstance(size, int) else 1
    rows = []
    for name, runs in turns.items():
        ms = sorted(value for run in runs for value in run["ms"])
        ratios = [
            statistics.median(run["ms"]) / statistics.median(ours["ms"]) for run, ours in zip(runs, base, strict=True)
        ]
        rows.append(
            {
                "task": task,
                "size": size,
                "rival": name,
                "median_ms": statistics.median(ms),
                "p99_ms": percentile(ms, 0.99),
                "min_ms": ms[0],
                "max_ms": ms[-1],
                "count": len(ms),
                "ratio": statistics.median(ratios),
                "ratio_spread": [min(ratios), max(ratios)],
                "cpu_ms_per_picture": statistics.median(run["cpu_s_per_call"] for run in runs) * 1e3 / num_pictures,
                "resident_mb": max(run["resident_mb"] for run in runs),
                "peak_mb": max(run["peak_mb"] for run in runs),
                "first_ms": statistics.median(run["first_ms"] for run in runs),
                "foreign_cores": max(run["foreign_cores"] for run in runs),
                "idle_rivals_cores": max(run["idle_rivals_cores"] for run in runs),
            }
        )
    return rows


def table_lines(record: Mapping[str, Any]) -> list[str]:
    """The table of the terminal: a line for each rival, size and task; who was not measured, and why, in the last."""
    lines = [
        "| from, to | rival | median | p99 | time over ours (spread over rounds) | CPU ms a picture | resident |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        low, high = row["ratio_spread"]
        ratio = "1" if _is_ours(row) else f"**{_times(row['ratio'])}** ({_times(low)} to {_times(high)})"
        tail = "–" if row["p99_ms"] is None else f"{_ms(row['p99_ms'])}"
        lines.append(
            f"| {_what(row)} | {row['rival']} | {_ms(row['median_ms'])} | {tail} | {ratio} | {_cpu(row)} | "
            f"{row['resident_mb']:,.0f} MB |"
        )
    return lines + _missing_lines(record)


def page_lines(record: Mapping[str, Any]) -> list[str]:
    """The tables of the README, one for pictures and one for features: a line for each case, a column for each rival.

    Ours in milliseconds, the others as times over ours with their spread over rounds.
    """
    lines: list[str] = []
    for wants_adaptation in (False, True):
        rows = [row for row in record["rows"] if (row["task"] == ADAPT) == wants_adaptation]
        if not rows:
            continue
        names = list(dict.fromkeys(row["rival"] for row in rows))
        lines += ["", f"| from, to | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        cases: dict[str, dict[str, str]] = {}
        for row in rows:
            cases.setdefault(_what(row), {})[row["rival"]] = _page_cell(row)
        if not wants_adaptation:
            spent = {row["rival"]: _cpu(row) for row in rows if (row["task"], row["size"]) == (ENCODE, 8)}
            cases["CPU ms a picture, 8 at once"] = spent
        most = {row["rival"]: 0.0 for row in rows}
        for row in rows:
            most[row["rival"]] = max(most[row["rival"]], row["resident_mb"])
        cases["resident"] = {name: f"{size:,.0f} MB" for name, size in most.items()}
        lines += [f"| {what} | {' | '.join(found.get(name, '–') for name in names)} |" for what, found in cases.items()]
    return lines[1:] + _missing_lines(record)


def _page_cell(row: Mapping[str, Any]) -> str:
    if _is_ours(row):
        return _ms(row["median_ms"])
    low, high = row["ratio_spread"]
    return f"**{_times(row['ratio'])}** ({_times(low)} to {_times(high)})"


def _is_ours(row: Mapping[str, Any]) -> bool:
    return row["rival"] in (OURS, f"{OURS}, CUDA")


def _missing_lines(record: Mapping[str, Any]) -> list[str]:
    """Who was not measured, and why."""
    missing: dict[str, list[str]] = {}
    for name, rival in record["rivals"].items():
        if rival["reason"]:
            missing.setdefault(rival["reason"], []).append(name)
    if not missing:
        return []
    said = [f"{'; '.join(names)} ({reason})" for reason, names in missing.items()]
    return ["", f"Not measured: {'; '.join(said)}."]


def _what(row: Mapping[str, Any]) -> str:
    size = row["size"]
    shown = f"{size}" if isinstance(size, int) else ", ".join(map(str, size))
    return f"{TITLES[row['task']]}, {shown}"


def _cpu(row: Mapping[str, Any]) -> str:
    return "–" if row["task"] == ADAPT else f"{row['cpu_ms_per_picture']:.1f}"


def _ms(value: float) -> str:
    return f"{value:.2g} ms" if value < 10 else f"{value:,.0f} ms"


def _times(value: float) -> str:
    return f"{value:.2f}x" if value < 10 else f"{value:,.0f}x"


def show_rivals(record: Mapping[str, Any]) -> None:
    """Who took part, how long each took to open and whether the machine was quiet."""
    for name, rival in record["rivals"].items():
        if "ready_s" in rival:
            print(f"{name}: ready after {rival['ready_s']:.1f} s, {rival['settings']}")
        if rival["reason"]:
            print(f"{name}: NOT MEASURED, {rival['reason']}")
    most = max((row["foreign_cores"] for row in record["rows"]), default=0.0)
    idle = max((row["idle_rivals_cores"] for row in record["rows"]), default=0.0)
    verdict = "" if most < QUIET_CORES else ": NOT a quiet machine"
    print(f"other processes kept up to {most:.2f} cores busy{verdict}; rivals that waited, {idle:.3f}")
