"""A result as one HTML file: no script, no other file, no other host; readable on a phone, in the dark and on paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from kpl_engine.bench.records import Result
from kpl_engine.bench.report import sections
from kpl_engine.bench.report.markup import Content, Markup, element, table
from kpl_engine.bench.report.words import printable, size, subject_of
from kpl_engine.bench.results import tells_speed, without_speed

__all__ = ["render"]

# Nothing may be fetched, by anything that stands in the file: the browser holds it to that.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_HOW_TO_READ = (
    "A percentile is a latency that was seen (nearest rank), told from 1 / (1 - q) queries on: 100 for p99, 1,000 for "
    "p99.9.",
    "Small figures are 95 % intervals by a moving-block bootstrap, since latencies that follow one another are alike; "
    "a dash says that there are too few queries for one, or that they stay alike for too long.",
    "The intervals hold for this run. What changes from run to run (placement in memory, clocks, neighbours) is not in "
    "them; kpl-engine bench compare holds runs against each other.",
    "Latencies of Server count from when a query was due, so a stall counts for every query that it kept waiting.",
    "The answers were held to the float64 reference before and after each scenario; a run with a wrong answer tells no "
    "speed.",
    "Run with MLCommons' LoadGen, but not a result that MLCommons has verified.",
)


def render(result: Result) -> str:
    """The report.

    Parameters
    ----------
    result : Result
        Complete, partial or wrong; what was not measured has no section, and a run with a wrong answer shows no speed.

    Returns
    -------
    str
        An HTML document. Every text of the result is escaped (`markup`).
    """
    is_told = tells_speed(result)
    shown = result if is_told else without_speed(result)
    title = f"kpl-engine bench: {shown['subject']['bundle']}"
    style = files("kpl_engine.bench.report").joinpath("report.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element("body", element("header", *_heading(shown, title)), element("main", *_parts(shown, is_told)))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _heading(result: Result, title: str) -> list[Markup]:
    status = result["status"]
    colour, text = {
        "complete": ("good", "Complete."),
        "failed": ("bad", f"Not complete: {result.get('error', 'no reason was given')}"),
        "wrong": ("bad", f"Wrong answers, so no speed is told: {result.get('error', 'see the answers below')}"),
    }[status]
    date = result["date"].replace("T", " ").replace("+00:00", " UTC")
    when = f"{date}, commit {result['commit']}" if result.get("commit") else date
    return [
        element("h1", title),
        element("p", subject_of(result)),
        element("p", f"{_machine_line(result)}; {when}", class_="soft"),
        element("p", text, class_=f"status {colour}"),
    ]


def _parts(result: Result, is_told: bool) -> list[Markup]:
    parts = [element("section", element("h2", "Summary"), sections.summary(result), class_="panel")] if is_told else []
    again = element(
        "section", element("h2", "Run it again"), element("pre", result["command"], tabindex=0), class_="panel"
    )
    found = [sections.scenario(each, index) for index, each in enumerate(result.get("scenarios", ()))]
    parts += [again, *found, sections.load(result), sections.stages(result), sections.batches(result)]
    parts += [sections.cold_start(result), sections.checks(result), sections.resources(result), _record(result)]
    how = element("ul", *(element("li", text) for text in _HOW_TO_READ))
    return [*parts, element("section", element("h2", "How to read this"), how, class_="panel")]


def _machine_line(result: Result) -> str:
    machine = result["machine"]
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    virtual = ", virtual" if machine["is_virtual"] else ""
    return f"{machine['cpu']}, {machine['cores']} cores{virtual}, {size(machine['memory_bytes'])}{gpus}"


def _record(result: Result) -> Markup:
    machine = [(key.replace("_", " "), _plain(value)) for key, value in result["machine"].items()]
    subject = [(key.replace("_", " "), _plain(value)) for key, value in result["subject"].items()]
    settings = [(key, _plain(value)) for key, value in result["settings"].items()]
    tables = [
        element("h3", "Machine"),
        _texts(machine),
        element("h3", "Versions"),
        _texts(list(result["versions"].items())),
        element("h3", "What was measured"),
        _texts(subject),
        element("details", element("summary", "Settings"), _texts(settings)),
    ]
    return element("section", element("h2", "Machine and versions"), *tables, class_="panel")


def _texts(rows: Sequence[tuple[str, str]]) -> Markup:
    shown: list[list[Content]] = [[key, value] for key, value in rows]
    return element("div", table(["", "value"], shown), class_="texts")


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value or "–"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    return printable(json.dumps(value)) if value is not None else "–"
