"""`POST /v1/classify`, `GET /v1/models` and the OpenAPI document: for people with curl, and for the page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kpl_engine.server.http.classify_answer import answer_of, images_of, models_of
from kpl_engine.server.http.classify_request import parse_classify
from kpl_engine.server.http.exchange import LongWork
from kpl_engine.server.http.openapi import openapi_document
from kpl_engine.server.http.schemas import ErrorAnswer, ErrorDetail
from kpl_engine.server.port import BytesLease, Service
from kpl_engine.server.requests import Reply, Ticket

__all__ = ["AwaitReply", "ReadBody", "routes"]

ReadBody = Callable[[Request, BytesLease], Awaitable[bytes]]
AwaitReply = Callable[[Request, Ticket], Awaitable[Reply]]
_NONE_USABLE = "none of the pictures could be used; images says why of each"


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def routes(
    service: Service, read_body: ReadBody, await_reply: AwaitReply, id_of: Callable[[Request], str]
) -> list[Route]:
    """The routes of `/v1`, and `/openapi.json`.

    Parameters
    ----------
    service : Service
    read_body : callable
        The body of a request without its Content-Encoding, counted by the lease while it arrives.
    await_reply : callable
        The reply of a ticket, which is cancelled when the client leaves.
    id_of : callable
        The id of a request.

    Errors are raised to the app, which tells them; but for a request without a usable picture, which is answered here.
    """
    work = LongWork()
    document = msgspec.json.encode(openapi_document(service.settings))

    async def classify(request: Request) -> Response:
        request_id = id_of(request)
        with service.lease() as lease:
            body = await read_body(request, lease)
            told = (
                service,
                request.headers.get("content-type", ""),
                request.query_params.multi_items(),
                body,
                request_id,
                request.headers.get("traceparent", "")[:256],
            )
            asked = await work.run(len(body), parse_classify, *told)
            reply = await await_reply(request, service.submit(asked))
            found = reply.classification
            if not found.is_ok.any():
                images = images_of(found, asked.names)
                refused = ErrorAnswer(ErrorDetail("invalid", _NONE_USABLE, request_id), images)
                return _json(refused, 400)
            return _json(answer_of(reply, asked.names))

    async def models(request: Request) -> Response:
        return _json(models_of(service))

    async def openapi(request: Request) -> Response:
        return Response(document, media_type="application/json")

    return [
        Route("/v1/classify", classify, methods=["POST"], name="classify"),
        Route("/v1/models", models, methods=["GET"], name="models"),
        Route("/openapi.json", openapi, methods=["GET"], name="openapi"),
    ]
