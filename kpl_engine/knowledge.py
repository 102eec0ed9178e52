"""Knowledge bases: descriptions of classes and their cached text embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32, Ints, check_array, unit_rows
from kpl_engine.errors import KnowledgeError

__all__ = ["KnowledgeBase"]


@dataclass(frozen=True)
class KnowledgeBase:
    """Classes, their descriptions and the cached embeddings of those descriptions.

    ``embeddings`` is (M, d) float32 with unit rows, ordered class by class; the rows of class
    ``j`` are ``offsets[j]:offsets[j + 1]``. Every class has at least one row.
    """

    name: str
    classes: tuple[str, ...]
    descriptions: tuple[tuple[str, ...], ...]
    embeddings: Float32  # (M, d)
    offsets: Ints  # (c + 1,)
    template: str = ""
    text_fingerprint: str = ""

    def class_embeddings(self, index: int) -> Float32:
        """Embeddings of one class, (m, d) float32."""
        return self.embeddings[self.offsets[index] : self.offsets[index + 1]]

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
            embeddings = [embeddings[label] for label in classes]
        blocks = [check_array(f"embeddings[{j}]", block, ("m", "d")) for j, block in enumerate(embeddings)]
        if not blocks:
            raise KnowledgeError("a knowledge base needs at least one class, got none")
        if any(len(block) == 0 for block in blocks):
            raise KnowledgeError("every class needs at least one embedding, got a class with none")
        if len({block.shape[1] for block in blocks}) != 1:
            raise KnowledgeError(f"all embeddings need one width d, got {sorted({b.shape[1] for b in blocks})}")
        labels = tuple(classes) if classes is not None else tuple(f"class {j}" for j in range(len(blocks)))
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
