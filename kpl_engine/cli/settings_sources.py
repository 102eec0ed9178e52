"""Settings of the server from flags, a TOML file and ``KPL_*``, each with where it came from. Flags go before the file,
the file before the environment, the environment before the defaults.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kpl_engine.errors import ConfigError
from kpl_engine.server.settings import ServerSettings

__all__ = ["OPTIONS", "Option", "Origins", "gather", "read_toml"]

_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_TIMES = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_MAX_TOML_BYTES = 1 << 20
Origins = dict[str, str]


@dataclass(frozen=True)
class Option:
    """One setting: ``field`` of `ServerSettings`, ``name`` for people (durations carry their unit in the value)."""

    field: str
    kind: str  # path, paths, texts, text, flag, switch, whole, size, seconds

    @property
    def name(self) -> str:
        """As in the TOML file: ``http_port``, ``deadline``."""
        return self.field.removesuffix("_s")

    @property
    def flag(self) -> str:
        """As on the command line: ``--http-port``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """As in the environment: ``KPL_HTTP_PORT``."""
        return "KPL_" + self.name.upper()

    def parse(self, value: Any, folder: Path) -> Any:
        """The setting's value from text or a TOML value; `ConfigError` says what was expected.

        Paths are relative to ``folder``: where the command was started, or where the TOML file is.
        """
        return _PARSERS[self.kind](value, folder)


_KINDS = {"tuple[Path, ...]": "paths", "Path | None": "path", "tuple[str, ...]": "texts", "int": "whole"}
_KINDS |= {"bool": "flag", "float": "seconds"}


def _kind(name: str, annotation: str) -> str:
    if name.endswith("_bytes"):
        return "size"
    return "switch" if name == "grpc" else _KINDS.get(annotation, "text")


OPTIONS = tuple(Option(field.name, _kind(field.name, str(field.type))) for field in fields(ServerSettings))
_BY_NAME = {option.name: option for option in OPTIONS}


def gather(
    args: argparse.Namespace, toml: Mapping[str, Any], config: Path | None, environ: Mapping[str, str]
) -> tuple[ServerSettings, Origins]:
    """The settings, and of each where it came from: "flag", the file's name, the variable's name or "default".

    Parameters
    ----------
    args : namespace
        Has an attribute for each `Option.field`, None where no flag was given.
    toml : mapping
        What `read_toml` gave.
    config : Path, optional
        The file it came from.
    environ : mapping

    Raises
    ------
    ConfigError
        A value that cannot be used; the message names where it came from.
    """
    values: dict[str, Any] = {}
    origins: Origins = {}
    for option in OPTIONS:
        given, origin, folder = _first(option, args, toml, config, environ)
        origins[option.field] = origin
        if origin == "default":
            continue
        try:
            values[option.field] = option.parse(given, folder)
        except ConfigError as error:
            raise ConfigError(f"{_place(option, origin)}: {error}{_kubernetes(given, origin)}") from None
    try:
        return ServerSettings(**values), origins
    except ConfigError as error:
        name, _, rest = str(error).partition(": ")
        place = next((_place(option, origins[name]) for option in OPTIONS if option.field == name), name)
        raise ConfigError(f"{place}: {rest}") from None


def _first(
    option: Option, args: argparse.Namespace, toml: Mapping[str, Any], config: Path | None, environ: Mapping[str, str]
) -> tuple[Any, str, Path]:
    given = getattr(args, option.field)
    if given is not None and given != []:
        return given, "flag", Path()
    if option.name in toml and config is not None:
        return toml[option.name], config.name, config.parent
    if environ.get(option.variable, "") != "":
        return environ[option.variable], option.variable, Path()
    return None, "default", Path()


def _place(option: Option, origin: str) -> str:
    if origin in ("flag", "default"):
        return option.flag if option.field != "bundles" else "BUNDLE"
    return origin if origin == option.variable else f"{origin}, {option.name}"


def _kubernetes(given: Any, origin: str) -> str:
    if origin.startswith("KPL_") and str(given).startswith("tcp://"):
        return " (Kubernetes sets such variables for a service named kpl-...: enableServiceLinks: false)"
    return ""


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and values of the file; `ConfigError` on bad TOML, a table, or a key that is no setting."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TOML_BYTES + 1)
        if len(data) > _MAX_TOML_BYTES:
            raise ConfigError(f"--config: expected at most {_MAX_TOML_BYTES} bytes, got more: {str(path)!r}")
        found: dict[str, Any] = tomllib.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"--config: cannot read {str(path)!r}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config: {str(path)!r} is not TOML: {error}") from None
    settings: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in _BY_NAME:
            near = difflib.get_close_matches(name, _BY_NAME, 1, 0.0)[0]
            raise ConfigError(f"{path.name}: there is no setting {key!r}; the nearest is {near!r}")
        if name in settings:
            raise ConfigError(f"{path.name}: the setting {name!r} stands twice")
        settings[name] = value
    return settings


def _path(value: Any, folder: Path) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ConfigError(f"expected a path, got {value!r}")
    return folder / value


def _paths(value: Any, folder: Path) -> tuple[Path, ...]:
    several = value.split(os.pathsep) if isinstance(value, str) else value
    if not isinstance(several, list):
        raise ConfigError(f"expected a list of paths, got {value!r}")
    return tuple(_path(each, folder) for each in several)


def _texts(value: Any, _folder: Path) -> tuple[str, ...]:
    several = value.split(",") if isinstance(value, str) else value
    if not isinstance(several, list) or not all(isinstance(each, str) for each in several):
        raise ConfigError(f"expected a list of texts, got {value!r}")
    parts = [part.strip() for each in several for part in each.split(",")]
    return tuple(part for part in parts if part)


def _text(value: Any, _folder: Path) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"expected text, got {value!r}")
    return value


def _flag(value: Any, _folder: Path) -> bool:
    found = value if isinstance(value, bool) else _WORDS.get(str(value).strip().lower())
    if found is None:
        raise ConfigError(f"expected true or false, got {value!r}")
    return found


def _switch(value: Any, folder: Path) -> str:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    try:
        return "on" if _flag(value, folder) else "off"
    except ConfigError:
        raise ConfigError(f"expected auto, on or off, got {value!r}") from None


def _whole(value: Any, _folder: Path) -> int:
    if type(value) is int:
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value, re.ASCII):
        return int(value)
    raise ConfigError(f"expected a whole number, got {value!r}")


def _amount(value: Any, units: Mapping[str, float], examples: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    match = _AMOUNT.fullmatch(value) if isinstance(value, str) and len(value) < 40 else None
    unit = units.get(match.group(2).lower()) if match is not None else None
    if match is None or unit is None:
        raise ConfigError(f"expected {examples}, got {value!r}")
    return float(match.group(1)) * unit


def _size(value: Any, _folder: Path) -> int:
    return value if type(value) is int else int(_amount(value, _SIZES, "a size such as 16MiB, 500kB or 1048576"))


def _seconds(value: Any, _folder: Path) -> float:
    return _amount(value, _TIMES, "a duration such as 10s, 500ms or 2m")


_PARSERS: dict[str, Callable[[Any, Path], Any]] = {
    "path": _path,
    "paths": _paths,
    "texts": _texts,
    "text": _text,
    "flag": _flag,
    "switch": _switch,
    "whole": _whole,
    "size": _size,
    "seconds": _seconds,
}
