"""Counts against the committed ones: what changed, by how much, and in which functions. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from instructions.callgrind import Count

__all__ = ["Change", "Part", "changes", "differences", "explain"]

_TOLD = 6  # functions of a case


@dataclass(frozen=True)
class Part:
    """Counts of one program, with the toolchain they hold for. ``tolerance`` is a share of a count."""

    toolchain: Mapping[str, str]
    tolerance: float
    counts: Mapping[str, Count] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """A case whose count left the tolerance, or that stands on one side alone."""

    case: str
    before: Count | None
    after: Count | None

    @property
    def text(self) -> str:
        """One line for people."""
        if self.before is None or self.after is None:
            return f"{self.case}: {'no committed count' if self.before is None else 'committed, but no such case'}"
        before, after = self.before.instructions, self.after.instructions
        return f"{self.case}: {before:,} -> {after:,} instructions ({_percent(after - before, before)})"


def differences(committed: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Where two toolchains differ, a line each; counts are comparable only where there is none."""
    names = sorted(set(committed) | set(here))
    return [
        f"{name}: the counts hold for {committed.get(name, 'none')!r}, here is {here.get(name, 'none')!r}"
        for name in names
        if committed.get(name) != here.get(name)
    ]


def changes(committed: Part, found: Mapping[str, Count]) -> list[Change]:
    """Cases outside the tolerance, the largest change first. Fewer instructions are a change too: what was won is
    committed, or a later loss would hide behind it.
    """
    told = []
    for case in sorted(set(committed.counts) | set(found)):
        before, after = committed.counts.get(case), found.get(case)
        if before is None or after is None or abs(growth(before, after)) > committed.tolerance:
            told.append(Change(case, before, after))
    return sorted(told, key=_size, reverse=True)


def growth(before: Count, after: Count) -> float:
    """Share by which a count grew."""
    return after.instructions / before.instructions - 1.0


def explain(change: Change) -> Iterator[str]:
    """The functions whose share changed most, in percent of all the case took before; instructions without callees."""
    if change.before is None or change.after is None:
        return
    yield from _movers("instructions of", change.before.functions, change.after.functions, change.before.instructions)
    bytecodes = sum(change.before.python.values())
    if bytecodes:
        yield from _movers("bytecodes of", change.before.python, change.after.python, bytecodes)


def _movers(title: str, before: Mapping[str, int], after: Mapping[str, int], whole: int) -> Iterator[str]:
    # A function that is in one list only was below the smallest of the other, which is the most it can have had.
    floors = min(before.values(), default=0), min(after.values(), default=0)
    moved = {}
    for name in {*before, *after}:
        old, new = before.get(name, 0), after.get(name, 0)
        if (name in before or new > floors[0]) and (name in after or old > floors[1]) and new != old:
            moved[name] = (old, new)
    largest = sorted(moved.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0]))[:_TOLD]
    for name, (old, new) in largest:
        yield f"    {_percent(new - old, whole):>9}  {title} {name}: {old:,} -> {new:,}"


def _size(change: Change) -> float:
    return float("inf") if change.before is None or change.after is None else abs(growth(change.before, change.after))


def _percent(part: int, whole: int) -> str:
    return f"{100.0 * part / whole:+.2f} %"
