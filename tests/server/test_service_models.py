"""The service, its models and its life: streams, unload, statistics, states."""

import threading

import numpy as np
import pytest

from kpl_engine.errors import (
    DeadlineExceededError,
    EncoderError,
    ForbiddenError,
    InputError,
    NotReadyError,
    UnknownModelError,
)
from tests.server.fakes import PATIENCE_S, answer
from tests.server.harness import Harness, pixels, running, unit_rows


class Streams:
    def __init__(self):
        self.calls, self.log = [], []

    def start(self):
        self.log.append("start")

    def answer(self, model_name, base, method, config, encoded, top_evidence, encoder_fingerprint=""):
        self.calls.append((model_name, base.name, method))
        self.marks = [*getattr(self, "marks", []), encoded.names[0]]
        if encoded.names[0] == "bad":
            raise InputError("bad")
        query = type("Query", (), {"encoded": encoded, "knowledge": base.name, "mode": "stream"})
        return answer(query)

    def status(self):
        return {"streams": []}

    def forget(self, model_name):
        self.log.append(f"forget {model_name}")

    def close(self):
        self.log.append("close")


def test_streams_are_answered_in_order_and_closed():
    streams = Streams()
    with running(streams=streams) as run:
        names = [str(i) for i in range(20)]
        tickets = [run.submit(features=unit_rows(1), names=(name,), mode="stream") for name in names]
        assert {ticket.future.result(PATIENCE_S).classification.mode for ticket in tickets} == {"stream"}
        assert streams.marks == names
        with pytest.raises(InputError, match="bad"):
            run.answer(features=unit_rows(1), names=("bad",), mode="stream")
        run.answer(features=unit_rows(1), mode="stream", method="onzeta", task="other")
        assert streams.calls[0] == ("m", "k", "kpl_stream")
        assert streams.calls[-1] == ("m", "other", "onzeta")
        with pytest.raises(InputError, match="prior"):
            run.submit(features=unit_rows(1), mode="stream", prior={"a": 1.0})
        run.service.unload("m")
    assert streams.log == ["start", "forget m", "close"]


def test_unload_waits_for_the_requests_in_flight():
    with running() as run:
        run.encoder.gate.clear()
        tickets = [run.submit(pixels=pixels(3)) for _ in range(5)]
        run.encoder.await_entry()
        unloading = threading.Thread(target=run.service.unload, args=("m",))
        unloading.start()
        while True:  # until the name is gone; the model is still in use
            try:
                run.submit(features=unit_rows(1)).future.result(PATIENCE_S)
            except UnknownModelError:
                break
        assert unloading.is_alive()
        run.encoder.gate.set()
        for ticket in tickets:
            ticket.future.result(PATIENCE_S)
        unloading.join(PATIENCE_S)
        assert not unloading.is_alive()


def test_models_are_left_alone_where_the_settings_say_so():
    with running(model_control=False) as run:
        for change in (run.service.load, run.service.unload):
            with pytest.raises(ForbiddenError):
                change("m")


def test_statistics_count_images_batches_and_stages():
    with running() as run:
        for n in (1, 3):
            run.answer(pixels=pixels(n))
        with pytest.raises(EncoderError):
            run.answer(pixels=np.full((1, 4, 4, 3), 255, np.uint8))
        found = run.service.statistics("m")["m"]
        assert (found.inference_count, found.success.count, found.fail.count) == (4, 2, 1)
        assert found.execution_count == sum(total.count for total in found.batches.values()) >= 3
        assert found.success.ns > found.compute_infer.ns > 0
        assert found.last_inference_ms > 1_700_000_000_000
        told = run.service.snapshot()
        counts = {"requests": 3, "images": 4, "rejected": 0, "failed": 1, "cancelled": 0}
        assert told["totals"] == {**counts, "batches": found.execution_count}
        assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p99"]
        assert (told["inflight_images"], told["queue_images"], told["decoding_images"]) == (0, 0, 0)
        assert set(run.service.statistics()) == {"m"}


def test_a_service_that_has_not_started_or_drains_takes_nothing():
    harness = Harness()
    with pytest.raises(NotReadyError, match="starting"):
        harness.submit(pixels=pixels())
    with pytest.raises(NotReadyError, match="starting"):
        harness.service.lease()
    assert not harness.service.is_ready()
    harness.service.close()
    with running() as run:
        assert run.service.is_ready()
        run.service.stop_being_ready()
        assert not run.service.is_ready()
        run.answer(pixels=pixels())
        assert run.service.drain(PATIENCE_S)
        with pytest.raises(NotReadyError, match="stopping"):
            run.submit(pixels=pixels())
        with pytest.raises(NotReadyError, match="stopping"):
            run.service.lease()


def test_a_deadline_shortens_but_never_lengthens():
    with running(deadline_s=0.02) as run:
        run.encoder.gate.clear()
        ticket = run.submit(pixels=pixels(), timeout_s=1000.0)
        with pytest.raises(DeadlineExceededError, match=r"0\.02 s"):
            ticket.future.result(PATIENCE_S)
