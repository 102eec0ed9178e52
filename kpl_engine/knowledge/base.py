"""`KnowledgeBase`: classes, descriptions, embeddings, and how they are stored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32, Ints, check_array, unit_rows
from kpl_engine.errors import KnowledgeError, ShapeError
from kpl_engine.strict_json import StrictJsonError, parse_strict

__all__ = ["KnowledgeBase", "check_name"]

_FORMAT = "kpl-engine-knowledge-1"
_MAX_NORM_ERROR = 1e-3
_MAX_STRINGS_BYTES = 512 * 1024 * 1024
_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}")
_STRING_FIELDS = ("name", "template", "name_template", "text_fingerprint")


@dataclass(frozen=True)
class KnowledgeBase:
    """Classes, their descriptions and the cached embeddings of those descriptions.

    ``embeddings`` is (M, d) float32 with unit rows, ordered class by class; the rows of class
    ``j`` are ``offsets[j]:offsets[j + 1]``. Every class has at least one row; a class without
    descriptions has its name for one. ``prompts`` are the M texts that were embedded, or none when
    the embeddings come from elsewhere.
    """

    name: str
    classes: tuple[str, ...]
    descriptions: tuple[tuple[str, ...], ...]
    embeddings: Float32  # (M, d)
    offsets: Ints  # (c + 1,)
    template: str = ""
    text_fingerprint: str = ""
    name_template: str = ""
    prompts: tuple[str, ...] = ()

    def class_embeddings(self, index: int) -> Float32:
        """Embeddings of one class, (m, d) float32."""
        return self.embeddings[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything but the name: equal fingerprints mean equal answers."""
        strings = {key: value for key, value in self._strings().items() if key != "name"}
        digest = hashlib.sha256(json.dumps(strings, sort_keys=True).encode("ascii"))
        digest.update(np.ascontiguousarray(self.offsets, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.embeddings, dtype="<f4").tobytes())
        return digest.hexdigest()

    def prompt_rows(self) -> dict[str, Float32]:
        """The (d,) float32 embedding of each prompt, for reuse."""
        return dict(zip(self.prompts, self.embeddings, strict=False))

    def to_tensors(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
        """Tensors and metadata for a safetensors file; `from_tensors` reads them back."""
        tensors: dict[str, npt.NDArray[Any]] = {"embeddings": self.embeddings, "offsets": self.offsets}
        return tensors, {"format": _FORMAT, "content": json.dumps(self._strings(), sort_keys=True)}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str], source: str = "knowledge base"
    ) -> KnowledgeBase:
        """Rebuild what `to_tensors` wrote.

        Raises `KnowledgeError` unless counts, offsets and names agree and every row is finite and of
        unit length within 1e-3. ``source`` leads every message.
        """
        if metadata.get("format") != _FORMAT:
            raise KnowledgeError(f"{source}: expected the format {_FORMAT!r}, got {metadata.get('format')!r}")
        strings = _read_strings(metadata.get("content", ""), source)
        try:
            embeddings = check_array("embeddings", tensors["embeddings"], ("M", "d"))  # (M, d) float32
            offsets = tensors["offsets"]  # (c + 1,) int64
        except (KeyError, ShapeError) as error:
            raise KnowledgeError(f"{source}: {error}") from error
        _check_offsets(offsets, [len(group) for group in strings["descriptions"]], len(embeddings), source)
        norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
        if embeddings.shape[1] == 0 or np.abs(norms - 1).max() > _MAX_NORM_ERROR:
            raise KnowledgeError(f"{source}: expected embeddings of unit length, got lengths up to {norms.max():.4g}")
        if len(strings["prompts"]) not in (0, len(embeddings)):
            raise KnowledgeError(f"{source}: {len(strings['prompts'])} prompts for {len(embeddings)} embeddings")
        return cls(embeddings=embeddings, offsets=offsets, **strings)

    def _strings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "classes": self.classes,
            "descriptions": self.descriptions,
            "template": self.template,
            "name_template": self.name_template,
            "text_fingerprint": self.text_fingerprint,
            "prompts": self.prompts,
        }

    @classmethod
    def from_arrays(
        cls,
        embeddings: Mapping[str, npt.ArrayLike] | Sequence[npt.ArrayLike] | npt.NDArray[Any],
        classes: Sequence[str] | None = None,
        descriptions: Sequence[Sequence[str]] | None = None,
        *,
        name: str = "knowledge",
    ) -> KnowledgeBase:
        """Build from embeddings computed elsewhere: one (m_j, d) array per class.

        Rows are scaled to unit length. Raises `KnowledgeError` on an empty class or a zero row.
        """
        if isinstance(embeddings, Mapping):
            classes = list(embeddings) if classes is None else classes
            missing = [label for label in classes if label not in embeddings]
            if missing:
                raise KnowledgeError(f"expected embeddings of every class, got none for {missing}")
            embeddings = [embeddings[label] for label in classes]
        blocks = [check_array(f"embeddings[{j}]", block, ("m", "d")) for j, block in enumerate(embeddings)]
        if not blocks:
            raise KnowledgeError("a knowledge base needs at least one class, got none")
        if any(len(block) == 0 for block in blocks):
            raise KnowledgeError("every class needs at least one embedding, got a class with none")
        if len({block.shape[1] for block in blocks}) != 1:
            raise KnowledgeError(f"all embeddings need one width d, got {sorted({b.shape[1] for b in blocks})}")
        labels = tuple(classes) if classes is not None else tuple(f"class {j}" for j in range(len(blocks)))
        if not _are_texts(list(labels)):
            raise KnowledgeError(f"expected class names that are texts, got {list(labels)}")
        if len(labels) != len(blocks) or len(set(labels)) != len(labels):
            raise KnowledgeError(f"expected {len(blocks)} different class names, got {list(labels)}")
        texts = (
            tuple(tuple(group) for group in descriptions)
            if descriptions is not None
            else tuple(tuple(f"{label} #{i}" for i in range(len(b))) for label, b in zip(labels, blocks, strict=True))
        )
        if [len(group) for group in texts] != [len(block) for block in blocks]:
            raise KnowledgeError("expected as many descriptions as embeddings in every class")
        rows = np.concatenate(blocks).astype(np.float32)  # (M, d) float32
        if not np.any(rows, axis=1).all():
            raise KnowledgeError("an embedding is the zero vector, which has no direction; embed that text again")
        offsets = np.cumsum([0, *(len(block) for block in blocks)]).astype(np.int64)
        return cls(name, labels, texts, np.asarray(unit_rows(rows), dtype=np.float32), offsets)


