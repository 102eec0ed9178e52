"""Addresses, headers and bodies of protocol v2, as any HTTP client sees them."""

import base64
import gzip
import json
import zlib

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kpl_engine.errors import (
    DeadlineExceededError,
    NotReadyError,
    OverloadedError,
    RequestCancelledError,
    SolverError,
    UnauthorizedError,
)
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.status import INTERNAL_MESSAGE
from tests.server.doubles import EngineService

INFER = "/v2/models/demo/infer"


@pytest.fixture
def ask(http_server):
    with httpx.Client(base_url=http_server.url, timeout=20) as client:
        yield client


def features_of(n=2):
    rows = np.random.default_rng().normal(size=(n, 64)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def body_of(rows, **more):
    given = {"name": "features", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    return {"inputs": [given], **more}


def binary_body(head, *parts):
    text = json.dumps(head).encode()
    return b"".join((text, *parts)), {"inference-header-content-length": str(len(text))}


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v2", "GET"),
        ("/v2/health/live", "GET"),
        ("/v2/health/ready", "GET"),
        ("/v2/models/demo", "GET"),
        ("/v2/models/demo/versions/1", "GET"),
        ("/v2/models/demo/ready", "GET"),
        ("/v2/models/demo/versions/1/ready", "GET"),
        ("/v2/models/demo/config", "GET"),
        ("/v2/models/demo/versions/1/config", "GET"),
        ("/v2/models/demo/stats", "GET"),
        ("/v2/models/demo/versions/1/stats", "GET"),
        ("/v2/models/stats", "GET"),
        ("/v2/repository/index", "GET, POST"),
        ("/v1/status", "GET"),
    ],
)
def test_addresses(ask, path, methods):
    found = ask.get(path)
    assert found.status_code == 200
    assert found.headers["content-type"] == "application/json"
    assert found.json()
    same = ask.head(path)
    assert (same.status_code, same.content) == (200, b"")
    assert same.headers["content-length"] == found.headers["content-length"]
    wrong = ask.delete(path)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, methods + ", HEAD")
    assert wrong.json()["error"]


@pytest.mark.parametrize("path", [INFER, "/v2/repository/models/demo/load", "/v2/repository/models/demo/unload"])
def test_addresses_to_post_to(ask, path):
    for found in (ask.get(path), ask.head(path), ask.options(path)):
        assert (found.status_code, found.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "path", ["/nothing", "/v2/", "/v2/models", "/v2/models/", "/v2/models/demo/other", "/v2/models/demo/versions/1/"]
)
def test_nothing_there(ask, path):
    found = ask.get(path)
    assert found.status_code == 404
    assert "nothing is at" in found.json()["error"]


@pytest.mark.parametrize("path", ["/v2/models/%2e%2e%2fetc", "/../etc/passwd", "/%00", "/page/index.html", "/\u00e9"])
def test_paths_never_reach_the_disk(ask, path):
    assert ask.get(path).status_code == 404


def test_unknown_models_everywhere(ask):
    for path in ("", "/ready", "/config", "/stats", "/versions/2", "/versions/2/ready"):
        name = "demo" if "versions" in path else "other"
        found = ask.get(f"/v2/models/{name}{path}")
        assert found.status_code == 404
        assert "no model" in found.json()["error"]
    found = ask.post("/v2/models/other/infer", json=body_of(features_of()))
    assert (found.status_code, list(found.json())) == (404, ["error"])


def test_a_model_that_is_not_loaded(ask, service):
    service.loaded = False
    assert ask.get("/v2/models/demo/ready").status_code == 503
    assert ask.get("/v2/health/ready").status_code == 503
    assert ask.post(INFER, json=body_of(features_of())).status_code == 503
    assert ask.get("/v2/health/live").json() == {"live": True}
    assert ask.get("/v2/repository/index").json()[0]["state"] == "UNAVAILABLE"
    assert ask.post("/v2/repository/index", json={"ready": True}).json() == []


def test_a_dead_worker(ask, service):
    service.live = False
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/demo/ready"):
        assert ask.get(path).status_code == 503
        assert ask.get(path).json()["error"]


