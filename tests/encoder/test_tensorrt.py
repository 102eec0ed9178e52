"""The TensorRT encoder on a strict double: order of calls, lifetimes, threads, numbers, and every way it can fail.

The double runs plans in ONNX Runtime when its driver gets to them, so the numbers are those of the cast graph; what it
offers is held to the genuine bindings in test_tensorrt_bindings.py. Nothing here has run on a GPU.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kpl_engine.bundle import Bundle
from kpl_engine.config import EncoderConfig
from kpl_engine.encoder.base import Encoder
from kpl_engine.encoder.ort import OrtEncoder
from kpl_engine.encoder.plans import PARITY_FILE
from kpl_engine.encoder.select import load_encoder
from kpl_engine.errors import (
    BackendUnavailableError,
    BundleCorruptError,
    CudaError,
    CudaMemoryError,
    CudaStickyError,
    EncoderError,
    ShapeError,
)

pytest.importorskip("onnx", reason="needs the package onnx to make test graphs")

from ..tensorrt_stubs.bundles import D, Workshop, pictures
from ..tensorrt_stubs.double import assert_freed_in_order
from ..tensorrt_stubs.double_run import WORKSPACE_BYTES
from ..tensorrt_stubs.strict import Wrong

# fp16 products of a tower of three layers: 5e-4 measured on features of size 1
TOLERANCE = 3e-3
# The same cast graph on the same processor; batches of another size may sum in another order
SAME = 2e-3


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A bundle with an fp16 plan for batches up to 8."""
    path = tmp_path_factory.mktemp("plans") / "tiny.kpl"
    Workshop(path).build()
    return path


@pytest.fixture
def shop(built):
    return Workshop(built)


@pytest.fixture
def wanted(built):
    with Bundle.open(built) as bundle, OrtEncoder(bundle) as encoder:
        yield encoder.encode_images


@pytest.mark.parametrize("has_graphs", [True, False])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 8, 9, 21])
def test_rows_equal_the_float32_graph_on_the_host_and_on_the_device(built, wanted, n, has_graphs):
    shop = Workshop(built, has_graphs=has_graphs)
    pixels = pictures(n, seed=n)
    with shop.open() as encoder:
        assert isinstance(encoder, Encoder)
        assert encoder.providers == ("TensorRT 11.4.0.106 fp16",)
        np.testing.assert_allclose(encoder.encode_images(pixels), wanted(pixels), rtol=0, atol=TOLERANCE)
        for given in (pixels, shop.context.upload(pixels)):
            rows = encoder.encode_on_device(given)
            assert (rows.shape, rows.dtype) == ((n, D), np.float32)
            np.testing.assert_allclose(shop.context.download(rows), wanted(pixels), rtol=0, atol=TOLERANCE)
        encoder.check_encoded()
    assert (shop.driver.num_captures > 0) == has_graphs
    assert (shop.driver.num_replays > 0) == has_graphs
    assert_freed_in_order(shop.state)


def test_calls_on_the_device_do_not_wait_and_do_not_overwrite_each_other(shop, wanted):
    with shop.open() as encoder:
        parts = [pictures(5, seed=i) for i in range(4)]
        encoder.encode_images(parts[0])  # the bucket is there: nothing below has to wait for its making
        shop.driver.synchronize()
        rows = [encoder.encode_on_device(part) for part in parts]
        assert shop.driver.queue  # the last call at least is still under way
        for part, row in zip(parts, rows, strict=True):
            np.testing.assert_allclose(shop.context.download(row), wanted(part), rtol=0, atol=TOLERANCE)


def test_one_context_and_one_graph_a_bucket_and_one_workspace_a_profile(shop):
    with shop.open() as encoder:
        for n in (1, 2, 3, 4, 5, 8, 8, 3, 1):
            encoder.encode_images(pictures(n))
        names = shop.state.names()
        assert names.count("ICudaEngine.create_execution_context") == 4  # 1, 2, 4, 8
        assert shop.driver.num_captures == 4
        assert names.count("IExecutionContext.execute_async_v3") == 8  # a warm-up run and a recording for each
        given = [entry for name, entry in shop.state.log if name == "IExecutionContext.set_device_memory"]
        assert len({entry["memory"] for entry in given}) == 2
        assert {entry["size"] for entry in given} == set(WORKSPACE_BYTES[:2])
        shapes = [entry["shape"][0] for name, entry in shop.state.log if name == "IExecutionContext.set_input_shape"]
        assert sorted(shapes) == [1, 2, 4, 8]


