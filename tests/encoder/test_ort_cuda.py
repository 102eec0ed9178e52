"""ONNX Runtime on a GPU: what it is told, that numbers go through device memory right, that it never runs elsewhere.

No GPU is needed: `doubles.py` stands in for it, and the genuine onnxruntime computes on the CPU through the same
I/O binding. tests/gpu repeats the numbers on a GPU.
"""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from kpl_engine.config import EncoderConfig
from kpl_engine.encoder.base import Encoder
from kpl_engine.encoder.ort import OrtEncoder
from kpl_engine.encoder.ort_cuda import OrtCudaEncoder
from kpl_engine.errors import EncoderError, InputError

from .doubles import CPU, CUDA, NewerSession, RecordingBinding, expected_images, of_kind, pictures, view

# The same graph on the same processor; batches of another size may sum in another order.
TOLERANCE = 2e-6


def assert_rows(rows, bundle, pixels):
    np.testing.assert_allclose(rows, expected_images(bundle, pixels), rtol=0, atol=TOLERANCE)


def test_the_double_has_the_surface_of_the_genuine_one():
    for double, genuine in ((NewerSession, onnxruntime.InferenceSession), (RecordingBinding, onnxruntime.IOBinding)):
        for name, method in vars(double).items() | vars(double.__base__).items():
            if not callable(method) or name.startswith("__") or name in vars(object):
                continue
            ours, theirs = inspect.signature(method), inspect.signature(getattr(genuine, name))
            assert list(ours.parameters) == list(theirs.parameters), f"{genuine.__name__}.{name}"
            for key, parameter in ours.parameters.items():
                assert parameter.default == theirs.parameters[key].default, f"{genuine.__name__}.{name}({key})"
    wanted = list(inspect.signature(NewerSession.__init__).parameters)
    assert list(inspect.signature(onnxruntime.InferenceSession.__init__).parameters) == wanted


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("use_cuda_graph", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 17])
def test_rows_equal_those_of_the_cpu_encoder(make_bundle, log, context, n, batch_size, use_cuda_graph):
    bundle, pixels = make_bundle(), pictures(n, seed=n)
    config = EncoderConfig(batch_size=batch_size, use_cuda_graph=use_cuda_graph)
    with OrtCudaEncoder(bundle, context, config) as encoder:
        assert isinstance(encoder, Encoder)
        assert encoder.providers == (CUDA, CPU)
        np.testing.assert_allclose(
            encoder.encode_images(pixels), expected_images(bundle, pixels), rtol=0, atol=TOLERANCE
        )
        for given in (pixels, context.upload(pixels)):
            rows = encoder.encode_on_device(given)
            assert (rows.shape, rows.dtype) == ((n, 5), np.float32)
            assert_rows(context.download(rows), bundle, pixels)
        encoder.check_encoded()
    assert of_kind(log, "run") == []  # never over the host


def test_no_pictures(make_bundle, log, context):
    encoder = OrtCudaEncoder(make_bundle(), context)
    assert encoder.encode_images(pictures(0)).shape == (0, 5)
    assert encoder.encode_on_device(pictures(0)).shape == (0, 5)
    encoder.check_encoded()


