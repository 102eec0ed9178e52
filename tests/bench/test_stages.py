"""Stages of one picture, throughput by batch size, time on a GPU by its events: they add up, and nothing is lost."""

import contextlib
import threading

import numpy as np
import pytest

from kpl_engine.bench import batches, stages
from kpl_engine.bench.batches import measure_batches
from kpl_engine.bench.checking import prepare_frozen
from kpl_engine.bench.device_time import encode_on_gpu_ms
from kpl_engine.bench.stages import measure_stages
from kpl_engine.errors import InputError
from tests.bench.engines import BatchedEncoder, make_engine, samples_of


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(stages, "_WARM_S", 0.0)


def ready(**given):
    engine = make_engine()
    settings, samples = samples_of(engine, num_samples=13, **given)
    prepare_frozen(engine, samples, settings)
    return engine, samples, settings


EXPECTED = {
    "files": ["read", "decode", "preprocess", "threads", "encode", "text_proxies", "proxies", "record"],
    "pixels": ["read", "decode", "preprocess", "threads", "encode", "text_proxies", "proxies", "record"],
    "features": ["text_proxies", "proxies", "record"],
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_stages_add_up_to_the_calls(kind):
    found = measure_stages(*ready(input_kind=kind), 0.0)
    assert found["order"] == EXPECTED[kind]  # "labels" did not run: absent, not zero
    assert set(found["stages"]) == set(found["order"])
    assert {each["count"] for each in found["stages"].values()} == {found["total"]["count"]} == {20}
    sums = np.sum([each["samples"] for each in found["stages"].values()], axis=0)
    totals = np.array(found["total"]["samples"])
    np.testing.assert_allclose(sums, totals, rtol=0, atol=1e-5)  # each sample is rounded to nanoseconds
    assert abs(found["unexplained_share"]) < 1e-9
    beside = sum(found["stages"][name]["mean"]["value"] for name in ("threads", "record") if name in found["order"])
    assert found["notes"][-1].startswith(f"{beside / totals.mean():.1%} of the mean are what Engine.encode")
    assert found["runs_beside"] == []
    assert found["device_ms"] == {}


def test_files_are_read_from_a_disk_and_warm_calls_are_told(monkeypatch):
    engine, samples, settings = ready()
    given, encode = [], engine.encode
    monkeypatch.setattr(engine, "encode", lambda images: given.append(images) or encode(images))
    found = measure_stages(engine, samples, settings, 0.0)
    assert len(given) == 1 + 10 + 20
    assert all(len(each) == 1 for each in given)
    assert len({each[0] for each in given}) == 13  # all pictures have their turn
    assert not any(each[0].exists() for each in given)  # and the folder is gone
    assert found["notes"][0] == "files were read from the page cache, not from a disk"
    assert found["notes"][1].startswith("the first call took ")
    assert found["notes"][1].endswith("it and 10 more were not counted")


def test_a_batch_that_learns_has_labels():
    engine = make_engine()
    settings, samples = samples_of(engine, num_samples=13, method="kpl_stream", mode="batch")
    found = measure_stages(engine, samples, settings, 0.0)
    assert "text_proxies" in found["order"]  # one picture is answered by the text


def test_time_beside_the_clocks_of_a_half_is_a_stage_of_its_own(monkeypatch):
    engine, samples, settings = ready()
    encode, answer = engine.encode, engine.answer

    def slow(function, seconds):
        def call(*args, **options):
            threading.Event().wait(seconds)
            return function(*args, **options)

        return call

    monkeypatch.setattr(engine, "encode", slow(encode, 0.003))
    monkeypatch.setattr(engine, "answer", slow(answer, 0.005))
    found = measure_stages(engine, samples, settings, 0.0)
    assert found["stages"]["threads"]["min"] >= 3.0
    assert found["stages"]["record"]["min"] >= 5.0
    assert found["total"]["min"] >= 8.0


def test_sizes_take_turns_and_each_point_is_of_its_own_calls(monkeypatch):
    engine, samples, settings = ready(batch_sizes=(1, 5, 3, 5))
    sizes, clock = [], [0.0]

    def classify(images, **_):
        sizes.append(len(images))
        clock[0] += (0.010 if len(images) == 1 else 0.020) * (1 + len(sizes) % 2 / 100)
        return type("Answer", (), {"is_ok": np.ones(len(images), bool)})()

    monkeypatch.setattr(engine, "classify", classify)
    monkeypatch.setattr(batches, "perf_counter", lambda: clock[0])
    found = measure_batches(engine, samples, settings, 1.0)
    assert sizes[:9] == [1, 5, 3] * 3
    assert len(sizes) % 3 == 0
    assert clock[0] >= 1.0
    assert [each["batch"] for each in found] == [1, 5, 3]
    for each in found:
        spent = 10.05 if each["batch"] == 1 else 20.1
        assert each["ms"]["value"] == pytest.approx(spent, rel=0.006)  # calls differ by 1 %
        assert each["samples_per_s"]["value"] == pytest.approx(each["batch"] * 1e3 / spent, rel=0.006)
        low, high = each["samples_per_s"]["low"], each["samples_per_s"]["high"]
        assert low is None or low <= each["samples_per_s"]["value"] <= high


def test_the_slower_end_of_a_call_is_the_lower_end_of_the_rate(monkeypatch):
    engine, samples, settings = ready(batch_sizes=(4,))
    monkeypatch.setattr(batches, "interval_of", lambda values, which: {"value": 10.0, "low": 8.0, "high": 12.5})
    (found,) = measure_batches(engine, samples, settings, 0.0)
    assert found["samples_per_s"] == pytest.approx({"value": 400.0, "low": 320.0, "high": 500.0})


@pytest.mark.parametrize("kind", ["files", "pixels", "features"])
def test_a_batch_larger_than_the_samples_repeats_some(kind):
    engine, samples, settings = ready(input_kind=kind, batch_sizes=(1, 29))
    found = measure_batches(engine, samples, settings, 0.0)
    assert [each["batch"] for each in found] == [1, 29]
    assert all(each["samples_per_s"]["value"] > 0 and each["ms"]["value"] > 0 for each in found)


def test_a_batch_that_is_not_answered_ends_the_part():
    engine, samples, settings = ready()
    samples.files[:] = [b"damaged"] * 13
    with pytest.raises(InputError, match="batch of 1 pictures was not answered"):
        measure_batches(engine, samples, settings, 0.0)


class EventDriver:
    """Events whose times are those of work that the encoder puts between them."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def new_event(self):
        return [None]

    def record(self, event, stream):
        assert stream == "stream"
        self.log.append("event")
        event[0] = self.now

    def elapsed_ms(self, start, end):
        return end[0] - start[0]


class OnGpu(BatchedEncoder):
    """Its third picture takes 2 ms, the others 1 ms, its first call 100 ms."""

    def __init__(self):
        super().__init__(embed_dim=9, image_size=(8, 8))
        self.context = type("Context", (), {})()
        self.context.driver, self.context.stream, self.context.turn = EventDriver(), "stream", contextlib.nullcontext()
        self.num_checked, self.seen = 0, []

    def encode_on_device(self, pixels):
        assert pixels.shape == (1, 8, 8, 3)
        driver = self.context.driver
        driver.now += 0.0 if "work" in driver.log else 99.0
        driver.log.append("work")
        self.seen.append(int(pixels[0, 0, 0, 0]))
        driver.now += 2.0 if pixels[0, 0, 0, 0] == 2 else 1.0

    def check_encoded(self):
        self.num_checked += 1


def test_device_time_is_between_events_around_the_work_alone():
    encoder = OnGpu()
    pixels = np.broadcast_to(np.arange(3, dtype=np.uint8)[:, None, None, None], (3, 8, 8, 3))
    found = encode_on_gpu_ms(encoder, pixels, 8)
    assert found["value"] == 1.0
    assert encoder.context.driver.log == ["event", "work", "event"] * 9
    assert encoder.seen == [0, 1, 2] * 3
    assert encoder.num_checked == 1  # rows that were no unit vectors would be an error
    assert encode_on_gpu_ms(encoder, pixels[2:], 4)["value"] == 2.0
    assert encode_on_gpu_ms(OnGpu(), pixels, 2)["value"] == 1.0  # the lower of 1 and 2 ms: the first call is left out
    assert encode_on_gpu_ms(BatchedEncoder(), pixels, 8) is None
