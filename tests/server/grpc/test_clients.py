"""Every method, asked by Triton's own clients; answers are the engine's."""

import asyncio
import json
import queue

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from kpl_engine.server.grpc.messages import message
from tests.server.grpc.conftest import TIMEOUT_S

CLASSES = ("cardiomegaly", "effusion", "nodule", "normal", "pneumothorax")
PRIOR = ",".join(f"{name}=0.2" for name in CLASSES)


@pytest.fixture
def client(door):
    with triton.InferenceServerClient(door.address) as client:
        yield client


def image_input(pictures):
    given = triton.InferInput("image", [len(pictures)], "BYTES")
    given.set_data_from_numpy(np.array(pictures, dtype=object))
    return given


def tensor_input(name, array, datatype):
    given = triton.InferInput(name, array.shape, datatype)
    given.set_data_from_numpy(array)
    return given


def check_same(result, found):
    """Bits, not tolerances: the same engine computed both."""
    assert [label.decode() for label in result.as_numpy("label")] == list(found.labels)
    np.testing.assert_array_equal(result.as_numpy("probabilities"), found.probabilities)
    np.testing.assert_array_equal(result.as_numpy("margin"), found.margins)
    np.testing.assert_array_equal(result.as_numpy("is_undecided"), found.is_undecided)
    told = [json.loads(row) for row in result.as_numpy("evidence")]
    assert [[each["description"] for each in row] for row in told] == [
        [each.description for each in row] for row in found.evidence
    ]


def test_health(door, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("demo")
    assert client.is_model_ready("demo", "1")
    assert not client.is_model_ready("demo", "2")
    assert not client.is_model_ready("other")
    door.service.loaded = False
    assert not client.is_model_ready("demo")
    assert not client.is_server_ready()
    door.service.live = False
    assert not client.is_server_live()


def test_metadata_and_configuration(client):
    server = client.get_server_metadata()
    assert server.name == "kpl-engine"
    assert "statistics" in server.extensions
    model = client.get_model_metadata("demo")
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
        ("image", "BYTES", [-1]),
        ("pixels", "UINT8", [-1, -1, -1, 3]),
        ("features", "FP32", [-1, 64]),
    ]
    assert {t.name for t in model.outputs} >= {"label", "probabilities", "embedding"}
    config = client.get_model_config("demo", as_json=True)["config"]
    assert config["max_batch_size"] == 64
    assert config["input"][2] == {"name": "features", "data_type": "TYPE_FP32", "dims": ["64"], "optional": True}
    assert [t["name"] for t in config["output"]] == [t.name for t in model.outputs]


def test_statistics(client):
    (found,) = client.get_inference_statistics("demo").model_stats
    assert (found.name, found.version, found.inference_count, found.execution_count) == ("demo", "1", 3, 2)
    assert found.inference_stats.compute_infer.ns == 6_000_000
    assert [(each.batch_size, each.compute_infer.count) for each in found.batch_stats] == [(2, 3)]
    assert len(client.get_inference_statistics().model_stats) == 1


def test_repository(door, client):
    assert client.get_model_repository_index().models[0].state == "READY"
    client.unload_model("demo")
    assert client.get_model_repository_index().models[0].reason == "unloaded"
    request = message("RepositoryIndexRequest")(ready=True)
    reply, _ = door.call("RepositoryIndex", request)
    assert not message("RepositoryIndexResponse").FromString(reply).models
    client.load_model("demo")
    assert client.is_model_ready("demo")
    with pytest.raises(InferenceServerException, match="load: expected no parameters, got 'config'"):
        client.load_model("demo", config="{}")
    with pytest.raises(InferenceServerException, match="no bundle 'other'"):
        client.load_model("other")


@pytest.mark.parametrize("method", ["zeroshot", "kpl"])
def test_pictures(client, demo_engine, pictures, method):
    result = client.infer("demo", [image_input(pictures)], parameters={"method": method})
    found = demo_engine.classify(images=pictures, method=method, mode="batch")
    check_same(result, found)
    told = {name: value.string_param for name, value in result.get_response().parameters.items()}
    assert told["method"] == method
    assert (told["method_used"], told["mode"], told["task"]) == (found.method_used, "batch", "chest")
    assert [each["code"] for each in json.loads(told["warnings"])] == [each.code for each in found.warnings]
    assert json.loads(told["timings_ms"])["decode"] == 1.0


