"""tritonclient over HTTP, sync and asyncio, against the real server; the answers are those of Engine.classify."""

import asyncio

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

# The same float32 numbers go over the wire: JSON prints them so that they read back exactly.
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture
def client(http_server):
    found = triton.InferenceServerClient(http_server.address, concurrency=2)
    yield found
    found.close()


def image_input(pictures, shape=None, binary=True):
    found = triton.InferInput("image", shape or [len(pictures)], "BYTES")
    return found.set_data_from_numpy(np.array(pictures, object).reshape(found.shape()), binary_data=binary)


def check_same(result, want):
    labels = result.as_numpy("label").tolist()  # text from JSON, bytes from binary
    assert [each.decode() if isinstance(each, bytes) else each for each in labels] == list(want.labels)
    np.testing.assert_allclose(result.as_numpy("probabilities"), want.probabilities, **EXACT)
    np.testing.assert_allclose(result.as_numpy("margin"), want.margins, **EXACT)
    assert result.as_numpy("is_undecided").tolist() == want.is_undecided.tolist()


def test_administration(client, service):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("demo")
    assert client.is_model_ready("demo", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "kpl-engine"
    told = client.get_model_metadata("demo", "1")
    assert {each["name"]: each["shape"] for each in told["inputs"]} == {
        "image": [-1],
        "pixels": [-1, -1, -1, 3],
        "features": [-1, 64],
    }
    assert told["parameters"]["knowledge"][0]["name"] == "chest"
    assert client.get_model_config("demo")["max_batch_size"] == service.settings.max_images
    assert client.get_inference_statistics("demo")["model_stats"][0]["inference_count"] == 3
    assert client.get_inference_statistics()["model_stats"][0]["name"] == "demo"
    assert client.get_model_repository_index() == [{"name": "demo", "version": "1", "state": "READY", "reason": ""}]
    client.unload_model("demo")
    assert not client.is_server_ready()
    assert not client.is_model_ready("demo")
    client.load_model("demo")
    assert client.is_model_ready("demo")
    with pytest.raises(InferenceServerException, match="no bundle 'x'"):
        client.load_model("x")
    with pytest.raises(InferenceServerException, match="as it stands in the server's repository"):
        client.load_model("demo", config="{}")


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
def test_images(client, demo_engine, pictures, is_binary, packing):
    outputs = [triton.InferRequestedOutput(name, is_binary) for name in ("label", "probabilities", "margin")]
    outputs.append(triton.InferRequestedOutput("is_undecided", is_binary))
    found = client.infer(
        "demo",
        [image_input(pictures)],
        outputs=outputs,
        request_id="nine",
        parameters={"task": "chest", "top_k": 1},
        request_compression_algorithm=packing,
        response_compression_algorithm=packing,
    )
    check_same(found, demo_engine.classify(pictures, mode="batch", knowledge="chest"))
    told = found.get_response()
    assert told["id"] == "nine"
    assert told["parameters"]["task"] == "chest"


def test_shapes_of_images(client, pictures):
    flat = client.infer("demo", [image_input(pictures[:2])]).get_response()
    column = client.infer("demo", [image_input(pictures[:2], [2, 1])]).get_response()
    assert flat["outputs"] == column["outputs"]
    assert "id" not in flat


def test_pixels(client, demo_engine):
    pixels = np.random.default_rng().integers(0, 256, (3, 41, 57, 3), np.uint8)
    given = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    want = demo_engine.classify(pixels, mode="batch", knowledge="chest")
    for is_binary in (True, False):
        check_same(client.infer("demo", [given.set_data_from_numpy(pixels, is_binary)]), want)


def test_features_and_classification(client, demo_engine, pictures):
    features = demo_engine.encode(pictures).features
    given = triton.InferInput("features", list(features.shape), "FP32")
    want = demo_engine.classify(features=features, mode="batch", knowledge="chest")
    for is_binary in (True, False):
        check_same(client.infer("demo", [given.set_data_from_numpy(features, is_binary)]), want)
    asked = [triton.InferRequestedOutput("probabilities", class_count=2), triton.InferRequestedOutput("embedding")]
    found = client.infer("demo", [given], outputs=asked)
    assert found.as_numpy("probabilities").shape == (len(pictures), 2)
    best = found.as_numpy("probabilities")[0, 0].decode().split(":")
    assert best[2] == want.labels[0]
    np.testing.assert_allclose(found.as_numpy("embedding"), features, **EXACT)


def test_options_arrive(client, service, pictures):
    client.infer(
        "demo",
        [image_input(pictures[:1])],
        priority=2,
        timeout=5_000_000,
        sequence_id=4,
        sequence_start=True,
        headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x-request-id": "mine"},
        parameters={"method": "zeroshot", "mode": "batch"},
    )
    (asked,) = service.requests
    assert (asked.priority, asked.timeout_s, asked.method, asked.mode) == (2, 5.0, "zeroshot", "batch")
    assert asked.traceparent.startswith("00-0af7")
    assert asked.request_id == "mine"


def test_errors_have_their_text(client, pictures):
    with pytest.raises(InferenceServerException, match="no model 'other'") as caught:
        client.infer("other", [image_input(pictures[:1])])
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match="no model 'demo' version '2'"):
        client.infer("demo", [image_input(pictures[:1])], model_version="2")
    with pytest.raises(InferenceServerException, match="expected one of zeroshot"):
        client.infer("demo", [image_input(pictures[:1])], parameters={"method": "guess"})
    with pytest.raises(InferenceServerException, match="1"):
        client.infer("demo", [image_input([pictures[0], b"no picture"])])


def test_several_at_once(client, pictures):
    waiting = [client.async_infer("demo", [image_input(pictures[:2])], request_id=str(i)) for i in range(8)]
    assert [each.get_result().get_response()["id"] for each in waiting] == [str(i) for i in range(8)]


def test_asyncio(http_server, demo_engine, pictures):
    async def ask():
        async with triton_aio.InferenceServerClient(http_server.address) as client:
            assert await client.is_server_ready()
            return await asyncio.gather(
                *(
                    client.infer("demo", [image_input(pictures)], response_compression_algorithm=packing)
                    for packing in (None, "gzip", "deflate")
                )
            )

    want = demo_engine.classify(pictures, mode="batch", knowledge="chest")
    for found in asyncio.run(ask()):
        check_same(found, want)
