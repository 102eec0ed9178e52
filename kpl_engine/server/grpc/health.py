"""grpc.health.v1, which Kubernetes' gRPC probes and load balancers ask."""

from __future__ import annotations

import asyncio
from typing import Any

from kpl_engine.errors import UnknownModelError
from kpl_engine.server.grpc.call import Call
from kpl_engine.server.grpc.messages import message, parse
from kpl_engine.server.port import Service

__all__ = ["SERVICES", "Health"]

# What a probe may name: "live" for a liveness probe, any other for readiness.
SERVICES = ("", "live", "ready", "inference.GRPCInferenceService")
_POLL_S = 1.0


class Health:
    """Check and Watch."""

    def __init__(self, service: Service, closing: asyncio.Event) -> None:
        self._service, self._closing = service, closing
        self._request = message("HealthCheckRequest", "grpc.health.v1")
        self._response = message("HealthCheckResponse", "grpc.health.v1")

    async def check(self, request: Any) -> Any:
        """Now; `UnknownModelError` (NOT_FOUND) for a service that is not one of `SERVICES`."""
        if request.service not in SERVICES:
            raise UnknownModelError(f"service: expected one of {list(SERVICES)}, got {request.service[:80]!r}")
        return self._response(status=self._status(request.service))

    async def watch(self, call: Call, timeout_s: float) -> None:
        """Now and at each change, until the client leaves or the server stops."""
        name = parse(self._request, await call.read(timeout_s)).service
        told = None
        while not self._closing.is_set():
            status = self._status(name)
            if status != told:
                await call.context.write(self._response(status=status))
                told = status
            try:
                await asyncio.wait_for(self._closing.wait(), _POLL_S)
            except asyncio.TimeoutError:  # before Python 3.11 it is not the built-in one
                continue
        await call.context.write(self._response(status="NOT_SERVING"))

    def _status(self, name: str) -> int:
        if name not in SERVICES:
            status = "SERVICE_UNKNOWN"
        else:
            is_well = self._service.is_live() if name == "live" else self._service.is_ready()
            status = "SERVING" if is_well and not self._closing.is_set() else "NOT_SERVING"
        number: int = self._response.ServingStatus.Value(status)
        return number
