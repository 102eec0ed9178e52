"""What a solver thread does: requests whose features are known, to replies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from kpl_engine.classification import Classification
from kpl_engine.config import MethodConfig, MethodName
from kpl_engine.encoder.pipeline import EncodedImages
from kpl_engine.errors import CudaStickyError, KplError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.server.flow import Flow
from kpl_engine.server.requests import Reply
from kpl_engine.server.ticket import Job

__all__ = ["StreamsPort", "solve_next"]

_LOG = logging.getLogger(__name__)


class StreamsPort(Protocol):
    """What the service asks of `kpl_engine.server.streams.Streams`."""

    def start(self) -> None:
        """Before the first answer."""

    def answer(
        self,
        model_name: str,
        base: KnowledgeBase,
        method: MethodName,
        config: MethodConfig,
        encoded: EncodedImages,
        top_evidence: int,
        encoder_fingerprint: str = "",
    ) -> Classification:
        """Learn from a request's pictures, and classify them."""

    def status(self) -> Mapping[str, Any]:
        """What the streams have seen and when they were last written, JSON values."""

    def forget(self, model_name: str) -> None:
        """A model was unloaded."""

    def close(self) -> None:
        """After the last answer."""


def solve_next(flow: Flow, instance: int, streams: StreamsPort | None, clock: Callable[[], float]) -> bool:
    """One turn of the solver thread ``instance``: all that wait of one model and mode; False when the server closes."""
    jobs = flow.take_solvable()
    if jobs is None:
        return False
    start = clock()
    found = [_answer_stream(job, streams) for job in jobs] if jobs[0].mode == "stream" else _solve(jobs, instance)
    end = clock()
    for job, answer in zip(jobs, found, strict=True):
        if isinstance(answer, CudaStickyError):
            raise answer
        job.solve_s = (start, end)
        flow.finish(job, answer if isinstance(answer, Exception) else _reply(job, answer, end), num_holds=1)
    return True


def _solve(jobs: Sequence[Job], instance: int) -> Sequence[Classification | Exception]:
    """Answers in order. An error that the model did not lay to one query is found by asking each alone."""
    model = jobs[0].model
    try:
        return model.solve([job.query() for job in jobs], instance)
    except CudaStickyError:
        raise
    except Exception as error:
        if len(jobs) > 1:
            return [answer for job in jobs for answer in _solve([job], instance)]
        return [_logged(jobs[0], error)]


def _answer_stream(job: Job, streams: StreamsPort | None) -> Classification | Exception:
    if streams is None:
        return RuntimeError("a stream request in a server without streams")
    query, info = job.query(), job.model.info
    method = query.method or "kpl_stream"
    try:
        return streams.answer(
            info.name,
            job.base,
            method,
            job.model.method_config,
            query.encoded,
            query.top_evidence,
            encoder_fingerprint=job.model.lane.encoders[
                0
            ].fingerprint,  # not the model's: fitting is no reason to forget
        )
    except Exception as error:
        return _logged(job, error)


def _logged(job: Job, error: Exception) -> Exception:
    if not isinstance(error, KplError):
        _LOG.error("request %s: unexpected error while solving", job.request.request_id, exc_info=error)
    return error


def _reply(job: Job, found: Classification, now: float) -> Reply:
    info = job.model.info
    features = job.reply_features()
    return Reply(info.name, info.version, found, features, job.timings_ms(now), job.request.request_id)
