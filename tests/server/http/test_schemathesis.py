"""schemathesis against the OpenAPI document: what it makes up is answered as the document says, and never with a 500.

Two of its checks cannot hold and are not made: that what fits the schema is accepted (no schema says which bytes are a
picture, or which models are loaded), and that what does not fit is refused (a body of any bytes may be a picture).
"""

import os
import shutil

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies
from schemathesis.generation import GenerationMode

from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.imaging.sources import list_images
from kpl_engine.server.models import LoadedModels
from kpl_engine.server.service import BatchingService
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.streams import Streams

schemathesis.openapi.from_dict({"openapi": "3.1.0", "info": {"title": "", "version": ""}, "paths": {}})  # loads CHECKS
CHECKS = schemathesis.checks.CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "unsupported_method",
    ]
)
# Bodies of these kinds are real pictures, so that answers are checked and not refusals alone.
PICTURES = [path.read_bytes() for path in list_images(demo_images())[:4]]
for media_type in ("image/png", "image/jpeg"):
    schemathesis.openapi.media_type(media_type, strategies.sampled_from(PICTURES))
EXAMPLES = 6  # of each operation and kind, fresh in every run


def ask(session, operation, kind, path):
    """Send made-up requests that fit the schema, or do not; the statuses of the replies, each checked."""
    replies = []

    @seed(int.from_bytes(os.urandom(8), "big"))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=kind, path_parameters=path))
    def one(case):
        reply = case.call(session=session, timeout=20)
        case.validate_response(reply, checks=CHECKS)
        replies.append(reply.status_code)

    try:
        one()
    except hypothesis.errors.Unsatisfiable:  # an address without parameters has nothing to get wrong
        return []
    return replies


def ask_all(server, service, kind, path):
    """`ask` every operation that has parameters in its address, or all where ``path`` is None; statuses of each."""
    seen = {}
    with requests.Session() as session:
        for result in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations():
            operation = result.ok()
            names = {each.name for each in operation.path_parameters}
            if path is None or names:
                known = None if path is None else {name: path[name] for name in names}
                seen[operation.label] = ask(session, operation, kind, known)
                if not service.is_ready():
                    service.load("demo")
    assert requests.get(f"{server.url}/v2/health/ready", timeout=20).json() == {"ready": True}
    return seen


MADE_UP, KNOWN = None, {"model": "demo", "version": "1"}
FITS, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("kind", "path"),
    [(FITS, MADE_UP), (WRONG, MADE_UP), (FITS, KNOWN), (WRONG, KNOWN)],
    ids=["fits", "does not fit", "fits a loaded model", "does not fit a loaded model"],
)
def test_made_up_requests_are_answered_as_the_document_says(http_server, service, kind, path):
    seen = ask_all(http_server, service, kind, path)
    assert sum(map(len, seen.values())) > 20
    if kind is FITS:
        assert all(seen.values()), "every operation was asked"
        assert len(seen) >= 20 or path
    if kind is FITS and path:
        assert 200 in seen["GET /v2/models/{model}/versions/{version}/config"]
        assert 200 in seen["POST /v2/repository/models/{model}/load"]
    assert service.inflight_bytes == 0


def test_the_same_of_the_service_itself(serve, tmp_path):
    bundle = tmp_path / "demo.kpl"
    shutil.copytree(demo_bundle(), bundle)
    settings = ServerSettings(bundles=(bundle,), max_batch=2, max_images=4)
    models = LoadedModels(settings)
    service = BatchingService(models, settings, streams=Streams(None, 30.0))
    service.start()
    try:
        seen = ask_all(serve(service), service, FITS, KNOWN)
    finally:
        service.close()
    assert 200 in seen["GET /v2/models/{model}/stats"]
    assert 200 in seen["POST /v2/repository/models/{model}/load"]