def test_the_steps_of_a_context_are_in_tensorrts_order(shop):
    shop.open().close()
    names = [name.split(".")[1] for name in shop.state.names() if name.startswith("IExecutionContext")]
    order = ["set_optimization_profile_async", "set_device_memory", "set_input_shape", "set_tensor_address"]
    assert names[:8] == [*order, "set_tensor_address", "infer_shapes", "execute_async_v3", "execute_async_v3"]


def test_a_padded_batch_gives_the_rows_of_a_full_one(shop):
    pixels = pictures(8)
    with shop.open() as encoder:
        full = encoder.encode_images(pixels)
        np.testing.assert_allclose(encoder.encode_images(pixels[:5]), full[:5], rtol=0, atol=SAME)


def test_batch_size_is_the_smaller_of_configuration_and_plan(shop):
    with shop.open(EncoderConfig(batch_size=3)) as encoder:
        assert encoder.batch_size == 3
    with shop.open(EncoderConfig(batch_size=100)) as encoder:
        assert encoder.batch_size == 8
        assert encoder.encode_images(pictures(30)).shape == (30, D)


def test_threads_take_turns(shop, wanted):
    parts = [pictures(n, seed=n) for n in (1, 3, 8, 5, 2, 8, 1, 4)]
    with shop.open() as encoder, ThreadPoolExecutor(4) as pool:
        for part, rows in zip(parts, pool.map(encoder.encode_images, parts), strict=True):
            np.testing.assert_allclose(rows, wanted(part), rtol=0, atol=TOLERANCE)


def test_fingerprints_follow_what_may_change_a_vector(shop, built):
    with Bundle.open(built) as bundle, OrtEncoder(bundle) as plain, shop.open() as encoder:
        assert encoder.fingerprint == f"{plain.fingerprint}+{encoder.plan.key}"
        assert encoder.text_fingerprint == plain.text_fingerprint
        assert encoder.has_text


def test_texts_come_from_the_bundles_own_graph(shop, built):
    with Bundle.open(built) as bundle, OrtEncoder(bundle) as plain, shop.open() as encoder:
        encoder._bundle = bundle  # the one it was opened from is closed; texts are loaded when first asked for
        texts = ["lung", "a lung"]
        np.testing.assert_array_equal(encoder.encode_texts(texts), plain.encode_texts(texts))


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (8, 6, 3), (2, 8, 6, 1)])
def test_wrong_pictures_are_refused_on_the_host_and_on_the_device(shop, shape):
    with shop.open() as encoder:
        wrong = np.zeros(shape, np.uint8)
        with pytest.raises(ShapeError, match="pixels: expected"):
            encoder.encode_images(wrong)
        with pytest.raises(ShapeError, match="pixels on the device: expected"):
            encoder.encode_on_device(shop.context.upload(wrong))
        with pytest.raises(ShapeError, match="of float32"):
            encoder.encode_on_device(shop.context.upload(pictures(1).astype(np.float32)))


def test_rows_that_are_no_unit_vectors_are_found_on_both_ways(shop):
    with shop.open() as encoder:
        shop.state.faults.add("nan")
        with pytest.raises(EncoderError, match="not finite unit vectors"):
            encoder.encode_images(pictures(3))
        encoder.encode_on_device(pictures(3))
        with pytest.raises(EncoderError, match=r"not finite unit vectors: 1 of them, the first is image 0 "):
            encoder.check_encoded()
        shop.state.faults.clear()
        encoder.encode_on_device(pictures(3))
        encoder.check_encoded()


def test_a_closed_encoder_says_so(shop):
    encoder = shop.open(owns_context=True)
    encoder.close()
    encoder.close()
    assert shop.driver.is_closed
    with pytest.raises(EncoderError, match="is closed"):
        encoder.encode_images(pictures(1))
    with pytest.raises(EncoderError, match="is closed"):
        encoder.encode_on_device(pictures(1))
    assert_freed_in_order(shop.state)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("no runtime", BackendUnavailableError, "did not start"),
        (
            "no engine",
            BackendUnavailableError,
            r"refuses it on this NVIDIA H100 80GB HBM3: The engine plan.*Build it again",
        ),
        ("tensor name", EncoderError, "expected the tensors features FLOAT"),
        ("engine dtype", EncoderError, "got features HALF"),
        ("profiles", EncoderError, "expected 2 profiles, got 1"),
        ("profile batch", EncoderError, r"expected batches \(1, 1, 1\) of profile 0"),
        ("no context", EncoderError, "no execution context; the GPU may have too little free memory .Requested amount"),
        ("refuse profile", EncoderError, "it refuses profile 0|it refuses profile 1"),
        ("refuse shape", EncoderError, "it refuses the shape"),
        ("refuse address", EncoderError, "it refuses an address for 'pixels'"),
        ("infer", EncoderError, "its output is not of shape"),
        ("execute", EncoderError, "TensorRT failed on 8 pictures: Error Code 1"),
        ("other features", EncoderError, "expected features within 1-cos 1e-05 of the float32 graph"),
        ("nan", EncoderError, "not finite unit vectors"),
    ],
)
def test_every_refusal_is_named_and_leaves_nothing_behind(shop, fault, error, words):
    shop.state.faults.add(fault)
    with pytest.raises(error, match=words) as raised:
        shop.open(owns_context=True)
    assert not shop.driver.is_closed  # the caller tries another back end with it
    del raised
    assert_freed_in_order(shop.state)
    shop.state.faults.clear()
    shop.open().close()


