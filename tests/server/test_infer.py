"""What an infer request means, for both doors."""

import json
from dataclasses import replace

import numpy as np
import pytest

from kpl_engine.errors import RequestError, ShapeError, TooLargeError
from kpl_engine.server.infer import (
    DEFAULT_OUTPUTS,
    OUTPUTS,
    InferRequest,
    RequestedOutput,
    answer,
    check_inputs,
    check_outputs,
    clean_id,
    parse_parameters,
    parse_query,
    to_classify,
)
from kpl_engine.server.requests import Reply
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.tensors import Tensor

SETTINGS = ServerSettings(max_images=4, max_pixels=1000)


@pytest.fixture(scope="module")
def reply(demo_engine, pictures):
    found = demo_engine.classify(pictures[:3], knowledge="chest")
    return Reply("demo", "1", found, demo_engine.encode(pictures[:3]).features, {"total": 1.23456})


@pytest.mark.parametrize(
    ("inputs", "error", "says"),
    [
        ([], RequestError, "got 0"),
        ([("image", "BYTES", [1]), ("image", "BYTES", [1])], RequestError, "got 2"),
        ([("picture", "BYTES", [1])], RequestError, "expected one of image, pixels, features; got 'picture'"),
        ([("image", "UINT8", [1])], RequestError, "expected datatype BYTES, got 'UINT8'"),
        ([("image", "BYTES", [1, 2])], RequestError, "expected shape [-1] or [-1, 1], got [1, 2]"),
        ([("pixels", "UINT8", [1, 5, 5, 4])], RequestError, "expected shape [-1, -1, -1, 3]"),
        ([("image", "BYTES", [0])], RequestError, "at least one picture"),
        ([("image", "BYTES", [-1])], RequestError, ">= 0"),
        ([("image", "BYTES", [5])], TooLargeError, "at most 4 pictures a request, got 5"),
        ([("pixels", "UINT8", [1, 2**40, 2**40, 3])], TooLargeError, "at most 1000 pixels"),
    ],
)
def test_inputs_are_checked_before_arrays_are_made(inputs, error, says):
    with pytest.raises(error) as caught:
        check_inputs(inputs, SETTINGS)
    assert says in str(caught.value)


def test_parameters_become_arguments():
    given = {
        "task": "chest",
        "method": "kpl",
        "mode": "batch",
        "top_k": 3,
        "prior": "normal=0.8, effusion = 0.2",
        "priority": 1,
        "timeout": 1_500_000,
        "sequence_id": 7,
        "triton_enable_empty_final_response": True,
        "binary_data_output": True,
        "headers": "x",
    }
    assert parse_parameters(given) == {
        "task": "chest",
        "method": "kpl",
        "mode": "batch",
        "top_k": 3,
        "prior": {"normal": 0.8, "effusion": 0.2},
        "priority": 1,
        "timeout_s": 1.5,
    }
    assert parse_parameters({"timeout": 0}) == {"timeout_s": None}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"topk": 3}, "expected parameters of task, method, mode, top_k, prior, priority, timeout; got 'topk'"),
        ({"method": "best"}, "method: expected one of zeroshot"),
        ({"mode": 3}, "mode: expected one of batch"),
        ({"top_k": True}, "top_k: expected an integer"),
        ({"top_k": -1}, "top_k"),
        ({"priority": 4}, "from 0 to 3, got 4"),
        ({"timeout": 1.5}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"task": ""}, "task"),
        ({"task": ["chest"]}, "task"),
        ({"prior": "normal"}, "CLASS=SHARE"),
        ({"prior": "normal=nan"}, "finite"),
        ({"prior": "normal=-1"}, ">= 0"),
        ({"prior": "a=1,a=2"}, "'a' twice"),
        ({"shared_memory_region": "x"}, "shared memory is not served"),
    ],
)
def test_parameters_refused(given, says):
    with pytest.raises(RequestError) as caught:
        parse_parameters(given)
    assert says in str(caught.value)


