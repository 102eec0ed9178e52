"""The reason one picture cannot be used, before its name is known."""

from __future__ import annotations

__all__ = ["Rejected"]


class Rejected(Exception):
    """Raised inside this room; `kpl_engine.imaging.decode` turns it into an `ImageError` with the name."""