def test_json_binary_and_raw_say_the_same(ask, demo_engine, pictures):
    want = demo_engine.classify(pictures[:1], mode="batch", knowledge="chest")
    image = {"name": "image", "shape": [1], "datatype": "BYTES"}
    text = {"inputs": [{**image, "data": [base64.b64encode(pictures[0]).decode()]}]}
    raw = len(pictures[0]).to_bytes(4, "little") + pictures[0]
    head = {"inputs": [{**image, "parameters": {"binary_data_size": len(raw)}}]}
    body, lengths = binary_body(head, raw)
    replies = [
        ask.post(INFER, json=text),
        ask.post(INFER, content=body, headers=lengths),
        ask.post(INFER, content=pictures[0], headers={"content-type": "image/jpeg"}),
        ask.post(INFER, content=pictures[0], headers={"content-type": "application/octet-stream"}),
        ask.post(INFER, content=pictures[0], headers={"inference-header-content-length": "0"}),
        ask.post(INFER + "?task=chest&top_k=2&mode=batch", content=pictures[0], headers={"content-type": "image/png"}),
    ]
    for reply in replies:
        assert reply.status_code == 200, reply.text
        assert reply.json()["outputs"] == replies[0].json()["outputs"]
    found = {each["name"]: each["data"] for each in replies[0].json()["outputs"]}
    assert found["label"] == list(want.labels)
    assert np.float32(found["probabilities"]).tolist() == want.probabilities[0].tolist()


def test_binary_outputs(ask):
    rows = features_of(3)

    def told(**more):
        found = ask.post(INFER, json=body_of(rows, **more))
        assert found.status_code == 200, found.text
        size = found.headers.get("inference-header-content-length")
        head = json.loads(found.content[: int(size)] if size else found.content)
        sizes = {each["name"]: each.get("parameters", {}).get("binary_data_size") for each in head["outputs"]}
        if size:
            assert found.headers["content-type"] == "application/octet-stream"
            assert len(found.content) == int(size) + sum(each or 0 for each in sizes.values())
        return {name for name, each in sizes.items() if each is not None}

    label, margin = {"name": "label"}, {"name": "margin", "parameters": {"binary_data": True}}
    assert told() == set()
    assert told(outputs=[label, margin]) == {"margin"}
    assert len(told(parameters={"binary_data_output": True})) == 5
    margin["parameters"]["binary_data"] = False
    assert told(parameters={"binary_data_output": True}, outputs=[label, margin]) == {"label"}


@pytest.mark.parametrize("given", ["", "a", "x" * 500, "Łódź", "a\nb", "0"])
def test_ids_are_echoed_as_given(ask, given):
    found = ask.post(INFER, json=body_of(features_of(), id=given))
    assert found.json()["id"] == given
    header = found.headers["x-request-id"]
    assert header == given if given in ("a", "0") else len(header) == 32


def test_no_id_no_echo(ask):
    found = ask.post(INFER, json=body_of(features_of()), headers={"x-request-id": "from-header"})
    assert "id" not in found.json()
    assert found.headers["x-request-id"] == "from-header"
    assert ask.get("/nothing", headers={"x-request-id": "e"}).headers["x-request-id"] == "e"
    assert len(ask.get("/v2").headers["x-request-id"]) == 32


FEATURES = {"name": "features", "shape": [1, 64], "datatype": "FP32"}
BINARY = {**FEATURES, "parameters": {"binary_data_size": 256}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "expected a JSON infer request"),
        (b"{", "expected a JSON infer request"),
        (b"[]", "Expected `object`"),
        (b"\xff\xfe", "expected a JSON infer request"),
        (b"[" * 100_000, "expected a JSON infer request"),
        (b'{"inputs": []} x', "trailing"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": []}', "exactly one"),
        (b'{"inputs": [], "input": 1}', "unknown field `input`"),
        (b'{"inputs": [], "id": 3}', "Expected `str | null`"),
        ({"inputs": [{**FEATURES, "data": [float("nan")] * 64}]}, "malformed"),
        ({"inputs": [{**FEATURES, "data": [0.5] * 63}]}, "expected 64 elements"),
        ({"inputs": [{**FEATURES, "data": [1e39] * 64}]}, "finite"),
        ({"inputs": [{**FEATURES}]}, "got neither"),
        ({"inputs": [{**BINARY, "data": [1]}]}, "got both"),
        ({"inputs": [BINARY]}, "Inference-Header-Content-Length"),
        ({"inputs": [{**FEATURES, "data": [1], "parameters": {"shared_memory_region": "x"}}]}, "shared memory"),
        ({"inputs": [{**FEATURES, "data": [1], "parameters": {"colour": 1}}]}, "got 'colour'"),
        ({"inputs": [{**FEATURES, "shape": [1, -64], "data": [1]}]}, ">= 0"),
        ({"inputs": [{**FEATURES, "shape": [1, 0.5], "data": [1]}]}, "Expected `int`"),
        ({"inputs": [{**FEATURES, "shape": [1, 2**70], "data": [1]}]}, f"expected {2**70} elements"),
        (
            b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, %s], "data": []}]}' % (b"9" * 5000),
            "JSON",
        ),
        (b'{"inputs": [], "parameters": {"top_k": %s}}' % (b"9" * 5000), "JSON"),
        ({"inputs": [{**FEATURES, "datatype": "FP64", "data": [1]}]}, "expected datatype FP32"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["%%"]}]}, "base64"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [""]}]}, "the file is empty"),
        ({"inputs": [{**FEATURES, "data": [0.1] * 64}], "parameters": {"top_k": "2"}}, "top_k"),
        ({"inputs": [{**FEATURES, "data": [0.1] * 64}], "parameters": {"task": "brain"}}, "chest"),
        ({"inputs": [{**FEATURES, "data": [0.1] * 64}], "outputs": [{"name": "labels"}]}, "got 'labels'"),
        ({"inputs": [{**FEATURES, "data": [0.1] * 64}], "parameters": {"binary_data_output": 1}}, "true or false"),
    ],
)
def test_malformed_json(ask, content, says):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    found = ask.post(INFER, content=body)
    assert found.status_code == 400
    assert list(found.json()) == ["error"]
    assert says in found.json()["error"]
    assert len(found.content) < 1000


