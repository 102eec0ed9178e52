"""`docs/scaling.svg`: one small picture for each call and axis, time with its fitted line and the machine's ceiling."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 236, 168, 44, 26, 12, 30
_HEAD = 66
_TITLES = {"n": "images n", "c": "classes c", "d": "width d", "m": "descriptions a class m", "b": "knowledge bases b"}
_STYLE = """
.back{fill:#fff}text{font:11px system-ui,sans-serif;fill:#222}
.big{font-size:15px;font-weight:600}.small{font-size:9.5px;fill:#555}
.axis{stroke:#b5b5b5;fill:none}.grid{stroke:#ececec}.dot{fill:#1c63b7}.open{fill:none;stroke:#1c63b7;stroke-width:1.4}
.fit{stroke:#1c63b7;stroke-width:1.6;fill:none}.least{stroke:#b4550a;stroke-width:1.4;stroke-dasharray:4 3;fill:none}
.note{fill:#1c63b7;font-size:9.5px}
@media (prefers-color-scheme:dark){.back{fill:#14171a}text{fill:#e6e6e6}.small{fill:#a8adb3}.axis{stroke:#5b6168}
.grid{stroke:#262b30}.dot{fill:#7db4f5}.open{stroke:#7db4f5}.fit{stroke:#7db4f5}.least{stroke:#f0a25b}.note{fill:#7db4f5}}
"""
Scale = Callable[[float], float]


def draw(record: dict[str, Any]) -> str:
    """The whole picture as SVG; ``record`` is that of scaling.py."""
    axes = list(dict.fromkeys(point["axis"] for point in record["points"]))
    calls = list(dict.fromkeys(point["call"] for point in record["points"]))
    panels, rows = [], 0
    for column, axis in enumerate(axes):
        mine = [call for call in calls if any(p["call"] == call and p["axis"] == axis for p in record["points"])]
        rows = max(rows, len(mine))
        for row, call in enumerate(mine):  # an axis with few calls leaves no holes above them
            points = [p for p in record["points"] if p["call"] == call and p["axis"] == axis]
            fits = [f for f in record["fits"] if f["call"] == call and f["axis"] == axis]
            place = f"translate({column * _WIDTH + 8},{row * _HEIGHT + _HEAD})"
            panels.append(f'<g transform="{place}">{_panel(call, axis, points, fits)}</g>')
    width, height = max(len(axes) * _WIDTH, 720) + 16, rows * _HEIGHT + _HEAD + 8
    about = f"{record['cpu']}, {record['threads']} threads, {record['date'][:10]}, commit {record['commit']}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-labelledby="title desc"><title id="title">Time of a call against its sizes</title>'
        f'<desc id="desc">{escape(_words(record))}</desc><style>{_STYLE}</style>'
        f'<rect class="back" width="{width}" height="{height}"/>'
        f'<text class="big" x="16" y="24">Time of a call against its sizes</text>'
        f'<text class="small" x="16" y="40">{escape(about)}</text>{_key()}{"".join(panels)}</svg>\n'
    )


def _key() -> str:
    return (
        '<circle class="dot" cx="20" cy="53" r="3"/><text class="small" x="28" y="56">measured</text>'
        '<circle class="open" cx="90" cy="53" r="3"/><text class="small" x="98" y="56">predicted</text>'
        '<path class="fit" d="M158 53h22"/><text class="small" x="185" y="56">fitted line with its exponent</text>'
        '<path class="least" d="M326 53h22"/><text class="small" x="353" y="56">least time of the counted work at the '
        "measured copy and matrix product</text>"
    )


def _words(record: dict[str, Any]) -> str:
    parts = [
        f"{f['call']} grows as {f['axis']} to the {f['exponent']:.2f} from {f['first']:g} to {f['last']:g}"
        for f in record["fits"]
    ]
    return "; ".join(parts) + "."


def _panel(call: str, axis: str, points: list[dict[str, Any]], fits: list[dict[str, Any]]) -> str:
    xs = [p["x"] for p in points]
    times = [p["seconds"] for p in points] + [p["ceiling_s"] for p in points]
    across = _log_scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    up = _log_scale(10 ** math.floor(math.log10(min(times))), max(times) * 1.3, _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<text x="{_LEFT}" y="14">{escape(call)}</text>']
    parts += [_time_tick(power, up) for power in _powers(min(times), max(times) * 1.3)]
    parts += [_value_tick(x, across) for x in _few(xs)]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="small" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(_TITLES[axis])}</text>'
    )
    least = " ".join(f"{across(p['x']):.1f},{up(p['ceiling_s']):.1f}" for p in points)
    parts.append(f'<polyline class="least" points="{least}"/>')
    parts += [_fitted(fit, across, up) for fit in fits]
    parts += [_dot(point, across, up) for point in points]
    exponents = ", ".join(f"{fit['exponent']:.2f}" for fit in fits)
    label = f"exponent {exponents}" if exponents else "too few points to fit"
    parts.append(f'<text class="note" x="{_WIDTH - _RIGHT}" y="14" text-anchor="end">{label}</text>')
    return "".join(parts)


def _log_scale(low: float, high: float, first: float, last: float) -> Scale:
    span = math.log(high / low) or 1.0
    return lambda value: first + (last - first) * math.log(value / low) / span


def _powers(low: float, high: float) -> list[int]:
    powers = list(range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1))
    return powers[:: max(1, math.ceil(len(powers) / 5))]


def _few(xs: list[int]) -> list[int]:
    """About four values, evenly spaced in the logarithm, the first and last among them."""
    wanted = [xs[0] * (xs[-1] / xs[0]) ** (i / 3) for i in range(4)]
    return sorted({min(xs, key=lambda x: abs(math.log(x / want))) for want in wanted})


def _time_tick(power: int, up: Scale) -> str:
    y = up(10.0**power)
    words = f"{10 ** (power % 3)} {({0: 's', -1: 'ms', -2: 'µs', -3: 'ns'}).get(power // 3, 'ks')}"
    line = f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
    return f'{line}<text class="small" x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{words}</text>'


def _value_tick(x: int, across: Scale) -> str:
    place, base = across(x), _HEIGHT - _BOTTOM
    words = f"{x // 1000}k" if x >= 10000 else str(x)
    return (
        f'<path class="axis" d="M{place:.1f} {base}v3"/>'
        f'<text class="small" x="{place:.1f}" y="{base + 13}" text-anchor="middle">{words}</text>'
    )


def _fitted(fit: dict[str, Any], across: Scale, up: Scale) -> str:
    ends = " ".join(
        f"{across(x):.1f},{up(fit['factor'] * x ** fit['exponent']):.1f}" for x in (fit["first"], fit["last"])
    )
    return f'<polyline class="fit" points="{ends}"/>'


def _dot(point: dict[str, Any], across: Scale, up: Scale) -> str:
    name = "dot" if point["status"] == "measured" else "open"
    words = f"{point['axis']} = {point['x']}: {point['seconds'] * 1e3:.4g} ms, {point['status']}"
    place = f'cx="{across(point["x"]):.1f}" cy="{up(point["seconds"]):.1f}"'
    return f'<circle class="{name}" {place} r="2.8"><title>{escape(words)}</title></circle>'
