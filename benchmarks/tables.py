"""Writes the measured tables of the documentation anew, from the newest result files.

    python benchmarks/tables.py            # after a benchmark
    python benchmarks/tables.py --check    # fails where a page does not say what the files say

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`; NAME is that of the result file. The newest file
is taken, a short run (`NAME-quick-...`) only where it is newer than the full one. A table whose file is missing is left
as it is. Figures within sentences are held to the files, too, but a person has to write them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import RESULTS, ROOT
from tables_rows import PROSE, TABLES

__all__ = ["PAGES", "check_prose", "newest", "rewritten"]

PAGES = ("README.md", "benchmarks/README.md", "docs/serving.md")
_BLOCK = re.compile(r"^(<!-- table: (\S+) -->\n)(.*?)^(<!-- end table -->)$", re.DOTALL | re.MULTILINE)


def newest(name: str, results: Path = RESULTS) -> Path | None:
    """The result file of ``name`` with the latest date, a full run before a short one of the same day."""
    found = []
    for path in results.glob(f"{name}-*.json"):
        match = re.fullmatch(rf"{re.escape(name)}(-quick)?-(\d{{4}}-\d\d-\d\d)\.json", path.name)
        if match:
            found.append((match[2], match[1] is None, path))
    return max(found)[2] if found else None


def rewritten(text: str, results: Path = RESULTS) -> str:
    """``text`` with every table whose result is there made anew.

    Raises
    ------
    ValueError
        A table of a name that nothing writes, or a marker without its end.
    """
    if len(re.findall("^<!-- table: ", text, re.MULTILINE)) != len(_BLOCK.findall(text)):
        raise ValueError("a `<!-- table: NAME -->` has no `<!-- end table -->`")

    def made(block: re.Match[str]) -> str:
        name = block[2]
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; expected one of {', '.join(TABLES)}")
        path = newest(name, results)
        if path is None:
            return block[0]
        record = json.loads(path.read_text())
        lines = [*TABLES[name](record), "", source_line(path, record)]
        return block[1] + "\n".join(lines) + "\n" + block[4]

    return _BLOCK.sub(made, text)


def source_line(path: Path, record: Mapping[str, Any]) -> str:
    """Where a table comes from: file, day, commit, machine."""
    day = datetime.date.fromisoformat(record["date"][:10])
    short = "a short run, " if "-quick-" in path.name else ""
    return (
        f"<sub>`benchmarks/results/{path.name}`: {short}{day.day} {day:%B %Y}, commit "
        f"{record['commit']}, {record['cpu']}, {record['cores']} cores</sub>"
    )


def check_prose(text: str, results: Path = RESULTS) -> list[str]:
    """Sentences that full runs support and ``text``, which has their table, does not hold."""
    missing = []
    for name, expected in PROSE.items():
        path = newest(name, results)
        if path is None or "-quick-" in path.name or f"<!-- table: {name} -->" not in text:
            continue
        missing += [f"{path.name} says {said!r}" for said in expected(json.loads(path.read_text())) if said not in text]
    return missing


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something would change")
    args = parser.parse_args(arguments)
    stale = False
    for name in PAGES:
        page = ROOT / name
        text = page.read_text()
        made = rewritten(text)
        if made != text:
            stale = True
            print(f"{name}: {'a table is not that of the result files' if args.check else 'tables written anew'}")
            if not args.check:
                page.write_text(made)
        for said in check_prose(made):
            stale = True
            print(f"{name}: a sentence is out of date: {said}")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
