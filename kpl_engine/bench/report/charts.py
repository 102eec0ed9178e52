"""The pictures of a result."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kpl_engine.bench.intervals import percentile
from kpl_engine.bench.records import BatchPoint, Distribution, Probe, Scenario, Stages
from kpl_engine.bench.report.axes import Axis, axis_over
from kpl_engine.bench.report.markup import Markup, element
from kpl_engine.bench.report.plot import BOTTOM, LEFT, RIGHT, TOP, Plot, picture
from kpl_engine.bench.report.words import number, share

__all__ = ["batch_curve", "completion_curve", "latency_curve", "load_curve", "stage_bars"]

_POINTS = 160
_NAME_PX, _BAR_PX, _ROW_PX = 92.0, 132.0, 26.0
_APART_PX = 14.0  # of two names of lines


def latency_curve(scenario: Scenario, identity: str) -> Markup:
    """The share of queries answered within a time, shares on a logit axis: bulk and tail can both be read."""
    found = scenario["latency"]
    ordered = sorted(found["samples"])
    top = min(max(1.0 - 1.0 / len(ordered), 0.95), 0.9999)
    y = Axis(0.01, top, BOTTOM, TOP, "logit")
    curve = [(value, q) for q in _logit_grid(0.01, top) if (value := percentile(ordered, q)) is not None]
    bound = scenario.get("latency_bound_ms")
    ends = [value for value, _ in curve] + [each["value"] for each in found["percentiles"].values()]
    shown_bound = bound if bound is not None and bound <= 20.0 * max(ends) else None
    x = axis_over([*ends, shown_bound] if shown_bound else ends, LEFT, RIGHT, "log")
    plot = Plot(
        x, y, "ms, logarithmic", "% of queries answered within", y_ticks=[(q, f"{100 * q:g}") for q in y.ticks()]
    )
    if shown_bound is not None:
        # The curve goes from the lower left to the upper right: there is room in the other two corners.
        is_right = x.at(shown_bound) > (LEFT + RIGHT) / 2
        plot.upright(shown_bound, f"bound {shown_bound:g} ms", "bound", is_top=not is_right)
    plot.steps(curve, "one")
    _mark_percentiles(plot, found, top)
    name = scenario["scenario"]
    words = ", ".join(f"p{q} {number(each['value'])} ms" for q, each in found["percentiles"].items())
    return plot.draw(identity, f"{name}: distribution of latency", f"{found['count']} queries; {words}.")


def completion_curve(scenario: Scenario, identity: str) -> Markup:
    """Offline: all pictures are asked for at once; a straight line is a steady rate."""
    found = scenario["latency"]
    ordered = sorted(found["samples"])
    x = axis_over([0.0, ordered[-1] / 1e3], LEFT, RIGHT)
    y = Axis(0.0, 1.0, BOTTOM, TOP)
    step = max(1, len(ordered) // _POINTS)
    points = [(ordered[i] / 1e3, (i + 1) / len(ordered)) for i in [*range(0, len(ordered) - 1, step), len(ordered) - 1]]
    ticks = [(q, f"{100 * q:g}") for q in (0.0, 0.25, 0.5, 0.75, 1.0)]
    plot = Plot(x, y, "s since all were asked for", "% of pictures answered", y_ticks=ticks)
    plot.steps([(0.0, 0.0), *points], "one")
    text = f"{found['count']} answers in {number(found['max'] / 1e3)} s."
    return plot.draw(identity, f"{scenario['scenario']}: answers over time", text)


def load_curve(probes: Sequence[Probe], bound: float | None, peak: float | None, identity: str) -> Markup:
    """Percentiles of the latency against the offered load; hollow where the bound was not kept.

    A rate at which nothing was answered has no latency and no point. ``probes`` holds one that was answered.
    """
    probes = sorted((each for each in probes if each["p50_ms"] > 0.0), key=lambda probe: probe["target_qps"])
    series = {
        "p50": [(each["target_qps"], each["p50_ms"]) for each in probes],
        "p90": [(each["target_qps"], each["p90_ms"]) for each in probes],
        "p99": [(each["target_qps"], each["p99_ms"]) for each in probes],
    }
    times = [value for points in series.values() for _, value in points] + ([bound] if bound else [])
    x = axis_over([each["target_qps"] for each in probes], LEFT, RIGHT)
    y = axis_over(times, BOTTOM, TOP, "log")
    plot = Plot(x, y, "offered queries a second", "ms, logarithmic")
    if bound is not None:
        plot.level(bound, f"bound {bound:g} ms", "bound")
    if peak is not None:
        plot.upright(peak, f"peak {number(peak)}", "peak")
    for points, kind in zip(series.values(), ("one", "two", "three"), strict=True):
        plot.line(points, kind)
        for (rate, value), probe in zip(points, probes, strict=True):
            plot.point(rate, value, kind, is_hollow=not probe["keeps_bound"])
    _name_lines(plot, series)
    words = "; ".join(f"{number(each['target_qps'])}/s p99 {number(each['p99_ms'])} ms" for each in probes)
    return plot.draw(identity, "Latency against offered load", f"{words}.")


def batch_curve(points: Sequence[BatchPoint], identity: str) -> Markup:
    """Pictures a second against the batch size, with the 95 % intervals."""
    points = sorted(points, key=lambda point: point["batch"])
    rates = [point["samples_per_s"] for point in points]
    y = axis_over([rate["high"] or rate["value"] for rate in rates], BOTTOM, TOP)
    sizes = [float(point["batch"]) for point in points]
    x = Axis(sizes[0] / 1.3, sizes[-1] * 1.3, LEFT, RIGHT, "log")
    plot = Plot(x, y, "pictures in a batch", "pictures a second", x_ticks=[(size, f"{size:g}") for size in sizes])
    plot.line([(size, rate["value"]) for size, rate in zip(sizes, rates, strict=True)], "one")
    for size, rate in zip(sizes, rates, strict=True):
        if rate["low"] is not None and rate["high"] is not None:
            plot.whisker_y(size, rate["low"], rate["high"], "one")
        plot.point(size, rate["value"], "one")
    words = "; ".join(f"{point['batch']}: {number(point['samples_per_s']['value'])}/s" for point in points)
    return plot.draw(identity, "Throughput against batch size", f"{words}.")


def stage_bars(stages: Stages, identity: str) -> Markup:
    """The share of each stage in the mean of the total, its p99 beside."""
    total = stages["total"]["mean"]["value"]
    rows = [(name, stages["stages"][name]) for name in stages["order"] if name in stages["stages"]]
    shares = [(name, found["mean"]["value"] / total if total > 0.0 else 0.0, _p99(found)) for name, found in rows]
    shares.append(("unexplained", stages["unexplained_share"], ""))
    longest = max(*(each for _, each, _ in shares), 1e-9)
    marks: list[Markup] = []
    for index, (name, part, tail) in enumerate(shares):
        y = 6.0 + index * _ROW_PX
        kind = "soft" if name == "unexplained" or name in stages["runs_beside"] else "one"
        width = max(_BAR_PX * max(part, 0.0) / longest, 0.5)
        values = f"{share(part)}{f', p99 {tail}' if tail else ''}"
        marks.append(
            element("text", name.replace("_", " "), x=_NAME_PX - 8, y=y + 14, text_anchor="end", class_="label")
        )
        marks.append(element("rect", x=_NAME_PX, y=y, width=width, height=_ROW_PX - 8, rx=2.0, class_=f"bar {kind}"))
        marks.append(element("text", values, x=_NAME_PX + width + 8, y=y + 14, class_="label"))
    words = "; ".join(f"{name.replace('_', ' ')} {share(part)}" for name, part, _ in shares)
    title = "Where the time of one picture goes"
    return picture(identity, title, f"{words}; of {number(total)} ms.", marks, 8.0 + len(shares) * _ROW_PX)


def _mark_percentiles(plot: Plot, found: Distribution, top: float) -> None:
    middle = (LEFT + RIGHT) / 2
    for name, interval in found["percentiles"].items():
        q = float(name) / 100.0
        if q > top:
            continue
        value = interval["value"]
        if interval["low"] is not None and interval["high"] is not None:
            plot.whisker_x(interval["low"], interval["high"], q, "two")
        plot.point(value, q, "two")
        # The curve rises to the right: below it on the left half, above it on the right, there is room for words.
        x, y, is_left = plot.x.at(value), plot.y.at(q), plot.x.at(value) < middle
        text = f"p{name} {number(value)}"
        plot.tag(text, x + (9 if is_left else -9), y + (15 if is_left else -8), "two", "start" if is_left else "end")


def _name_lines(plot: Plot, series: dict[str, list[tuple[float, float]]]) -> None:
    """Each line's name at its right end, moved apart where they would cover one another."""
    lowest = math.inf
    for (name, points), kind in zip(series.items(), ("one", "two", "three"), strict=True):
        y = min(plot.y.at(points[-1][1]) + 4.0, lowest)
        plot.tag(name, plot.x.at(points[-1][0]) + 7.0, y, kind)
        lowest = y - _APART_PX


def _p99(found: Distribution) -> str:
    return f"{number(found['percentiles']['99']['value'])} ms" if "99" in found["percentiles"] else ""


def _logit_grid(low: float, high: float) -> list[float]:
    first, last = math.log(low / (1 - low)), math.log(high / (1 - high))
    bent = [first + (last - first) * i / (_POINTS - 1) for i in range(_POINTS)]
    return [1.0 / (1.0 + math.exp(-each)) for each in bent]
