"""Tensors of protocol v2: round trips, and what is refused."""

import json
import struct

import numpy as np
import pytest
import tritonclient.utils as triton
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kpl_engine.errors import RequestError
from kpl_engine.server.tensors import DTYPES, Tensor, from_json, from_raw, split_bytes, to_json, to_raw


@st.composite
def arrays(draw, datatypes=tuple(DTYPES), finite=False):
    datatype = draw(st.sampled_from(datatypes))
    dtype = DTYPES[datatype]
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" and finite else {}
    return datatype, draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **elements)))


@given(arrays())
def test_raw_numbers_come_back(drawn):
    datatype, array = drawn
    found = from_raw("x", datatype, array.shape, to_raw(Tensor("x", datatype, array.shape, array)))
    assert found.data.dtype == array.dtype
    assert found.data.shape == array.shape
    assert found.data.tobytes() == array.tobytes()  # NaN payloads too


@given(arrays(tuple(set(DTYPES) - {"FP16"}), finite=True), st.booleans())
def test_json_numbers_come_back(drawn, is_flat):
    datatype, array = drawn
    if array.size == 0:
        is_flat = True  # [[], []] tells no inner shape
    tensor = Tensor("x", datatype, array.shape, array)
    data = to_json(tensor) if is_flat else array.tolist()
    found = from_json("x", datatype, array.shape, json.dumps(data).encode())
    assert np.array_equal(found.data, array)
    assert found.data.shape == array.shape


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_raw_bytes_come_back_and_are_triton_s(elements):
    raw = to_raw(Tensor("x", "BYTES", (len(elements),), elements))
    assert from_raw("x", "BYTES", [len(elements)], raw).data == elements
    if elements:
        assert raw == triton.serialize_byte_tensor(np.array(elements, object)).item()


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=2, max_size=2), max_size=4))
def test_json_text_comes_back(rows):
    flat = [text.encode() for row in rows for text in row]
    if rows:
        assert from_json("x", "BYTES", [len(rows), 2], json.dumps(rows).encode()).data == flat
    assert (
        from_json("x", "BYTES", [len(rows), 2], json.dumps([text for row in rows for text in row]).encode()).data
        == flat
    )


@given(st.binary(max_size=64), st.integers(0, 6))
def test_hostile_bytes_never_give_other_errors(raw, count):
    try:
        found = split_bytes("x", count, raw)
    except RequestError:
        return
    assert len(found) == count
    assert sum(4 + len(each) for each in found) == len(raw)


def test_numbers_are_a_view():
    raw = np.arange(6, dtype="<f4").tobytes()
    assert np.shares_memory(from_raw("x", "FP32", [2, 3], raw).data, np.frombuffer(raw, np.uint8))


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "says"),
    [
        ("FP32", [2, 3], bytes(23), "expected 24 bytes for FP32 [2, 3], got 23"),
        ("FP32", [2, 3], bytes(25), "got 25"),
        ("FP32", [-1, 3], b"", "dimensions >= 0"),
        ("UINT8", [2**40, 2**40], bytes(4), f"expected {2**80} bytes"),
        ("UINT8", [1] * 9, bytes(1), "at most 8 dimensions"),
        ("BF16", [1], bytes(2), "send FP32 instead"),
        ("FLOAT", [1], bytes(4), "expected a datatype of BOOL"),
        ("BOOL", [2], b"\x01\x02", "expected bytes 0 or 1"),
        ("BYTES", [2**40], b"", f"expected {2**40} BYTES elements"),
        ("BYTES", [1], struct.pack("<I", 5) + b"four", "says 5 bytes, got 4"),
        ("BYTES", [1], struct.pack("<I", 2**32 - 1), "got 0"),
        ("BYTES", [2], struct.pack("<I", 1) + b"aabc", "says 0 bytes, got 0"),
        ("BYTES", [1], struct.pack("<I", 1) + b"ab", "expected 5 bytes for 1 BYTES elements, got 6"),
    ],
)
def test_raw_refusals(datatype, shape, raw, says):
    with pytest.raises(RequestError) as caught:
        from_raw("x", datatype, shape, raw)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "says"),
    [
        ("UINT8", [2], "[1, 256]", "<= 255"),
        ("UINT8", [2], "[1, -1]", ">= 0"),
        ("INT64", [1], str([2**63]), "got"),
        ("UINT64", [1], str([2**64]), "got"),
        ("UINT8", [2], "[1, true]", "got `bool`"),
        ("UINT8", [2], "[1, 0.5]", "got `float`"),
        ("UINT8", [2], '[1, "2"]', "got `str`"),
        ("BOOL", [2], "[true, 1]", "got `int`"),
        ("FP32", [1], "[NaN]", "malformed"),
        ("FP64", [1], "[1e999]", "out of range"),
        ("FP16", [1], "[1.0]", "as binary data"),
        ("FP32", [2, 2], "[[1, 2], [3]]", "got"),
        ("FP32", [2, 2], "[[1, 2, 3, 4]]", "got shape [1, 4]"),
        ("FP32", [2, 2], "[1, 2, 3]", "expected 4 elements"),
        ("FP32", [2, 2, 1], "[[1, 2], [3, 4]]", "nested 3 deep"),
        ("FP32", [2], "[" * 100_000, "deep"),
        ("FP32", [2], "{}", "got `object`"),
        ("FP32", [2], "null", "got `null`"),
        ("BYTES", [2], '["a", 1]', "got `int`"),
        ("BYTES", [2, 2], '[["a", "b", "c"], ["d"]]', "other lengths"),
        ("BYTES", [2], '["a"]', "expected 2 elements"),
    ],
)
def test_json_refusals(datatype, shape, data, says):
    with pytest.raises(RequestError) as caught:
        from_json("x", datatype, shape, data.encode())
    assert says in str(caught.value)
