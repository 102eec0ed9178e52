"""What the runtime relies on in a manifest, checked once on the way in and on the way out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from kpl_engine.errors import BundleError

__all__ = ["ENTRY_NAME", "check_schema"]

ENTRY_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}")
_Check = tuple[str, Callable[[Any], bool]]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple))


_TEXT: _Check = ("a non-empty string", _is_text)
_COUNT: _Check = ("an integer >= 1", _is_count)
_OBJECT: _Check = ("an object", lambda v: isinstance(v, Mapping))
_OPTIONAL_OBJECT: _Check = ("an object or null", lambda v: v is None or isinstance(v, Mapping))
_NAMES: _Check = ("a list of file names", lambda v: _is_sequence(v) and all(_is_text(item) for item in v))
_RGB: _Check = ("three numbers", lambda v: _is_sequence(v) and len(v) == 3 and all(map(_is_number, v)))
_RGB_POSITIVE: _Check = ("three numbers > 0", lambda v: _RGB[1](v) and all(item > 0 for item in v))
_SCALE: _Check = ("a number > 0", lambda v: _is_number(v) and v > 0)

_TOP: dict[str, _Check] = {"encoder": _OPTIONAL_OBJECT, "preprocess": _OPTIONAL_OBJECT}
_TOP |= {"knowledge": _OBJECT, "proxies": _OBJECT, "plans": _OBJECT, "defaults": _OBJECT}
_ENCODER = {"name": _TEXT, "embed_dim": _COUNT, "fingerprint": _TEXT, "logit_scale": _SCALE, "precision": _TEXT}
_ENCODER |= {"image": _OBJECT, "text": _OPTIONAL_OBJECT}
_GRAPH = {"file": _TEXT, "data": _NAMES, "input": _TEXT, "output": _TEXT, "fingerprint": _TEXT}
_IMAGE = {**_GRAPH, "height": _COUNT, "width": _COUNT}
_TEXT_TOWER = {**_GRAPH, "context_length": _COUNT}
_PREPROCESS = {"height": _COUNT, "width": _COUNT, "resize": _TEXT, "interpolation": _TEXT}
_PREPROCESS |= {"mean": _RGB, "std": _RGB_POSITIVE}
_NEEDED = {"encoder": ("embed_dim", "fingerprint", "image"), "preprocess": tuple(_PREPROCESS)}


class _Checker:
    """Collects nothing: the first wrong field raises, named by its place in the manifest."""

    def __init__(self, where: str, error: type[BundleError], files: Mapping[str, Any]) -> None:
        self.where, self.error, self.files = where, error, files

    def fail(self, place: str, expected: str, got: Any) -> None:
        raise self.error(f"{self.where}: {place}: expected {expected}, got {repr(got)[:80]}")

    def fields(
        self, value: Mapping[str, Any], checks: Mapping[str, _Check], place: str, needed: tuple[str, ...]
    ) -> None:
        for key, (expected, fits) in checks.items():
            if key not in value:
                if key in needed:
                    self.fail(f"{place}{key}", expected, "nothing")
            elif not fits(value[key]):
                self.fail(f"{place}{key}", expected, value[key])

    def listed(self, place: str, name: Any) -> None:
        if name not in self.files:
            self.fail(place, f"one of the bundle's files {sorted(self.files)}", name)

    def graph(self, value: Mapping[str, Any], checks: Mapping[str, _Check], place: str) -> None:
        self.fields(value, checks, f"{place}.", tuple(key for key in checks if key != "data"))
        for name in (value["file"], *value.get("data", ())):
            self.listed(f"{place}.file" if name == value["file"] else f"{place}.data", name)

    def entries(self, table: Mapping[str, Any], place: str) -> None:
        for name, entry in table.items():
            if not ENTRY_NAME.fullmatch(name):
                self.fail(f"{place}.{name[:80]}", "a name of a-z, 0-9, '_', '.', '-', at most 64 long", name)
            if not isinstance(entry, Mapping):
                self.fail(f"{place}.{name}", "an object", entry)
            self.listed(f"{place}.{name}.file", entry.get("file"))


def check_schema(manifest: Mapping[str, Any], where: str, error: type[BundleError]) -> None:
    """Raise ``error`` at the first field the runtime relies on that is missing or of a wrong type.

    ``encoder`` may be null or absent (a bundle of embeddings made elsewhere); ``encoder.text`` may be
    null (image tower only). Every file a field names must be listed in ``files``.
    """
    files = manifest.get("files")
    check = _Checker(where, error, files if isinstance(files, Mapping) else {})
    check.fields(manifest, _TOP, "", ())
    encoder = manifest.get("encoder")
    if encoder is not None:
        check.fields(encoder, _ENCODER, "encoder.", _NEEDED["encoder"])
        check.graph(encoder["image"], _IMAGE, "encoder.image")
        if encoder.get("text") is not None:
            check.graph(encoder["text"], _TEXT_TOWER, "encoder.text")
        preprocess = manifest.get("preprocess")
        if preprocess is None:
            check.fail("preprocess", "an object, because there is an encoder", preprocess)
        else:
            check.fields(preprocess, _PREPROCESS, "preprocess.", _NEEDED["preprocess"])
    for key in ("knowledge", "proxies", "plans"):
        check.entries(manifest.get(key, {}), key)
    for name, entry in manifest.get("plans", {}).items():
        check.listed(f"plans.{name}.parity_file", entry.get("parity_file"))
