"""The calls about the server and its models: metadata, configuration, statistics, the repository."""

from __future__ import annotations

import asyncio
from typing import Any

from kpl_engine import __version__
from kpl_engine.errors import NotReadyError, RequestError, UnknownModelError
from kpl_engine.server.grpc.messages import message
from kpl_engine.server.infer import INPUTS, OUTPUTS
from kpl_engine.server.port import ModelInfo, ModelStatistics, Service, StageTotal

__all__ = ["Control"]

_EXTENSIONS = ("classification", "model_configuration", "model_repository", "schedule_policy", "statistics")
_PLATFORM = "kpl_engine"
_UNLOAD_PARAMETERS = ("unload_dependents",)  # no model depends on another


class Control:
    """Each method takes a parsed request and returns the response."""

    def __init__(self, service: Service) -> None:
        self._service = service

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
        return message("ModelReadyResponse")(ready=True)

    async def metadata(self, _: Any) -> Any:
        """ServerMetadata."""
        return message("ServerMetadataResponse")(name="kpl-engine", version=__version__, extensions=_EXTENSIONS)

    async def model_metadata(self, request: Any) -> Any:
        """ModelMetadata."""
        info = self._service.model(request.name, request.version)
        response = message("ModelMetadataResponse")(name=info.name, versions=[info.version], platform=_PLATFORM)
        for name, (datatype, shapes) in INPUTS.items():
            response.inputs.add(name=name, datatype=datatype, shape=_shape(info, name, shapes[0]))
        for name, (datatype, shape) in OUTPUTS.items():
            response.outputs.add(name=name, datatype=datatype, shape=_shape(info, name, shape))
        return response

    async def config(self, request: Any) -> Any:
        """ModelConfig, in which shapes leave the batch out and a text has one element."""
        info = self._service.model(request.name, request.version)
        response = message("ModelConfigResponse")()
        config = response.config
        config.name, config.platform, config.backend = info.name, _PLATFORM, _PLATFORM
        config.max_batch_size = self._service.settings.max_images
        for name, (datatype, shapes) in INPUTS.items():
            dims = _shape(info, name, shapes[0])[1:] or (1,)
            config.input.add(name=name, data_type=_kind(datatype), dims=dims, optional=True)
        for name, (datatype, shape) in OUTPUTS.items():
            config.output.add(name=name, data_type=_kind(datatype), dims=_shape(info, name, shape)[1:] or (1,))
        return response

    async def statistics(self, request: Any) -> Any:
        """ModelStatistics; of all models where none is named."""
        response = message("ModelStatisticsResponse")()
        for name, found in self._service.statistics(request.name, request.version).items():
            _add_statistics(response.model_stats.add(name=name, version="1"), found)
        return response

    async def index(self, request: Any) -> Any:
        """RepositoryIndex."""
        _check_repository(request)
        response = message("RepositoryIndexResponse")()
        for each in self._service.index():
            if each.state == "READY" or not request.ready:
                response.models.add(name=each.name, version=each.version, state=each.state, reason=each.reason)
        return response

    async def load(self, request: Any) -> Any:
        """RepositoryModelLoad; in a thread, for it takes as long as the model does."""
        _check_repository(request)
        _check_parameters("load", request, ())
        await asyncio.to_thread(self._service.load, request.model_name)
        return message("RepositoryModelLoadResponse")()

    async def unload(self, request: Any) -> Any:
        """RepositoryModelUnload; in a thread, for it waits for the model's requests in flight."""
        _check_repository(request)
        _check_parameters("unload", request, _UNLOAD_PARAMETERS)
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


def _shape(info: ModelInfo, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], info.embed_dim) if name in ("features", "embedding") else shape


def _kind(datatype: str) -> int:
    kinds = message("ModelInput").DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    number: int = kinds["TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"].number
    return number


def _add_statistics(place: Any, found: ModelStatistics) -> None:
    place.inference_count, place.execution_count = found.inference_count, found.execution_count
    place.last_inference = found.last_inference_ms
    for stage in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        _add_total(getattr(place.inference_stats, stage), getattr(found, stage))
    for size, total in sorted((found.batches or {}).items()):
        _add_total(place.batch_stats.add(batch_size=size).compute_infer, total)


def _add_total(place: Any, total: StageTotal) -> None:
    place.count, place.ns = total.count, total.ns
