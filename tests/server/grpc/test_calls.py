"""Calls that fail for another reason than what they say: full, slow, gone, over the limits, unforeseen."""

import asyncio
import logging
import queue
import threading
import time

import grpc
import pytest

from kpl_engine import errors
from kpl_engine.server.grpc.messages import message
from kpl_engine.server.status import INTERNAL_MESSAGE, status_of
from tests.server.grpc.conftest import SERVICE, TIMEOUT_S, set_parameter

CODE = grpc.StatusCode

ERRORS = [
    errors.UnknownModelError("it"),
    errors.TooLargeError("it"),
    errors.OverloadedError("it", 1.5),
    errors.NotReadyError("it"),
    errors.DeadlineExceededError("it"),
    errors.ForbiddenError("it"),
    errors.SolverError("it"),
    errors.KnowledgeError("it"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_has_the_status_of_the_table(door, features_request, error):
    door.service.fail_with = error
    code, text, trailers = door.fails(features_request, metadata=[("x-request-id", "r1")])
    assert (code.name, text) == (status_of(error).grpc, "it")
    assert trailers["x-request-id"] == "r1"
    is_full = isinstance(error, errors.OverloadedError)
    assert trailers.get("retry-pushback-ms") == ("1500" if is_full else None)
    assert door.observer.next() == ("infer", code.name)


def test_what_nobody_expected_is_logged_and_not_told(door, features_request, caplog):
    door.service.fail_with = ZeroDivisionError("secret path")
    with caplog.at_level(logging.ERROR, "kpl_engine.server.grpc"):
        code, text, _ = door.fails(features_request, metadata=[("x-request-id", "r2")])
    assert (code, text) == (CODE.INTERNAL, INTERNAL_MESSAGE)
    assert [record.request_id for record in caplog.records] == ["r2"]
    assert "ZeroDivisionError: secret path" in caplog.text


def test_long_and_foreign_texts_fit_the_trailers(door, features_request):
    door.service.fail_with = errors.InputError("ä" * 100_000)
    code, text, _ = door.fails(features_request)
    assert code is CODE.INVALID_ARGUMENT
    assert set(text) == {"ä"}


def test_a_message_over_the_limit(open_door, features_request):
    door = open_door(max_body_bytes=2000)
    assert door.infer(features_request)
    features_request.raw_input_contents[0] = bytes(2000)
    assert door.fails(features_request)[0] is CODE.RESOURCE_EXHAUSTED
    compressed = door.channel.unary_unary(SERVICE + "ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:  # the size counts that it has, not that it was sent in
        compressed(features_request.SerializeToString(), compression=grpc.Compression.Gzip, timeout=TIMEOUT_S)
    assert caught.value.code() is CODE.RESOURCE_EXHAUSTED


def test_bytes_of_all_requests_together(open_door, features_request):
    door = open_door(max_inflight_bytes=1000)
    door.service.inflight_bytes = 500
    code, text, trailers = door.fails(features_request)
    assert (code, text) == (CODE.RESOURCE_EXHAUSTED, "too many bytes in flight; come again")
    assert int(trailers["retry-pushback-ms"]) == 1000
    assert door.service.inflight_bytes == 500


def test_calls_at_once_are_bounded(open_door, features_request):
    door = open_door()
    door.service.hold = threading.Event()
    ask = door.channel.unary_unary(SERVICE + "ModelInfer")
    data = features_request.SerializeToString()
    waiting = [ask.future(data, timeout=TIMEOUT_S) for _ in range(64)]
    for _ in waiting:
        door.service.submitted.get(timeout=TIMEOUT_S)
    code, text, trailers = door.fails(features_request)
    assert code is CODE.RESOURCE_EXHAUSTED
    assert "64 calls" in text
    assert "retry-pushback-ms" in trailers
    assert door.call("ServerLive")
    door.service.hold.set()
    assert all(each.result() for each in waiting)
    assert door.infer(features_request)


def test_the_clients_deadline_shortens_that_of_the_request(door, features_request):
    door.infer(set_parameter(features_request, "timeout", int64_param=60_000_000), timeout=5)
    door.infer(set_parameter(features_request, "timeout", int64_param=400_000), timeout=5)
    by_client, by_parameter = door.service.requests
    assert 4 < by_client.timeout_s <= 5.1  # gRPC sends it rounded up to three digits
    assert by_parameter.timeout_s == 0.4


def test_a_deadline_that_passes_cancels_the_ticket(door, features_request):
    door.service.hold = threading.Event()
    assert door.fails(features_request, timeout=0.2)[0] is CODE.DEADLINE_EXCEEDED
    door.service.cancelled.get(timeout=TIMEOUT_S)
    assert door.observer.next() == ("infer", "CANCELLED")
    assert door.service.inflight_bytes == 0


def test_a_client_that_leaves_cancels_its_ticket(door, features_request):
    door.service.hold = threading.Event()
    ask = door.channel.unary_unary(SERVICE + "ModelInfer")
    asked = ask.future(features_request.SerializeToString())
    request = door.service.submitted.get(timeout=TIMEOUT_S)
    asked.cancel()
    assert door.service.cancelled.get(timeout=TIMEOUT_S) is request
    # By its ticket alone: a future that the door cancelled could not be answered by the service any more.
    assert isinstance(door.service.tickets[0].future.exception(0), errors.RequestCancelledError)
    assert door.observer.next() == ("infer", "CANCELLED")
    assert door.service.inflight_bytes == 0
    door.service.hold.set()
    assert door.infer(features_request)


def test_a_client_that_leaves_while_it_sends(door, features_request):
    asking, sent = never_ends(door)
    assert door.call("ServerLive")  # behind the other on the same connection: that one is begun
    asking.cancel()
    sent.put(None)
    assert door.observer.next() == ("live", "OK")
    assert door.observer.next() == ("infer", "CANCELLED")
    assert door.infer(features_request)
    assert door.service.inflight_bytes == 0


def never_ends(door):
    """A call to ModelInfer whose message does not come until something is put into the queue."""
    messages = queue.Queue()

    def send():
        got = messages.get(timeout=TIMEOUT_S)
        if got is not None:
            yield got

    ask = door.channel.stream_unary(SERVICE + "ModelInfer")
    return ask.future(send()), messages


def test_a_client_that_does_not_send(open_door):
    door = open_door(body_timeout_s=0.2)
    asking, messages = never_ends(door)
    assert asking.exception(TIMEOUT_S).code() is CODE.DEADLINE_EXCEEDED
    assert "expected the whole message within 0.2 s" in asking.exception().details()
    messages.put(None)
    assert door.observer.next() == ("infer", "DEADLINE_EXCEEDED")


def test_a_client_that_sends_while_the_server_stops_is_not_called_slow(door):
    asking, messages = never_ends(door)
    assert door.call("ServerLive")  # behind the other on the same connection: that one is begun
    assert door.observer.next() == ("live", "OK")
    door.stop(grace=0.1)
    assert asking.exception(TIMEOUT_S).code() in (CODE.UNAVAILABLE, CODE.CANCELLED)
    assert door.observer.next() == ("infer", "CANCELLED")
    messages.put(None)


def test_a_call_without_a_message(door):
    asking, messages = never_ends(door)
    messages.put(None)
    assert asking.exception(TIMEOUT_S).code() is CODE.CANCELLED
    assert "expected one message, got none" in asking.exception().details()


def test_not_ready(door, features_request):
    door.service.ready = False
    assert door.fails(features_request)[0] is CODE.UNAVAILABLE
    assert not message("ServerReadyResponse").FromString(door.call("ServerReady")[0]).ready
    assert message("ServerLiveResponse").FromString(door.call("ServerLive")[0]).live


def test_calls_that_wait_while_the_server_stops_are_told_to_go_elsewhere(door, features_request):
    """gRPC itself would say CANCELLED, which no client tries again with another server."""
    blocked, released = threading.Event(), threading.Event()

    def block():
        blocked.set()
        released.wait(TIMEOUT_S)

    door.infer(features_request)
    door.loop.call_soon_threadsafe(block)
    blocked.wait(TIMEOUT_S)
    ask = door.channel.unary_unary(SERVICE + "ModelInfer")
    asked = [ask.future(features_request.SerializeToString(), timeout=TIMEOUT_S) for _ in range(30)]
    time.sleep(0.2)  # for them to arrive; nothing on either side could tell. Too short, the test cannot fail.
    stopping = asyncio.run_coroutine_threadsafe(door.door.stop(TIMEOUT_S), door.loop)
    released.set()
    stopping.result(TIMEOUT_S)
    assert {each.exception(TIMEOUT_S).code() for each in asked} == {CODE.UNAVAILABLE}
    assert len(door.service.requests) == 1
