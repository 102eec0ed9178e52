"""`Engine` with an encoder whose rows stay on the GPU: one context from pixels to answer."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from kpl_engine.config import DecodeConfig, EngineConfig, MethodConfig, SolverConfig
from kpl_engine.cuda.context import DeviceArray
from kpl_engine.encoder.base import DeviceEncoder
from kpl_engine.encoder.fake import FakeEncoder
from kpl_engine.encoder.pipeline import encode_stream
from kpl_engine.engine import Engine
from kpl_engine.errors import BackendUnavailableError, CudaError, EncoderError, ShapeError
from kpl_engine.knowledge import KnowledgeBase
from kpl_engine.solver import devices
from kpl_engine.solver.device import DeviceSolver

STEPS = EngineConfig(method=MethodConfig(proxy_iters=20))
ASKED = {"knowledge": "chest", "method": "inmap", "mode": "batch", "prior": None, "top_evidence": 2}


class FakeDeviceEncoder(FakeEncoder):
    """The fake encoder with its rows in the memory of a context."""

    def __init__(self, context, **options):
        super().__init__(**options)
        self.context = context
        self.batches = []
        self.bad_rows = 0

    def encode_on_device(self, pixels):
        if isinstance(pixels, DeviceArray):
            pixels = self.context.download(pixels)
        self.batches.append(len(pixels))
        return self.context.upload(self.encode_images(pixels))

    def check_encoded(self):
        if self.bad_rows:
            raise EncoderError("the encoder returned images that are not finite unit vectors")


@pytest.fixture
def knowledge():
    texts = {label: [f"{label} sign {i}" for i in range(10)] for label in ("normal", "nodule", "effusion")}
    encoder = FakeEncoder()
    return KnowledgeBase.from_arrays(
        {label: encoder.encode_texts(group) for label, group in texts.items()},
        descriptions=list(texts.values()),
        name="chest",
    )


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (21, 24, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("resize_on_gpu", [True, False])
@pytest.mark.parametrize("batch_size", [8, 32])
def test_rows_stay_on_the_device_and_answers_are_those_of_the_cpu(
    context, knowledge, images, batch_size, resize_on_gpu
):
    encoder = FakeDeviceEncoder(context, batch_size=batch_size)
    assert isinstance(encoder, DeviceEncoder)
    copied = []
    copy_in = context.driver.copy_in
    context.driver.copy_in = lambda address, array, stream: (
        copied.append(array.nbytes),
        copy_in(address, array, stream),
    )
    config = dataclasses.replace(STEPS, decode=DecodeConfig(resize_on_gpu=resize_on_gpu))
    engine = Engine(encoder, [knowledge], config=config)
    found = engine.classify(images, method="inmap")
    uploads = len([nbytes for nbytes in copied if nbytes == len(images) * encoder.embed_dim * 4])
    assert uploads == (1 if batch_size == 32 else 0)  # by the fake itself, never by the solver
    expected = Engine(FakeEncoder(), [knowledge], config=STEPS).classify(images, method="inmap")
    assert found.labels == expected.labels
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=2e-5, rtol=0)
    assert [e.description for row in found.evidence for e in row] == [
        e.description for row in expected.evidence for e in row
    ]
    assert found.timings_ms["device"] > 0
    engine.close()


def test_rows_that_are_no_unit_vectors_are_refused(context, knowledge, images):
    encoder = FakeDeviceEncoder(context)
    encoder.bad_rows = 1
    with pytest.raises(EncoderError, match="not finite unit vectors"):
        Engine(encoder, [knowledge]).classify(images)


def test_no_usable_image_needs_no_gpu(context, knowledge):
    result = Engine(FakeDeviceEncoder(context), [knowledge]).classify([b"no picture"])
    assert result.labels == (None,)


def test_fit_and_frozen_mode(context, knowledge, images):
    engine = Engine(FakeDeviceEncoder(context), [knowledge], config=STEPS)
    frozen, fitted = engine.fit(images, "inmap")
    again = engine.classify(images, mode="frozen")
    assert frozen.method == "inmap"
    np.testing.assert_allclose(again.probabilities, fitted.probabilities, atol=2e-6, rtol=0)


def test_a_gpu_that_fails_falls_back_only_for_auto(context, knowledge, images, monkeypatch):
    engines = {
        name: Engine(FakeDeviceEncoder(context), [knowledge], config=STEPS, device=name) for name in ("auto", "cuda")
    }
    for engine in engines.values():
        monkeypatch.setattr(engine._answers._gpu, "answer", _fail)
    result = engines["auto"].classify(images, method="inmap")
    assert result.warnings[0].code == "solver_on_cpu"
    assert "launch refused" in result.warnings[0].message
    with pytest.raises(CudaError, match="launch refused"):
        engines["cuda"].classify(images, method="inmap")


def _fail(*_):
    raise CudaError("launch refused")


def test_batches_of_several_requests_are_those_of_each_alone(context, knowledge, images, monkeypatch):
    engine = Engine(FakeDeviceEncoder(context), [knowledge], config=STEPS)
    launched, answer_many = [], DeviceSolver.answer_many
    monkeypatch.setattr(
        DeviceSolver,
        "answer_many",
        lambda self, items, work: launched.append(len(items)) or answer_many(self, items, work),
    )
    encoded = [engine.encode(images), engine.encode(images[:17]), engine.encode(images[:2])]
    nan = dataclasses.replace(encoded[1], features=encoded[1].features * np.nan)
    queries = [SimpleNamespace(encoded=each, **ASKED) for each in (*encoded, nan)]
    together = engine._answers.answer_many(queries[:3])
    assert launched == [2]  # at once; the third has too few images to learn from
    alone = engine._answers.answer_many(queries)
    assert isinstance(alone[3], ShapeError)
    for each, first, second in zip(encoded, together, alone, strict=False):
        want = engine.answer(each, "inmap")
        for got in (first, second):
            assert got.warnings == want.warnings
            # 20 steps in float64 of features in float32, at other places of a table: their answers are float32
            np.testing.assert_allclose(got.probabilities, want.probabilities, atol=2e-6, rtol=0)


def test_the_solver_can_be_kept_on_the_cpu(context, knowledge, images):
    settings = EngineConfig(method=STEPS.method, solver=SolverConfig(device="cpu"))
    result = Engine(FakeDeviceEncoder(context), [knowledge], config=settings).classify(images, method="inmap")
    assert "device" not in result.timings_ms


def test_a_solver_on_another_gpu_gets_the_features_by_way_of_the_host(context, open_context, knowledge, images):
    other = DeviceSolver(open_context())
    settings = EngineConfig(method=STEPS.method, solver=SolverConfig(device="cuda:1"))
    with devices.using_device(other):
        engine = Engine(FakeDeviceEncoder(context), [knowledge], config=settings)
        found = engine.classify(images, method="inmap")
    assert other.context.driver.num_launches > 0
    expected = Engine(FakeEncoder(), [knowledge], config=STEPS).classify(images, method="inmap")
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=2e-5, rtol=0)
    assert other._plans, "its table has X of its own"
    (plan,) = other._plans.values()
    assert plan.table.view("X").owner is not None
    engine.close()
    assert other._plans, "a solver of somebody else is left alone"


def test_a_gpu_asked_for_by_name_is_never_replaced(knowledge, monkeypatch):
    def absent(device):
        raise BackendUnavailableError(f"{device} is not available: no driver")

    monkeypatch.setattr(devices, "open_driver", absent)
    settings = EngineConfig(solver=SolverConfig(device="cuda:5"))
    with pytest.raises(BackendUnavailableError, match="cuda:5 is not available"):
        Engine(FakeEncoder(), [knowledge], config=settings)


def test_auto_says_why_it_passed_over_a_gpu(knowledge, monkeypatch):
    def unusable(device):
        raise BackendUnavailableError("no adapter is installed")

    monkeypatch.setattr(devices, "open_driver", unusable)
    monkeypatch.setattr(devices, "explain_absence", lambda: None)  # there is a GPU
    engine = Engine(FakeEncoder(), [knowledge], config=EngineConfig(solver=SolverConfig(device="auto")))
    assert any("no adapter is installed" in notice for notice in engine.notices)


def test_pictures_of_all_sizes_are_resized_on_the_gpu_with_the_bits_of_the_cpu(context):
    rng = np.random.default_rng(5)
    pictures = [
        rng.integers(0, 256, (*size, 3), np.uint8) for size in ((9, 200), (33, 31), (32, 32), (150, 40), (1, 1))
    ]
    encoder = FakeDeviceEncoder(context, batch_size=3)
    on_gpu = encode_stream(pictures, encoder)
    np.testing.assert_array_equal(on_gpu.features, encode_stream(pictures, FakeEncoder()).features)
    np.testing.assert_array_equal(context.download(on_gpu.on_device), on_gpu.features)
    assert encoder.batches == [3, 2]


def test_a_picture_that_cannot_be_resized_is_named(context):
    rng = np.random.default_rng(6)
    flat = rng.integers(0, 256, (1, 70000, 3), np.uint8)
    good = rng.integers(0, 256, (20, 20, 3), np.uint8)
    on_gpu = encode_stream([good, flat], FakeDeviceEncoder(context))
    on_cpu = encode_stream([good, flat], FakeEncoder())
    assert [str(error) for _, _, error in on_gpu.failures] == [str(error) for _, _, error in on_cpu.failures]
    np.testing.assert_array_equal(on_gpu.ok_index, on_cpu.ok_index)
