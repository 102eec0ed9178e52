"""The calls about the server and its models: metadata, configuration, statistics, the repository."""

from __future__ import annotations

import asyncio
from typing import Any

from kpl_engine.errors import NotReadyError, RequestError, UnknownModelError
from kpl_engine.server.grpc.messages import message
from kpl_engine.server.metadata import (
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from kpl_engine.server.port import Service

__all__ = ["Control"]

_UNLOAD_PARAMETERS = ("unload_dependents",)  # no model depends on another


class Control:
    """Each method takes a parsed request and returns the response."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turn = asyncio.Lock()  # one at a time, so that they never take all threads

    async def live(self, _: Any) -> Any:
        """ServerLive."""
        return message("ServerLiveResponse")(live=self._service.is_live())

    async def ready(self, _: Any) -> Any:
        """ServerReady."""
        return message("ServerReadyResponse")(ready=self._service.is_ready())

    async def model_ready(self, request: Any) -> Any:
        """ModelReady; a model that is not there is not ready, as with Triton, and no error."""
        try:
            self._service.model(request.name, request.version)
        except (NotReadyError, UnknownModelError):
            return message("ModelReadyResponse")(ready=False)
        return message("ModelReadyResponse")(ready=self._service.is_live())

    async def metadata(self, _: Any) -> Any:
        """ServerMetadata."""
        return message("ServerMetadataResponse")(**server_metadata())

    async def model_metadata(self, request: Any) -> Any:
        """ModelMetadata; its message has no place for the parameters."""
        found = model_metadata(self._service.model(request.name, request.version))
        del found["parameters"]
        return message("ModelMetadataResponse")(**found)

    async def config(self, request: Any) -> Any:
        """ModelConfig."""
        info = self._service.model(request.name, request.version)
        return message("ModelConfigResponse")(config=model_config(info, self._service.settings))

    async def statistics(self, request: Any) -> Any:
        """ModelStatistics; of all models where none is named."""
        found = self._service.statistics(request.name, request.version)
        return message("ModelStatisticsResponse")(**model_statistics(found))

    async def index(self, request: Any) -> Any:
        """RepositoryIndex."""
        _check_repository(request)
        return message("RepositoryIndexResponse")(models=repository_index(self._service.index(), request.ready))

    async def load(self, request: Any) -> Any:
        """RepositoryModelLoad; in a thread, for it takes as long as the model does."""
        _check_repository(request)
        _check_parameters("load", request, ())
        async with self._turn:
            await asyncio.to_thread(self._service.load, request.model_name)
        return message("RepositoryModelLoadResponse")()

    async def unload(self, request: Any) -> Any:
        """RepositoryModelUnload; in a thread, for it waits for the model's requests in flight."""
        _check_repository(request)
        _check_parameters("unload", request, _UNLOAD_PARAMETERS)
        async with self._turn:
            await asyncio.to_thread(self._service.unload, request.model_name)
        return message("RepositoryModelUnloadResponse")()


def _check_repository(request: Any) -> None:
    if request.repository_name:
        raise RequestError(f"repository_name: expected none, got {request.repository_name[:80]!r}; there is only one")


def _check_parameters(operation: str, request: Any, known: tuple[str, ...]) -> None:
    """A model is its bundle: a configuration or files sent with the request would be silently left out."""
    unknown = sorted(set(request.parameters) - set(known))
    if unknown:
        expected = f"parameters of {', '.join(known)}" if known else "no parameters"
        raise RequestError(f"{operation}: expected {expected}, got {unknown[0][:80]!r}")
