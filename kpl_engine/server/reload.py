"""Which bundles are others on the disk than when they were looked at last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kpl_engine.server.settings import model_name

__all__ = ["ChangedBundles"]


class ChangedBundles:
    """Compares size, time and place of each bundle's manifest; a bundle is written by one rename, so both change."""

    def __init__(self, bundles: Sequence[Path]) -> None:
        self._seen: dict[Path, tuple[int, int, int] | None] = {path: _state(path) for path in bundles}

    def names(self) -> list[str]:
        """Models whose bundle changed since the last call; one that is gone has not changed."""
        changed = []
        for path, seen in self._seen.items():
            now = _state(path)
            if now is not None and now != seen:
                self._seen[path] = now
                changed.append(model_name(path))
        return changed

    def not_taken(self, name: str) -> None:
        """The model could not be loaded: its bundle counts as changed until it was."""
        for path in self._seen:
            if model_name(path) == name:
                self._seen[path] = None


def _state(path: Path) -> tuple[int, int, int] | None:
    file = path / "manifest.json" if path.is_dir() else path
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
