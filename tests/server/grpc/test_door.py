"""The door itself: ids, tokens, TLS, health for probes, streams held, stopping."""

import asyncio
import shutil
import socket
import subprocess
import threading

import grpc
import numpy as np
import pytest

from kpl_engine.errors import ConfigError
from kpl_engine.server.auth import TokenGuard
from kpl_engine.server.grpc import inference
from kpl_engine.server.grpc.messages import message
from kpl_engine.server.logs import AccessLog
from tests.server.grpc.conftest import SERVICE, TIMEOUT_S

CODE = grpc.StatusCode
HEALTH = "/grpc.health.v1.Health/"
TOKEN = "a-token-of-this-test"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


def ask_health(name=""):
    return message("HealthCheckRequest", "grpc.health.v1")(service=name)


def check(door, name=""):
    reply, _ = door.call("Check", ask_health(name), service=HEALTH)
    return message("HealthCheckResponse", "grpc.health.v1").FromString(reply).status


@pytest.mark.parametrize(
    ("given", "metadata", "expected"),
    [
        ("own", "theirs", "own"),
        ("", "theirs", "theirs"),
        ("ä", "theirs", "theirs"),
        ("x" * 129, "theirs", "theirs"),
        ("own", "", "own"),
    ],
)
def test_request_ids(door, features_request, given, metadata, expected):
    features_request.id = given
    reply, trailers = door.call("ModelInfer", features_request, metadata=[("x-request-id", metadata)])
    assert trailers["x-request-id"] == door.service.requests[0].request_id == expected
    assert message("ModelInferResponse").FromString(reply).id == given


def test_a_request_without_an_id_gets_one_and_none_is_echoed_in_the_message(door, features_request):
    reply, trailers = door.call("ModelInfer", features_request)
    assert message("ModelInferResponse").FromString(reply).id == ""
    assert len(trailers["x-request-id"]) == 32
    assert trailers["x-request-id"] == door.service.requests[0].request_id


def test_a_line_in_the_log_a_reply(door, features_request, caplog):
    door.observer.replied = AccessLog().replied
    with caplog.at_level("INFO", "kpl_engine.server"):
        door.infer(features_request, metadata=[("x-request-id", "r3")])
        stream, done = held_stream(door, [features_request.SerializeToString()])
        next(stream)
        done.set()
        assert list(stream) == []
        door.stop()
    lines = [(record.operation, record.code, record.client) for record in caplog.records]
    assert sorted(lines) == [(name, "OK", "127.0.0.1") for name in ("infer", "stream", "stream_infer")]
    assert caplog.records[0].request_id == "r3"
    assert len({record.request_id for record in caplog.records}) == 3


def test_trace_context_goes_along(door, features_request):
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    door.infer(features_request, metadata=[("traceparent", given)])
    assert door.service.requests[0].traceparent == given


def test_contents_are_answered_in_contents_and_raw_in_raw(door, unit_rows):
    request = message("ModelInferRequest")(model_name="demo")
    place = request.inputs.add(name="features", datatype="FP32", shape=unit_rows.shape)
    place.contents.fp32_contents.extend(unit_rows.ravel().tolist())
    by_contents = door.infer(request)
    place.ClearField("contents")
    request.raw_input_contents.append(unit_rows.tobytes())
    by_raw = door.infer(request)
    assert not by_contents.raw_output_contents
    assert [len(by_raw.outputs), len(by_raw.raw_output_contents)] == [5, 5]
    assert not any(each.HasField("contents") for each in by_raw.outputs)
    told = {each.name: each.contents for each in by_contents.outputs}
    raw = {each.name: data for each, data in zip(by_raw.outputs, by_raw.raw_output_contents, strict=True)}
    assert np.array(told["probabilities"].fp32_contents, np.float32).tobytes() == raw["probabilities"]
    assert bytes(told["is_undecided"].bool_contents) == raw["is_undecided"]
    packed = b"".join(len(each).to_bytes(4, "little") + each for each in told["label"].bytes_contents)
    assert packed == raw["label"]


