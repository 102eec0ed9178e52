"""One call of a client: its metadata, its time, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Protocol
from urllib.parse import unquote

import grpc
import grpc.aio

from kpl_engine.errors import DeadlineExceededError, OverloadedError, RequestCancelledError, SlowRequestError
from kpl_engine.server.infer import clean_id
from kpl_engine.server.logs import note_request
from kpl_engine.server.observer import Observer
from kpl_engine.server.status import INTERNAL_MESSAGE, message_of, status_of

__all__ = ["Auth", "Call", "Guard"]

_LOG = logging.getLogger("kpl_engine.server.grpc")
# The status travels in the trailers, of which clients take 8 KiB, and its letters beyond ASCII as three times nine.
_MAX_DETAILS = 800


class Auth(Protocol):
    """Who may call; `kpl_engine.server.auth.TokenGuard` is one."""

    def check_metadata(self, metadata: Any) -> str:
        """Raise `UnauthorizedError` for a call without a token of the server."""


class Call:
    """What a call brought besides its messages."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        self._request_id = ""

    @property
    def client(self) -> str:
        """Address of who called, for the log."""
        kind, _, place = str(self.context.peer()).partition(":")
        address = unquote(place).rpartition(":")[0]
        return address.strip("[]") if kind in ("ipv4", "ipv6") else kind

    @property
    def traceparent(self) -> str:
        """W3C trace context as it came, or ""."""
        return self._text("traceparent")[:256]

    @property
    def request_id(self) -> str:
        """What logs and the reply's metadata call it: the id of the message (`adopt_id`), or of the metadata."""
        self._request_id = self._request_id or clean_id(self._text("x-request-id"))
        return self._request_id

    def adopt_id(self, message_id: str) -> None:
        """The message was read, and has this id or ""."""
        self._request_id = clean_id(message_id, self._text("x-request-id"))

    def _text(self, name: str) -> str:
        given = self.metadata.get(name, "")
        return given if isinstance(given, str) else ""

    def time_left_s(self) -> float | None:
        """Seconds to the client's deadline, None without one; `DeadlineExceededError` when it has passed."""
        left: float | None = self.context.time_remaining()
        if left is None or not math.isfinite(left):
            return None
        if left <= 0:
            raise DeadlineExceededError("the deadline of the call has passed")
        return left

    async def read(self, timeout_s: float) -> bytes:
        """The one message of a unary call.

        Raises
        ------
        RequestCancelledError
            There is none: the client left, of which gRPC tells as of the end of its messages.
        SlowRequestError
            It did not arrive within ``timeout_s``.
        """
        data = await _within(timeout_s, self.context.read())
        if not isinstance(data, bytes):
            raise RequestCancelledError("expected one message, got none")
        return data

    def trailers(self, error: Exception | None = None) -> tuple[tuple[str, str], ...]:
        """The metadata that ends the call. `OverloadedError` says when a client's retry policy may try again."""
        name = ("x-request-id", self.request_id)
        if isinstance(error, OverloadedError):
            return name, ("retry-pushback-ms", str(math.ceil(error.retry_after_s * 1e3)))
        return (name,)


async def _within(seconds: float, reading: Awaitable[Any]) -> Any:
    """`asyncio.wait_for` would run it in one more task, a tenth of what a small call costs."""
    task, is_late = asyncio.current_task(), False

    def expire() -> None:
        nonlocal is_late
        is_late = True
        if task is not None:
            task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        return await reading
    except asyncio.CancelledError:
        if not is_late:
            raise
        getattr(task, "uncancel", int)()  # Python 3.11 counts cancellations; what was asked for here is dealt with
        raise SlowRequestError(f"expected the whole message within {seconds:g} s; send less or faster") from None
    finally:
        timer.cancel()


class Guard:
    """What all calls have in common: the token, the status of an error, the metrics, the log."""

    def __init__(self, observer: Observer, auth: Auth | None) -> None:
        self._observer, self._auth = observer, auth
        self.last_begun_s = -math.inf  # by the loop's clock

    def handler(self, operation: str, body: Callable[[Call], Awaitable[Any]], *, is_open: bool = False) -> Any:
        """An asynchronous method for gRPC that answers with what ``body`` returns; ``is_open``: without a token."""

        async def handle(_: Any, context: Any) -> Any:
            call, code, started = Call(context), "OK", perf_counter()
            self.last_begun_s = asyncio.get_running_loop().time()
            try:
                if self._auth is not None and not is_open:
                    self._auth.check_metadata(context.invocation_metadata())
                answer = await body(call)
                context.set_trailing_metadata(call.trailers())
                return answer
            except (asyncio.CancelledError, grpc.aio.AbortError):
                code = "CANCELLED"
                raise
            except Exception as error:
                code, text = self.tell(error, operation, call.request_id)
                await context.abort(getattr(grpc.StatusCode, code), text[:_MAX_DETAILS], call.trailers(error))
            finally:
                self.replied(call, operation, call.request_id, code, perf_counter() - started)

        return handle

    def tell(self, error: Exception, operation: str, request_id: str) -> tuple[str, str]:
        """Name of the status and the text for the client; what nobody expected is logged, and not told."""
        text = message_of(error)
        if text == INTERNAL_MESSAGE:
            _LOG.error("%s failed", operation, exc_info=error, extra={"request_id": request_id})
        return status_of(error).grpc, text

    def replied(self, call: Call, operation: str, request_id: str, code: str, seconds: float) -> None:
        """A call, or a message of a stream, was answered."""
        note_request(request_id=request_id, client=call.client)
        self._observer.replied("grpc", operation, code, seconds)
