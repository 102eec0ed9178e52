"""The service over the demo bundle: answers are the engine's, whatever was in the batch."""

import io

import numpy as np
import pytest
from PIL import Image

from kpl_engine.building import add_proxies
from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.engine import Engine
from kpl_engine.errors import ImageError, NotReadyError
from kpl_engine.imaging.sources import list_images
from kpl_engine.server.defaults import complete
from kpl_engine.server.models import LoadedModels
from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.server.service import BatchingService
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.streams import Streams
from tests.server.fakes import PATIENCE_S

# Measured: not one bit differs in 20,000 answers, since its products sum each row
# alike whatever their number. A library that does not may move a unit vector by a few last bits of float32, and logits
# 1 / tau_i = 25 times as much.
FEATURE_BOUND = 2e-6
PROBABILITY_BOUND = 25 * FEATURE_BOUND

rng = np.random.default_rng()


@pytest.fixture(scope="module")
def encoded_pictures():
    return [path.read_bytes() for path in list_images(demo_images())]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, encoded_pictures):
    """The demo bundle with frozen proxies."""
    path = tmp_path_factory.mktemp("models") / "lung.kpl"
    with Engine.load(demo_bundle(), device="cpu") as engine:
        frozen, _ = engine.fit(encoded_pictures)
        fingerprint = engine.knowledge().fingerprint
    entry = {"method": frozen.method, "num_images": frozen.num_images, "knowledge_fingerprint": fingerprint}
    return add_proxies(demo_bundle(), "chest", *frozen.to_tensors(), entry, path)


@pytest.fixture(scope="module")
def service(bundle):
    settings = complete(
        ServerSettings(bundles=(bundle,), device="cpu", max_images=132, max_inflight_images=512), is_gpu=False
    )
    service = BatchingService(LoadedModels(settings), settings, streams=Streams(None, 30.0))
    with pytest.raises(NotReadyError):
        service.lease()
    service.start()
    assert service.is_ready()
    yield service
    assert service.drain(PATIENCE_S)
    service.close()


def ask(service, **options):
    return service.submit(ClassifyRequest("lung", **options)).future


def test_a_frozen_answer_does_not_depend_on_its_batch(service, encoded_pictures):
    alone = [ask(service, images=[data]).result(PATIENCE_S) for data in encoded_pictures]
    assert {reply.classification.mode for reply in alone} == {"frozen"}
    for _ in range(4):
        order, futures = rng.permutation(len(alone)), []
        cuts = np.sort(rng.choice(np.arange(1, len(order)), size=24, replace=False))
        for part in np.split(order, cuts):
            futures.append((part, ask(service, images=[encoded_pictures[i] for i in part])))
        for part, future in futures:
            reply = future.result(PATIENCE_S)
            for row, i in enumerate(part):
                one = alone[i]
                assert np.abs(reply.features[row] - one.features[0]).max() <= FEATURE_BOUND
                found, expected = reply.classification, one.classification
                assert np.abs(found.probabilities[row] - expected.probabilities[0]).max() <= PROBABILITY_BOUND
                if expected.margins[0] > 2 * PROBABILITY_BOUND:
                    assert found.labels[row] == expected.labels[0]


def test_a_batch_answer_adapts_to_the_images_of_its_request_alone(service, bundle, encoded_pictures):
    parts = np.split(rng.permutation(len(encoded_pictures)), [40, 90])
    futures = [ask(service, images=[encoded_pictures[i] for i in part], mode="batch") for part in parts]
    with Engine.load(bundle, device="cpu") as engine:
        for part, future in zip(parts, futures, strict=True):
            found = future.result(PATIENCE_S)
            expected = engine.classify(features=found.features)
            assert found.classification.labels == expected.labels
            assert np.array_equal(found.classification.probabilities, expected.probabilities)
            encoded = engine.encode([encoded_pictures[i] for i in part])
            assert np.abs(encoded.features - found.features).max() <= FEATURE_BOUND


def test_pixels_and_features_are_answered_as_pictures_are(service, encoded_pictures):
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded_pictures[:9]]
    of_bytes = ask(service, images=encoded_pictures[:9]).result(PATIENCE_S)
    of_pixels = ask(service, pixels=pixels).result(PATIENCE_S)
    of_features = ask(service, features=of_bytes.features).result(PATIENCE_S)
    assert np.abs(of_pixels.features - of_bytes.features).max() <= FEATURE_BOUND
    assert of_features.classification.labels == of_bytes.classification.labels
    assert np.array_equal(of_features.classification.probabilities, of_bytes.classification.probabilities)


def test_a_stream_learns_over_requests(service, encoded_pictures):
    parts = np.split(rng.permutation(len(encoded_pictures)), 4)
    used = [
        ask(service, images=[encoded_pictures[i] for i in part], mode="stream").result(PATIENCE_S) for part in parts
    ]
    assert {reply.classification.mode for reply in used} == {"stream"}
    assert used[-1].classification.method_used == "kpl_stream"


def test_bad_pictures_keep_their_place(service, encoded_pictures):
    given = [encoded_pictures[0], b"\x89PNG\r\n\x1a\n", encoded_pictures[1], encoded_pictures[2][:200]]
    found = ask(service, images=given, skips_bad=True).result(PATIENCE_S).classification
    assert list(found.is_ok) == [True, False, True, False]
    assert [failure.index for failure in found.failures] == [1, 3]
    with pytest.raises(ImageError, match="image 1"):
        ask(service, images=given[:3]).result(PATIENCE_S)


def test_a_model_is_loaded_again_while_it_serves(service, encoded_pictures):
    futures = []
    for _ in range(3):
        futures += [ask(service, images=encoded_pictures[i : i + 4]) for i in range(0, 60, 4)]
        service.load("lung")
    for future in futures:
        assert future.result(PATIENCE_S).classification.is_ok.all()
    assert service.is_ready()