def test_long_messages_are_parsed_beside_the_loop(door, demo_engine, features_request, monkeypatch):
    threads, to_infer = [], inference.to_infer

    def noted(*arguments):
        threads.append(threading.current_thread())
        return to_infer(*arguments)

    monkeypatch.setattr(inference, "to_infer", noted)
    door.infer(features_request)
    assert threads == [door.thread]
    pixels = np.random.default_rng().integers(0, 256, (1, 700, 601, 3), dtype=np.uint8)
    request = message("ModelInferRequest")(model_name="demo", raw_input_contents=[pixels.tobytes()])
    request.inputs.add(name="pixels", datatype="UINT8", shape=pixels.shape)
    reply = door.infer(request)
    found = demo_engine.classify(images=list(pixels))
    assert reply.raw_output_contents[1] == found.probabilities.tobytes()
    assert threads[1] is not door.thread


@pytest.fixture
def tokens(tmp_path):
    (tmp_path / "tokens").write_text(f"somebody: {TOKEN}\n")
    return TokenGuard(tmp_path / "tokens")


def test_tokens(open_door, tokens, features_request):
    door = open_door(auth=tokens)
    for metadata in ([], [("authorization", "Bearer not-this-one-at-all")], [("authorization", f"Basic {TOKEN}")]):
        code, text, _ = door.fails(features_request, metadata=metadata)
        assert code is CODE.UNAUTHENTICATED
        assert TOKEN not in text
        assert door.fails(b"", "RepositoryModelUnload", metadata=metadata)[0] is CODE.UNAUTHENTICATED
        stream = door.channel.stream_stream(SERVICE + "ModelStreamInfer")
        with pytest.raises(grpc.RpcError) as caught:
            list(stream(iter([b""]), metadata=metadata, timeout=TIMEOUT_S))
        assert caught.value.code() is CODE.UNAUTHENTICATED
    assert door.service.loaded
    assert door.infer(features_request, metadata=[("authorization", f"Bearer {TOKEN}")])


def test_health_needs_no_token(open_door, tokens):
    door = open_door(auth=tokens)
    assert check(door) == SERVING
    assert door.call("ServerLive")
    assert door.call("ServerReady")


def test_a_token_is_asked_for_before_the_message(open_door, tokens):
    """Else anybody could fill the memory of the server."""
    door = open_door(auth=tokens)
    held = threading.Event()

    def send():
        held.wait(TIMEOUT_S)
        yield b""

    asked = door.channel.stream_unary(SERVICE + "ModelInfer").future(send())
    assert asked.exception(TIMEOUT_S).code() is CODE.UNAUTHENTICATED
    held.set()


@pytest.mark.parametrize("name", ["", "live", "ready", "inference.GRPCInferenceService"])
def test_health_for_probes(door, name):
    assert check(door, name) == SERVING
    door.service.ready = False
    assert check(door, name) == (SERVING if name == "live" else NOT_SERVING)
    door.service.live = False
    assert check(door, name) == NOT_SERVING


def test_health_of_what_is_not_there(door):
    assert door.fails(ask_health("other"), "Check", service=HEALTH)[0] is CODE.NOT_FOUND
    watch = door.channel.unary_stream(HEALTH + "Watch")(ask_health("other").SerializeToString())
    assert message("HealthCheckResponse", "grpc.health.v1").FromString(next(watch)).status == SERVICE_UNKNOWN
    watch.cancel()


def test_watch_tells_changes_and_the_end(door, monkeypatch):
    monkeypatch.setattr("kpl_engine.server.grpc.health._POLL_S", 0.02)
    watch = door.channel.unary_stream(HEALTH + "Watch")(ask_health().SerializeToString(), timeout=TIMEOUT_S)
    told = (message("HealthCheckResponse", "grpc.health.v1").FromString(data).status for data in watch)
    assert next(told) == SERVING
    door.service.ready = False
    assert next(told) == NOT_SERVING
    door.service.ready = True
    assert next(told) == SERVING
    door.stop(grace=5)
    assert list(told) == [NOT_SERVING]


def held_stream(door, requests):
    """A stream whose client sends these and then waits; returns it and the event that ends the waiting."""
    done = threading.Event()

    def send():
        yield from requests
        done.wait(TIMEOUT_S)

    return door.channel.stream_stream(SERVICE + "ModelStreamInfer")(send(), timeout=TIMEOUT_S), done


