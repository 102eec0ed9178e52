"""ModelInfer and ModelStreamInfer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any, TypeVar

from kpl_engine.errors import NotReadyError, OverloadedError
from kpl_engine.server.grpc.call import Call, Guard
from kpl_engine.server.grpc.codec import is_raw, to_infer, to_response
from kpl_engine.server.grpc.messages import message, parse
from kpl_engine.server.infer import InferRequest, answer, clean_id, to_classify
from kpl_engine.server.port import Service
from kpl_engine.server.requests import ClassifyRequest, Reply, Ticket

__all__ = ["Inference"]

_Result = TypeVar("_Result")
_IN_FLIGHT_OF_A_STREAM = 16
_OFF_LOOP_BYTES = 1 << 20  # parsing a longer message takes milliseconds, which other calls need not wait for
_CALLS_AN_IMAGE = 4  # calls that may be read or answered at once, for each image that may be in flight
_FEWEST_CALLS = 64


class Inference:
    """Both ways of asking; a stream is answered in the order in which its answers are ready, as Triton does.

    A stream is read on while fewer than 16 of its requests are in flight: HTTP/2 then holds the client back.
    """

    def __init__(self, service: Service, guard: Guard, closing: asyncio.Event) -> None:
        self._service, self._guard, self._closing = service, guard, closing
        self._settings = service.settings
        self._calls = 0
        self._max_calls = max(_FEWEST_CALLS, _CALLS_AN_IMAGE * self._settings.max_inflight_images)

    async def infer(self, call: Call) -> Any:
        """One request, one answer. It is counted before its message is received."""
        if self._closing.is_set():
            raise NotReadyError("the server is stopping; send the request to another")
        with self._counted(), self._service.lease() as lease:
            data = await call.read(self._settings.body_timeout_s)
            lease.grow(len(data))
            request = await _apart(len(data), _parse, data)
            call.adopt_id(request.id)
            return await self._answer(request, len(data), call, call.request_id)

    async def stream(self, call: Call) -> None:
        """Any number of requests; an error of one stands in the answer to it and leaves the stream open."""
        room, writing = asyncio.Semaphore(_IN_FLIGHT_OF_A_STREAM), asyncio.Lock()
        tasks: set[asyncio.Task[None]] = set()

        def done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            room.release()

        try:
            while True:
                await room.acquire()
                data = await self._next(call)
                if not isinstance(data, bytes):
                    break
                task = asyncio.create_task(self._answer_to_stream(data, call, writing))
                tasks.add(task)
                task.add_done_callback(done)
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if data is None:
            raise NotReadyError("the server is stopping; send what was not answered to another")

    async def _next(self, call: Call) -> Any:
        """The next message, gRPC's EOF after the last, or None when the server is closing."""
        reading = asyncio.ensure_future(call.context.read())
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait((reading, closing), return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else None
        finally:
            reading.cancel()
            closing.cancel()

    async def _answer_to_stream(self, data: bytes, call: Call, writing: asyncio.Lock) -> None:
        started, code, request_id = perf_counter(), "OK", clean_id()
        response = message("ModelStreamInferResponse")()
        try:
            with self._counted(), self._service.lease() as lease:
                lease.grow(len(data))
                request = await _apart(len(data), _parse, data)
                response.infer_response.id = request.id  # goes with an error too, to tell which request it is of
                request_id = clean_id(request.id, request_id)
                response.infer_response.CopyFrom(await self._answer(request, len(data), call, request_id))
                response.infer_response.parameters["triton_final_response"].bool_param = True
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception as error:
            code, response.error_message = self._guard.tell(error, "stream_infer", request_id)
        finally:
            self._guard.replied(call, "stream_infer", request_id, code, perf_counter() - started)
        async with writing:
            await call.context.write(response)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._calls >= self._max_calls:
            raise OverloadedError(f"{self._max_calls} calls are being answered, which is the limit; come again")
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    async def _answer(self, request: Any, num_bytes: int, call: Call, request_id: str) -> Any:
        infer, asked = await _apart(num_bytes, self._prepare, (request, request_id, call.traceparent))
        left_s = call.time_left_s()
        if left_s is not None:
            asked = replace(asked, timeout_s=min(left_s, asked.timeout_s or left_s))
        reply = await _answered(self._service.submit(asked))
        return to_response(reply, answer(reply, infer.outputs), request.id, is_raw(request))

    def _prepare(self, given: tuple[Any, str, str]) -> tuple[InferRequest, ClassifyRequest]:
        request, request_id, traceparent = given
        infer = to_infer(request, self._settings, request_id, traceparent)
        return infer, to_classify(infer, self._settings)


async def _apart(num_bytes: int, work: Callable[[Any], _Result], argument: Any) -> _Result:
    """``work(argument)``, in a thread where it is for a long message."""
    return await asyncio.to_thread(work, argument) if num_bytes > _OFF_LOOP_BYTES else work(argument)


def _parse(data: bytes) -> Any:
    return parse(message("ModelInferRequest"), data)


async def _answered(ticket: Ticket) -> Reply:
    """The reply; a client that leaves meanwhile cancels the ticket, which the service may be working on."""
    future = asyncio.wrap_future(ticket.future)
    try:
        # Shielded: cancelling `future` would cancel the service's own, under whoever is about to answer it.
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, by nobody
        ticket.cancel()
        raise
