"""One accepted request on its way through the service."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.config import ModeName
from kpl_engine.encoder.pipeline import EncodedImages
from kpl_engine.errors import EncoderError, ImageError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.server.observer import RequestSpans
from kpl_engine.server.parts import Model, Query
from kpl_engine.server.requests import ClassifyRequest, Reply

__all__ = ["Job", "Picture"]

_ORDINARY = 2  # what priority 0 means


class Picture:
    """One image of a request: encoded bytes, pixels of any size, or pixels of the model's own."""

    __slots__ = ("data", "index", "job")

    def __init__(self, job: Job, index: int, data: bytes | UInt8) -> None:
        self.job = job
        self.index = index
        self.data = data

    @property
    def deadline_s(self) -> float:
        """That of its request."""
        return self.job.deadline_s

    @property
    def is_dropped(self) -> bool:
        """Its request is over."""
        return self.job.is_done


class Job:
    """A request, what is known of its pictures so far, and who works on it. Changed under the flow's lock only.

    ``num_to_decode`` and ``num_to_encode`` pictures wait in a line, ``is_to_solve`` says that the request does;
    ``num_left`` pictures have neither features nor an error; ``num_holds`` workers have it in hand: the model must not
    be given back before they are through. ``is_failed``: an error ends it, though that was not told yet.
    """

    __slots__ = (
        "_cancel",
        "_errors",
        "_notices",
        "arrival",
        "base",
        "deadline_s",
        "decode_s",
        "encode_s",
        "features",
        "future",
        "is_done",
        "is_failed",
        "is_to_solve",
        "mode",
        "model",
        "names",
        "num_holds",
        "num_images",
        "num_left",
        "num_to_decode",
        "num_to_encode",
        "priority",
        "request",
        "solve_s",
        "spans",
        "submitted_s",
        "task",
    )

    def __init__(
        self,
        request: ClassifyRequest,
        model: Model,
        base: KnowledgeBase,
        mode: ModeName,
        submitted_s: float,
        deadline_s: float,
        cancel: Callable[[Job], None],
    ) -> None:
        n = request.num_images
        self.request, self.model, self.base, self.mode = request, model, base, mode
        self.task = f"{model.info.name}/{base.name}"
        self.submitted_s, self.deadline_s = submitted_s, deadline_s
        self.priority = request.priority or _ORDINARY
        self.arrival = 0
        self.names = tuple(request.names) or tuple([f"image {i}" for i in range(n)])
        given = request.features
        self.features: Float32 = np.empty((n, model.info.embed_dim), np.float32) if given is None else given
        self.num_images, self.num_left = n, n if given is None else 0
        self.num_to_decode = self.num_to_encode = self.num_holds = 0
        self.is_done = self.is_failed = self.is_to_solve = False
        self.decode_s: tuple[float, float] | None = None  # first begun, last done
        self.encode_s: tuple[float, float] | None = None
        self.solve_s: tuple[float, float] | None = None
        self.spans: RequestSpans | None = None
        self.future: Future[Reply] = Future()
        # Running from the start: asyncio's wrapper would otherwise cancel it, and it could not be answered.
        self.future.set_running_or_notify_cancel()
        self._errors: dict[int, Exception] = {}
        self._notices: dict[int, tuple[str, ...]] = {}
        self._cancel = cancel

    @property
    def is_dropped(self) -> bool:
        """See `batcher.Waiting`."""
        return self.is_done

    def cancel(self) -> None:
        """See `requests.Ticket`."""
        self._cancel(self)

    def note_decode(self, start_s: float, end_s: float) -> None:
        """A picture was decoded from ``start_s`` to ``end_s``."""
        self.decode_s = _wider(self.decode_s, start_s, end_s)

    def note_encode(self, start_s: float, end_s: float) -> None:
        """A batch with pictures of this request ran from ``start_s`` to ``end_s``."""
        self.encode_s = _wider(self.encode_s, start_s, end_s)

    def add_notices(self, index: int, notices: tuple[str, ...]) -> None:
        """What the decoder had to say of a picture."""
        self._notices[index] = notices

    def add_features(self, index: int, row: Float32) -> None:
        """A picture's features are known: (d,) float32."""
        self.features[index] = row
        self.num_left -= 1

    def add_error(self, index: int, error: Exception) -> Exception | None:
        """A picture cannot be used; the error that ends the request, if that is one."""
        self._errors[index] = error
        self.num_left -= 1
        if self.request.skips_bad and len(self._errors) < self.num_images:
            return None
        self.is_failed = True
        return self._nothing_left() if self.request.skips_bad else error

    def _nothing_left(self) -> Exception:
        first = self._errors[min(self._errors)]
        for error in self._errors.values():
            if not isinstance(error, ImageError):  # the fault is not in the pictures alone
                return error
        if len(self._errors) == 1:
            return first
        return ImageError(f"none of the {len(self._errors)} images could be used; the first: {first}")

    def query(self) -> Query:
        """What is asked of the solver."""
        request = self.request
        return Query(self._encoded(), self.base.name, request.method, self.mode, request.prior, request.top_k)

    def reply_features(self) -> Float32:
        """Rows of the pictures that could be used, (n_ok, d) float32."""
        if not self._errors:
            return self.features
        return self.features[[i for i in range(self.num_images) if i not in self._errors]]

    def _encoded(self) -> EncodedImages:
        if not self._errors:
            ok = np.arange(self.num_images, dtype=np.int64)
        else:
            ok = np.array([i for i in range(self.num_images) if i not in self._errors], dtype=np.int64)
        failures = tuple((i, self.names[i], self._as_image_error(i)) for i in sorted(self._errors))
        notices = tuple(notice for i in sorted(self._notices) for notice in self._notices[i])
        return EncodedImages(self.reply_features(), ok, self.names, failures, notices)

    def _as_image_error(self, index: int) -> ImageError:
        error, name = self._errors[index], self.names[index]
        if isinstance(error, ImageError):
            return error
        why = str(error) if isinstance(error, EncoderError) else "internal error; the server's log has the details"
        return ImageError(f"{name}: {why}", source=name)

    def timings_ms(self, now: float) -> dict[str, float]:
        """Stages in wall milliseconds since submission; ``queue`` is what none of the others covers."""
        stages = {"decode": self.decode_s, "encode": self.encode_s, "solve": self.solve_s}
        covered, reached = 0.0, self.submitted_s
        for interval in sorted([each for each in stages.values() if each is not None]):
            covered += max(interval[1] - max(interval[0], reached), 0.0)
            reached = max(reached, interval[1])
        told = {name: 1e3 * (each[1] - each[0]) if each else 0.0 for name, each in stages.items()}
        total = now - self.submitted_s
        told["queue"] = 1e3 * max(total - covered, 0.0)
        told["total"] = 1e3 * total
        return told


def _wider(interval: tuple[float, float] | None, start_s: float, end_s: float) -> tuple[float, float]:
    return (start_s, end_s) if interval is None else (min(interval[0], start_s), max(interval[1], end_s))
