"""Requests and replies, against the protobuf stubs and the bytes of another implementation, tritonclient's."""

import json

import numpy as np
import pytest

from kpl_engine.bench.doors import Answer
from kpl_engine.bench.messages import Input, bytes_element, grpc_request, http_request, read_grpc, read_http
from kpl_engine.bench.remote import Payloads

rng = np.random.default_rng()
PARAMETERS = {"mode": "frozen", "top_k": 3, "binary_data_output": True}


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 70_001])  # lengths of one to three bytes of a varint
def test_a_grpc_request_is_the_message_that_others_read(size):
    service_pb2 = pytest.importorskip("tritonclient.grpc", reason="needs the test extra").service_pb2
    raw = rng.bytes(size)
    tensor = Input("features", "UINT8", (1, size), raw)
    read = service_pb2.ModelInferRequest.FromString(grpc_request("lung", tensor, PARAMETERS, ("label", "embedding")))
    assert read.model_name == "lung"
    assert [(each.name, each.datatype, [*each.shape]) for each in read.inputs] == [("features", "UINT8", [1, size])]
    assert [*read.raw_input_contents] == [raw]
    assert [each.name for each in read.outputs] == ["label", "embedding"]
    assert read.parameters["mode"].string_param == "frozen"
    assert read.parameters["top_k"].int64_param == 3
    assert read.parameters["binary_data_output"].bool_param is True


def test_a_grpc_reply_of_others_is_read():
    service_pb2 = pytest.importorskip("tritonclient.grpc", reason="needs the test extra").service_pb2
    rows = rng.normal(size=(3, 5)).astype("<f4")
    reply = service_pb2.ModelInferResponse(model_name="lung")
    reply.parameters["mode"].string_param = "batch"
    reply.outputs.add(name="class_name", datatype="BYTES", shape=[2])
    reply.outputs.add(name="probabilities", datatype="FP32", shape=rows.shape)
    reply.raw_output_contents.extend([b"\x02\0\0\0ok\0\0\0\0", rows.tobytes()])
    outputs, parameters = read_grpc(Answer("OK", reply.SerializeToString()))
    assert outputs["class_name"] == [b"ok", b""]
    assert np.array_equal(outputs["probabilities"], rows)
    assert parameters == {"mode": "batch"}
    with pytest.raises(ValueError, match="not a ModelInferResponse"):
        read_grpc(Answer("OK", b"\xff\xff\xff"))


def test_an_http_request_is_json_and_then_the_bytes():
    raw = b"".join(bytes_element(each) for each in (b"abc", b""))
    body, length = http_request(Input("image", "BYTES", (2,), raw), {"mode": "frozen"}, ("label",))
    assert json.loads(body[:length]) == {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}}],
        "parameters": {"binary_data_output": True, "mode": "frozen"},
        "outputs": [{"name": "label"}],
    }
    assert body[length:] == b"\x03\0\0\0abc\0\0\0\0"


def test_an_http_reply_may_mix_json_and_bytes():
    rows = rng.normal(size=(2, 3)).astype("<f4")
    header = json.dumps(
        {
            "outputs": [
                {"name": "margin", "datatype": "FP32", "shape": [2], "data": [0.5, 0.25]},
                {"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}},
                {"name": "text_label", "datatype": "BYTES", "shape": [1], "data": ["a"]},
                {"name": "p", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": rows.nbytes}},
            ],
            "parameters": {"mode": "frozen"},
        }
    ).encode()
    body = header + b"\x03\0\0\0abc" + rows.tobytes()
    outputs, parameters = read_http(Answer("200", body, len(header)))
    assert outputs["margin"].tolist() == [0.5, 0.25]
    assert (outputs["label"], outputs["text_label"]) == ([b"abc"], [b"a"])
    assert np.array_equal(outputs["p"], rows)
    assert parameters == {"mode": "frozen"}


def test_payloads_of_several_pictures_are_one_tensor():
    files = Payloads.of("files", [b"a", b"bcd"]).of_query([1, 0])
    assert (files.name, files.datatype, files.shape, files.raw) == (
        "image",
        "BYTES",
        (2,),
        b"\x03\0\0\0bcd\x01\0\0\0a",
    )
    drawn = rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    pixels = Payloads.of("pixels", list(drawn)).of_query([2, 2, 1])
    assert (pixels.name, pixels.shape, pixels.raw) == ("pixels", (3, 4, 5, 3), drawn[[2, 2, 1]].tobytes())
    rows = rng.normal(size=(4, 7))
    features = Payloads.of("features", list(rows)).of_query([3])
    assert (features.name, features.datatype, features.shape) == ("features", "FP32", (1, 7))
    assert features.raw == rows[3].astype("<f4").tobytes()
