"""`POST /v1/classify` in its three forms, and `GET /v1/models`, over a real server."""

import base64
import json
import threading
import time

import httpx
import numpy as np
import pytest

from kpl_engine.errors import OverloadedError
from kpl_engine.server.settings import ServerSettings
from tests.server.doubles import EngineService


@pytest.fixture
def client(http_server):
    with httpx.Client(base_url=http_server.url, timeout=20) as found:
        yield found


def encode(data):
    return base64.b64encode(data).decode()


def files(pictures, field="image"):
    return [(field, (f"p{i}.png", data, "image/png")) for i, data in enumerate(pictures)]


def post_json(client, **body):
    return client.post("/v1/classify", json=body)


def refused(reply, status, *says):
    """A refusal in the form of /v1 with these words in its message."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert reply.headers["x-request-id"] == error["request_id"]
    for text in says:
        assert text in error["message"]
    return error


def test_the_three_forms_answer_alike(client, demo_engine, pictures):
    expected = demo_engine.classify(pictures[:1], knowledge="chest", method="zeroshot")
    query = {"task": "chest", "method": "zeroshot"}
    replies = [
        client.post("/v1/classify", files=files(pictures[:1]), data=query),
        post_json(client, images=[encode(pictures[0])], **query),
        client.post("/v1/classify", content=pictures[0], headers={"content-type": "image/png"}, params=query),
    ]
    for reply in replies:
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        (image,) = answer["images"]
        assert image["label"] == expected.labels[0]
        assert list(image["probabilities"]) == answer["classes"] == list(expected.classes)
        # The decimals are those of the float32.
        got = np.array(list(image["probabilities"].values()), dtype=np.float32)
        np.testing.assert_array_equal(got, expected.probabilities[0])
        assert np.float32(image["margin"]) == expected.margins[0]
        assert [e["description"] for e in image["evidence"]] == [e.description for e in expected.evidence[0]]
        assert image["error"] is None
        assert image["is_undecided"] is bool(expected.is_undecided[0])
    assert [r.json()["images"][0]["name"] for r in replies] == ["p0.png", "image 0", "image 0"]


def test_everything_an_answer_tells(client, pictures):
    reply = client.post("/v1/classify", files=files(pictures), headers={"x-request-id": "mine-7"})
    answer = reply.json()
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers.get_list("x-request-id") == ["mine-7"]
    assert answer["request_id"] == "mine-7"
    assert (answer["model"], answer["version"], answer["task"]) == ("demo", "1", "chest")
    assert (answer["method"], answer["mode"]) == ("kpl", "batch")
    assert answer["method_used"] == "zeroshot"  # 12 pictures are too few
    assert [warning["code"] for warning in answer["warnings"]]
    assert all(warning["message"] for warning in answer["warnings"])
    assert answer["timings_ms"]["total"] > 0
    assert 0 <= answer["agreement"] <= 1
    assert len(answer["images"]) == len(pictures)


@pytest.mark.parametrize("field", ["image", "images", "file"])
def test_names_of_the_field(client, pictures, field):
    assert len(client.post("/v1/classify", files=files(pictures[:2], field)).json()["images"]) == 2


def test_parameters_reach_the_service(client, service, pictures):
    given = {"model": "demo", "task": "chest", "method": "kpl", "mode": "batch", "top_k": 5, "priority": 3}
    shares = dict.fromkeys(service.engine.knowledge("chest").classes, 1 / 3)
    text = ",".join(f"{name}={share!r}" for name, share in shares.items())
    client.post("/v1/classify", files=files(pictures[:1]), data={**given, "timeout_ms": "2500", "prior": text})
    client.post(
        "/v1/classify",
        files=files(pictures[:1]),
        params={**given, "timeout_ms": "2500", "prior": text},
        headers={"traceparent": "00-abc-def-01"},
    )
    post_json(client, images=[encode(pictures[0])], **given, timeout_ms=2500, prior=shares)
    for asked in service.requests:
        assert (asked.model, asked.task, asked.method, asked.mode) == ("demo", "chest", "kpl", "batch")
        assert (asked.top_k, asked.priority, asked.timeout_s) == (5, 3, 2.5)
        assert asked.prior == shares
        assert asked.skips_bad
    assert len(service.requests) == 3
    assert service.requests[1].traceparent == "00-abc-def-01"


def test_fields_left_empty_are_left_out(client, service, pictures):
    reply = client.post(
        "/v1/classify", files=files(pictures[:1]), data={"task": "", "mode": "", "prior": "", "top_k": ""}
    )
    assert reply.status_code == 200
    assert (service.requests[0].task, service.requests[0].top_k) == (None, 2)


def test_a_bad_picture_stands_in_its_place(client, pictures):
    given = [pictures[0], b"no picture", pictures[1], b""]
    answer = client.post("/v1/classify", files=files(given)).json()
    assert [image["error"] is None for image in answer["images"]] == [True, False, True, False]
    bad = answer["images"][1]
    assert (bad["label"], bad["probabilities"], bad["margin"], bad["evidence"]) == (None, None, None, [])
    assert bad["name"] == "p1.png"


def test_none_usable_is_a_400_with_the_same_details(client):
    reply = client.post("/v1/classify", files=files([b"x", b"y"]))
    assert reply.status_code == 400
    assert [bool(image["error"]) for image in reply.json()["images"]] == [True, True]
    assert reply.json()["error"]["code"] == "invalid"


def test_no_reply_has_a_nan(client, pictures):
    for given in ([b"x"], [b"x", pictures[0]]):
        text = client.post("/v1/classify", files=files(given)).text
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_json_names_data_urls_and_broken_lines(client, pictures):
    broken = base64.encodebytes(pictures[0]).decode()
    reply = post_json(
        client,
        images=[
            {"name": "../a.png", "data": encode(pictures[0])},
            f"data:image/png;base64,{encode(pictures[0])}",
            f"data:image/png;name=x;base64,{broken}",
        ],
    )
    assert [image["name"] for image in reply.json()["images"]] == ["a.png", "image 1", "image 2"]
    assert len({json.dumps(image["probabilities"]) for image in reply.json()["images"]}) == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
        (b"\xff", "not UTF-8"),
        (b'{"images": []}', "length >= 1"),
        (b'{"images": ["!!"]}', "images[0]: not base64"),
        (b'{"images": [7]}', "images[0]"),
        (b'{"images": ["QUJD"], "colour": 1}', "'colour'"),
        (b'{"images": ["QUJD"], "top_k": "2"}', "top_k"),
        (b'{"images": ["QUJD"], "top_k": 2, "top_k": 3}', "twice"),
        (b'{"images": ["QUJD"], "timeout_ms": NaN}', "NaN"),
        (b'{"images": ["QUJD"], "method": "best"}', "zeroshot"),
        (b'{"images": ["QUJD"], "method": ["kpl"]}', "zeroshot"),
        (b'{"images": ["QUJD"], "mode": "all"}', "frozen"),
        (b'{"images": ["QUJD"], "priority": 4}', "priority"),
        (b'{"images": ["QUJD"], "prior": {"a": -1}}', "prior"),
        (b'{"images": [{"data": "QUJD", "url": "x"}]}', "url"),
        (b'{"images": ["http://169.254.169.254/x"]}', "not fetched"),
        (b'{"images": ["file:///etc/passwd"]}', "not fetched"),
        (b'{"images": ["data:image/png,abc"]}', "base64"),
        (b'{"images": ["QUJD"], "model": "../x"}', "model"),
        (b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested"),
    ],
)
def test_json_that_is_refused(client, service, body, says):
    refused(client.post("/v1/classify", content=body, headers={"content-type": "application/json"}), 400, says)
    assert not service.requests


def test_forms_that_are_refused(client, pictures):
    post = client.post
    one = files(pictures[:1])
    refused(post("/v1/classify", files=one, data={"colour": "red"}), 400, "'colour'", "top_k")
    refused(post("/v1/classify", files=one, params={"colour": "red"}), 400, "'colour'")
    refused(post("/v1/classify", files=one, params={"task": "chest"}, data={"task": "chest"}), 400, "twice")
    refused(post("/v1/classify", files=files(pictures[:1], "photo")), 400, "photo")
    refused(post("/v1/classify", files=one, data={"top_k": "two"}), 400, "top_k")
    refused(post("/v1/classify", files=one, data={"prior": "a"}), 400, "prior")
    refused(post("/v1/classify", data={"task": "chest"}), 400, "Content-Type", "curl")
    refused(post("/v1/classify", files={"task": (None, "chest")}), 400, "no picture")
    refused(post("/v1/classify"), 400, "no picture")
    refused(post("/v1/classify", content=b"x", headers={"content-type": "text/plain"}), 400, "text/plain")
    refused(
        post("/v1/classify", content=b"--x\r\n", headers={"content-type": "multipart/form-data; boundary=x"}),
        400,
        "ends",
    )
    query = json.dumps({"images": [encode(pictures[0])], "task": "chest"})
    kind = {"content-type": "application/json"}
    refused(post("/v1/classify?task=chest", content=query, headers=kind), 400, "twice")
    refused(post("/v1/classify?task=chest&task=chest", content=b"x"), 400, "twice")


def test_json_takes_parameters_from_the_address(client, service, pictures):
    client.post("/v1/classify?top_k=7", json={"images": [encode(pictures[0])], "task": "chest"})
    assert (service.requests[0].top_k, service.requests[0].task) == (7, "chest")


def test_statuses_of_the_table(client, service, pictures):
    assert refused(post_json(client, images=["QUJD"], model="other"), 404, "demo")["code"] == "not_found"
    assert refused(client.get("/v1/classify"), 405)["code"] == "wrong_verb"
    refused(client.get("/v1/nothing"), 404)
    refused(client.post("/v1/classify", files=files([b"x"] * 65)), 413, "at most 64")
    refused(post_json(client, images=["QUJD"] * 65), 413, "at most 64")
    service.fail_with = OverloadedError("full", 2.2)
    reply = client.post("/v1/classify", files=files(pictures[:1]))
    refused(reply, 429, "full")
    assert reply.headers["retry-after"] == "3"
    service.fail_with = RuntimeError("secret of the implementation")
    assert "secret" not in json.dumps(refused(client.post("/v1/classify", files=files(pictures[:1])), 500))
    service.ready = False
    refused(client.post("/v1/classify", files=files(pictures[:1])), 503)


def test_a_body_over_the_limit_is_refused_and_given_back(demo_engine, serve, pictures):
    service = EngineService(demo_engine, settings=ServerSettings(max_body_bytes=len(pictures[0]) // 2))
    with httpx.Client(base_url=serve(service).url) as client:
        refused(client.post("/v1/classify", files=files(pictures[:1])), 413)
    assert service.inflight_bytes == 0


def test_a_client_that_leaves_cancels(http_server, service, pictures):
    service.hold = threading.Event()
    try:
        with httpx.Client(base_url=http_server.url, timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/classify", files=files(pictures[:1]))
        deadline = time.monotonic() + 10
        while not service.tickets[0].is_cancelled and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert service.tickets[0].is_cancelled
    finally:
        service.hold.set()


def test_a_model_must_be_named_where_there_are_several(http_server, service, pictures, monkeypatch):
    first = service.index()[0]
    index = [first, type(first)("other", "1", "READY", "")]
    monkeypatch.setattr(service, "index", lambda: index)
    with httpx.Client(base_url=http_server.url) as client:
        refused(client.post("/v1/classify", files=files(pictures[:1])), 400, "demo", "other")
        index[1] = type(first)("other", "1", "UNAVAILABLE", "")  # only copied to the repository: no choice yet
        assert client.post("/v1/classify", files=files(pictures[:1])).json()["model"] == "demo"
        assert client.post("/v1/classify", files=files(pictures[:1]), data={"model": "demo"}).status_code == 200
        models = client.get("/v1/models").json()["models"]
    assert [(each["name"], each["is_ready"]) for each in models] == [("demo", True), ("other", False)]
    monkeypatch.setattr(service, "index", list)
    with httpx.Client(base_url=http_server.url) as client:
        refused(client.post("/v1/classify", files=files(pictures[:1])), 404, "no model")


def test_what_a_user_interface_needs(client, service):
    answer = client.get("/v1/models").json()
    (model,) = answer["models"]
    (knowledge,) = model["knowledge"]
    assert knowledge["name"] == "chest"
    assert knowledge["classes"] == list(service.engine.knowledge("chest").classes)
    assert (knowledge["fitted_method"], knowledge["default_mode"]) == (None, "batch")
    assert "kpl" in knowledge["modes"]["batch"]
    assert "frozen" not in knowledge["modes"]
    assert answer["limits"]["max_images"] == 64


def test_fitted_proxies_are_offered_and_the_default(demo_engine, serve):
    class Fitted(EngineService):
        def model(self, name, version=""):
            info = super().model(name, version)
            known = tuple(type(each)(each.name, each.classes, each.num_descriptions, "kpl") for each in info.knowledge)
            return type(info)(**{**vars(info), "knowledge": known})

    with httpx.Client(base_url=serve(Fitted(demo_engine)).url) as client:
        (knowledge,) = client.get("/v1/models").json()["models"][0]["knowledge"]
    assert (knowledge["fitted_method"], knowledge["default_mode"]) == ("kpl", "frozen")
    assert knowledge["modes"]["frozen"] == ["kpl"]
