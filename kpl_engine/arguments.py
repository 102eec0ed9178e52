"""What the engine is called with, checked: one clear error instead of whatever NumPy would have said."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kpl_engine.arrays import Float64, check_array
from kpl_engine.config import EngineConfig
from kpl_engine.errors import ConfigError, ImageError, InputError
from kpl_engine.knowledge.base import KnowledgeBase

__all__ = ["Prior", "as_sources", "check_choice", "check_config", "check_top", "class_shares"]

Prior = npt.ArrayLike | Mapping[str, float] | None


def check_choice(name: str, value: Any, choices: Sequence[str]) -> Any:
    """``value``, or `ConfigError` listing the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def check_config(config: EngineConfig | None) -> EngineConfig:
    """``config`` or the default one; `ConfigError` for anything else."""
    if config is not None and not isinstance(config, EngineConfig):
        raise ConfigError(f"config: expected an EngineConfig, got {type(config).__name__}")
    return EngineConfig() if config is None else config


def check_top(top_evidence: Any) -> None:
    """Raise `ConfigError` unless it is an integer >= 0."""
    if not isinstance(top_evidence, (int, np.integer)) or isinstance(top_evidence, bool) or top_evidence < 0:
        raise ConfigError(f"top_evidence: expected an integer >= 0, got {top_evidence!r}")


def class_shares(prior: Prior, base: KnowledgeBase) -> Float64 | None:
    """``prior`` as (c,) float64 in the order of the classes, from a mapping by name or from an array."""
    if isinstance(prior, Mapping):
        if set(prior) != set(base.classes):
            raise InputError(f"prior: expected a share for every class {list(base.classes)}, got {list(prior)}")
        prior = [prior[label] for label in base.classes]
    return None if prior is None else check_array("prior", prior, (len(base.classes),), np.float64)


def as_sources(images: Any) -> Sequence[Any]:
    """``images`` as a sequence of sources; what is one image, or none, raises `InputError` or `ImageError`."""
    if isinstance(images, (str, Path, bytes, bytearray, memoryview, Mapping, Image.Image, io.IOBase)):
        raise InputError(
            f"images: expected a sequence of images, got one {type(images).__name__}; put it in a list: [image]"
        )
    if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OU":
        return list(images.tolist())  # paths in an array
    if isinstance(images, np.ma.MaskedArray) and np.ma.is_masked(images):
        raise ImageError("images: expected plain pixels, got masked ones; fill them first")
    if isinstance(images, np.ndarray) and (images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8):
        raise ImageError(f"images: expected shape (n, h, w, 3) and uint8, got {images.shape} and {images.dtype}")
    if not isinstance(images, Iterable):
        raise InputError(f"images: expected a sequence of images, got {type(images).__name__}")
    return images if isinstance(images, Sequence) else list(images)
