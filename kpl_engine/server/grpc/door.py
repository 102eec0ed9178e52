"""The server of the gRPC door: which method does what, limits of connections, start and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from kpl_engine.errors import ConfigError
from kpl_engine.server.grpc.call import Auth, Call, Guard
from kpl_engine.server.grpc.control import Control
from kpl_engine.server.grpc.health import Health
from kpl_engine.server.grpc.inference import Inference
from kpl_engine.server.grpc.messages import methods, parse
from kpl_engine.server.observer import Observer
from kpl_engine.server.port import Service
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.tls import Certificate

__all__ = ["GrpcDoor", "open_door"]

_PROTOCOL, _HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
_KEEP_ALIVE_MS = 60_000
_PING_MS = 10_000  # a client that pings more often, twice, is disconnected
_MAX_METADATA_BYTES = 16 << 10
# Calls that gRPC has taken and no handler has begun are CANCELLED by its shutdown (grpc/grpc issue 41785), which no
# client tries elsewhere. So first they are begun and refused, until for a moment there was none, or no longer.
_QUIET_S, _QUIET_WITHIN_S = 0.02, 0.5


class GrpcDoor:
    """A door that is open. ``port`` is the one it listens at."""

    def __init__(self, server: Any, port: int, guard: Guard, closing: asyncio.Event) -> None:
        self.port = port
        self._server, self._guard, self._closing = server, guard, closing

    async def stop(self, grace: float) -> None:
        """Refuse new calls, let those in flight end within ``grace`` seconds, cancel what is left.

        Streams that wait for their client are ended at once, watchers of the health service told before.
        """
        self._closing.set()
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        end_s = started_s + min(grace, _QUIET_WITHIN_S)
        while loop.time() < min(end_s, max(started_s, self._guard.last_begun_s) + _QUIET_S):
            await asyncio.sleep(_QUIET_S / 4)
        await self._server.stop(grace)


async def open_door(
    service: Service, settings: ServerSettings, observer: Observer, auth: Auth | None, certificate: Certificate | None
) -> GrpcDoor:
    """See `kpl_engine.server.grpc.start_grpc`."""
    # As a backstop only: gRPC refuses without the time to come again, and would refuse probes too.
    server = grpc.aio.server(options=_options(settings), maximum_concurrent_rpcs=2 * settings.max_connections)
    closing = asyncio.Event()
    guard = Guard(observer, auth)
    server.add_generic_rpc_handlers(_handlers(service, settings, guard, closing))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        if certificate is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, certificate.grpc_credentials())
    except RuntimeError as error:
        raise ConfigError(f"grpc_port: cannot listen at {address}: {error}; choose another, or 0 for any") from None
    await server.start()
    return GrpcDoor(server, port, guard, closing)


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * _MAX_METADATA_BYTES),
        ("grpc.so_reuseport", 0),  # two servers at one port would share the calls without a word
        ("grpc.keepalive_time_ms", _KEEP_ALIVE_MS),  # finds clients that vanished
        ("grpc.keepalive_timeout_ms", _KEEP_ALIVE_MS // 3),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_MS),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _handlers(service: Service, settings: ServerSettings, guard: Guard, closing: asyncio.Event) -> tuple[Any, ...]:
    control, health = Control(service), Health(service, closing)
    inference = Inference(service, guard, closing)
    timeout_s = settings.body_timeout_s
    found = {name: kinds for each in (_PROTOCOL, _HEALTH) for name, kinds in methods(each).items()}

    def plain(name: str, operation: str, answer: Callable[[Any], Awaitable[Any]], is_open: bool = False) -> Any:
        async def body(call: Call) -> Any:
            return await answer(parse(found[name][0], await call.read(timeout_s)))

        return _unary(guard.handler(operation, body, is_open=is_open))

    async def watch(call: Call) -> None:
        await health.watch(call, timeout_s)

    protocol = {
        "ServerLive": plain("ServerLive", "live", control.live, is_open=True),
        "ServerReady": plain("ServerReady", "ready", control.ready, is_open=True),
        "ModelReady": plain("ModelReady", "model_ready", control.model_ready),
        "ServerMetadata": plain("ServerMetadata", "metadata", control.metadata),
        "ModelMetadata": plain("ModelMetadata", "model_metadata", control.model_metadata),
        "ModelConfig": plain("ModelConfig", "config", control.config),
        "ModelStatistics": plain("ModelStatistics", "statistics", control.statistics),
        "RepositoryIndex": plain("RepositoryIndex", "repository", control.index),
        "RepositoryModelLoad": plain("RepositoryModelLoad", "load", control.load),
        "RepositoryModelUnload": plain("RepositoryModelUnload", "unload", control.unload),
        "ModelInfer": _unary(guard.handler("infer", inference.infer)),
        "ModelStreamInfer": _streaming(guard.handler("stream", inference.stream)),
    }
    checks = {
        "Check": plain("Check", "health", health.check, is_open=True),
        "Watch": _streaming(guard.handler("watch", watch, is_open=True)),
    }
    return (
        grpc.method_handlers_generic_handler(_PROTOCOL, protocol),
        grpc.method_handlers_generic_handler(_HEALTH, checks),
    )


def _unary(handle: Any) -> Any:
    """A call of one message each way.

    To gRPC the client's side is a stream, which looks the same on the wire: so the token and the limits are checked
    before the message is received, its bytes are counted before they are parsed, and a slow client is noticed.
    """
    return grpc.stream_unary_rpc_method_handler(handle, None, _serialized)


def _streaming(handle: Any) -> Any:
    return grpc.stream_stream_rpc_method_handler(handle, None, _serialized)


def _serialized(response: Any) -> bytes:
    data: bytes = response.SerializeToString()
    return data
