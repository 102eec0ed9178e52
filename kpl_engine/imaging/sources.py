"""Command-line arguments -> image paths: files, globs, folders, and a list on standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from kpl_engine.errors import InputError

__all__ = ["IMAGE_SUFFIXES", "expand_sources", "list_images"]

_COMMON = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif")
_OTHER = (".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpf", ".jpx", ".dcm")
IMAGE_SUFFIXES = frozenset((*_COMMON, *_OTHER))


def expand_sources(arguments: Sequence[str], stdin: TextIO | None = None) -> list[Path]:
    """The image paths that ``arguments`` stand for, in order.

    A file stands for itself whatever its suffix; a folder for the files in it with an image
    suffix, at any depth, sorted, hidden ones left out; a pattern (``*``, ``?``, ``[``, ``**``) for
    what it matches, sorted; ``-`` for the paths on ``stdin``, one a line, taken as they are so
    that a missing one is an error of that file alone. Duplicates are kept: what is listed twice is
    classified twice.

    Raises
    ------
    InputError
        When an argument stands for no file; all such arguments are named.
    """
    if isinstance(arguments, str):
        raise InputError(f"expected a list of arguments, got the single text {arguments!r}; wrap it in a list")
    if not arguments:
        raise InputError("expected at least one image file, folder, pattern or '-', got none")
    paths: list[Path] = []
    problems: list[str] = []
    for argument in arguments:
        found, problem = _read_list(stdin) if argument == "-" else _expand(argument)
        paths.extend(found)
        if problem:
            problems.append(problem)
    if problems:
        raise InputError("; ".join(problems))
    return paths


def _expand(argument: str) -> tuple[list[Path], str]:
    """Paths of one argument, and what is wrong with it (empty when nothing is)."""
    if not argument or "\0" in argument:
        return [], f"{argument!r} is not a path"
    if os.path.isdir(argument):
        found = list_images(Path(argument))
        return found, "" if found else f"no image in the folder {argument!r} (looked for {_suffixes()})"
    if os.path.lexists(argument):
        return [Path(argument)], ""
    if not glob.has_magic(argument):
        return [], f"no such file or folder: {argument!r}; check the path"
    found = []
    for match in sorted(glob.glob(argument, recursive=True)):
        found.extend(list_images(Path(match)) if os.path.isdir(match) and "**" not in argument else _file_only(match))
    return found, "" if found else f"the pattern {argument!r} matches no file; check the path"


def _file_only(match: str) -> list[Path]:
    # "**" lists folders and the files in them: descending again would take each file twice.
    return [] if os.path.isdir(match) else [Path(match)]


def list_images(folder: Path) -> list[Path]:
    """Files with an image suffix below ``folder``, sorted; linked folders are entered, each real folder once.

    Raises `InputError` for a folder that cannot be read: leaving its images out silently would change the answers.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(root, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read the folder {error.filename!r}: {error.strerror}; leave it out or make it readable")


def _read_list(stdin: TextIO | None) -> tuple[list[Path], str]:
    if stdin is None:
        return [], "'-' asks for a list of paths on standard input, and there is none"
    try:
        lines = [line.rstrip("\r\n") for line in stdin]
    except (OSError, UnicodeDecodeError) as error:
        return [], f"cannot read the list of paths on standard input: {error}"
    if lines:
        lines[0] = lines[0].removeprefix("\ufeff")  # the byte order mark some editors write
    found = [Path(line) for line in lines if line.strip()]
    return found, "" if found else "standard input lists no path; expected one a line"


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))
