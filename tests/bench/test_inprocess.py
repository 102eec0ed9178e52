"""Targets of this process answer as the engine does, and say how a query ended."""

import queue
import threading

import numpy as np
import pytest

from kpl_engine.bench.inprocess import EngineTarget, ServiceTarget
from kpl_engine.bench.targets import GONE
from kpl_engine.engine import Engine
from kpl_engine.server.defaults import complete
from kpl_engine.server.models import LoadedModels
from kpl_engine.server.service import BatchingService
from kpl_engine.server.settings import ServerSettings
from tests.bench.made import fitted_bundle, pictures

PATIENCE_S = 20
# Batches of other sizes sum in another order: last bits of float32 in the features, times 1 / tau = 25 in the logits.
BOUND = 5e-5

rng = np.random.default_rng()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return fitted_bundle(tmp_path_factory.mktemp("bench") / "lung.kpl")


@pytest.fixture(scope="module")
def engine(bundle):
    with Engine.load(bundle, "cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def payloads(engine):
    files = pictures(12)
    features = engine.encode(files).features
    pixels = rng.integers(0, 256, (12, *engine.encoder.image_size, 3), dtype=np.uint8)
    return {"files": [*files[:11], b"\x89PNG none"], "pixels": list(pixels), "features": list(features)}


@pytest.fixture(scope="module")
def service(bundle):
    settings = complete(ServerSettings(bundles=(bundle,), device="cpu"), is_gpu=False)
    service = BatchingService(LoadedModels(settings), settings)
    service.start()
    yield service
    service.close()


def target_of(which, engine, service, kind, payloads):
    if which == "engine":
        return EngineTarget(engine, kind, payloads[kind])
    return ServiceTarget(service, "lung", kind, payloads[kind], mode="frozen")


def code_of(target, indices):
    ended = queue.Queue()
    target.submit(indices, ended.put)
    return ended.get(timeout=PATIENCE_S)


@pytest.mark.parametrize("which", ["engine", "service"])
@pytest.mark.parametrize("kind", ["files", "pixels", "features"])
def test_answers_are_the_engines(which, kind, engine, service, payloads):
    target = target_of(which, engine, service, kind, payloads)
    indices = rng.permutation(11)[: rng.integers(1, 9)].tolist()
    given = [payloads[kind][i] for i in indices]
    source = {"features": np.stack(given)} if kind == "features" else {"images": given}
    expected = engine.classify(**source, mode="frozen").probabilities
    assert code_of(target, indices) == "OK"
    assert np.abs(target.answer_of(indices) - expected).max() <= BOUND
    target.close()


@pytest.mark.parametrize("which", ["engine", "service"])
def test_a_bad_picture_is_no_answer(which, engine, service, payloads):
    target = target_of(which, engine, service, "files", payloads)
    assert code_of(target, [11]) == "INVALID_ARGUMENT"
    assert code_of(target, [0, 11]) == "INVALID_ARGUMENT"
    target.close()


def test_the_engine_answers_in_the_thread_that_asks(engine, payloads):
    """LoadGen's thread is the caller: no queue stands in the latency of a stream."""
    threads = []
    target = EngineTarget(engine, "files", payloads["files"])
    target.submit([0], lambda _: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


def test_admission_is_not_waited_for_by_who_submits(service, payloads, monkeypatch):
    """The batcher's admission runs in a thread of ours: LoadGen issues the next query when it is due."""
    held, threads = threading.Event(), []
    submit = service.submit

    def slow(request):
        threads.append(threading.current_thread())
        assert held.wait(PATIENCE_S)
        return submit(request)

    monkeypatch.setattr(service, "submit", slow)
    target = ServiceTarget(service, "lung", "files", payloads["files"])
    ended = queue.Queue()
    for _ in range(5):
        target.submit([0], ended.put)
    assert ended.empty()
    held.set()
    assert [ended.get(timeout=PATIENCE_S) for _ in range(5)] == ["OK"] * 5
    assert set(threads) == {target._thread} != {threading.current_thread()}
    target.close()


def test_a_full_batcher_refuses(bundle, payloads):
    settings = complete(
        ServerSettings(bundles=(bundle,), device="cpu", max_inflight_images=2, max_images=2), is_gpu=False
    )
    service = BatchingService(LoadedModels(settings), settings)
    service.start()
    target = ServiceTarget(service, "lung", "files", payloads["files"])
    ended = queue.Queue()
    for _ in range(200):
        target.submit([0], ended.put)
    codes = [ended.get(timeout=PATIENCE_S) for _ in range(200)]
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    target.close()
    service.close()


def test_a_batcher_that_has_stopped_is_gone(bundle, payloads):
    settings = complete(ServerSettings(bundles=(bundle,), device="cpu"), is_gpu=False)
    service = BatchingService(LoadedModels(settings), settings)
    service.start()
    target = ServiceTarget(service, "lung", "files", payloads["files"])
    service.close()
    assert code_of(target, [0]) in GONE
    target.close()