def test_what_the_session_is_told(make_bundle, log, context):
    OrtCudaEncoder(make_bundle(), context)
    ((providers, (options,), settings, kwargs),) = of_kind(log, "session")
    assert providers == (CUDA,)  # with the CPU's provider named too, the session would not refuse it
    assert options == {
        "device_id": "1",
        "user_compute_stream": str(0x1234),
        "use_tf32": "0",
        "enable_cuda_graph": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    assert settings == {"session.record_ep_graph_assignment_info": "1"}
    assert kwargs == {"enable_fallback": 0}
    assert ("disable_fallback",) in log


def test_options_of_the_config(make_bundle, log, context):
    config = EncoderConfig(use_tf32=True, use_cuda_graph=True, gpu_memory_bytes=1 << 30)
    plain = OrtCudaEncoder(make_bundle(), context)
    encoder = OrtCudaEncoder(make_bundle(), context, config)
    encoder.encode_texts(["a"])
    (_, images, texts) = (options for _, (options,), _, _ in of_kind(log, "session"))
    assert (images["use_tf32"], images["enable_cuda_graph"], images["gpu_mem_limit"]) == ("1", "1", "1073741824")
    # Vectors of texts are stored under a fingerprint that knows nothing of the device.
    assert (texts["use_tf32"], texts["enable_cuda_graph"], texts["gpu_mem_limit"]) == ("0", "0", "1073741824")
    assert encoder.fingerprint != plain.fingerprint
    assert encoder.text_fingerprint == plain.text_fingerprint


def test_what_is_bound_and_run(make_bundle, log, context):
    encoder = OrtCudaEncoder(make_bundle(), context, EncoderConfig(batch_size=4))
    encoder.encode_on_device(pictures(11))
    (first, second) = of_kind(log, "bind_input")
    assert first[:5] == ("pixels", "cuda", 1, np.uint8, [4, 8, 6, 3])
    assert second[:5] == ("pixels", "cuda", 1, np.uint8, [3, 8, 6, 3])
    assert first[5] == second[5]
    assert [call[:5] for call in of_kind(log, "bind_output")] == [
        ("features", "cuda", 1, np.float32, [4, 5]),
        ("features", "cuda", 1, np.float32, [3, 5]),
    ]
    assert of_kind(log, "run_with_iobinding") == 3 * [({"disable_synchronize_execution_providers": "1"},)]


def test_cuda_graphs_have_one_bucket_each_and_fixed_addresses(make_bundle, log, context):
    encoder = OrtCudaEncoder(make_bundle(), context, EncoderConfig(batch_size=12, use_cuda_graph=True))
    for n in (1, 2, 3, 4, 5, 8, 9, 12, 3):
        encoder.encode_images(pictures(n))
    ids = [int(options["gpu_graph_id"]) for (options,) in of_kind(log, "run_with_iobinding")]
    assert ids == [1, 2, 4, 4, 8, 8, 12, 12, 4]
    bound = of_kind(log, "bind_input")
    assert [call[4][0] for call in bound] == [1, 2, 4, 8, 12]
    assert len({call[5] for call in bound}) == 1


def test_nothing_waits_for_the_device(make_bundle, log, context):
    """Up to the third batch, where page-locked memory is used again, the host only puts work into the stream."""
    encoder = OrtCudaEncoder(make_bundle(), context, EncoderConfig(batch_size=2))
    pixels = context.upload(pictures(7))
    context.driver.calls.clear()
    encoder.encode_on_device(pixels)
    assert {call[0] for call in context.driver.calls} == {"copy_on", "launch"}
    context.driver.calls.clear()
    encoder.encode_on_device(pictures(4))
    kinds = [call[0] for call in context.driver.calls]
    assert "wait" not in kinds
    assert "synchronize" not in kinds
    encoder.encode_on_device(pictures(4))
    assert [call[0] for call in context.driver.calls].count("wait") == 2
    assert [call for call in context.driver.calls if call[0] == "pinned"] == 2 * [("pinned", (2, 8, 6, 3))]


def test_staging_is_not_written_before_its_copy_is_done(make_bundle, log, context, monkeypatch):
    """With copies done as late as allowed, every picture still arrives."""
    driver, late = context.driver, []
    copy_in = driver.copy_in

    def perform(call):
        copy_in(*call)

    def wait(start, end):
        assert start.is_recorded
        while late:
            perform(late.pop(0))
        return 0.0

    bundle, pixels = make_bundle(), pictures(8)
    encoder = OrtCudaEncoder(bundle, context, EncoderConfig(batch_size=2))
    encoder.encode_images(pixels[:2])
    seen = []
    monkeypatch.setattr(driver, "elapsed_ms", wait)
    monkeypatch.setattr(driver, "copy_in", lambda address, array, stream: late.append((address, array, stream)))
    monkeypatch.setattr(
        encoder._feeder._graph.session,
        "run_with_iobinding",
        lambda binding, options: seen.append([array.copy() for _, array, _ in late]),
    )
    encoder.encode_on_device(pixels)
    assert all(len(arrays) <= 2 for arrays in seen)
    for batch, arrays in enumerate(seen):
        np.testing.assert_array_equal(arrays[-1], pixels[2 * batch : 2 * batch + 2])


def test_rows_that_are_not_unit(make_bundle, log, context):
    encoder = OrtCudaEncoder(make_bundle(spoil="nan"), context, EncoderConfig(batch_size=2))
    pixels = np.full((6, 8, 6, 3), 200, dtype=np.uint8)
    pixels[[3, 5]] = 10
    with pytest.raises(EncoderError, match="images that are not finite unit vectors: 2 of 6, images 3, 5"):
        encoder.encode_images(pixels)
    encoder.encode_on_device(pixels[:2])
    encoder.encode_on_device(pixels)
    with pytest.raises(EncoderError, match="2 of them, the first is image 5 of those since"):
        encoder.check_encoded()
    encoder.encode_on_device(pixels[:3])
    encoder.check_encoded()  # the count starts anew


def test_rows_a_little_off_are_scaled(make_bundle, log, context):
    bundle = make_bundle(spoil="unscaled")
    scale = np.linalg.norm(OrtEncoder(bundle)._images.run(pictures(1), 5))
    encoder = OrtCudaEncoder(bundle, context)
    with pytest.raises(EncoderError, match="length"):
        encoder.encode_images(pictures(1))
    rows = encoder.encode_on_device(pictures(1))
    assert np.linalg.norm(context.download(rows)) == pytest.approx(scale, rel=1e-6)  # left alone: it is no unit vector
    with pytest.raises(EncoderError, match="not finite unit"):
        encoder.check_encoded()


def test_texts_take_the_plain_way(make_bundle, log, context):
    bundle = make_bundle(int32=True)
    encoder = OrtCudaEncoder(bundle, context)
    plain = OrtEncoder(bundle)
    np.testing.assert_array_equal(encoder.encode_texts(["lung", "a b"]), plain.encode_texts(["lung", "a b"]))
    with pytest.raises(InputError, match="no text tower"):
        OrtCudaEncoder(make_bundle(has_text=False), context).encode_texts(["a"])


def test_the_genuine_runtime_through_the_same_binding(make_bundle, context):
    """Everything but the provider's name is what a GPU gets: assignment told, buffers bound, run options set."""

    class OnHost(OrtCudaEncoder):
        _provider, _memory = CPU, "cpu"

        def _options(self, is_image):
            return {}

    bundle, pixels = make_bundle(), pictures(9)
    with OnHost(bundle, context, EncoderConfig(batch_size=4, use_cuda_graph=True)) as encoder:
        assert encoder.providers == (CPU,)
        np.testing.assert_allclose(
            encoder.encode_images(pixels), expected_images(bundle, pixels), rtol=0, atol=TOLERANCE
        )
        rows = view(encoder.encode_on_device(pixels).address, (9, 5), np.float32)
        assert_rows(rows, bundle, pixels)


def test_many_threads_take_turns(make_bundle, log, context):
    bundle = make_bundle()
    encoder = OrtCudaEncoder(bundle, context, EncoderConfig(batch_size=2))

    def work(seed):
        pixels = pictures(5, seed)
        np.testing.assert_allclose(
            encoder.encode_images(pixels), expected_images(bundle, pixels), rtol=0, atol=TOLERANCE
        )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(40)))