@pytest.mark.parametrize(
    ("head", "behind", "length", "says"),
    [
        ({"inputs": [BINARY]}, bytes(255), None, "expected 256 bytes behind the JSON, got 255"),
        ({"inputs": [BINARY]}, bytes(257), None, "expected 256 bytes of binary tensors"),
        ({"inputs": [BINARY]}, b"", None, "got 0"),
        ({"inputs": [{**BINARY, "parameters": {"binary_data_size": 252}}]}, bytes(252), None, "expected 256 bytes"),
        ({"inputs": [{**BINARY, "parameters": {"binary_data_size": -1}}]}, bytes(256), None, "binary_data_size >= 0"),
        ({"inputs": [{**BINARY, "parameters": {"binary_data_size": "4"}}]}, bytes(256), None, "binary_data_size"),
        ({"inputs": [BINARY]}, bytes(256), "999999", "expected at most the body's"),
        ({"inputs": [BINARY]}, bytes(256), "10", "expected a JSON infer request"),
        ({"inputs": [BINARY]}, bytes(256), "-1", "expected a number of bytes"),
        ({"inputs": [BINARY]}, bytes(256), "1e3", "expected a number of bytes"),
        ({"inputs": [BINARY]}, bytes(256), "9" * 5000, "expected a number of bytes"),
        ({"inputs": [BINARY]}, bytes(256), "\u00b2", "expected a number of bytes"),
        ({"inputs": [BINARY]}, np.full(64, np.nan, "<f4").tobytes(), None, "finite"),
    ],
)
def test_malformed_binary(ask, head, behind, length, says):
    body, lengths = binary_body(head, behind)
    if length is not None:
        lengths = {"inference-header-content-length": length.encode("utf-8")}
    found = ask.post(INFER, content=body, headers=lengths)
    assert found.status_code == 400
    assert says in found.json()["error"]


def test_raw_refusals(ask, pictures):
    kind = {"content-type": "image/jpeg"}
    assert ask.post(INFER, headers=kind).status_code == 400
    found = ask.post(INFER, content=b"GIF89a", headers=kind)
    assert (found.status_code, "0" in found.json()["error"]) == (400, True)
    for query in ("?tusk=chest", "?top_k=x", "?top_k=1&top_k=2", "?%ff=1", "?" + "a=1&" * 40, "?top_k"):
        assert ask.post(INFER + query, content=pictures[0], headers=kind).status_code == 400
    both = ask.post(INFER + "?top_k=1", json=body_of(features_of(), parameters={"top_k": 1}))
    assert (both.status_code, "in both" in both.json()["error"]) == (400, True)


def test_packed_bodies(ask):
    rows = features_of()
    body = json.dumps(body_of(rows)).encode()
    want = ask.post(INFER, content=body).json()["outputs"]
    bare = zlib.compressobj(wbits=-15)
    packed = {"gzip": gzip.compress(body), "deflate": zlib.compress(body), "identity": body}
    for name, content in [*packed.items(), ("deflate", bare.compress(body) + bare.flush()), ("GZIP", packed["gzip"])]:
        found = ask.post(INFER, content=content, headers={"content-encoding": name})
        assert found.json()["outputs"] == want


