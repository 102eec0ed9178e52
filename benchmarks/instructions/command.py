"""The regression guard that cannot flake: instructions instead of seconds.

    python benchmarks/instructions --check                        against the committed counts
    python benchmarks/instructions --update --because "..."       after a change that was meant

Instruction counts (valgrind --tool=callgrind) of the solver core and of the server's way of a request are the same on
every run, so a change of half a percent is a change of the code. They hold for one toolchain: where compiler, Python or
a library differ, nothing is compared and nothing fails. KPL_REQUIRE_GUARD=1 makes that a failure. counts.json is kept
beside this file; benchmarks/README.md says what the counts leave out.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from shutil import which

from instructions.callgrind import GuardError
from instructions.compare import Part, changes, differences, explain, growth
from instructions.programs import ROOT, count_core, count_server, trace_server
from instructions.store import load, save, updated

__all__ = ["main"]

COUNTS = Path(__file__).with_name("counts.json")
UPDATE = 'if this is meant: python benchmarks/instructions --update --because "why"'


def main() -> int:
    """The exit status: 1 for a count that changed, or for none where KPL_REQUIRE_GUARD=1; 2 for what went wrong."""
    options = arguments()
    missing = missing_tool()
    if missing and options.update:
        return refuse(missing)
    if missing:
        return not_compared([missing])
    try:
        if options.update and not options.because.strip():
            return refuse('expected a reason, got none: --update --because "what made the counts change"')
        with ThreadPoolExecutor(2) as pool:
            core, server = pool.submit(count_core, options.build), pool.submit(count_server)
            found = {"core": core.result(), "server": server.result()}
        return update(found, options.because) if options.update else check(found)
    except GuardError as error:
        return refuse(str(error))


def check(found: dict[str, Part]) -> int:
    """0 unless a count of a toolchain that can be compared changed."""
    store = load(COUNTS)
    lines, has_changed = [], False
    for name, part in found.items():
        committed = store.parts.get(name)
        if committed is None:
            return refuse(f"{COUNTS}: no counts of {name}; {UPDATE}")
        unlike = differences(committed.toolchain, part.toolchain)
        if unlike:
            lines += [f"{name}: {line}" for line in unlike]
            continue
        has_changed |= report(name, committed, part)
    if has_changed:
        print(UPDATE)
        return 1
    return not_compared(lines) if lines else 0


def report(name: str, committed: Part, found: Part) -> bool:
    """Print how a part compares; whether it changed."""
    changed = changes(committed, found.counts)
    if not changed:
        largest = max(abs(growth(committed.counts[case], count)) for case, count in found.counts.items())
        bound = f"at most {100 * largest:.4f} % off, allowed {100 * committed.tolerance:g} %"
        print(f"{name}: {len(found.counts)} counts as committed ({bound})")
        return False
    if name == "server":
        found = trace_server(found)
    for change in changes(committed, found.counts):
        print(f"CHANGED {name}: {change.text}")
        print(*explain(change), sep="\n")
    return True


def update(found: dict[str, Part], because: str) -> int:
    store = load(COUNTS)
    found["server"] = trace_server(found["server"])
    after = updated(store, found, because, date.today().isoformat())
    if after is store:
        print("nothing changed; counts.json stays as it is")
        return 0
    save(COUNTS, after)
    for name, lines in after.history[0]["changed"].items():
        print(*(f"{name}: {line}" for line in lines), sep="\n")
    return 0


def missing_tool() -> str:
    """Why nothing can be counted on this machine, or nothing."""
    return "" if which("valgrind") else "valgrind is not installed (Debian: valgrind)"


def not_compared(reasons: list[str]) -> int:
    print(*(f"NOT COMPARED: {reason}" for reason in reasons), sep="\n")
    return int(os.environ.get("KPL_REQUIRE_GUARD") == "1")


def refuse(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 2


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
