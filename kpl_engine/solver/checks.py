"""Checks of scalar options, shared by the public functions of this room."""

from __future__ import annotations

from typing import Any

import numpy as np

from kpl_engine.errors import ConfigError

__all__ = ["check_between", "check_count", "check_magnitude", "check_positive"]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_positive(name: str, value: Any) -> None:
    """`ConfigError` unless ``value`` is a finite number > 0."""
    if not (_is_number(value) and 0 < value < np.inf):
        raise ConfigError(f"{name}: expected a number > 0, got {value!r}")


def check_magnitude(name: str, value: Any) -> None:
    """`ConfigError` unless ``value`` is from 1e-12 to 1e12, so that squares of what it scales stay in float64."""
    check_between(name, value, 1e-12, 1e12)


def check_between(name: str, value: Any, low: float, high: float) -> None:
    """`ConfigError` unless ``value`` is a number from ``low`` to ``high``."""
    if not (_is_number(value) and low <= value <= high):
        raise ConfigError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")


def check_count(name: str, value: Any, least: int) -> None:
    """`ConfigError` unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name}: expected an integer >= {least}, got {value!r}")
