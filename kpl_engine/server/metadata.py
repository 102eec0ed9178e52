"""What protocol v2 tells of the server, its models and their figures, as JSON values; field names are Triton's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import kpl_engine
from kpl_engine.server.infer import INPUTS, OUTPUTS
from kpl_engine.server.port import IndexEntry, ModelInfo, ModelStatistics, StageTotal
from kpl_engine.server.settings import ServerSettings

__all__ = ["PLATFORM", "model_config", "model_metadata", "model_statistics", "repository_index", "server_metadata"]

PLATFORM = "kpl_engine"
_EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
_CONFIG_TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32", "BOOL": "TYPE_BOOL"}


def server_metadata() -> dict[str, Any]:
    """Name, version, extensions."""
    return {"name": "kpl-engine", "version": kpl_engine.__version__, "extensions": list(_EXTENSIONS)}


def _tensors(known: Mapping[str, tuple[str, Sequence[int]]], info: ModelInfo) -> list[dict[str, Any]]:
    wide = {"features", "embedding"}
    return [
        {"name": name, "datatype": datatype, "shape": [-1, info.embed_dim] if name in wide else list(shape)}
        for name, (datatype, shape) in known.items()
    ]


def _inputs(info: ModelInfo) -> list[dict[str, Any]]:
    return _tensors({name: (datatype, shapes[0]) for name, (datatype, shapes) in INPUTS.items()}, info)


def model_metadata(info: ModelInfo) -> dict[str, Any]:
    """The protocol's fields, and under ``parameters`` what else a client may want to choose or record."""
    return {
        "name": info.name,
        "versions": [info.version],
        "platform": PLATFORM,
        "inputs": _inputs(info),
        "outputs": _tensors(OUTPUTS, info),
        "parameters": {
            "encoder": info.encoder,
            "fingerprint": info.fingerprint,
            "image_size": list(info.image_size),
            "max_batch": info.max_batch,
            "providers": list(info.providers),
            "knowledge": [
                {
                    "name": each.name,
                    "classes": list(each.classes),
                    "num_descriptions": each.num_descriptions,
                    "frozen": each.frozen,
                }
                for each in info.knowledge
            ],
            "notices": list(info.notices),
        },
    }


def model_config(info: ModelInfo, settings: ServerSettings) -> dict[str, Any]:
    """Triton's model configuration; ``max_batch_size`` is how many pictures one request may have.

    Dimensions leave the batch out, and a tensor that has no other stands with one of 1.
    """

    def entries(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"name": t["name"], "data_type": _CONFIG_TYPES[t["datatype"]], "dims": t["shape"][1:] or [1]}
            for t in tensors
        ]

    return {
        "name": info.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": settings.max_images,
        # One of them is given, so each is optional.
        "input": [{**each, "optional": True} for each in entries(_inputs(info))],
        "output": entries(_tensors(OUTPUTS, info)),
        "instance_group": [{"name": info.name, "kind": "KIND_AUTO", "count": settings.instances}],
    }


def _total(total: StageTotal) -> dict[str, int]:
    return {"count": total.count, "ns": total.ns}


def model_statistics(found: Mapping[str, ModelStatistics]) -> dict[str, Any]:
    """Triton's statistics of each model; ``batch_stats`` tell the encoder's batches."""
    return {"model_stats": [_statistics(name, each) for name, each in found.items()]}


def _statistics(name: str, given: ModelStatistics) -> dict[str, Any]:
    stages = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "name": name,
        "version": "1",
        "last_inference": given.last_inference_ms,
        "inference_count": given.inference_count,
        "execution_count": given.execution_count,
        "inference_stats": {stage: _total(getattr(given, stage)) for stage in stages},
        "batch_stats": [
            {"batch_size": size, "compute_infer": _total(total)}
            for size, total in sorted((given.batches or {}).items())
        ],
    }


def repository_index(entries: Sequence[IndexEntry], only_ready: bool = False) -> list[dict[str, str]]:
    """Triton's repository index."""
    return [
        {"name": each.name, "version": each.version, "state": each.state, "reason": each.reason}
        for each in entries
        if each.state == "READY" or not only_ready
    ]
