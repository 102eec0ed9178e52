"""What is wrong with a request is told with its status and the words of the other door; nothing is left behind."""

import grpc
import numpy as np
import pytest

from kpl_engine import errors
from kpl_engine.server import infer, tensors
from kpl_engine.server.grpc.messages import message
from tests.server.grpc.conftest import set_parameter

CODE = grpc.StatusCode


def request_of(name, datatype, shape, raw=None, model="demo", **contents):
    request = message("ModelInferRequest")(model_name=model)
    place = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw is not None:
        request.raw_input_contents.extend(raw)
    for field, values in contents.items():
        getattr(place.contents, field).extend(values)
    return request


ROW = np.full((1, 64), 0.125, dtype=np.float32)
GOOD = {"name": "features", "datatype": "FP32", "shape": [1, 64]}
MALFORMED = {
    "no input": (message("ModelInferRequest")(model_name="demo"), "expected exactly one of image, pixels, features"),
    "another input": (request_of("x", "FP32", [1, 64], [b""]), "expected one of image, pixels, features; got 'x'"),
    "another datatype": (request_of("features", "FP64", [1, 64], [b""]), "expected datatype FP32, got 'FP64'"),
    "FP16": (request_of("features", "FP16", [1, 64], [b"\0" * 128]), "expected datatype FP32, got 'FP16'"),
    "BF16": (request_of("features", "BF16", [1, 64], [b"\0" * 128]), "expected datatype FP32, got 'BF16'"),
    "another rank": (request_of("features", "FP32", [64], [b"\0" * 256]), r"expected shape \[-1, -1\], got \[64\]"),
    "a negative size": (request_of("features", "FP32", [-1, 64], [b""]), "dimensions >= 0"),
    "no rows": (request_of("features", "FP32", [0, 64], [b""]), "at least one picture"),
    "a huge shape": (request_of("features", "FP32", [1, 2**62], [b"\0"]), f"expected {2**64} bytes"),
    "too few bytes": (request_of(**GOOD, raw=[b"\0" * 255]), "expected 256 bytes for FP32"),
    "too many bytes": (request_of(**GOOD, raw=[b"\0" * 257]), "expected 256 bytes for FP32"),
    "raw and contents": (request_of(**GOOD, raw=[ROW.tobytes()], fp32_contents=ROW[0]), "got both"),
    "two raw": (request_of(**GOOD, raw=[ROW.tobytes()] * 2), "raw_input_contents: expected one for each input"),
    "neither": (request_of(**GOOD), "expected 64 elements .* got 0"),
    "contents of another kind": (request_of(**GOOD, int_contents=[1] * 64), "expected fp32_contents for FP32"),
    "contents of another number": (request_of(**GOOD, fp32_contents=[1.0] * 63), "expected 64 elements"),
    "UINT8 over 255": (request_of("pixels", "UINT8", [1, 1, 1, 3], uint_contents=[1, 2, 256]), "UINT8 values, got 256"),
    "not finite": (request_of(**GOOD, raw=[np.full(64, np.nan, np.float32).tobytes()]), "finite"),
    "an element too long": (
        request_of("image", "BYTES", [1], [b"\x05\0\0\0abcd"]),
        "element 0 of 1 says 5 bytes, got 4",
    ),
    "half a length": (request_of("image", "BYTES", [1], [b"\x05\0"]), "4-byte lengths"),
    "bytes left over": (request_of("image", "BYTES", [1], [b"\x01\0\0\0ab"]), "expected 5 bytes .* got 6"),
    "no picture": (request_of("image", "BYTES", [1], bytes_contents=[b"GIF89a"]), "GIF data is damaged"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests(door, name):
    request, expected = MALFORMED[name]
    with pytest.raises(ValueError, match=expected):
        raise ValueError(door.fails(request)[1])
    assert door.fails(request)[0] is CODE.INVALID_ARGUMENT
    assert door.service.inflight_bytes == 0


def test_messages_are_those_of_the_other_door(door):
    """Both doors have them from one place; here one each of its functions is compared to the letter."""
    request = MALFORMED["too few bytes"][0]
    with pytest.raises(errors.RequestError) as caught:
        tensors.from_raw("features", "FP32", (1, 64), bytes(255))
    assert door.fails(request)[1] == str(caught.value)
    with pytest.raises(errors.RequestError) as caught:
        infer.check_inputs([("x", "FP32", (1, 64))], door.settings)
    assert door.fails(MALFORMED["another input"][0])[1] == str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("colour", {"string_param": "red"}, "expected parameters of task, method"),
        ("task", {"string_param": "knee"}, "knee"),
        ("task", {"int64_param": 3}, "expected a text"),
        ("method", {"string_param": "best"}, "method: expected one of zeroshot"),
        ("mode", {"string_param": "online"}, "mode: expected one of batch"),
        ("top_k", {"double_param": 2.0}, "top_k: expected an integer"),
        ("top_k", {"bool_param": True}, "top_k: expected an integer"),
        ("priority", {"uint64_param": 4}, "priority: expected an integer from 0 to 3"),
        ("timeout", {"int64_param": -1}, "timeout: expected an integer from 0"),
        ("timeout", {}, "expected a parameter with a value"),
    ],
)
def test_wrong_parameters(door, features_request, name, value, expected):
    code, text, _ = door.fails(set_parameter(features_request, name, **value))
    assert code is CODE.INVALID_ARGUMENT
    assert expected in text


def test_parameters_of_the_protocol_are_passed_over(door, features_request):
    set_parameter(features_request, "sequence_id", int64_param=5)
    set_parameter(features_request, "triton_enable_empty_final_response", bool_param=True)
    set_parameter(features_request, "priority", uint64_param=1)
    features_request.inputs[0].parameters["binary_data_size"].int64_param = 768  # KServe's client
    assert len(door.infer(features_request).outputs) == 5


def test_other_parameters_of_an_input_are_not(door, features_request):
    features_request.inputs[0].parameters["scale"].double_param = 2
    assert door.fails(features_request)[1] == "features: expected no parameters of an input; got 'scale'"


def test_shared_memory_is_refused(door, features_request):
    features_request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert "shared memory is not served" in door.fails(features_request)[1]
    features_request.inputs[0].parameters.clear()
    features_request.outputs.add(name="label").parameters["shared_memory_region"].string_param = "r"
    assert "shared memory is not served" in door.fails(features_request)[1]


@pytest.mark.parametrize(("model", "version"), [("other", ""), ("demo", "2"), ("../demo", ""), ("", "")])
def test_unknown_models(door, features_request, model, version):
    features_request.model_name, features_request.model_version = model, version
    assert door.fails(features_request)[0] is CODE.NOT_FOUND
    about = message("ModelMetadataRequest")(name=model, version=version)
    for method in ("ModelMetadata", "ModelConfig"):
        assert door.fails(about, method)[0] is CODE.NOT_FOUND


def test_bytes_that_are_no_message_and_methods_that_are_none(door):
    code, text, _ = door.fails(b"\xff\xff\xff")
    assert code is CODE.INVALID_ARGUMENT
    assert "expected a inference.ModelInferRequest" in text
    assert door.fails(b"", "ModelDelete")[0] is CODE.UNIMPLEMENTED
