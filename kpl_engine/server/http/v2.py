"""Protocol v2 over HTTP: which address is which, and what each answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from kpl_engine.errors import NotReadyError, RequestError, WrongVerbError
from kpl_engine.server.http.compression import choose_encoding, deflate
from kpl_engine.server.http.exchange import Exchange, LongWork, await_reply, read_body
from kpl_engine.server.http.infer_body import encode_answer, parse_body
from kpl_engine.server.infer import answer, clean_id, parse_query, to_classify
from kpl_engine.server.metadata import (
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from kpl_engine.server.port import Service

__all__ = ["Match", "ProtocolV2"]

_MAX_QUERY = 4096
_MODEL = re.compile(
    r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<what>ready|config|stats|infer))?"
)
_CONTROL = re.compile(r"/v2/repository/models/(?P<model>[^/]+)/(?P<what>load|unload)")

Handler = Callable[[Exchange, Mapping[str, str]], Awaitable[None]]


@dataclass(frozen=True)
class Match:
    """What an address is: ``operation`` labels metrics; HEAD is allowed where GET is."""

    operation: str
    methods: tuple[str, ...]
    handler: Handler
    names: Mapping[str, str]

    async def run(self, exchange: Exchange) -> None:
        """Answer; `WrongVerbError` for a method that the address does not have."""
        method = exchange.scope["method"]
        if method not in self.methods and not (method == "HEAD" and "GET" in self.methods):
            allowed = (*self.methods, "HEAD") if "GET" in self.methods else self.methods
            raise WrongVerbError(f"expected {' or '.join(allowed)} here, got {method[:20]}", allowed)
        await self.handler(exchange, self.names)


class ProtocolV2:
    """The addresses below /v2, and /v1/status."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings
        self._work = LongWork()
        self._control = asyncio.Lock()  # one load at a time, so that they never take all threads of parsing
        get, both = ("GET",), ("GET", "POST")
        self._fixed: dict[str, tuple[str, tuple[str, ...], Handler]] = {
            "/v2": ("metadata", get, self._server),
            "/v2/health/live": ("health", get, self._live),
            "/v2/health/ready": ("health", get, self._ready),
            "/v2/models/stats": ("statistics", get, self._all_stats),
            "/v2/repository/index": ("repository", both, self._index),
            "/v1/status": ("status", get, self._status),
        }
        self._of_model: dict[str | None, tuple[str, tuple[str, ...], Handler]] = {
            "infer": ("infer", ("POST",), self._infer),
            None: ("metadata", get, self._metadata),
            "ready": ("health", get, self._model_ready),
            "config": ("config", get, self._config),
            "stats": ("statistics", get, self._stats),
        }
        self._controls = {"load": self._load, "unload": self._unload}

    def match(self, path: str) -> Match | None:
        """Which of them ``path`` is."""
        if path in self._fixed:
            return Match(*self._fixed[path], {})
        if found := _MODEL.fullmatch(path):
            return Match(*self._of_model[found["what"]], found.groupdict(""))
        if found := _CONTROL.fullmatch(path):
            return Match(found["what"], ("POST",), self._controls[found["what"]], found.groupdict(""))
        return None

    async def _server(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        await exchange.respond_json(server_metadata())

    async def _live(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        if self._service.is_live():
            await exchange.respond_json({"live": True})
        else:
            await exchange.respond_json({"error": "a worker died; restart the server", "live": False}, 503)

    async def _ready(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        if self._service.is_ready():
            await exchange.respond_json({"ready": True})
        else:
            await exchange.respond_json({"error": "the server is starting or stopping", "ready": False}, 503)

    async def _status(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        await exchange.respond_json(self._service.snapshot(), headers=[(b"cache-control", b"no-store")])

    async def _metadata(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        await exchange.respond_json(model_metadata(self._service.model(names["model"], names["version"])))

    async def _model_ready(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        self._service.model(names["model"], names["version"])
        if not self._service.is_live():
            raise NotReadyError("a worker died; restart the server")
        await exchange.respond_json({"name": names["model"], "ready": True})

    async def _config(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        info = self._service.model(names["model"], names["version"])
        await exchange.respond_json(model_config(info, self._settings))

    async def _stats(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        await exchange.respond_json(model_statistics(self._service.statistics(names["model"], names["version"])))

    async def _all_stats(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        await exchange.respond_json(model_statistics(self._service.statistics()))

    async def _index(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        given = await self._json_body(exchange) if exchange.scope["method"] == "POST" else {}
        if set(given) - {"ready"} or not isinstance(given.get("ready", False), bool):
            raise RequestError(
                f'body: expected at most {{"ready": true or false}}, got the fields {list(given)!r:.200}'
            )
        await exchange.respond_json(repository_index(self._service.index(), given.get("ready", False)))

    async def _load(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        await self._refuse_parameters(exchange, ())
        async with self._control:
            await asyncio.to_thread(self._service.load, names["model"])
        await exchange.respond_json({})

    async def _unload(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        await self._refuse_parameters(exchange, ("unload_dependents",))
        async with self._control:
            await asyncio.to_thread(self._service.unload, names["model"])
        await exchange.respond_json({})

    async def _refuse_parameters(self, exchange: Exchange, known: tuple[str, ...]) -> None:
        given = await self._json_body(exchange)
        parameters = given.get("parameters", {})
        if set(given) - {"parameters"} or not isinstance(parameters, dict):
            raise RequestError(
                f"body: expected nothing, or an object of parameters; got the fields {list(given)!r:.200}"
            )
        unknown = [name for name in parameters if name not in known]
        if unknown:
            raise RequestError(
                f"parameters: expected {', '.join(known) or 'none'}, got {unknown[0][:80]!r}: a model is loaded as it "
                "stands in the server's repository; change the bundle there"
            )

    async def _json_body(self, exchange: Exchange) -> dict[str, Any]:
        """A small JSON object, {} for no body."""
        with self._service.lease() as lease:
            body = await read_body(exchange.scope, exchange.receive, lease, self._settings)
            try:
                found = msgspec.json.decode(body) if body.strip() else {}
            except (ValueError, RecursionError) as error:
                raise RequestError(f"body: expected a JSON object, got: {error}") from error
        if not isinstance(found, dict):
            raise RequestError("body: expected a JSON object, got another value")
        return found

    async def _infer(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        # The lease ends before the reply is sent: a client that does not read it must not hold the bytes of others.
        body, json_size = await self._answer(exchange, names)
        await self._send(exchange, body, json_size)

    async def _answer(self, exchange: Exchange, names: Mapping[str, str]) -> tuple[bytes, int | None]:
        query = _query(exchange)
        length = exchange.header(b"inference-header-content-length")
        kind = exchange.header(b"content-type")
        with self._service.lease() as lease:
            body = await read_body(exchange.scope, exchange.receive, lease, self._settings)
            request, wire = await self._work.run(
                _json_bytes(body, length), parse_body, body, length, kind, query, self._settings
            )
            exchange.adopt_id(clean_id(request.id, exchange.request_id))
            request = replace(
                request,
                model=names["model"],
                version=names["version"],
                request_id=exchange.request_id,
                traceparent=exchange.header(b"traceparent")[:256],
            )
            ticket = self._service.submit(to_classify(request, self._settings))
            reply = await await_reply(ticket, exchange.receive)
            told = answer(reply, request.outputs)
            return encode_answer(told, reply.model, reply.version, request.id, wire)

    async def _send(self, exchange: Exchange, body: bytes, json_size: int | None) -> None:
        kind, headers = b"application/json", []
        if json_size is not None:
            kind = b"application/octet-stream"
            headers.append((b"inference-header-content-length", str(json_size).encode()))
        if encoding := choose_encoding(exchange.header(b"accept-encoding"), len(body)):
            body = await self._work.run(len(body), deflate, body, encoding)
            headers += [(b"content-encoding", encoding.encode()), (b"vary", b"Accept-Encoding")]
        await exchange.respond(200, body, headers, kind)


def _query(exchange: Exchange) -> dict[str, Any]:
    text = exchange.scope["query_string"]
    if not text:
        return {}
    if len(text) > _MAX_QUERY:
        raise RequestError(f"address: expected a query of at most {_MAX_QUERY} bytes, got {len(text)}")
    try:
        return parse_query(parse_qsl(text.decode("ascii"), True, True, max_num_fields=32))
    except UnicodeDecodeError as error:
        raise RequestError("address: expected a query in ASCII with % escapes") from error
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"address: expected a query of name=value pairs, got: {error}") from error


def _json_bytes(body: bytes, header_length: str) -> int:
    """JSON to be read, in bytes; binary tensors behind it are at most copied, which is far less."""
    is_binary = header_length.isdecimal() and len(header_length) < 12
    return max(int(header_length), len(body) // 16) if is_binary else len(body)
