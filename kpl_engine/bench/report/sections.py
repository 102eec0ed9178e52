"""The parts of the HTML report; each takes what was measured and gives back markup, empty where nothing was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kpl_engine.bench.intervals import PERCENTILES, percentile
from kpl_engine.bench.records import Distribution, Interval, Result, Scenario
from kpl_engine.bench.report import charts
from kpl_engine.bench.report.markup import Content, Markup, element, join, table
from kpl_engine.bench.report.words import answers, checks_of, count, number, range_of, share, size, verdict

__all__ = ["batches", "checks", "cold_start", "load", "resources", "scenario", "stages", "summary", "value_of"]

_TAILS: tuple[Literal["p50_ms", "p90_ms", "p99_ms"], ...] = ("p50_ms", "p90_ms", "p99_ms")
_MEMORY: tuple[Literal["resident_bytes", "device_memory_bytes"], ...] = ("resident_bytes", "device_memory_bytes")
_CURVE = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


def summary(result: Result) -> Markup:
    """One line a scenario."""
    rows: list[Sequence[Content]] = []
    for each in result.get("scenarios", ()):
        latency = None if each["scenario"] == "Offline" else each.get("latency")
        tails = [_percentile(latency, q) for q in PERCENTILES]
        rate = number(each["samples_per_s"]) if "samples_per_s" in each else "–"
        rows.append([each["scenario"], *tails, rate, _verdict(each), _answers(each)])
    header = ["", *(f"p{q} ms" for q in PERCENTILES), "pictures/s", "LoadGen", "answers"]
    return table(header, rows, "Latency of a query with 95 % intervals; LoadGen's verdict; answers held to float64")


def scenario(found: Scenario, index: int) -> Markup:
    """One scenario: what was asked of whom, its curve, LoadGen's words as they came."""
    facts = [element("p", _how(found))] if "how" in found else []
    if "error" in found:
        facts.append(element("p", "Ended early: ", found["error"], class_="bad"))
    if "verdict" in found:
        facts.append(element("p", "LoadGen: ", element("strong", found["verdict"], class_=_mood(found))))
    facts.append(_reasons(found))
    facts.append(_list(found.get("notes", [])))
    facts.append(_start(found))
    if found.get("loadgen"):
        rows = [(key, value if isinstance(value, str) else f"{value:.15g}") for key, value in found["loadgen"].items()]
        facts.append(_folded("LoadGen's summary as it came", table(["", "value"], rows)))
    picture = _curve(found, f"curve-{index}") if "latency" in found else Markup("")
    return _panel(found["scenario"], element("div", join(facts)), element("div", picture), is_pair=True)


def load(result: Result) -> Markup:
    """Percentiles against offered load."""
    probes = sorted(result.get("probes", ()), key=lambda probe: probe["target_qps"])
    if not probes:
        return Markup("")
    bound, peak = result["settings"].get("latency_bound_ms"), result.get("peak_qps")
    bound = float(bound) if isinstance(bound, (int, float)) else None
    is_seen = any(each["p50_ms"] > 0.0 for each in probes)
    picture = charts.load_curve(probes, bound, peak, "load") if is_seen else element("p", "Nothing was answered.")
    rows = []
    for each in probes:
        bounds = "kept" if each["keeps_bound"] else "not kept", "VALID" if each["is_valid"] else "INVALID"
        times = (number(each[key]) for key in _TAILS)
        rate = number(each["target_qps"]), number(each["samples_per_s"])
        rows.append([*rate, *times, *bounds, count(each["num_queries"])])
    header = ["offered/s", "answered/s", "p50 ms", "p90 ms", "p99 ms", "bound", "LoadGen", "queries"]
    text = "No rate that was tried kept the bound." if peak is None else f"Highest rate that kept it: {number(peak)}/s."
    hint = "Each rate is a Server run with Poisson arrivals; a latency counts from when its query was due. "
    hint += "Hollow: the bound was not kept."
    words = element("div", element("p", text), element("p", hint, class_="soft"))
    both = element("div", element("figure", picture), words, class_="pair")
    return _panel("Latency against offered load", both, table(header, rows))