def check_name(name: str) -> str:
    """Return ``name``, or raise `KnowledgeError` when it cannot name a knowledge base (it becomes a file name)."""
    if not _NAME.fullmatch(name):
        raise KnowledgeError(
            f"name: expected 1 to 64 of a-z, 0-9, '_', '.', '-' (the first no '.' or '-'), got {name[:80]!r}"
        )
    return name


def _read_strings(text: str, source: str) -> dict[str, Any]:
    try:
        found: Any = parse_strict(text.encode("utf-8", "surrogatepass"), _MAX_STRINGS_BYTES)
    except StrictJsonError as error:
        raise KnowledgeError(f"{source}: its metadata is damaged: {error}") from error
    fits = (
        isinstance(found, dict)
        and set(found) == {*_STRING_FIELDS, "classes", "descriptions", "prompts"}
        and all(isinstance(found[key], str) for key in _STRING_FIELDS)
        and _are_texts(found["classes"])
        and _are_texts(found["prompts"])
        and isinstance(found["descriptions"], list)
        and all(_are_texts(group) for group in found["descriptions"])
        and 1 <= len(found["classes"]) == len(set(found["classes"])) == len(found["descriptions"])
    )
    if not fits:
        raise KnowledgeError(f"{source}: its metadata is incomplete; build the knowledge base again")
    check_name(found["name"])
    return {
        **found,
        "classes": tuple(found["classes"]),
        "prompts": tuple(found["prompts"]),
        "descriptions": tuple(tuple(group) for group in found["descriptions"]),
    }


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check_offsets(offsets: npt.NDArray[Any], counts: Sequence[int], num_rows: int, source: str) -> None:
    expected = np.cumsum([0, *counts])
    is_equal = offsets.dtype == np.int64 and np.array_equal(offsets, expected)
    if not is_equal or expected[-1] != num_rows or min(counts) < 1:
        raise KnowledgeError(f"{source}: offsets, descriptions and {num_rows} embeddings do not agree; build it again")
