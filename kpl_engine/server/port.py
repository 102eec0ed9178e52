"""What the doors know of the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from kpl_engine.config import MethodName
from kpl_engine.server.requests import ClassifyRequest, Ticket
from kpl_engine.server.settings import ServerSettings

__all__ = ["BytesLease", "IndexEntry", "KnowledgeInfo", "ModelInfo", "ModelStatistics", "Service", "StageTotal"]


@dataclass(frozen=True)
class KnowledgeInfo:
    """One knowledge base of a model. ``frozen`` is the method its proxies were fitted with, None without."""

    name: str
    classes: tuple[str, ...]
    num_descriptions: int
    frozen: MethodName | None


@dataclass(frozen=True)
class ModelInfo:
    """A loaded model. ``providers`` is what the images run on; ``max_batch`` the largest encoder batch."""

    name: str
    version: str
    encoder: str
    embed_dim: int
    image_size: tuple[int, int]
    max_batch: int
    knowledge: tuple[KnowledgeInfo, ...]
    providers: tuple[str, ...]
    fingerprint: str
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class IndexEntry:
    """A model the server knows. ``state``: READY, UNAVAILABLE or LOADING; ``reason`` says why it is not ready."""

    name: str
    version: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class StageTotal:
    """How often, and nanoseconds in all."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True)
class ModelStatistics:
    """Totals since the model was loaded. ``batches`` maps a batch size of the encoder to its total."""

    inference_count: int = 0  # images
    execution_count: int = 0  # encoder batches
    last_inference_ms: int = 0  # since the epoch
    success: StageTotal = StageTotal()
    fail: StageTotal = StageTotal()
    queue: StageTotal = StageTotal()
    compute_input: StageTotal = StageTotal()  # decode and preprocess
    compute_infer: StageTotal = StageTotal()  # encode
    compute_output: StageTotal = StageTotal()  # solve
    batches: Mapping[int, StageTotal] | None = None


class BytesLease(AbstractContextManager["BytesLease"], Protocol):
    """Bytes of one body, counted against the limit while they arrive and until the answer left; ``with`` returns them.

    The door opens it before it reads and closes it when the reply is made.
    """

    def grow(self, num_bytes: int) -> None:
        """Count more of them; `OverloadedError` beyond the server's limit, `TooLargeError` beyond that of one body."""


class Service(Protocol):
    """All methods are safe from any thread and return at once, except `load` and `unload`."""

    @property
    def settings(self) -> ServerSettings:
        """As the server was started."""

    def lease(self) -> BytesLease:
        """For one request; `NotReadyError` while the server is starting or has stopped accepting."""

    def submit(self, request: ClassifyRequest) -> Ticket:
        """Accept or refuse, before anything is decoded.

        Raises
        ------
        UnknownModelError, KnowledgeError, RequestError, InputError
            What the request names is not there, or does not go together.
        TooLargeError
            More pictures than one request may have.
        OverloadedError, NotReadyError
            Full, or starting or draining.
        """

    def model(self, name: str, version: str = "") -> ModelInfo:
        """A loaded model; `UnknownModelError`, or `NotReadyError` where it is known and not loaded."""

    def index(self) -> Sequence[IndexEntry]:
        """Every model the server knows, loaded or not."""

    def is_live(self) -> bool:
        """False once a worker thread died: the process must be restarted."""

    def is_ready(self) -> bool:
        """Live, warm, not draining, and every model given at the start is loaded."""

    def statistics(self, name: str = "", version: str = "") -> Mapping[str, ModelStatistics]:
        """By model; ``name`` "" is all that are loaded."""

    def snapshot(self) -> Mapping[str, Any]:
        """What the page draws, JSON values only.

        ``uptime_s``, ``is_ready``, ``inflight_images``, ``queue_images``, ``decoding_images``, ``max_inflight_images``;
        ``totals``: ``requests``, ``images``, ``rejected``, ``failed``, ``cancelled``, ``batches`` since the start;
        ``latency_ms``: ``p50``, ``p90``, ``p99`` and ``stages_ms``: means of ``decode``, ``queue``, ``encode``,
        ``solve`` over the requests answered in the last 60 s (null without any); ``streams``: what `Streams.status`
        tells (null without streams).
        """

    def load(self, name: str) -> None:
        """Load or load again, warm; blocks (doors call it in a thread). What served before serves until then, and on
        an error (`BundleError` ..., `UnknownModelError`) goes on. `ForbiddenError` where the settings say so."""

    def unload(self, name: str) -> None:
        """Take a model away once its requests in flight are answered; blocks. `UnknownModelError`, `ForbiddenError`."""
