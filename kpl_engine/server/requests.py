"""What a door hands to the service, and what it gets back. No protocol, no threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.classification import Classification
from kpl_engine.config import MethodName, ModeName

__all__ = ["ClassifyRequest", "Reply", "Ticket"]


@dataclass(frozen=True, eq=False)
class ClassifyRequest:
    """One request, parsed and checked for form; the service checks what it names.

    Exactly one of ``images``, ``pixels``, ``features`` is given, with at least one row.

    Parameters
    ----------
    model, version : str
        The bundle's name in the server; version "" or "1".
    images : sequence of bytes, optional
        Encoded pictures (JPEG, PNG, DICOM ...).
    pixels : sequence of (h, w, 3) uint8 arrays, optional
        Decoded pictures, RGB, of any size; an (n, h, w, 3) array is one.
    features : (n, d) float32, optional
        Unit-norm image features; the encoder is passed over.
    names : sequence of str
        How errors and answers call the pictures; empty means ``image 0``, ``image 1`` ...
    task : str, optional
        The knowledge base; None where the model has one.
    method, mode, prior, top_k
        As `Engine.classify` (``top_k`` is its ``top_evidence``). ``mode`` None is "frozen" where proxies are fitted
        for this knowledge base, else "batch".
    skips_bad : bool
        True: a picture that cannot be used stands in ``failures`` of the answer. False: it fails the request.
    priority : int
        0 is the ordinary one (2); 1 is served before 2, 2 before 3.
    timeout_s : float, optional
        From submission to answer; only shortens the server's own deadline.
    request_id : str
        Printable, at most 128 characters; echoed, logged.
    traceparent : str
        W3C trace context as it came, or "".
    """

    model: str
    version: str = ""
    images: Sequence[bytes] | None = None
    pixels: Sequence[UInt8] | UInt8 | None = None
    features: Float32 | None = None
    names: Sequence[str] = ()
    task: str | None = None
    method: MethodName | None = None
    mode: ModeName | None = None
    prior: Mapping[str, float] | None = None
    top_k: int = 2
    skips_bad: bool = False
    priority: int = 0
    timeout_s: float | None = None
    request_id: str = ""
    traceparent: str = ""

    @property
    def num_images(self) -> int:
        """Rows of whichever input was given."""
        given = next(rows for rows in (self.images, self.pixels, self.features) if rows is not None)
        return len(given)


@dataclass(frozen=True, eq=False)
class Reply:
    """The answer to a `ClassifyRequest`.

    ``features`` are those of the pictures that could be used, in order, (n_ok, d) float32 (``classification.is_ok``
    says which). ``timings_ms`` is wall time from submission: ``decode`` from the first picture begun to the last done,
    ``encode`` likewise, ``queue`` all waiting in between, ``solve``, and ``total``; stages of one request overlap when
    its first pictures are encoded while its last are decoded.
    """

    model: str
    version: str
    classification: Classification
    features: Float32
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    request_id: str = ""


class Ticket(Protocol):
    """A request that was accepted."""

    @property
    def future(self) -> Future[Reply]:
        """Done with a `Reply` or a `KplError`; never left undone."""

    def cancel(self) -> None:
        """The client left: what has not begun is dropped, and the future fails with `RequestCancelledError`.

        Harmless when it is too late.
        """
