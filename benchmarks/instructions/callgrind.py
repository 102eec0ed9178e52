"""Programs under valgrind's callgrind, and what it writes."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Count", "GuardError", "measure", "parse", "run", "shorten"]

_MARKER = "getppid"  # callgrind writes its counts out at each call of it; a libc that is stripped has the name too
# CPython's cache of methods is keyed by the addresses of names: which of them meet in one slot changes with any edit of
# any module, and each time they do costs some 230 instructions here.
_NOT_COUNTED = "find_name_in_mro"
_KEPT = 12  # functions of a case
_PATIENCE_S = 1200  # a hundred times what it takes: for what hangs, not for what is slow
_OPTIONS = (
    "--tool=callgrind",
    f"--dump-before={_MARKER}",
    "--compress-strings=no",
    "--compress-pos=no",
    "--dump-line=no",
    "--main-stacksize=8388608",  # else it follows the limit of the shell
)


class GuardError(Exception):
    """Something could not be measured; the message says what and why."""


@dataclass(frozen=True)
class Count:
    """Instructions of a case: in all, and of the functions with the largest shares, their callees not included.

    ``python`` has bytecodes of the Python functions, where there are any.
    """

    instructions: int
    functions: Mapping[str, int]
    python: Mapping[str, int] = field(default_factory=dict)


def measure(
    command: Sequence[str], cases: Sequence[str], environment: Mapping[str, str], folder: Path
) -> tuple[list[Count], str]:
    """Counts of ``cases``, which ``command`` runs one after the other, each between two calls of `getppid`.

    The second result is what it printed. ``folder`` is empty and takes callgrind's files.

    Valgrind places what it runs itself, so that addresses are the same each time without turning off the kernel's
    randomisation, which many containers forbid.

    Raises
    ------
    GuardError
        The program failed, or the calls are not two a case.
    """
    options = [*_OPTIONS, f"--callgrind-out-file={folder / 'callgrind.out'}"]
    told = run(["valgrind", *options, *command, *cases], environment, folder)
    num_parts = len(list(folder.glob("callgrind.out.*")))
    if num_parts != 2 * len(cases):
        raise GuardError(f"expected two calls of {_MARKER}() in each of {len(cases)} cases, got {num_parts} in all")
    parts = [(folder / f"callgrind.out.{2 * i}").read_text("utf-8", "replace") for i in range(1, len(cases) + 1)]
    return [parse(part) for part in parts], told


def run(command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None) -> str:
    """What ``command`` printed.

    Raises
    ------
    GuardError
        It is not there, failed, or took too long.
    """
    try:
        ran = subprocess.run(
            command,
            env=dict(environment),
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuardError(f"{' '.join(command)}: {error}") from error
    if ran.returncode != 0:
        output = f"{ran.stdout[-2000:]}{ran.stderr[-3000:]}"
        raise GuardError(f"{' '.join(command)}: exit status {ran.returncode}\n{output}")
    return ran.stdout.strip()


def parse(text: str) -> Count:
    """One part of callgrind's output: https://valgrind.org/docs/manual/cl-format.html, names not compressed.

    Misses in CPython's cache of methods are left out of the total, with all that they call.

    Raises
    ------
    GuardError
        No total, or costs that do not add up to it.
    """
    own: Counter[str] = Counter()
    name, callee, is_callee, left_out = "", "", False, 0
    for line in text.splitlines():
        if line.startswith("fn="):
            name = shorten(line[3:])
        elif line.startswith("cfn="):
            callee = line[4:]
        elif line.startswith("calls="):
            is_callee = True  # the next line has what the callee took, which stands with the callee too
        elif line[:1].isdigit():
            cost = int(line.split()[1])
            if not is_callee:
                own[name] += cost
            elif shorten(callee) == _NOT_COUNTED:
                left_out += cost
            is_callee = False
    found = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
    if found is None or sum(own.values()) != int(found[1]):
        raise GuardError(f"callgrind: expected costs that add up to its totals, got {sum(own.values())}, {found}")
    return Count(int(found[1]) - left_out, dict(own.most_common(_KEPT)))


def shorten(name: str) -> str:
    """A function's name without arguments, clones and the namespaces that all of the core has."""
    name = re.sub(r" \[clone [^]]*\]|\.(constprop|isra|part|cold|lto_priv)\.?\d*|'\d+$|@@?GLIBC_[\d.]+", "", name)
    name = name.replace("(anonymous namespace)::", "").replace("kpl::", "")
    depth, end = 0, len(name)
    if name.endswith((")", ") const")) and not name.startswith("("):
        for end in range(name.rindex(")"), -1, -1):
            depth += (name[end] == ")") - (name[end] == "(")
            if depth == 0:
                break
    name = re.sub(r"^(void|bool|int|long|unsigned long|double) ", "", name[:end])
    return name if len(name) <= 90 else f"{name[:87]}..."
