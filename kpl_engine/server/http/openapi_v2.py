"""The Open Inference Protocol v2 in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from kpl_engine.server.http.openapi_parts import json_of, operation, ref

__all__ = ["v2_paths", "v2_schemas"]

_DATATYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_NUMBER: dict[str, Any] = {"type": "number", "minimum": 0}
_MODEL = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"},
    "example": "lung",
}
_VERSION = {"name": "version", "in": "path", "required": True, "schema": {"const": "1"}}
_PARAMETERS = {
    "type": "object",
    "description": "task, method, mode, top_k, prior, priority, timeout (microseconds) ...",
}


def v2_paths() -> dict[str, Any]:
    """Every address below /v2."""
    paths: dict[str, Any] = {
        "/v2": {"get": operation("v2", "server", "Name, version, extensions", json_of("ServerMetadata"))},
        "/v2/health/live": {"get": operation("v2", "live", "Does the process work", json_of("Live"), (503,))},
        "/v2/health/ready": {"get": operation("v2", "ready", "May it be asked", json_of("Ready"), (503,))},
        "/v2/models/stats": {"get": operation("v2", "allStatistics", "Totals of all models", json_of("Statistics"))},
        "/v2/repository/index": {
            "get": operation("v2", "index", "Models the server knows", json_of("Index")),
            "post": {
                **operation(
                    "v2", "indexOf", "The same, or those that are ready", json_of("Index"), (408, 413, 429, 503)
                ),
                "requestBody": {"content": {"application/json": {"schema": ref("IndexBody")}}},
            },
        },
    }
    for base, ending, given in (
        ("/v2/models/{model}", "", (_MODEL,)),
        ("/v2/models/{model}/versions/{version}", "OfVersion", (_MODEL, _VERSION)),
    ):
        paths.update(_model_paths(base, ending, given))
    for what, name in (("load", "LoadBody"), ("unload", "UnloadBody")):
        paths[f"/v2/repository/models/{{model}}/{what}"] = {
            "post": {
                **operation(
                    "v2",
                    what,
                    f"{what.capitalize()} a model; requests in flight are answered",
                    {"schema": {"type": "object", "maxProperties": 0}},
                    (404, 408, 413, 422, 429, 503),
                    parameters=(_MODEL,),
                ),
                "requestBody": {"content": {"application/json": {"schema": ref(name)}}},
            }
        }
    return paths


def _model_paths(base: str, ending: str, given: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    gets = (
        ("", "metadata", "Inputs, outputs, knowledge bases", "ModelMetadata"),
        ("/ready", "modelReady", "Whether it is loaded", "ModelReady"),
        ("/config", "config", "Triton's configuration of a model", "ModelConfig"),
        ("/stats", "statistics", "Totals since it was loaded", "Statistics"),
    )
    paths: dict[str, Any] = {
        base + path: {"get": operation("v2", name + ending, about, json_of(schema), (404, 503), parameters=given)}
        for path, name, about, schema in gets
    }
    infer = operation(
        "v2",
        "infer" + ending,
        "Classify pictures, pixels or features",
        json_of("InferAnswer"),
        (404, 408, 413, 422, 429, 503, 504),
        parameters=given,
    )
    infer["description"] = (
        "JSON; JSON with binary tensors behind it, whose length is then in Inference-Header-Content-Length; or one "
        "picture as it is, with parameters in the address. Bodies may be packed with gzip or deflate."
    )
    infer["responses"]["200"]["content"]["application/octet-stream"] = {"schema": {}}
    infer["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {"schema": ref("InferBody"), "examples": {"one": {"value": _INFER}}},
            "image/jpeg": {"schema": {}},
            "image/png": {"schema": {}},
        },
    }
    paths[base + "/infer"] = {"post": infer}
    return paths


def _object(required: str, optional: dict[str, Any] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**properties, **(optional or {})}, "required": required.split()}


def _closed(required: str, **properties: Any) -> dict[str, Any]:
    return {**_object(required, **properties), "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def v2_schemas() -> dict[str, Any]:
    """What those addresses say and are told."""
    shape = _list({"type": "integer", "minimum": -1})
    total = _object("count ns", count=_COUNT, ns=_COUNT)
    tensor = _object("name datatype shape", name=_TEXT, datatype=_TEXT, shape=shape)
    entry = _object("name version state reason", name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)
    datatype = {"enum": [*_DATATYPES, "BYTES"]}
    sizes = _list({"type": "integer", "minimum": 0})
    given = _closed(
        "name shape datatype", name=_TEXT, shape=sizes, datatype=datatype, parameters={"type": "object"}, data={}
    )
    wanted = _closed("name", name=_TEXT, parameters={"type": "object"}, shape=shape, datatype=_TEXT)
    got = _object("name shape datatype", name=_TEXT, shape=sizes, datatype=datatype, data={"type": "array"})
    nothing = {"type": "object", "additionalProperties": False}
    return {
        "Error": _object("error", error=_TEXT),
        "ServerMetadata": _object("name version extensions", name=_TEXT, version=_TEXT, extensions=_list(_TEXT)),
        "Live": _object("live", live={"type": "boolean"}),
        "Ready": _object("ready", ready={"type": "boolean"}),
        "ModelReady": _object("name ready", name=_TEXT, ready={"type": "boolean"}),
        "ModelMetadata": _object(
            "name versions platform inputs outputs",
            name=_TEXT,
            versions=_list(_TEXT),
            platform=_TEXT,
            inputs=_list(tensor),
            outputs=_list(tensor),
            parameters={"type": "object"},
        ),
        "ModelConfig": _object("name max_batch_size", name=_TEXT, max_batch_size=_COUNT),
        "Statistics": _object("model_stats", model_stats=_list(_statistics(total))),
        "Index": _list(entry),
        "IndexBody": _closed("", ready={"type": "boolean"}),
        "LoadBody": _closed("", parameters=nothing),
        "UnloadBody": _closed("", parameters=_closed("", unload_dependents={})),
        "InferBody": _closed(
            "inputs",
            inputs={**_list(given), "minItems": 1, "maxItems": 1},
            outputs=_list(wanted),
            parameters=_PARAMETERS,
            id=_TEXT,
            model_name=_TEXT,
            model_version=_TEXT,
        ),
        "InferAnswer": _object(
            "model_name model_version outputs",
            model_name=_TEXT,
            model_version=_TEXT,
            outputs=_list(got),
            parameters={"type": "object"},
            id=_TEXT,
        ),
        "Snapshot": _snapshot(),
    }


def _statistics(total: dict[str, Any]) -> dict[str, Any]:
    return _object(
        "name version inference_count execution_count inference_stats",
        name=_TEXT,
        version=_TEXT,
        last_inference=_COUNT,
        inference_count=_COUNT,
        execution_count=_COUNT,
        inference_stats={"type": "object", "additionalProperties": total},
        batch_stats=_list(_object("batch_size", batch_size=_COUNT, compute_infer=total)),
    )


def _snapshot() -> dict[str, Any]:
    maybe = {"type": ["number", "null"]}
    return _object(
        "uptime_s is_ready inflight_images queue_images totals latency_ms stages_ms",
        uptime_s=_NUMBER,
        is_ready={"type": "boolean"},
        inflight_images=_COUNT,
        queue_images=_COUNT,
        decoding_images=_COUNT,
        max_inflight_images=_COUNT,
        totals={"type": "object", "additionalProperties": _COUNT},
        latency_ms={"type": ["object", "null"], "additionalProperties": maybe},
        stages_ms={"type": ["object", "null"], "additionalProperties": maybe},
        streams={"type": ["object", "null"]},
    )


_INFER = {
    "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["iVBORw0KGgo="]}],
    "parameters": {"task": "chest", "top_k": 2},
}