def batches(result: Result) -> Markup:
    """Throughput against batch size."""
    points = sorted(result.get("batches", ()), key=lambda point: point["batch"])
    if not points:
        return Markup("")
    picture = element("figure", charts.batch_curve(points, "batches"))
    rows = [[str(each["batch"]), value_of(each["samples_per_s"]), value_of(each["ms"])] for each in points]
    numbers = element("div", table(["batch", "pictures/s", "median ms of a call"], rows, "With 95 % intervals"))
    return _panel("Throughput against batch size", picture, numbers, is_pair=True)


def stages(result: Result) -> Markup:
    """Where the time of one picture goes."""
    found = result.get("stages")
    if found is None:
        return Markup("")
    total = found["total"]["mean"]["value"]
    rows: list[Sequence[Content]] = []
    named = [(name, found["stages"][name]) for name in found["order"] if name in found["stages"]]
    for name, each in [*named, ("total", found["total"])]:
        part = share(each["mean"]["value"] / total) if total > 0.0 else "–"
        tails = [_percentile(each, q) for q in PERCENTILES]
        rows.append([name.replace("_", " "), part, value_of(each["mean"]), *tails])
    beside = ", ".join(found["runs_beside"])
    texts = [f"{share(found['unexplained_share'])} of the mean total is in no stage.", *found["notes"]]
    texts += [f"In threads beside the others, so they do not add up: {beside}."] if beside else []
    device = [[name, value_of(each)] for name, each in found["device_ms"].items()]
    numbers = [table(["", "share", "mean ms", *(f"p{q} ms" for q in PERCENTILES)], rows, "With 95 % intervals")]
    numbers += [table(["on the device", "ms"], device, "By events of the GPU")] if device else []
    picture = element("figure", charts.stage_bars(found, "stages"))
    return _panel("Where the time of one picture goes", picture, element("div", _list(texts)), *numbers)


def cold_start(result: Result) -> Markup:
    """A fresh process to its first answer."""
    found = result.get("cold_start")
    if found is None:
        return Markup("")
    rows: list[Sequence[Content]] = [
        ["imports", value_of(found["import_ms"])],
        ["opening the bundle", value_of(found["load_ms"])],
        ["first answer", value_of(found["first_ms"])],
        ["from start to first answer", value_of(found["total_ms"])],
    ]
    text = f"Medians of {found['count']} fresh processes; {size(found['resident_bytes'])} resident afterwards."
    return _panel("Cold start", element("p", text), table(["", "ms"], rows))


def checks(result: Result) -> Markup:
    """The answers held to the float64 reference."""
    rows: list[Sequence[Content]] = []
    for each in result.get("scenarios", ()):
        for when, check in zip(("before", "after"), checks_of(each), strict=False):
            judged = element("span", "right" if check["is_right"] else "WRONG", class_=_colour(check["is_right"]))
            row = [f"{each['scenario']}, {when}", count(check["num_pictures"]), f"{check['max_error']:.2g}"]
            rows.append([*row, f"{check['tolerance']:.2g}", count(check["num_other_labels"]), judged, check["reason"]])
    if not rows:
        return Markup("")
    header = ["", "pictures", "largest difference", "allowed", "other labels", "answers", "what was wrong"]
    text = "Probabilities against the float64 reference on fresh samples, before and after the scenario."
    return _panel("Answers", element("p", text, class_="soft"), table(header, rows))


def resources(result: Result) -> Markup:
    """What each scenario took of the machine, first call and warm-up apart."""
    rows: list[Sequence[Content]] = []
    for each in result.get("scenarios", ()):
        used = each.get("resources")
        if used is not None:
            cpu, power = used.get("cpu_s_per_sample"), used.get("device_power_w")
            memory = [size(used[key]) if key in used else "–" for key in _MEMORY]
            energy = used.get("device_j_per_sample")
            row = [each["scenario"], used.get("of", "–"), number(None if cpu is None else 1e3 * cpu)]
            row += [
                number(used.get("cpu_cores")),
                *memory,
                number(power),
                number(energy),
                number(used.get("other_cores")),
            ]
            rows.append(row)
    if not rows:
        return Markup("")
    header = ["", "of", "CPU ms a picture", "cores busy", "resident", "device memory", "device W", "J a picture"]
    header.append("cores busy by others")
    return _panel("Resources", table(header, rows))