def test_too_little_memory_is_the_drivers_error(shop):
    shop.driver.free_bytes = 100
    with pytest.raises(CudaMemoryError):
        shop.open()
    assert_freed_in_order(shop.state)


def test_a_graph_that_cannot_be_recorded_is_said_and_does_without(shop, wanted):
    shop.driver.capture_error = CudaError("cannot record: this layer waits for the host", 900)
    with shop.open() as encoder:
        (notice,) = encoder.notices
        assert "batches of 8 run without a CUDA graph: cannot record" in notice
        np.testing.assert_allclose(encoder.encode_images(pictures(4)), wanted(pictures(4)), rtol=0, atol=TOLERANCE)
    shop.driver.capture_error = CudaStickyError("an illegal address", 700)
    with pytest.raises(CudaStickyError):
        shop.open()
    assert_freed_in_order(shop.state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu": "NVIDIA H200"}, "it was built for GPU NVIDIA H100 80GB HBM3, this is NVIDIA H200"),
        ({"num_multiprocessors": 114}, "multiprocessors 132, this is 114"),
        ({"capability": (9, 1)}, "compute capability 9.0, this is 9.1"),
        ({"version": "10.16.1.11"}, "TensorRT 11.4.0.106, this is 10.16.1.11"),
    ],
)
def test_a_plan_of_another_machine_never_reaches_tensorrt(built, options, words):
    shop = Workshop(built, **options)
    with pytest.raises(BackendUnavailableError, match=words):
        shop.open()
    assert shop.state.names() == []


def test_auto_passes_over_a_plan_that_does_not_fit_and_says_why(built):
    shop = Workshop(built, gpu="NVIDIA H200")

    def open_plan(bundle, context, config, notices):
        from kpl_engine.encoder.tensorrt import TensorRtEncoder

        return TensorRtEncoder(bundle, context, config, notices, library=shop.library, owns_context=True)

    cpu = ["CPUExecutionProvider"]
    with (
        Bundle.open(built) as bundle,
        load_encoder(
            bundle, "auto", available=lambda: cpu, open_context=lambda ordinal: shop.context, open_plan=open_plan
        ) as encoder,
    ):
        assert encoder.providers == ("CPUExecutionProvider",)
        assert "it was built for GPU NVIDIA H100 80GB HBM3, this is NVIDIA H200" in " ".join(encoder.notices)


def test_a_plan_with_other_bytes_never_reaches_tensorrt(built, tmp_path):
    import shutil

    path = tmp_path / "copy.kpl"
    shutil.copytree(built, path)
    (plan,) = (path / "plans").glob("*.plan")
    with Bundle.open(path) as bundle:
        content = bytearray(plan.read_bytes())
        content[-1] ^= 1
        plan.write_bytes(content)
        shop = Workshop(path)
        from kpl_engine.encoder.tensorrt import TensorRtEncoder

        with pytest.raises(BundleCorruptError, match="is damaged"):
            TensorRtEncoder(bundle, shop.context, library=shop.library)
    assert shop.state.names() == []


def test_stored_pictures_of_another_model_are_said(shop, monkeypatch):
    from kpl_engine.encoder import tensorrt

    stored = tensorrt.read_parity
    monkeypatch.setattr(tensorrt, "read_parity", lambda bundle, plan: (stored(bundle, plan)[0], np.ones((6, 3), "f4")))
    with pytest.raises(EncoderError, match="its stored pictures are of another model"):
        shop.open()
    assert_freed_in_order(shop.state)