def test_a_stream_has_sixteen_requests_in_flight(door, features_request):
    door.service.hold = threading.Event()
    data = features_request.SerializeToString()
    stream, done = held_stream(door, [data] * 40)
    for _ in range(16):
        door.service.submitted.get(timeout=TIMEOUT_S)
    assert door.call("ServerLive")  # a round through the loop: a 17th would have been submitted
    assert door.service.submitted.empty()
    door.service.hold.set()
    assert len([next(stream) for _ in range(40)]) == 40
    done.set()
    assert list(stream) == []


def test_a_stream_is_answered_in_order_of_completion(door, features_request):
    door.service.hold = threading.Event()
    bad = message("ModelInferRequest")(model_name="other", id="bad")
    stream, done = held_stream(door, [features_request.SerializeToString(), bad.SerializeToString()])
    first = message("ModelStreamInferResponse").FromString(next(stream))
    assert first.infer_response.id == "bad"
    assert "expected exactly one of" in first.error_message
    door.service.hold.set()
    assert not message("ModelStreamInferResponse").FromString(next(stream)).error_message
    done.set()
    assert list(stream) == []


def test_a_stream_whose_client_leaves_cancels_its_tickets(door, features_request):
    door.service.hold = threading.Event()
    stream, done = held_stream(door, [features_request.SerializeToString()] * 3)
    for _ in range(3):
        door.service.submitted.get(timeout=TIMEOUT_S)
    stream.cancel()
    for _ in range(3):
        door.service.cancelled.get(timeout=TIMEOUT_S)
    told = sorted(door.observer.next() for _ in range(4))
    assert told == [("stream", "CANCELLED")] + [("stream_infer", "CANCELLED")] * 3
    assert door.service.inflight_bytes == 0
    done.set()


def test_stopping_answers_what_is_in_flight_and_ends_idle_streams(door, features_request):
    data = features_request.SerializeToString()
    stream, done = held_stream(door, [data])
    next(stream)
    door.service.submitted.get(timeout=TIMEOUT_S)
    door.service.hold = threading.Event()
    asked = door.channel.unary_unary(SERVICE + "ModelInfer").future(data, timeout=TIMEOUT_S)
    door.service.submitted.get(timeout=TIMEOUT_S)
    stopping = asyncio.run_coroutine_threadsafe(door.door.stop(TIMEOUT_S), door.loop)
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() is CODE.UNAVAILABLE
    assert not stopping.done()
    door.service.hold.set()
    assert asked.result()
    stopping.result(TIMEOUT_S)
    done.set()
    assert door.fails(features_request, timeout=5)[0] is CODE.UNAVAILABLE


def test_what_does_not_end_within_the_grace_is_cancelled(door, features_request):
    door.service.hold = threading.Event()
    asked = door.channel.unary_unary(SERVICE + "ModelInfer").future(features_request.SerializeToString())
    door.service.submitted.get(timeout=TIMEOUT_S)
    door.stop(grace=0.1)
    assert asked.exception(TIMEOUT_S).code() in (CODE.UNAVAILABLE, CODE.CANCELLED)
    door.service.cancelled.get(timeout=TIMEOUT_S)
    assert door.service.inflight_bytes == 0


def test_a_port_that_is_taken(open_door):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="grpc_port: cannot listen"):
        open_door(grpc_port=taken.getsockname()[1])


def test_two_doors_never_share_a_port(open_door):
    first = open_door()
    with pytest.raises(ConfigError, match="grpc_port: cannot listen"):
        open_door(grpc_port=first.door.port)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6(open_door, features_request):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine's loopback")
    door = open_door(host="::1")
    with grpc.insecure_channel(f"[::1]:{door.door.port}") as channel:
        data = features_request.SerializeToString()
        assert channel.unary_unary(SERVICE + "ModelInfer")(data, timeout=TIMEOUT_S)


def test_tls(open_door, features_request, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-subj", "/CN=test", "-keyout", key, "-out", cert]
    subprocess.run(made, check=True, capture_output=True)
    door = open_door(tls_cert=cert, tls_key=key)
    data = features_request.SerializeToString()
    with grpc.secure_channel(door.address, grpc.ssl_channel_credentials(cert.read_bytes())) as channel:
        assert channel.unary_unary(SERVICE + "ModelInfer")(data, timeout=TIMEOUT_S)
    assert door.fails(features_request, timeout=5)[0] is CODE.UNAVAILABLE
