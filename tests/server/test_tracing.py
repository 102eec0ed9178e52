"""Traces: spans of a request, the parent it came with, and a collector that is away."""

import socket
import time

import pytest

from kpl_engine.errors import DeadlineExceededError, ImageError
from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.server.tracing import Tracing, traces_url

sdk = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="needs the otel extra")
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def request(traceparent=""):
    return ClassifyRequest(
        "lung", images=[b"x"], names=("Smith.png",), task="chest", request_id="r-1", traceparent=traceparent
    )


def spans_of(traceparent="", error=None):
    exporter = sdk.InMemorySpanExporter()
    tracing = Tracing("http://unused", exporter)
    spans = tracing.accepted(request(traceparent))
    now = time.monotonic()
    for name, start, end in (("decode", 0.0, 0.25), ("queue", 0.25, 0.5), ("execute", 0.5, 1.5)):
        spans.stage(name, now + start, now + end, {"encode_s": 0.75} if name == "execute" else {})
    spans.finish(error)
    tracing.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def test_stages_are_children_of_the_request():
    found = spans_of()
    assert set(found) == {"request", "decode", "queue", "execute"}
    root = found["request"]
    assert root.parent is None
    assert dict(root.attributes) == {
        "kpl.model": "lung",
        "kpl.task": "chest",
        "kpl.num_images": 1,
        "kpl.request_id": "r-1",
    }
    for name in ("decode", "queue", "execute"):
        assert found[name].parent.span_id == root.context.span_id
    assert found["execute"].attributes["encode_s"] == 0.75
    # 1 us: seconds as float64 in, whole nanoseconds out
    assert found["execute"].end_time - found["execute"].start_time == pytest.approx(1e9, abs=1e3)
    assert abs(found["decode"].start_time - time.time_ns()) < 60e9
    assert root.resource.attributes["service.name"] == "kpl-engine"


def test_the_callers_trace_goes_on():
    root = spans_of(f"00-{TRACE}-{PARENT}-01")["request"]
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == PARENT


def test_a_caller_that_does_not_sample_gets_no_spans_and_nonsense_begins_a_trace():
    assert spans_of(f"00-{TRACE}-{PARENT}-00") == {}
    assert spans_of("not a traceparent")["request"].parent is None


def test_an_error_is_told_by_its_kind_alone():
    root = spans_of(error=ImageError("Smith.png: cannot be decoded"))["request"]
    assert root.attributes["error.type"] == "invalid"
    assert root.status.is_unset
    late = spans_of(error=DeadlineExceededError("Smith.png is late"))["request"]
    assert late.attributes["error.type"] == "deadline"
    assert not late.status.is_ok
    assert not late.status.is_unset
    assert "Smith" not in root.to_json() + late.to_json()


def test_a_collector_that_is_away_costs_no_request_and_little_time_at_the_end():
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        tracing = Tracing(f"http://127.0.0.1:{taken.getsockname()[1]}")
        started = time.monotonic()
        for _ in range(3000):  # more than wait for the collector at most
            tracing.accepted(request()).finish(None)
        tracing.close(0.2)
        assert time.monotonic() - started < 10  # a connection for each would take far longer


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://x/own/path", "https://x/own/path"),
    ],
)
def test_traces_go_to_the_usual_path_unless_another_is_given(given, expected):
    assert traces_url(given) == expected
