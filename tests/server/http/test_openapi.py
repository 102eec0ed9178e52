"""The OpenAPI document: whole, valid, and true of the routes."""

import json
import re

import httpx
import msgspec
import pytest

from kpl_engine.server.http import classify
from kpl_engine.server.http.openapi import openapi_document
from kpl_engine.server.http.schemas import ClassifyAnswer, ClassifyBody
from kpl_engine.server.http.v2 import ProtocolV2
from kpl_engine.server.settings import ServerSettings

METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture
def document():
    return openapi_document(ServerSettings())


def operations(document):
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def references(value):
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else ())
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_it_is_served(http_server, document):
    with httpx.Client(base_url=http_server.url) as client:
        reply = client.get("/openapi.json")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == json.loads(json.dumps(document))


def test_every_reference_leads_somewhere_and_every_schema_is_used(document):
    found = {each.removeprefix("#/components/schemas/") for each in references(document)}
    assert found == set(document["components"]["schemas"])


def test_operations_have_names_of_their_own(document):
    names = [each["operationId"] for _, _, each in operations(document)]
    assert len(names) == len(set(names))


def test_path_parameters_are_those_of_the_address(document):
    for path, _, each in operations(document):
        told = {p["name"] for p in each.get("parameters", ()) if p["in"] == "path"}
        assert told == set(re.findall(r"\{(\w+)\}", path)), path


def routes_of(service):
    """(address, method) of everything the app answers besides the page."""
    found = set()
    protocol = ProtocolV2(service)
    known = [(path, methods) for path, (_, methods, _) in protocol._fixed.items()]
    for what, (_, methods, _) in protocol._of_model.items():
        ending = f"/{what}" if what else ""
        known += [(f"/v2/models/{{model}}{ending}", methods)]
        known += [(f"/v2/models/{{model}}/versions/{{version}}{ending}", methods)]
    known += [(f"/v2/repository/models/{{model}}/{what}", ("POST",)) for what in protocol._controls]
    for route in classify.routes(service, None, None, None):
        known.append((route.path, tuple(route.methods)))
    for path, methods in known:
        found |= {(path, method.lower()) for method in methods if method != "HEAD"}
    return found


def test_the_document_has_every_route_and_no_other(service, document):
    assert {(path, method) for path, method, _ in operations(document)} == routes_of(service)


def test_tokens_are_told_where_there_are_some(document, tmp_path):
    assert "security" not in document
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-one-test\n")
    guarded = openapi_document(ServerSettings(tokens_file=tokens))
    assert guarded["security"] == [{"bearer": []}]
    assert guarded["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    assert guarded["paths"]["/v2/health/live"]["get"]["security"] == []
    assert "security" not in guarded["paths"]["/v1/classify"]["post"]
    assert str(tmp_path) not in json.dumps(guarded)
    assert "a-token-of" not in json.dumps(guarded)


def test_examples_are_what_they_are_examples_of(document, http_server):
    post = document["paths"]["/v1/classify"]["post"]
    body = post["requestBody"]["content"]["application/json"]["examples"]["one"]["value"]
    msgspec.convert(body, ClassifyBody)
    answer = post["responses"]["200"]["content"]["application/json"]["example"]
    msgspec.convert(answer, ClassifyAnswer)
    with httpx.Client(base_url=http_server.url, timeout=20) as client:
        reply = client.post("/v1/classify", json=body)
    assert reply.status_code == 200, reply.text
    assert set(reply.json()) == set(answer)
    assert set(reply.json()["images"][0]) == set(answer["images"][0])