def test_a_float16_graph_with_uint8_in_and_float32_out(make_bundle, log, context):
    onnx = pytest.importorskip("onnx", reason="needs the package onnx to make test graphs")
    bundle = make_bundle()
    model = onnx.load(bundle.folder / "image.onnx")
    half_graph(onnx, model)
    onnx.save(model, bundle.folder / "image.onnx")
    got = OrtCudaEncoder(bundle, context).encode_images(pictures(5))
    assert got.dtype == np.float32
    # The product of numbers up to 256 with 11 bits each: 2^-11 a factor and a sum of three.
    np.testing.assert_allclose(got, expected_images(bundle, pictures(5)), rtol=0, atol=2e-3)


def half_graph(onnx, model):
    """The matrix product of `image_graph` in float16, casts at its borders."""
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = list(model.graph.node)
    at = next(index for index, node in enumerate(nodes) if node.op_type == "MatMul")
    half = [
        helper.make_node("Cast", ["shifted"], ["shifted_half"], to=kinds.FLOAT16),
        helper.make_node("MatMul", ["shifted_half", "weights"], ["raw_half"]),
        helper.make_node("Cast", ["raw_half"], ["raw"], to=kinds.FLOAT),
    ]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], *half, *nodes[at + 1 :]])
    for tensor in model.graph.initializer:
        if tensor.name == "weights":
            weights = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, "weights"))