def test_the_parity_file_holds_made_pictures_and_float32_features(built, wanted):
    with Bundle.open(built) as bundle:
        tensors, metadata = bundle.tensors(PARITY_FILE)
    assert metadata == {"graph": "image-print-4"}
    assert tensors["pixels"].shape == (6, 8, 6, 3)
    np.testing.assert_array_equal(tensors["features"], wanted(tensors["pixels"]))


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_lean"])
def test_without_tensorrt_the_message_says_what_to_install(built, name):
    from kpl_engine.encoder.tensorrt_library import describe, import_tensorrt

    with pytest.raises(BackendUnavailableError, match=r"(?s)TensorRT is not available.*pip install .tensorrt-cu13"):
        import_tensorrt((name,))
    is_there, detail = describe()
    assert not is_there
    assert "tensorrt_lean" in detail
    shop = Workshop(built)
    with Bundle.open(built) as bundle:
        from kpl_engine.encoder.tensorrt import open_plan

        with pytest.raises(BackendUnavailableError, match="TensorRT is not available"):
            open_plan(bundle, shop.context)


@pytest.mark.parametrize(
    ("version", "fits"), [("10.2.9", False), ("10.3.0", True), ("11.4.0.106", True), ("12.0.0", False), ("odd", False)]
)
def test_other_versions_are_refused(monkeypatch, version, fits):
    import sys
    import types

    from kpl_engine.encoder.tensorrt_library import import_tensorrt

    module = types.ModuleType("kpl_test_tensorrt")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "kpl_test_tensorrt", module)
    if fits:
        assert import_tensorrt(("no_such_module", "kpl_test_tensorrt")) is module
    else:
        with pytest.raises(BackendUnavailableError, match=f"version {version}, expected 10.3 to 11.x"):
            import_tensorrt(("kpl_test_tensorrt",))


def test_the_double_finds_wrong_uses(shop):
    """Each of these is a mistake the encoder could make; a double that let them pass would prove nothing."""
    encoder = shop.open()
    engine = encoder._engine
    lane = engine._lanes[8]
    with pytest.raises(Wrong, match="context is not current"):
        lane.context.execute_async_v3(0x1234)
    with shop.driver.current():
        with pytest.raises(Wrong, match="the default stream"):
            lane.context.execute_async_v3(0)
        with pytest.raises(Wrong, match="outside of profile"):
            lane.context.set_input_shape("pixels", (9, 8, 6, 3))
        with pytest.raises(Wrong, match="too little memory"):
            lane.context.set_device_memory(next(iter(engine._workspaces.values())).address, 8)
        with pytest.raises(AttributeError):
            lane.context.no_such_method()
        with pytest.raises(AttributeError):
            lane.context.no_such_property = 1
        fresh = engine._engine.create_execution_context(shop.library.ExecutionContextAllocationStrategy.USER_MANAGED)
        with pytest.raises(Wrong, match="memory before the profile"):
            fresh.set_device_memory(256, 1 << 20)
    del fresh
    graph = lane.graph
    lane.context = None
    graph.launch(None)
    with pytest.raises(Wrong, match="launched after its execution context was destroyed"):
        shop.driver.synchronize()
    shop.driver.queue.clear()
    lane.graph = None
    del lane, engine, graph
    encoder.close()


def test_types_of_layers_are_counted_and_less_than_float32_in_a_float32_plan_is_an_error(shop):
    from dataclasses import replace

    with shop.open() as encoder:
        engine = encoder._engine
        assert engine.count_layers() == {"fp16": 1, "fp32": 1}
        shop.state.faults.add("silent inspector")
        assert engine.count_layers() == {}
        shop.state.faults = {"half layers"}
        assert engine.count_layers() == {"fp16": 1}
        engine.plan = replace(engine.plan, precision="fp32")
        with pytest.raises(EncoderError, match=r"expected layers in fp32, the plan has .'fp16': 1"):
            engine.count_layers()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (json.dumps({"Layers": [{"Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]}]}), {"fp16": 1}),
        (json.dumps({"Layers": [{"Outputs": [{"Format": "Row", "Datatype": "BFloat16"}]}]}), {"bf16": 1}),
        (json.dumps({"Layers": [{"Outputs": [{"Format/Datatype": "Int8 NC/32HW32"}]}]}), {"int8": 1}),
        (json.dumps({"Layers": [{"Outputs": [{"DataType": "Float"}]}, {"Outputs": []}]}), {"fp32": 1}),
        (json.dumps({"Layers": ["names only"]}), {}),
        (json.dumps([1]), {}),
        ("not JSON", {}),
    ],
)
def test_what_the_inspector_says_is_read_in_every_spelling(text, wanted):
    from kpl_engine.encoder.tensorrt_layers import count_types

    assert dict(count_types(text)) == wanted
