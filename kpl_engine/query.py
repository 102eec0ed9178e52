"""What one request asks of its features, as `Answers` sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from kpl_engine.config import MethodName, ModeName
from kpl_engine.encoder.pipeline import EncodedImages

__all__ = ["QueryLike"]


class QueryLike(Protocol):
    """Features of one request and what is asked of them; `kpl_engine.server.parts.Query` is one."""

    @property
    def encoded(self) -> EncodedImages:
        """The pictures of the request."""

    @property
    def knowledge(self) -> str:
        """Name of the knowledge base."""

    @property
    def method(self) -> MethodName | None:
        """As in `Engine.classify`."""

    @property
    def mode(self) -> ModeName:
        """ "batch" or "frozen"."""

    @property
    def prior(self) -> Mapping[str, float] | None:
        """Class shares by name."""

    @property
    def top_evidence(self) -> int:
        """Descriptions for each image."""
