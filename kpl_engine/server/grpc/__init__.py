"""The Open Inference Protocol v2 over gRPC, in the event loop that serves HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kpl_engine.errors import MissingExtraError
from kpl_engine.server.observer import Observer
from kpl_engine.server.port import Service
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.tls import Certificate

if TYPE_CHECKING:
    from kpl_engine.server.grpc.call import Auth
    from kpl_engine.server.grpc.door import GrpcDoor

__all__ = ["start_grpc"]


async def start_grpc(
    service: Service,
    settings: ServerSettings,
    observer: Observer,
    auth: Auth | None = None,
    certificate: Certificate | None = None,
) -> GrpcDoor:
    """Listen at ``settings.host`` and ``settings.grpc_port``, in the running event loop.

    Parameters
    ----------
    service, settings, observer
        What answers, within which limits, and who is told.
    auth : Auth, optional
        Asked before each call but those about health.
    certificate : Certificate, optional
        By default that of the settings, if they name one.

    Raises
    ------
    MissingExtraError
        grpcio or protobuf is not installed.
    ConfigError
        The port is taken, or the certificate cannot be used.
    """
    try:
        from kpl_engine.server.grpc.door import open_door
    except ModuleNotFoundError as error:
        package = {"grpc": "grpcio", "google": "protobuf"}.get(str(error.name).partition(".")[0])
        if package is None:
            raise
        raise MissingExtraError(package, "grpc", "serving over gRPC") from error

    if certificate is None and settings.tls_cert is not None and settings.tls_key is not None:
        certificate = Certificate(settings.tls_cert, settings.tls_key)
    return await open_door(service, settings, observer, auth, certificate)
