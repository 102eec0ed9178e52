"""The OpenAPI 3.1 document of every address of the server but the page's."""

from __future__ import annotations

from typing import Any

import msgspec

import kpl_engine
from kpl_engine.server.http.openapi_parts import json_of, operation, ref
from kpl_engine.server.http.openapi_v2 import v2_paths, v2_schemas
from kpl_engine.server.http.schemas import ClassifyAnswer, ClassifyBody, ErrorAnswer, ModelsAnswer, Parameters
from kpl_engine.server.settings import ServerSettings

__all__ = ["openapi_document"]

_ABOUT = """Knowledge-enhanced zero-shot classification of medical images. Research use; not a medical device.

`/v1` is for people, with curl or a browser. `/v2` is the Open Inference Protocol, which tritonclient and KServe speak.
"""
_PICTURES = ("image/jpeg", "image/png", "image/tiff", "image/bmp", "image/webp", "application/dicom")
_UPLOAD = {"type": "string", "contentMediaType": "application/octet-stream"}


def openapi_document(settings: ServerSettings) -> dict[str, Any]:
    """The document as JSON values; bearer tokens are in it where the server has some."""
    kinds = (ClassifyAnswer, ClassifyBody, ErrorAnswer, ModelsAnswer, Parameters)
    schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")[1]
    parameters = schemas.pop("Parameters")["properties"]
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "kpl-engine",
            "version": kpl_engine.__version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": "v1", "description": "For people"}, {"name": "v2", "description": "Open Inference Protocol"}],
        "paths": {**_v1_paths(parameters), **v2_paths()},
        "components": {"schemas": {**schemas, **v2_schemas()}},
    }
    if settings.tokens_file is not None:
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
        for path, item in document["paths"].items():
            if path.startswith("/v2/health/"):
                item["get"]["security"] = []  # who asks whether a server lives has no token
    return document


def _v1_paths(parameters: dict[str, Any]) -> dict[str, Any]:
    classify = operation(
        "v1",
        "classify",
        "Classify pictures: labels, probabilities, margins and the descriptions that speak for them",
        json_of("ClassifyAnswer", example=_ANSWER),
        refused=(400, 404, 408, 413, 422, 429, 503, 504),
        error="ErrorAnswer",
    )
    classify["description"] = (
        "A picture that cannot be used has an error in its place; the request is refused when none can be used. "
        "Without a mode the answer is that of frozen proxies where the knowledge base has some, else the request's "
        "pictures are adapted to together. Parameters are given in the address, or in the form or the JSON object."
    )
    classify["parameters"] = [
        {"name": name, "in": "query", "required": False, "schema": _in_query(schema)}
        for name, schema in parameters.items()
    ]
    classify["requestBody"] = {"required": True, "content": _bodies(parameters)}
    return {
        "/v1/classify": {"post": classify},
        "/v1/models": {
            "get": operation(
                "v1",
                "models",
                "Models, their knowledge bases, methods and modes",
                json_of("ModelsAnswer"),
                error="ErrorAnswer",
            )
        },
        "/v1/status": {
            "get": operation("v1", "status", "What the page draws", json_of("Snapshot"), error="ErrorAnswer")
        },
        "/openapi.json": {"get": operation("v1", "openapi", "This document", {"schema": {"type": "object"}})},
    }


def _in_query(schema: dict[str, Any]) -> dict[str, Any]:
    """Text cannot be null, and an object of shares is for JSON."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") not in ("null", "object")]
    if not kinds:
        return schema
    about = {"description": schema["description"]} if "description" in schema else {}
    return {**kinds[0], **about}


def _bodies(parameters: dict[str, Any]) -> dict[str, Any]:
    fields = {name: _in_query(schema) for name, schema in parameters.items()}
    form = {
        "type": "object",
        "properties": {"image": {"type": "array", "items": _UPLOAD, "minItems": 1}, **fields},
        "required": ["image"],
        "additionalProperties": False,
    }
    pictures: dict[str, Any] = {kind: {"schema": {}} for kind in _PICTURES}
    return {
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": ref("ClassifyBody"), "examples": {"one": {"value": _BODY}}},
        **pictures,
    }


_BODY = {
    "task": "chest",
    # A PNG of one grey pixel.
    "images": ["iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="],
}
_ANSWER = {
    "request_id": "5f0c9e7d6a1b4f2f8f4b1a2c3d4e5f60",
    "model": "lung",
    "version": "1",
    "task": "chest",
    "method": "kpl",
    "method_used": "kpl",
    "mode": "frozen",
    "classes": ["normal", "effusion"],
    "images": [
        {
            "name": "x.jpg",
            "label": "effusion",
            "probabilities": {"normal": 0.08, "effusion": 0.92},
            "margin": 0.84,
            "is_undecided": False,
            "evidence": [{"description": "a blunted costophrenic angle", "similarity": 0.31, "is_kept": True}],
            "text_label": "effusion",
            "error": None,
        }
    ],
    "warnings": [],
    "timings_ms": {"decode": 2.2, "queue": 0.4, "encode": 21.0, "solve": 0.3, "total": 24.1},
    "agreement": 1.0,
}
