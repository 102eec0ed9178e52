"""A running server as a target: requests prepared beforehand, sent by an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kpl_engine.bench.address import Address
from kpl_engine.bench.doors import Answer, Door, GrpcDoor, HttpDoor
from kpl_engine.bench.messages import Input, Rows, bytes_element, grpc_request, http_request, read_grpc, read_http
from kpl_engine.bench.targets import ANSWERED, BROKEN, TIMED_OUT, Done
from kpl_engine.errors import NotReadyError, ServiceError, UnauthorizedError, UnknownModelError
from kpl_engine.server.listening import raise_open_files

__all__ = ["Payloads", "RemoteTarget", "ServerModel"]

_T = TypeVar("_T")
_MOST_CONNECTIONS = 512  # more wait here for one of them, and the wait counts
_MOST_TOLD = 300


@dataclass(frozen=True, eq=False)
class Payloads:
    """The raw bytes of each picture as an element, or a row, of one input tensor."""

    name: str
    datatype: str
    row_shape: tuple[int, ...]
    rows: Sequence[bytes]

    @classmethod
    def of(cls, kind: str, payloads: Sequence[Any]) -> Payloads:
        """Of encoded "files" (bytes), "pixels" (h, w, 3) uint8 or "features" (d,) float32."""
        if kind == "files":
            return cls("image", "BYTES", (), [bytes_element(bytes(each)) for each in payloads])
        name, datatype, dtype = ("pixels", "UINT8", "u1") if kind == "pixels" else ("features", "FP32", "<f4")
        rows = [np.ascontiguousarray(each, dtype=dtype) for each in payloads]
        return cls(name, datatype, rows[0].shape, [each.tobytes() for each in rows])

    def of_query(self, indices: Sequence[int]) -> Input:
        """The tensor of these pictures."""
        raw = self.rows[indices[0]] if len(indices) == 1 else b"".join([self.rows[i] for i in indices])
        return Input(self.name, self.datatype, (len(indices), *self.row_shape), raw)


@dataclass(frozen=True)
class ServerModel:
    """A model of a server and what every request asks of it."""

    address: Address
    name: str
    token: str
    parameters: tuple[tuple[str, Any], ...] = ()
    max_batch: int = 8

    def open_door(self) -> Door:
        """Connections are made when the first request needs one. To be called inside the event loop."""
        address, token = self.address, self.token
        if address.is_grpc:
            is_secure = address.scheme == "grpcs"
            return GrpcDoor(address.host, address.port, is_secure=is_secure, roots=address.roots, token=token)
        path = f"{address.prefix}/v2/models/{self.name}/infer"
        headers = (f"Authorization: Bearer {token}",) if token else ()
        return HttpDoor(address.host, address.port, path, headers, address.tls)

    def request(self, tensor: Input, outputs: Sequence[str] = ()) -> tuple[bytes, int | None]:
        """Body, and the length of its JSON for HTTP."""
        parameters = dict(self.parameters)
        if self.address.is_grpc:
            return grpc_request(self.name, tensor, parameters, outputs), None
        return http_request(tensor, parameters, outputs)

    def read(self, answer: Answer) -> tuple[dict[str, Rows], dict[str, Any]]:
        """Outputs and parameters; the error that its code says, with what the server said."""
        if answer.code in ANSWERED:
            return read_grpc(answer) if self.address.is_grpc else read_http(answer)
        said = answer.body.decode("utf-8", "replace").strip()[:_MOST_TOLD]
        told = f"{self.address}: model {self.name!r}: {answer.code}{': ' + said if said else ''}"
        if answer.code in ("404", "NOT_FOUND"):
            raise UnknownModelError(f"{told}; name the server's model by --model")
        if answer.code in ("401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED"):
            raise UnauthorizedError(f"{told}; give the server's token by --token-file")
        if answer.code in (BROKEN, TIMED_OUT, "503", "UNAVAILABLE"):
            raise NotReadyError(f"{told}; is the server running, and ready?")
        raise ServiceError(told)


class RemoteTarget:
    """`Target` over one model of a server.

    Replies are not decoded in time that counts: their code is looked at. A query that has waited ``patience_s`` is
    "timed out" and its connection closed.

    Parameters
    ----------
    model : ServerModel
    payloads : Payloads
    at_once : int, optional
        Requests under way; the others wait here, and the wait counts. A closed scenario sends few: the server's own
        limit must not refuse what the client could hold back. None: as many as there are connections, 512.
    patience_s : float
    """

    def __init__(
        self, model: ServerModel, payloads: Payloads, at_once: int | None = None, patience_s: float = 30.0
    ) -> None:
        self._model, self._payloads, self._patience_s = model, payloads, patience_s
        self._at_once = at_once or _MOST_CONNECTIONS
        raise_open_files()
        self._single = [model.request(payloads.of_query([i])) for i in range(len(payloads.rows))]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kpl-client", daemon=True)
        self._thread.start()
        self._tasks: set[asyncio.Task[None]] = set()
        self._door, self._turns = self._call(self._open())

    @property
    def how(self) -> str:
        return str(self._model.address)

    @property
    def most_at_once(self) -> int:
        return self._model.max_batch

    def submit(self, indices: Sequence[int], done: Done) -> None:
        self._loop.call_soon_threadsafe(self._begin, indices, done)

    def answer_of(self, indices: Sequence[int]) -> npt.NDArray[Any]:
        outputs, _ = self.ask(indices, ("probabilities",))
        return np.asarray(outputs["probabilities"])

    def features_of(self, indices: Sequence[int]) -> npt.NDArray[Any]:
        """The server's features (n, d) of these pictures."""
        outputs, _ = self.ask(indices, ("embedding",))
        return np.asarray(outputs["embedding"])

    def ask(self, indices: Sequence[int], outputs: Sequence[str]) -> tuple[dict[str, Rows], dict[str, Any]]:
        """The decoded answer of one request; `ServiceError` where there is none."""
        body, length = self._model.request(self._payloads.of_query(indices), outputs)
        found: Future[Answer] = Future()
        self._loop.call_soon_threadsafe(self._start, self._send(body, length, found.set_result))
        return self._model.read(found.result())

    def close(self) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _begin(self, indices: Sequence[int], done: Done) -> None:
        body, length = self._single[indices[0]] if len(indices) == 1 else self._composed(indices)
        self._start(self._send(body, length, lambda answer: done(answer.code)))

    def _composed(self, indices: Sequence[int]) -> tuple[bytes, int | None]:
        return self._model.request(self._payloads.of_query(indices))

    def _start(self, sending: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(sending)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A timer for each, and not wait_for(): that wraps every request in a task of its own.
        patience = self._loop.call_later(self._patience_s, task.cancel)
        task.add_done_callback(lambda _: patience.cancel())

    async def _send(self, body: bytes, length: int | None, done: Callable[[Answer], None]) -> None:
        answer = Answer(TIMED_OUT)
        try:
            async with self._turns:
                answer = await self._door.send(body, length)
        except asyncio.CancelledError:
            pass  # out of patience, or the target is closed: the same to who asked
        finally:
            done(answer)

    async def _open(self) -> tuple[Door, asyncio.Semaphore]:
        return self._model.open_door(), asyncio.Semaphore(self._at_once)

    async def _stop(self) -> None:
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._door.close()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
