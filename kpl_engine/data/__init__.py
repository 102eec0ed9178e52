"""The embedded default: a small CLIP trained on synthetic chest-film phantoms. Not for clinical use."""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo_bundle", "demo_images"]


def demo_bundle() -> Path:
    """The bundle of the embedded model with its knowledge base."""
    return Path(__file__).parent / "demo.kpl"


def demo_images() -> Path:
    """The bundled test images, in the ImageFolder layout."""
    return Path(__file__).parent / "images"
