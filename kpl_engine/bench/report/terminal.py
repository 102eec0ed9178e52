"""A result, or what changed between two, as tables of text."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from kpl_engine.bench.compare import Comparison, Row
from kpl_engine.bench.intervals import PERCENTILES
from kpl_engine.bench.records import Interval, Result, Scenario
from kpl_engine.bench.report.words import (
    answers,
    checks_of,
    count,
    number,
    printable,
    range_of,
    share,
    size,
    subject_of,
    verdict,
)
from kpl_engine.bench.results import tells_speed, without_speed

__all__ = ["render", "render_comparison"]

_LEAST_WIDTH = 60
_GAP = "  "


def render(result: Result, width: int = 100) -> str:
    """Tables of everything that was measured, in lines of at most ``width`` characters but for the command.

    Complete, partial or wrong: what is absent has no table, and a run with a wrong answer shows no speed. Text of the
    result can neither move the cursor nor colour the terminal.
    """
    width = max(width, _LEAST_WIDTH)
    is_told = tells_speed(result)
    shown = result if is_told else without_speed(result)
    lines = _heading(shown, width)
    if is_told:
        lines += _latencies(shown, width)
    lines += _verdicts(shown, width)
    lines += _load(shown, width) + _stages(shown, width) + _batches(shown, width) + _cold_start(shown, width)
    lines += ["", "run it again with", printable(shown["command"])]  # whole, to be copied
    return "\n".join(lines)


def render_comparison(comparison: Comparison, width: int = 100) -> str:
    """Every quantity with its verdict, then what to know before believing it."""
    width = max(width, _LEAST_WIDTH)
    tally = Counter(row.verdict for row in comparison.rows)
    lines = _wrapped(f"before: {comparison.before}", width) + _wrapped(f"after:  {comparison.after}", width)
    lines += ["", ", ".join(f"{number} {name}" for name, number in tally.most_common()), ""]
    lines += _table(
        ["", "before", "after", "ratio", "95 %", "verdict"], [_compared(row) for row in comparison.rows], width
    )
    reasons = Counter(row.why for row in comparison.rows if row.why)
    for why in reasons:
        names = ", ".join(row.what for row in comparison.rows if row.why == why)
        lines += ["", *_wrapped(f"{why}: {names}", width)]
    lines.append("")
    for note in comparison.notes:
        lines += _wrapped(f"{'NO COMPARISON' if note.is_other else 'note'}: {note.text}", width)
    return "\n".join(lines)


def _heading(result: Result, width: int) -> list[str]:
    machine = result["machine"]
    lines = _wrapped(f"{result['subject']['bundle']}: {subject_of(result)}", width)
    lines += _wrapped(f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['gpus']) or 'no GPU'}", width)
    if result["status"] == "failed":
        lines += _wrapped(f"NOT COMPLETE: {result.get('error', 'no reason was given')}", width)
    if not tells_speed(result):
        lines += _wrapped(f"WRONG ANSWERS, so no speed is told: {result.get('error', 'see below')}", width)
    return lines


def _latencies(result: Result, width: int) -> list[str]:
    rows: list[Sequence[str]] = []
    for each in result.get("scenarios", ()):
        rate = number(each["samples_per_s"]) if "samples_per_s" in each else "–"
        found = None if each["scenario"] == "Offline" else each.get("latency")
        told = [found["percentiles"].get(q) if found else None for q in PERCENTILES]
        rows.append([each["scenario"], *(number(i["value"]) if i else "–" for i in told), rate])
        if any(told):
            rows.append(["  95 %", *(range_of(i) if i else "" for i in told), ""])
    header = ["ms a query", *(f"p{q}" for q in PERCENTILES), "pictures/s"]
    return ["", *_table(header, rows, width)] if rows else []


def _verdicts(result: Result, width: int) -> list[str]:
    scenarios = result.get("scenarios", ())
    if not scenarios:
        return []
    rows = [[each["scenario"], _queries(each), verdict(each), answers(each), _busy(each)] for each in scenarios]
    lines = ["", *_table(["", "queries", "LoadGen", "answers", "CPU, memory"], rows, width)]
    said: dict[str, list[str]] = {}  # what several scenarios have in common is said once
    for each in scenarios:
        errors = [f"ended early: {each['error']}"] if "error" in each else []
        wrong = [check["reason"] for check in checks_of(each) if not check["is_right"]]
        for text in [*errors, *wrong, *each.get("notes", ())]:
            said.setdefault(text, []).append(each["scenario"])
    for text, names in said.items():
        lines += _wrapped(f"{', '.join(names)}: {text}", width)
    for each in scenarios:
        if not each.get("is_valid", True) and each.get("reasons"):
            lines += _wrapped(f"LoadGen of {each['scenario']}:", width)
            lines += [line for text in each["reasons"] for line in _wrapped(text, width, _GAP)]
    return lines


def _load(result: Result, width: int) -> list[str]:
    rows = []
    for each in sorted(result.get("probes", ()), key=lambda probe: probe["target_qps"]):
        figures = each["target_qps"], each["samples_per_s"], each["p50_ms"], each["p90_ms"], each["p99_ms"]
        rows.append([*map(number, figures), "kept" if each["keeps_bound"] else "not kept"])
    if not rows:
        return []
    peak = (
        f"peak within the bound: {number(result['peak_qps'])}/s" if "peak_qps" in result else "no rate kept the bound"
    )
    return ["", *_table(["offered/s", "answered/s", "p50 ms", "p90 ms", "p99 ms", "bound"], rows, width), peak]


def _stages(result: Result, width: int) -> list[str]:
    found = result.get("stages")
    if found is None:
        return []
    total = found["total"]["mean"]["value"]
    rows: list[Sequence[str]] = []
    named = [(name, found["stages"][name]) for name in found["order"] if name in found["stages"]]
    for name, each in [*named, ("total", found["total"])]:
        tails = [_value(each["percentiles"].get(q)) for q in ("50", "90", "99", "99.9")]
        part = each["mean"]["value"] / total if total > 0.0 else 0.0
        rows.append([name.replace("_", " "), number(each["mean"]["value"]), share(part), *tails])
    header = ["ms a picture", "mean", "share", "p50", "p90", "p99", "p99.9"]
    texts = [f"unexplained: {share(found['unexplained_share'])}", *found["notes"]]
    texts += [f"in threads beside the others: {', '.join(found['runs_beside'])}"] if found["runs_beside"] else []
    texts += [f"on the device: {name} {number(each['value'])} ms" for name, each in found["device_ms"].items()]
    return ["", *_table(header, rows, width), *(line for text in texts for line in _wrapped(text, width))]


def _batches(result: Result, width: int) -> list[str]:
    points = sorted(result.get("batches", ()), key=lambda point: point["batch"])
    rows = [
        [
            count(each["batch"]),
            number(each["samples_per_s"]["value"]),
            range_of(each["samples_per_s"]),
            _value(each["ms"]),
        ]
        for each in points
    ]
    return ["", *_table(["batch", "pictures/s", "95 %", "median ms"], rows, width)] if rows else []


def _cold_start(result: Result, width: int) -> list[str]:
    found = result.get("cold_start")
    if found is None:
        return []
    parts = {"imports": found["import_ms"], "opening the bundle": found["load_ms"], "first answer": found["first_ms"]}
    words = ", ".join(f"{name} {_value(each)} ms" for name, each in parts.items())
    text = f"cold start {number(found['total_ms']['value'])} ms ({words}); median of {found['count']} fresh processes"
    return ["", *_wrapped(f"{text}, {size(found['resident_bytes'])} resident", width)]


def _compared(row: Row) -> list[str]:
    bounds = "–" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
    values = number(row.before), number(row.after), f"{row.ratio:.3f}"
    return [f"{row.what}, {row.unit}", *values, bounds, row.verdict]


def _queries(found: Scenario) -> str:
    failed = f" ({count(found['num_failed'])} failed)" if found.get("num_failed") else ""
    return count(found["num_queries"]) + failed if "num_queries" in found else "–"


def _busy(found: Scenario) -> str:
    used = found.get("resources", {})
    parts = [f"{number(used['cpu_cores'])} cores"] if "cpu_cores" in used else []
    parts += [size(used["resident_bytes"])] if "resident_bytes" in used else []
    parts += [f"{number(used['device_j_per_sample'])} J a picture"] if "device_j_per_sample" in used else []
    parts += [f"others {used['other_cores']:.2f} cores"] if used.get("other_cores", 0.0) >= 0.05 else []
    return ", ".join(parts) or "–"


def _value(interval: Interval | None) -> str:
    return number(None if interval is None else interval["value"])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns as wide as their widest cell; what does not fit in ``width`` is left out from the right but one."""
    shown = [list(map(printable, row)) for row in (header, *rows)]
    while True:
        widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
        if sum(widths) + len(_GAP) * (len(widths) - 1) <= width or len(widths) <= 2:
            break
        shown = [row[:-2] + row[-1:] for row in shown]
    lines = []
    for row in shown:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True))]
        lines.append(_GAP.join(cells).rstrip()[:width])
    return lines


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        printable(text), width, initial_indent=indent, subsequent_indent=indent + _GAP, break_on_hyphens=False
    )
