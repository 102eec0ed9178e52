"""Targets in this process: the engine as a program calls it, and the batcher that serves."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.bench.targets import Done
from kpl_engine.classification import Classification
from kpl_engine.config import MethodName, ModeName
from kpl_engine.engine import Engine
from kpl_engine.errors import KplError
from kpl_engine.server.requests import ClassifyRequest, Reply
from kpl_engine.server.service import BatchingService
from kpl_engine.server.status import status_of

__all__ = ["EngineTarget", "ServiceTarget"]

# Of one call of Offline: what an answer is made of besides its numbers (names, evidence) is held for so many pictures.
_MOST_OFFLINE = 8192


class EngineTarget:
    """`Target` that calls `Engine.classify`, in the thread that submits.

    LoadGen's thread is then the caller, as a program's own would be: no queue and no second thread in the latency.
    """

    how = "Engine.classify"
    most_at_once = _MOST_OFFLINE

    def __init__(
        self,
        engine: Engine,
        kind: str,
        payloads: Sequence[Any],
        *,
        knowledge: str | None = None,
        method: MethodName | None = None,
        mode: ModeName = "frozen",
    ) -> None:
        self._engine, self._kind, self._payloads = engine, kind, payloads
        self._options: dict[str, Any] = {"knowledge": knowledge, "method": method, "mode": mode}

    def submit(self, indices: Sequence[int], done: Done) -> None:
        try:
            found = self._classify(indices)
        except KplError as error:
            done(status_of(error).grpc)
        else:
            done("OK" if bool(found.is_ok.all()) else "INVALID_ARGUMENT")

    def answer_of(self, indices: Sequence[int]) -> npt.NDArray[Any]:
        return self._classify(indices).probabilities

    def _classify(self, indices: Sequence[int]) -> Classification:
        given = [self._payloads[i] for i in indices]
        if self._kind == "features":
            return self._engine.classify(features=np.stack(given), **self._options)
        return self._engine.classify(given, **self._options)

    def close(self) -> None:
        """The engine is its owner's."""


class ServiceTarget:
    """`Target` over a started `BatchingService`.

    LoadGen's thread only puts a query into a queue: what the service does at admission is done by a thread of ours,
    as a door of the server does it, and does not keep LoadGen from issuing the next one when it is due.
    """

    how = "BatchingService"

    def __init__(
        self,
        service: BatchingService,
        model: str,
        kind: str,
        payloads: Sequence[Any],
        *,
        knowledge: str | None = None,
        method: MethodName | None = None,
        mode: ModeName | None = None,
    ) -> None:
        self._service, self._kind, self._payloads = service, kind, payloads
        self._options: dict[str, Any] = {"model": model, "task": knowledge, "method": method, "mode": mode}
        self.most_at_once = service.model(model).max_batch
        self._queue: SimpleQueue[tuple[Sequence[int], Done] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="kpl-submit", daemon=True)
        self._thread.start()

    def submit(self, indices: Sequence[int], done: Done) -> None:
        self._queue.put((indices, done))

    def answer_of(self, indices: Sequence[int]) -> npt.NDArray[Any]:
        reply = self._service.submit(self._request(indices)).future.result()
        return reply.classification.probabilities

    def close(self) -> None:
        """End the thread; the service is its owner's."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (query := self._queue.get()) is not None:
            indices, done = query
            try:
                future = self._service.submit(self._request(indices)).future
            except KplError as error:
                done(status_of(error).grpc)
            else:
                future.add_done_callback(lambda found, done=done: done(_code(found)))  # type: ignore[misc]

    def _request(self, indices: Sequence[int]) -> ClassifyRequest:
        given = [self._payloads[i] for i in indices]
        if self._kind == "features":
            return ClassifyRequest(features=np.stack(given), **self._options)
        if self._kind == "pixels":
            return ClassifyRequest(pixels=given, **self._options)
        return ClassifyRequest(images=given, **self._options)


def _code(found: Future[Reply]) -> str:
    error = found.exception()
    return "OK" if error is None else status_of(error).grpc
