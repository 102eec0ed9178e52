"""Which file names may stand in a bundle: portable, inside it, and different on every file system."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kpl_engine.errors import BundlePathError

__all__ = ["MANIFEST", "check_file_name", "check_file_names", "parent_folders"]

MANIFEST = "manifest.json"
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=-]{0,127}")
_MAX_LENGTH = 255
_MAX_SEGMENTS = 8
_RULE = (
    "a bundle holds only relative names such as 'knowledge/lung.safetensors': letters, digits and _ . + @ = -, "
    "joined by '/', no part starting or ending with a dot, at most 255 characters"
)


def check_file_name(name: str, where: str) -> str:
    """Return ``name``, or raise `BundlePathError` saying why it may not stand in a bundle.

    Absolute paths, ``..``, backslashes, drive letters, NUL and control characters, hidden files and
    overlong names are all refused by one positive rule. ``where`` says who used the name.
    """
    parts = name.split("/")
    fits = (
        len(name) <= _MAX_LENGTH
        and len(parts) <= _MAX_SEGMENTS
        and all(_SEGMENT.fullmatch(part) and not part.endswith(".") for part in parts)
    )
    if not fits:
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise BundlePathError(f"{where}: the file name {shown!r} is refused; {_RULE}")
    return name


def check_file_names(names: Iterable[str], where: str) -> None:
    """Check each name, and that no two clash: equal but for case, or one the folder of another."""
    seen: dict[str, str] = {}
    for name in names:
        check_file_name(name, where)
        for folder in [name, *parent_folders(name)]:
            other = seen.setdefault(folder.casefold(), folder)
            if other != folder:
                raise BundlePathError(f"{where}: the names {other!r} and {folder!r} differ only in case; rename one")
    files = {name.casefold() for name in names}
    for name in names:
        for folder in parent_folders(name):
            if folder.casefold() in files:
                raise BundlePathError(f"{where}: {folder!r} is used both as a file and as a folder")


def parent_folders(name: str) -> list[str]:
    """The folders a name lies in, outermost first: ``a/b/c`` gives ``['a', 'a/b']``."""
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]