def test_pixels_of_any_size(client, demo_engine):
    pixels = np.random.default_rng().integers(0, 256, (3, 97, 61, 3), dtype=np.uint8)
    result = client.infer("demo", [tensor_input("pixels", pixels, "UINT8")])
    check_same(result, demo_engine.classify(images=list(pixels)))


def test_features_and_outputs_asked_for(client, demo_engine, unit_rows):
    wanted = [triton.InferRequestedOutput(name) for name in ("embedding", "class_name", "text_label")]
    wanted.append(triton.InferRequestedOutput("probabilities", class_count=2))
    result = client.infer("demo", [tensor_input("features", unit_rows, "FP32")], outputs=wanted, request_id="a b")
    found = demo_engine.classify(features=unit_rows)
    assert [each.name for each in result.get_response().outputs] == [each.name() for each in wanted]
    assert result.get_response().id == "a b"
    np.testing.assert_array_equal(result.as_numpy("embedding"), unit_rows)
    assert [name.decode() for name in result.as_numpy("class_name")] == list(found.classes)
    ranked = result.as_numpy("probabilities")
    assert ranked.shape == (3, 2)
    value, index, label = ranked[0, 0].decode().split(":")
    assert label == found.labels[0] == found.classes[int(index)]
    assert float(value) == pytest.approx(found.probabilities[0].max(), abs=1e-6)  # six decimals are told


def test_parameters_reach_the_service(door, client, unit_rows):
    given = {"task": "chest", "method": "zeroshot", "mode": "batch", "top_k": 1, "prior": PRIOR}
    client.infer("demo", [tensor_input("features", unit_rows, "FP32")], parameters=given, priority=2, timeout=2_000_000)
    (asked,) = door.service.requests
    assert (asked.task, asked.method, asked.mode, asked.top_k) == ("chest", "zeroshot", "batch", 1)
    assert (asked.prior, asked.priority, asked.timeout_s) == (dict.fromkeys(CLASSES, 0.2), 2, 2.0)


def test_asynchronous_client(door, demo_engine, pictures):
    async def ask():
        async with triton_aio.InferenceServerClient(door.address) as client:
            assert await client.is_server_ready()
            return await asyncio.gather(*(client.infer("demo", [image_input([each])]) for each in pictures[:5]))

    for result, picture in zip(asyncio.run(ask()), pictures, strict=False):
        check_same(result, demo_engine.classify(images=[picture]))


def test_callbacks(client, demo_engine, pictures):
    answers = queue.Queue()
    for i in range(4):
        client.async_infer(
            "demo",
            [image_input([pictures[i]])],
            callback=lambda result, error: answers.put((result, error)),
            request_id=str(i),
        )
    for _ in range(4):
        result, error = answers.get(timeout=TIMEOUT_S)
        assert error is None
        i = int(result.get_response().id)
        check_same(result, demo_engine.classify(images=[pictures[i]]))


def test_compressed_messages(client, demo_engine, pictures):
    result = client.infer("demo", [image_input(pictures[:2])], compression_algorithm="gzip")
    check_same(result, demo_engine.classify(images=pictures[:2]))


def test_a_stream_goes_on_after_an_error(client, demo_engine, pictures):
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    try:
        client.async_stream_infer("other", [image_input(pictures[:1])], request_id="bad")
        result, error = answers.get(timeout=TIMEOUT_S)
        assert result is None
        assert "no model 'other'" in str(error)
        for i in range(40):  # more than are in flight at once
            client.async_stream_infer("demo", [image_input([pictures[i % 12]])], request_id=str(i))
        seen = {}
        for _ in range(40):
            result, error = answers.get(timeout=TIMEOUT_S)
            assert error is None
            seen[int(result.get_response().id)] = result
        for i in (0, 17, 39):
            check_same(seen[i], demo_engine.classify(images=[pictures[i % 12]]))
            assert seen[i].get_response().parameters["triton_final_response"].bool_param
    finally:
        client.stop_stream()
    assert len(seen) == 40


def test_an_asynchronous_stream(door, pictures):
    async def ask():
        async def requests():
            for i in range(5):
                yield {"model_name": "demo", "inputs": [image_input([pictures[i]])], "request_id": str(i)}

        async with triton_aio.InferenceServerClient(door.address) as client:
            return [pair async for pair in client.stream_infer(requests())]

    answers = asyncio.run(ask())
    assert all(error is None for _, error in answers)
    assert sorted(result.get_response().id for result, _ in answers) == list("01234")
