"""What two results have that is not the same: what makes them no comparison, and what a reader should know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kpl_engine.bench.records import Result

__all__ = ["Note", "notes"]

_SUBJECT = ("fingerprint", "knowledge", "method", "mode", "device", "threads", "input", "samples_sha256")
# What these change shows in the subject, in the rows that both have, or in the rate beside a row.
_TOLD_ELSEWHERE = {"bundle", "url", "token_file", "scenarios", "images", "num_samples", "input_kind", "note", "parts"}
_TOLD_ELSEWHERE |= {"batch_sizes", "device", "method", "mode", "knowledge"}
_KNOWN_SETTINGS = ("model", "duration_s", "target_qps", "find_peak", "latency_bound_ms", "check_samples", "seed")
_SAME_MEMORY = 0.05  # virtual machines of one kind differ by some per cent
_BUSY_CORES = 0.1
_RUN_TO_RUN = (
    "one run of each: what changes from run to run (placement in memory, clocks, neighbours) is not in these "
    "intervals; to be sure, measure both in turn, twice"
)


@dataclass(frozen=True)
class Note:
    """Something to know; ``is_other`` where it makes the two results no comparison."""

    text: str
    is_other: bool = False


def notes(before: Result, after: Result) -> tuple[Note, ...]:
    """Those that make it no comparison first."""
    found = [
        *_of_machines(before, after),
        *_of_subjects(before, after),
        *_of_settings(before["settings"], after["settings"]),
        *_of_versions(before["versions"], after["versions"]),
        *_of_run("before", before),
        *_of_run("after", after),
        Note(_RUN_TO_RUN),
    ]
    return tuple(sorted(found, key=lambda note: not note.is_other))


def _of_machines(before: Result, after: Result) -> Iterator[Note]:
    first, second = dict(before["machine"]), dict(after["machine"])
    for name in ("cpu", "cores", "gpus", "is_virtual"):
        if first[name] != second[name]:
            yield Note(f"another machine: {name} {_text(first[name])}, then {_text(second[name])}", True)
    sizes = before["machine"]["memory_bytes"], after["machine"]["memory_bytes"]
    if abs(sizes[0] - sizes[1]) > _SAME_MEMORY * max(sizes):
        yield Note(f"another machine: memory {sizes[0] / 2**30:.1f} GiB, then {sizes[1] / 2**30:.1f} GiB", True)
    for name in ("platform", "python", "governor"):
        if first[name] != second[name]:
            yield Note(f"{name}: {_text(first[name])}, then {_text(second[name])}")


def _of_subjects(before: Result, after: Result) -> Iterator[Note]:
    first, second = dict(before["subject"]), dict(after["subject"])
    for name in _SUBJECT:
        if first[name] != second[name]:
            yield Note(f"another {name.replace('_', ' ')}: {_text(first[name])}, then {_text(second[name])}", True)
    places = before["subject"]["where"], after["subject"]["where"]
    if places[0] != places[1]:
        kinds = [place.partition("://")[0] for place in places]
        yield Note(f"measured {places[0]}, then {places[1]}", kinds[0] != kinds[1])


def _of_settings(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Note]:
    for name in sorted({*before, *after} - _TOLD_ELSEWHERE):
        if before.get(name) != after.get(name):
            text = f"{name}: {_text(before.get(name))}, then {_text(after.get(name))}"
            yield Note(text, name not in _KNOWN_SETTINGS)


def _of_versions(before: dict[str, str], after: dict[str, str]) -> Iterator[Note]:
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield Note(f"{name}: {before.get(name, 'not there')}, then {after.get(name, 'not there')}")


def _of_run(name: str, result: Result) -> Iterator[Note]:
    if result["status"] != "complete":
        yield Note(f"{name}: the run is not complete ({result.get('error', result['status'])})")
    for each in result.get("scenarios", ()):
        scenario = each["scenario"]
        if not each.get("is_valid", True):
            yield Note(f"{name}: LoadGen calls {scenario} invalid")
        busy = each.get("resources", {}).get("other_cores", 0.0)
        if busy > _BUSY_CORES:
            yield Note(f"{name}: other processes kept {busy:.2f} cores busy during {scenario}")


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value not in (None, "") else "none"