def value_of(interval: Interval) -> Markup:
    """A value over its interval."""
    return join([number(interval["value"]), element("small", range_of(interval))])


def _panel(title: str, *parts: Markup, is_pair: bool = False) -> Markup:
    body = element("div", *parts, class_="pair") if is_pair else join(parts)
    return element("section", element("h2", title), body, class_="panel")


def _folded(title: str, content: Markup) -> Markup:
    return element("details", element("summary", title), content)


def _list(texts: Sequence[str]) -> Markup:
    return element("ul", *(element("li", text) for text in texts)) if texts else Markup("")


def _how(found: Scenario) -> str:
    parts = [f"Queries go to {found['how']}"]
    if "num_queries" in found and "num_samples" in found and "duration_s" in found:
        queries = f"{count(found['num_queries'])} {'query' if found['num_queries'] == 1 else 'queries'}"
        parts.append(f"{queries} with {count(found['num_samples'])} pictures in {number(found['duration_s'])} s")
    if "target_qps" in found:
        parts.append(f"{number(found['target_qps'])}/s offered")
    if found.get("num_failed"):
        parts.append(f"{count(found['num_failed'])} without an answer")
    codes = ", ".join(f"{code}: {count(times)}" for code, times in found.get("codes", {}).items())
    return "; ".join([*parts, f"codes {codes}"] if codes else parts) + "."


def _reasons(found: Scenario) -> Markup:
    """LoadGen's own lines; in sight where it objects."""
    if not found.get("reasons"):
        return Markup("")
    lines = join([join([text, Markup("\n")]) for text in found["reasons"]])
    opened = {} if found.get("is_valid") else {"open": "open"}
    return element("details", element("summary", "What LoadGen adds"), element("pre", lines, tabindex=0), **opened)


def _start(found: Scenario) -> Markup:
    """What is not in the latencies, and how punctual LoadGen was."""
    texts = [f"First call {number(found['first_ms'])} ms, not counted."] if "first_ms" in found else []
    if found.get("warm_up_ms"):
        calls = found["warm_up_ms"]
        texts.append(f"{len(calls)} calls of warm-up, not counted: {number(calls[0])} ms to {number(calls[-1])} ms.")
    delay = found.get("issue_delay")
    if delay is not None:
        tail = delay["percentiles"].get("99")
        late = f"p99 {number(tail['value'])} ms" if tail else f"{number(delay['max'])} ms at most"
        texts.append(f"LoadGen issued late by {late}.")
    return element("p", " ".join(texts), class_="soft") if texts else Markup("")


def _curve(found: Scenario, identity: str) -> Markup:
    if found["scenario"] == "Offline":
        picture, unit, scale = charts.completion_curve(found, identity), "s", 1e3
    else:
        picture, unit, scale = charts.latency_curve(found, identity), "ms", 1.0
    ordered = sorted(found["latency"]["samples"])
    seen = [(q, percentile(ordered, q)) for q in _CURVE]
    rows = [[f"{100 * q:g} %", number(value / scale)] for q, value in seen if value is not None]
    return element("figure", picture, _folded("The numbers of this picture", table(["share", unit], rows)))


def _percentile(found: Distribution | None, q: str) -> Content:
    return value_of(found["percentiles"][q]) if found is not None and q in found["percentiles"] else "–"


def _verdict(found: Scenario) -> Markup:
    return element("span", verdict(found), class_=_mood(found))


def _mood(found: Scenario) -> str:
    return "good" if found.get("is_valid") else "warn"


def _answers(found: Scenario) -> Markup:
    said = answers(found)
    return element("span", said, class_=_colour(said != "WRONG"))


def _colour(is_right: bool) -> str:
    return "good" if is_right else "bad"
