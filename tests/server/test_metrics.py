"""Metrics: the text parses, what is told moves what it should, and labels stay few."""

import asyncio

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kpl_engine.errors import DeadlineExceededError
from kpl_engine.server.metrics import Metrics, metrics_app


def get(metrics, path="/metrics", method="GET", accept=""):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": [(b"accept", accept.encode())]}
    asyncio.run(metrics_app(metrics.registry)(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def samples(metrics):
    text = get(metrics)[2].decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("tell", "name", "by"),
    [
        (lambda m: m.replied("http", "infer", "200", 0.1), ("kpl_requests_total", "200", "http", "infer"), 1),
        (lambda m: m.answered("lung", 3, {}, None), ("kpl_images_total", "lung"), 3),
        (lambda m: m.answered("lung", 3, {}, DeadlineExceededError("late")), ("kpl_failed_total", "deadline"), 1),
        (lambda m: m.answered("lung", 3, {}, ValueError("a bug")), ("kpl_failed_total", "internal"), 1),
        (lambda m: m.rejected("overloaded", 5), ("kpl_rejected_total", "overloaded"), 1),
        (lambda m: m.cancelled("decode", 5), ("kpl_cancelled_total", "decode"), 5),
        (lambda m: m.batch("lung", 4, 0.25), ("kpl_batch_images_sum",), 4),
        (lambda m: m.batch("lung", 4, 0.25), ("kpl_encoder_seconds_total", "lung"), 0.25),
        (lambda m: m.answered("lung", 1, {"total": 20.0}, None), ("kpl_request_duration_seconds_sum",), 0.02),
        (lambda m: m.answered("lung", 1, {"decode": 2.0}, None), ("kpl_decode_duration_seconds_sum",), 0.002),
        (lambda m: m.answered("lung", 1, {"queue": 0.5}, None), ("kpl_queue_duration_seconds_sum",), 0.0005),
        (lambda m: m.answered("a", 1, {"encode": 3, "solve": 1}, None), ("kpl_execute_duration_seconds_sum",), 0.004),
        (lambda m: m.gauges({"inflight_images": 7, "of_another_day": 1}), ("kpl_inflight_images",), 7),
        (lambda m: m.queue("lung/chest", 2), ("kpl_queue_images", "lung/chest"), 2),
        (lambda m: m.model_ready("lung", True), ("kpl_model_ready", "lung"), 1),
    ],
)
def test_what_is_told_moves_its_figure(tell, name, by):
    metrics = Metrics()
    before = samples(metrics)
    tell(metrics)
    # float64 sums of a few decimal fractions
    assert samples(metrics)[name] - before.get(name, 0) == pytest.approx(by, rel=1e-9)


def test_buckets_separate_half_a_millisecond_from_ten_seconds():
    metrics = Metrics()
    for ms in (0.4, 9000.0, 20000.0):
        metrics.answered("lung", 1, {"total": ms}, None)
    found = samples(metrics)
    assert found["kpl_request_duration_seconds_bucket", "0.0005"] == 1
    assert found["kpl_request_duration_seconds_bucket", "10.0"] == 2
    assert found["kpl_request_duration_seconds_bucket", "+Inf"] == 3


def test_labels_stay_few_however_many_values_come():
    metrics = Metrics()
    for number in range(1000):
        metrics.model_ready(f"model{number}", True)
        metrics.replied("http", f"operation{number}", "200", 0.0)
    found = samples(metrics)
    assert sum(key[0] == "kpl_model_ready" for key in found) == 257
    assert sum(key[0] == "kpl_requests_total" for key in found) == 257
    assert found["kpl_requests_total", "200", "http", "other"] == 744


def test_the_page_speaks_both_formats_and_knows_its_address():
    metrics = Metrics()
    status, headers, body = get(metrics)
    assert status == 200
    assert headers[b"content-type"].startswith(b"text/plain")
    assert int(headers[b"content-length"]) == len(body)
    assert b"process_resident_memory_bytes" in body
    status, headers, body = get(metrics, accept="application/openmetrics-text; version=1.0.0")
    assert headers[b"content-type"].startswith(b"application/openmetrics-text")
    assert "kpl_inflight_images" in {family.name for family in parse_openmetrics(body.decode())}
    assert get(metrics, method="HEAD")[2] == b""
    assert get(metrics, path="/v2")[0] == 404
    assert get(metrics, method="POST")[0] == 405


def test_two_servers_of_one_process_count_apart():
    first, second = Metrics(), Metrics()
    first.rejected("overloaded", 1)
    assert ("kpl_rejected_total", "overloaded") not in samples(second)


def test_snapshots_that_fail_are_counted_apart():
    metrics = Metrics()
    metrics.snapshot("lung/chest/kpl_stream", None)
    metrics.snapshot("lung/chest/kpl_stream", OSError(28, "No space left on device"))
    metrics.snapshot("lung/chest/kpl_stream", OSError(28, "No space left on device"))
    read = metrics.registry.get_sample_value
    found = {each: read("kpl_snapshots_total", {"result": each}) for each in ("written", "failed")}
    assert found == {"written": 1, "failed": 2}