@pytest.mark.parametrize(
    ("encoding", "content", "code", "says"),
    [
        ("br", b"x", 400, "expected gzip, deflate or none"),
        ("gzip, gzip", b"x", 400, "expected gzip, deflate or none"),
        ("gzip", b"no gzip", 400, "expected gzip data"),
        ("gzip", gzip.compress(b"{}")[:-3], 400, "cut off"),
        ("gzip", gzip.compress(b"{}") + b"x", 400, "behind its end"),
        ("gzip", gzip.compress(bytes(40 << 20)), 413, "unpacked"),
        ("deflate", zlib.compress(bytes(40 << 20)), 413, "unpacked"),
    ],
)
def test_packed_bodies_refused(ask, encoding, content, code, says):
    found = ask.post(INFER, content=content, headers={"content-encoding": encoding})
    assert found.status_code == code
    assert says in found.json()["error"]


def test_replies_are_packed_where_it_pays(ask):
    body = body_of(features_of(20))
    for accept, want in (("gzip", "gzip"), ("deflate;q=0.5", "deflate"), ("gzip;q=0, br", None), ("", None)):
        found = ask.post(INFER, json=body, headers={"accept-encoding": accept})
        assert found.headers.get("content-encoding") == want
        assert len(found.json()["outputs"]) == 5
    assert "content-encoding" not in ask.get("/v2", headers={"accept-encoding": "gzip"}).headers


@pytest.mark.parametrize(
    ("error", "code", "header"),
    [
        (OverloadedError("full", 2.2), 429, ("retry-after", "3")),
        (OverloadedError("full", 0.01), 429, ("retry-after", "1")),
        (NotReadyError("draining"), 503, None),
        (DeadlineExceededError("late"), 504, None),
        (RequestCancelledError("left"), 499, None),
        (SolverError("no answer"), 422, None),
        (UnauthorizedError("who"), 401, ("www-authenticate", "Bearer")),
    ],
)
def test_errors_of_the_service(ask, service, error, code, header):
    service.fail_with = error
    found = ask.post(INFER, json=body_of(features_of()))
    assert (found.status_code, found.json()) == (code, {"error": str(error)})
    if header:
        assert found.headers[header[0]] == header[1]
    service.fail_with = None
    assert ask.post(INFER, json=body_of(features_of())).status_code == 200
    assert service.inflight_bytes == 0


def test_what_nobody_expected_is_not_told(ask, service, caplog):
    service.fail_with = RuntimeError("secret detail")
    found = ask.post(INFER, json=body_of(features_of()), headers={"x-request-id": "r7"})
    assert (found.status_code, found.json()) == (500, {"error": INTERNAL_MESSAGE})
    assert "secret" not in found.text
    (record,) = [each for each in caplog.records if each.name == "kpl_engine.server"]
    assert record.request_id == "r7"
    assert "secret detail" in caplog.text
    assert ask.get("/v2/health/live").status_code == 200


def test_limits(serve, demo_engine, pictures):
    service = EngineService(demo_engine, settings=ServerSettings(max_body_bytes=8192, max_images=3))
    with httpx.Client(base_url=serve(service).url, timeout=20) as ask:
        long = ask.post(INFER, content=b"x" * 8193)
        assert (long.status_code, "at most 8192 bytes" in long.json()["error"]) == (413, True)

        def parts():
            for _ in range(100):
                yield b"x" * 100  # 10,000 bytes in chunks

        assert ask.post(INFER, content=parts()).status_code == 413
        many = ask.post(INFER, json=body_of(np.ones((4, 8), np.float32)))
        assert (many.status_code, "at most 3 pictures" in many.json()["error"]) == (413, True)
        assert ask.post(INFER, json=body_of(features_of(1))).status_code == 200
    assert service.inflight_bytes == 0


def test_observer_hears_of_every_reply(http_server, ask, service):
    ask.get("/v2/health/ready")
    ask.post(INFER, json=body_of(features_of()))
    ask.post(INFER, content=b"{")
    ask.get("/nothing/" + "x" * 50)
    for reply in (("health", "200"), ("infer", "200"), ("infer", "400"), ("other", "404")):
        assert http_server.recorder.wait_for("http", *reply)


TEMPLATE = json.dumps(body_of(features_of(1), id="a", parameters={"task": "chest"}, outputs=[{"name": "label"}]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutations_are_answered_or_refused(ask, service, data):
    body = bytearray(TEMPLATE.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    headers = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "inference-header-content-length": st.integers(0, 2000).map(str),
                "content-encoding": st.sampled_from(["gzip", "deflate", "identity"]),
                "content-type": st.sampled_from(["application/json", "image/jpeg", "text/plain"]),
            },
        )
    )
    found = ask.post(INFER, content=bytes(body), headers=headers)
    assert found.status_code in (200, 400, 404, 413)
    assert found.json()
    assert service.inflight_bytes == 0
