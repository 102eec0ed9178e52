"""From descriptions to a knowledge base, embedding each distinct prompt once in its life."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kpl_engine.arrays import Float32, check_array, unit_rows
from kpl_engine.errors import KnowledgeError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.knowledge.template import Template
from kpl_engine.knowledge.text import KnowledgeText

__all__ = ["EmbedReport", "embed_knowledge"]


@dataclass(frozen=True)
class EmbedReport:
    """Distinct prompts that went through the text encoder, and those whose embedding was at hand."""

    num_embedded: int
    num_reused: int


def embed_knowledge(
    text: KnowledgeText,
    template: Template,
    embed: Callable[[list[str]], Float32],
    text_fingerprint: str,
    reuse: Mapping[str, Float32],
    name: str,
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[KnowledgeBase, EmbedReport]:
    """Embed every prompt of ``text`` that ``reuse`` has no row for.

    Parameters
    ----------
    text : KnowledgeText
    template : Template
    embed : callable
        Texts in, (m, d) float32 out; called with at most ``batch_size`` distinct prompts and not at
        all when there is nothing new.
    text_fingerprint : str
        Identity of text tower and tokenizer; stored, so that the rows are never mixed with others.
    reuse : mapping
        (d,) float32 unit rows by exact prompt, made by the same text tower. Taken bit for bit.
    name : str
        Name of the knowledge base.
    progress : callable, optional
        Called with (done, total) after each batch.
    """
    groups = [template.prompts(*pair) for pair in zip(text.classes, text.descriptions, strict=True)]
    prompts = [prompt for group in groups for prompt in group]
    distinct = list(dict.fromkeys(prompts))
    new = [prompt for prompt in distinct if prompt not in reuse]
    rows = {prompt: reuse[prompt] for prompt in distinct if prompt in reuse}
    for start in range(0, len(new), batch_size):
        batch = new[start : start + batch_size]
        block = check_array("text embeddings", embed(batch), (len(batch), "d"))  # (m, d) float32
        if not np.any(block, axis=1).all():
            raise KnowledgeError("the text encoder gave a zero vector, which has no direction")
        rows.update(zip(batch, unit_rows(block), strict=True))
        if progress is not None:
            progress(start + len(batch), len(new))
    if len({row.shape for row in rows.values()}) != 1:
        raise KnowledgeError("cached and new text embeddings differ in width; build into a new bundle")
    base = KnowledgeBase(
        name=name,
        classes=text.classes,
        descriptions=tuple(d or (label,) for label, d in zip(text.classes, text.descriptions, strict=True)),
        embeddings=np.stack([rows[prompt] for prompt in prompts]).astype(np.float32),  # (M, d) float32
        offsets=np.cumsum([0, *map(len, groups)]).astype(np.int64),  # (c + 1,) int64
        template=template.feature,
        text_fingerprint=text_fingerprint,
        name_template=template.name,
        prompts=tuple(prompts),
    )
    return base, EmbedReport(len(new), len(distinct) - len(new))