def test_query_is_typed():
    assert parse_query([("top_k", "3"), ("task", "7"), ("timeout", "x")]) == {"top_k": 3, "task": "7", "timeout": "x"}
    with pytest.raises(RequestError, match="once"):
        parse_query([("task", "a"), ("task", "b")])


def test_ids():
    assert clean_id(None, "", "a b~") == "a b~"
    assert clean_id("x" * 128) == "x" * 128
    for bad in ("x" * 129, "é", "a\n", "\x7f"):
        assert len(clean_id(bad)) == 32
    assert clean_id() != clean_id()


def test_features_must_be_finite():
    rows = np.full((2, 64), np.nan, np.float32)
    with pytest.raises(ShapeError, match="finite"):
        to_classify(InferRequest("m", "", [Tensor("features", "FP32", (2, 64), rows)]), SETTINGS)


def test_all_outputs(reply):
    told = answer(reply, check_outputs((name, {}) for name in OUTPUTS))
    found = reply.classification
    by_name = {each.name: each for each in told.outputs}
    assert list(by_name) == list(OUTPUTS)
    for each in told.outputs:
        assert each.datatype == OUTPUTS[each.name][0]
        assert len(each.shape) == len(OUTPUTS[each.name][1])
    assert by_name["label"].data == [label.encode() for label in found.labels]
    assert by_name["text_label"].data == [label.encode() for label in found.text_labels]
    assert by_name["class_name"].data == [name.encode() for name in found.classes]
    assert by_name["probabilities"].data is found.probabilities
    assert by_name["margin"].data is found.margins
    assert by_name["is_undecided"].data is found.is_undecided
    assert by_name["embedding"].data is reply.features
    first = json.loads(by_name["evidence"].data[0])[0]
    want = found.evidence[0][0]
    assert first == {"description": want.description, "similarity": want.similarity, "is_kept": want.is_kept}
    assert set(told.parameters) == {"task", "method", "method_used", "mode", "warnings", "timings_ms"}
    assert json.loads(told.parameters["timings_ms"]) == {"total": 1.235}
    codes = [each.code for each in found.warnings]
    assert [each["code"] for each in json.loads(told.parameters["warnings"])] == codes
    assert codes  # three pictures are few: the demo must warn


def test_default_outputs(reply):
    assert [each.name for each in answer(reply).outputs] == list(DEFAULT_OUTPUTS)


def test_classification_ranks_classes(reply):
    (top,) = answer(reply, [RequestedOutput("probabilities", 2)]).outputs
    assert (top.datatype, top.shape) == ("BYTES", (3, 2))
    found = reply.classification
    value, index, label = top.data[0].decode().split(":")
    assert label == found.labels[0]
    assert int(index) == found.class_indices[0]
    assert abs(float(value) - found.probabilities[0].max()) <= 5e-7  # six digits are told
    (all_of_them,) = answer(reply, [RequestedOutput("probabilities", 99)]).outputs
    assert all_of_them.shape == (3, len(found.classes))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ([("labels", {})], "expected some of label, probabilities"),
        ([("label", {}), ("label", {})], "twice"),
        ([("label", {"classification": 1})], "of probabilities only"),
        ([("probabilities", {"classification": -1})], "classification"),
        ([("label", {"colour": 1})], "got 'colour'"),
        ([("label", {"shared_memory_region": "x"})], "shared memory"),
    ],
)
def test_outputs_refused(asked, says):
    with pytest.raises(RequestError) as caught:
        check_outputs(asked)
    assert says in str(caught.value)


def test_a_failed_picture_has_an_empty_label(reply):
    found = replace(reply.classification, labels=(None, "a", "b"))
    (label,) = answer(replace(reply, classification=found), [RequestedOutput("label")]).outputs
    assert label.data == [b"", b"a", b"b"]
