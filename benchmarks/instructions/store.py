"""counts.json: the committed counts, the toolchains they hold for, and why they changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from instructions.callgrind import Count, GuardError
from instructions.compare import Part, changes, differences

__all__ = ["Store", "load", "save", "updated"]

_FORMAT = 1
_KEPT = 10  # reasons


@dataclass(frozen=True)
class Store:
    """What the file holds; ``history`` has the latest reason first."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()


def load(path: Path) -> Store:
    """The committed counts; an empty store where there is no file.

    Raises
    ------
    GuardError
        Another format, or no such file format at all.
    """
    if not path.exists():
        return Store()
    try:
        held = json.loads(path.read_text("utf-8"))
        if held["format"] != _FORMAT:
            raise GuardError(
                f"{path}: expected format {_FORMAT}, got {held['format']!r}; use the guard it was made with"
            )
        parts = {
            name: Part(
                part["toolchain"],
                float(part["tolerance"]),
                {case: Count(**count) for case, count in part["counts"].items()},
            )
            for name, part in held["parts"].items()
        }
        return Store(parts, tuple(held["history"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GuardError(
            f"{path}: not counts of this guard ({type(error).__name__}: {error}); git checkout it"
        ) from error


def save(path: Path, store: Store) -> None:
    """Write the file; whoever reads it meanwhile has the old one or the new one."""
    held = {
        "format": _FORMAT,
        "history": list(store.history),
        "parts": {name: asdict(part) for name, part in store.parts.items()},
    }
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(held, indent=1) + "\n", "utf-8")
    os.replace(beside, path)


def updated(store: Store, found: Mapping[str, Part], because: str, date: str) -> Store:
    """The store with the parts ``found``, and why. The same store where nothing changed.

    Raises
    ------
    GuardError
        No reason is given.
    """
    reason = " ".join(because.split())
    if not reason:
        raise GuardError('expected a reason, got none: --update --because "what made the counts change"')
    told: dict[str, list[str]] = {}
    for name, part in found.items():
        committed = store.parts.get(name, Part({}, part.tolerance))
        told[name] = [
            *differences(committed.toolchain, part.toolchain),
            *(change.text for change in changes(replace(committed, tolerance=part.tolerance), part.counts)),
        ]
    moved = {name: lines for name, lines in told.items() if lines}
    if not moved:
        return store
    entry = {"date": date, "because": reason, "changed": moved}
    parts = {**store.parts, **{name: found[name] for name in moved}}
    return Store(parts, (entry, *store.history)[:_KEPT])
