"""The regression guard that cannot flake: instructions instead of seconds.

    python benchmarks/instructions --check                        against the committed counts
    python benchmarks/instructions --update --because "..."       after a change that was meant

Instruction counts (valgrind --tool=callgrind) of the solver core and of the server's way of a request are the same on
every run, so a change of half a percent is a change of the code. They hold for one toolchain: where compiler, Python or
a library differ, nothing is compared and nothing fails. KPL_REQUIRE_GUARD=1 makes that a failure. README.md beside
this file says what is counted and how to read it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from instructions import toolchain
from instructions.callgrind import GuardError
from instructions.compare import Part, changes, differences, explain, growth
from instructions.programs import ROOT, Core, Program, Server
from instructions.store import load, save, updated

__all__ = ["main"]

COUNTS = Path(__file__).with_name("counts.json")
UPDATE = 'if this is meant: python benchmarks/instructions --update --because "why"'


def main() -> int:
    """The exit status: 1 for a count that changed, or for none where KPL_REQUIRE_GUARD=1; 2 for what went wrong."""
    options = arguments()
    missing = toolchain.missing()
    if missing and not options.update:
        return not_compared([missing])
    try:
        if options.update and (missing or not options.because.strip()):
            raise GuardError(missing or 'expected a reason, got none: --update --because "what made the counts change"')
        programs = {"core": Core(options.build), "server": Server()}
        return update(programs, options.because) if options.update else check(programs)
    except GuardError as error:
        print(error, file=sys.stderr)
        return 2


def check(programs: Mapping[str, Program]) -> int:
    """0 unless a count of a toolchain that can be compared changed."""
    store = load(COUNTS)
    if set(store.parts) != set(programs):
        raise GuardError(f"{COUNTS}: expected counts of {', '.join(programs)}, got {list(store.parts)}; {UPDATE}")
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(lambda name: compare(programs[name], store.parts[name]), programs))
    unlike: list[str] = []
    has_changed = False
    for (name, program), outcome in zip(programs.items(), outcomes, strict=True):
        if isinstance(outcome, Part):
            has_changed |= report(name, program, store.parts[name], outcome)
        else:
            unlike += [f"{name}: {line}" for line in outcome]
    if has_changed:
        print(UPDATE)
    return max(has_changed, not_compared(unlike) if unlike else 0)


def compare(program: Program, committed: Part) -> Part | list[str]:
    """Counts to compare, or why they cannot be: what is known before is looked at before, for it saves the run."""
    here = program.toolchain()
    unlike = differences({name: committed.toolchain.get(name, "none") for name in here}, here)
    if unlike:
        return unlike
    found = program.count()
    return differences(committed.toolchain, found.toolchain) or found


def report(name: str, program: Program, committed: Part, found: Part) -> bool:
    """Print how a part compares; whether it changed."""
    if not changes(committed, found.counts):
        largest = max(abs(growth(committed.counts[case], count)) for case, count in found.counts.items())
        bound = f"at most {100 * largest:.4f} % off, allowed {100 * committed.tolerance:g} %"
        print(f"{name}: {len(found.counts)} counts as committed ({bound})")
        return False
    for change in changes(committed, program.trace(found).counts):
        print(f"CHANGED {name}: {change.text}")
        print(*explain(change), sep="\n")
    return True


def update(programs: Mapping[str, Program], because: str) -> int:
    """Count, and write what changed with the reason."""
    store = load(COUNTS)
    with ThreadPoolExecutor() as pool:
        found = dict(zip(programs, pool.map(lambda each: each.trace(each.count()), programs.values()), strict=True))
    after = updated(store, found, because, date.today().isoformat())
    if after is store:
        print("nothing changed; counts.json stays as it is")
        return 0
    save(COUNTS, after)
    for name, lines in after.history[0]["changed"].items():
        print(*(f"{name}: {line}" for line in lines), sep="\n")
    return 0


def not_compared(reasons: list[str]) -> int:
    print(*(f"NOT COMPARED: {reason}" for reason in reasons), sep="\n")
    return int(os.environ.get("KPL_REQUIRE_GUARD") == "1")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/instructions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true")
    action.add_argument("--update", action="store_true")
    parser.add_argument("--because", default="", metavar="REASON", help="why the counts changed, kept with them")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "core", help="where the core is built")
    return parser.parse_args()
