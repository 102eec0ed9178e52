"""Knowledge files: JSON in, class names and descriptions out, each oddity with one defined outcome."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpl_engine.errors import KnowledgeError
from kpl_engine.strict_json import StrictJsonError, parse_strict

__all__ = ["MAX_KNOWLEDGE_BYTES", "KnowledgeText", "parse_knowledge", "read_knowledge"]

MAX_KNOWLEDGE_BYTES = 64 * 1024 * 1024
_SHAPES = 'expected {"<Any>_Features": {"<class>": [{"feature": "<text>"}, ...]}} or {"<class>": ["<text>", ...]}'


@dataclass(frozen=True)
class KnowledgeText:
    """What a knowledge file says: ``descriptions[j]`` belong to ``classes[j]`` and may be none.

    ``notices`` tell what was decided on the way, one sentence each.
    """

    classes: tuple[str, ...]
    descriptions: tuple[tuple[str, ...], ...]
    notices: tuple[str, ...] = ()


def read_knowledge(path: Path) -> KnowledgeText:
    """`parse_knowledge` of a file; the path leads every message."""
    try:
        # Without O_NONBLOCK a named pipe would block here for ever.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise KnowledgeError(f"cannot read the knowledge file {path}: not a regular file")
            data = stream.read(MAX_KNOWLEDGE_BYTES + 1)
    except OSError as error:
        raise KnowledgeError(f"cannot read the knowledge file {path}: {error.strerror}") from error
    return parse_knowledge(data, str(path))


def parse_knowledge(data: bytes, source: str = "knowledge file") -> KnowledgeText:
    """Parse a knowledge file.

    Two shapes are read: the published one, ``{"Lung_Features": {"<class>": [{"feature": "<text>"}, ...]}}``
    under any one top-level key, and ``{"<class>": ["<text>", ...]}``. Entries may be of either kind in both.

    ==============================================  ==================================================
    in the file                                     outcome
    ==============================================  ==================================================
    unequal counts                                  fine
    a class with an empty list                      falls back to its name; notice
    one text twice in a class                       kept once; notice
    one text in two classes                         kept in both; notice
    a single class                                  read; notice
    byte order mark, space around a text            dropped
    line breaks and tabs in a description           one space
    no classes, no object, wrong nesting            error with the JSON path
    an entry neither text nor {"feature": text}     error with the JSON path
    an entry object with further keys               error with the JSON path
    empty text or class name                        error with the JSON path
    control characters                              error with the JSON path
    a key twice in one object                       error
    class names equal but for case and space        error naming both
    NaN, half a surrogate pair, nesting over 64     error
    bad UTF-8                                       error with the byte offset
    no JSON                                         error with line and column
    over 64 MiB                                     error
    ==============================================  ==================================================

    Raises `KnowledgeError`, and nothing else, whatever the bytes.
    """
    try:
        content = parse_strict(data, MAX_KNOWLEDGE_BYTES)
    except StrictJsonError as error:
        raise KnowledgeError(f"{source}: {error}") from error
    if not isinstance(content, dict):
        raise KnowledgeError(f"{source}: {_SHAPES}, got {_kind(content)} at $")
    table, place = _class_table(content)
    if not table:
        raise KnowledgeError(f"{source}: no classes at {place}; {_SHAPES}")
    notices: list[str] = []
    groups: dict[str, tuple[str, ...]] = {}
    folded: dict[str, str] = {}
    for raw, entries in table.items():
        label = _clean(raw, f"{source}: class name {raw[:80]!r} at {place}", allow_breaks=False)
        other = folded.setdefault(label.casefold(), raw)
        if other != raw:
            raise KnowledgeError(f"{source}: the class names {other!r} and {raw!r} are the same but for case or space")
        groups[label] = _descriptions(entries, label, f"{source}: {place}[{_short(raw)}]", notices)
    notices += _shared_texts(groups)
    if len(groups) == 1:
        notices.append("there is only one class, so every image will get it")
    return KnowledgeText(tuple(groups), tuple(groups.values()), tuple(notices))


def _class_table(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    if len(content) == 1:
        ((key, inner),) = content.items()
        if isinstance(inner, dict):
            return inner, f"$[{_short(key)}]"
    return content, "$"


def _descriptions(entries: Any, label: str, place: str, notices: list[str]) -> tuple[str, ...]:
    if not isinstance(entries, list):
        raise KnowledgeError(f"{place}: expected a list of descriptions, got {_kind(entries)}")
    texts = [_entry_text(entry, f"{place}[{index}]") for index, entry in enumerate(entries)]
    distinct = tuple(dict.fromkeys(texts))
    if not distinct:
        notices.append(f"class {label!r} has no descriptions; its name stands in")
    if len(distinct) < len(texts):
        notices.append(f"class {label!r}: {len(texts) - len(distinct)} repeated description(s) kept once")
    return distinct


def _entry_text(entry: Any, place: str) -> str:
    if isinstance(entry, dict):
        if "feature" not in entry:
            raise KnowledgeError(f'{place}: expected a key "feature", got keys {_short(list(entry))}')
        extra = [key for key in entry if key != "feature"]
        if extra:
            raise KnowledgeError(f'{place}: expected the key "feature" alone, got also {_short(extra)}')
        entry, place = entry["feature"], f"{place}.feature"
    if not isinstance(entry, str):
        raise KnowledgeError(f"{place}: expected a text, got {_kind(entry)}")
    return _clean(entry, place, allow_breaks=True)


def _clean(text: str, place: str, allow_breaks: bool) -> str:
    """Strip, turn line breaks and tabs of a description into single spaces, refuse what remains unprintable."""
    cleaned = text.strip()
    if allow_breaks and any(char in cleaned for char in "\n\r\t"):
        cleaned = " ".join(cleaned.split())
    if not cleaned:
        raise KnowledgeError(f"{place}: expected some text, got none")
    for char in cleaned:
        if unicodedata.category(char) == "Cc":
            raise KnowledgeError(f"{place}: expected plain text, got the control character U+{ord(char):04X}")
    return cleaned


def _shared_texts(groups: Mapping[str, tuple[str, ...]]) -> list[str]:
    owners: dict[str, list[str]] = {}
    for label, texts in groups.items():
        for text in texts:
            owners.setdefault(text, []).append(label)
    return [
        f"the description {_short(text)} stands in {len(labels)} classes: {_short(labels)}"
        for text, labels in owners.items()
        if len(labels) > 1
    ]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
