"""ONNX Runtime on a GPU when something is wrong: providers that do not start, nodes left to the CPU, failing runs."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from kpl_engine.config import EncoderConfig
from kpl_engine.encoder.ort_cuda import OrtCudaEncoder
from kpl_engine.errors import BackendUnavailableError, ConfigError, EncoderError, ShapeError

from .doubles import CPU, CUDA, Behaviour, expected_images, of_kind, pictures

# The same graph on the same processor; batches of another size may sum in another order.
TOLERANCE = 2e-6


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_provider_that_does_not_start(make_bundle, behaviour, log, context, tower):
    encoder = OrtCudaEncoder(make_bundle(), context) if tower == "text" else None
    behaviour.providers = [CPU]
    with pytest.raises(
        BackendUnavailableError,
        match=rf"{tower} graph: {CUDA} did not start.*pip uninstall onnxruntime onnxruntime-gpu.*onnxruntime-gpu",
    ):
        OrtCudaEncoder(make_bundle(), context) if encoder is None else encoder.encode_texts(["a"])


@pytest.mark.parametrize("assigned", [{CPU: ["MatMul", "Shape"], CUDA: ["Cast"]}, {CPU: ["Shape"]}, {}])
def test_nodes_left_to_the_cpu(make_bundle, behaviour, log, context, assigned):
    behaviour.assigned = assigned
    named = "MatMul" if "MatMul" in str(assigned) else "all of them"
    with pytest.raises(BackendUnavailableError, match=f"it left {named} to the CPU"):
        OrtCudaEncoder(make_bundle(), context)


def test_shapes_may_be_computed_on_the_cpu(make_bundle, behaviour, log, context):
    behaviour.assigned = {CPU: ["Shape", "Gather", "Concat"], CUDA: ["MatMul", "Expand"]}
    OrtCudaEncoder(make_bundle(), context)


class TestOlderRuntime:
    """Before 1.24 a session does not tell where its nodes run: it is told to refuse the CPU."""

    @pytest.fixture
    def behaviour(self):
        behaviour = Behaviour()
        behaviour.tells_assignment = False
        return behaviour

    def test_is_told_to_refuse_the_cpu(self, make_bundle, log, context):
        bundle = make_bundle()
        encoder = OrtCudaEncoder(bundle, context)
        ((_, _, settings, _),) = of_kind(log, "session")
        assert settings == {"session.disable_cpu_ep_fallback": "1"}
        np.testing.assert_allclose(
            encoder.encode_images(pictures(3)), expected_images(bundle, pictures(3)), rtol=0, atol=TOLERANCE
        )

    def test_says_what_to_do_when_it_refuses(self, make_bundle, behaviour, log, context):
        behaviour.start_error = Exception(
            "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has "
            "been explicitly disabled by the user."
        )
        with pytest.raises(BackendUnavailableError, match=r"explicitly disabled by the user.*onnxruntime-gpu"):
            OrtCudaEncoder(make_bundle(), context)


def test_the_genuine_runtime_refuses_the_cpu_when_told(make_bundle):
    """The sentence that `OrtCudaEncoder` looks for, from onnxruntime itself: only the CPU can run these nodes here."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    other = [name for name in onnxruntime.get_available_providers() if name not in (CPU, CUDA)][:1]
    if not other:
        pytest.skip("this onnxruntime has the CPU's provider only")
    with pytest.raises(Exception, match="disabled by the user"):
        onnxruntime.InferenceSession(
            str(make_bundle().folder / "image.onnx"), options, providers=other, enable_fallback=0
        )


def test_a_broken_graph_is_not_blamed_on_the_provider(make_bundle, behaviour, log, context):
    bundle = make_bundle()
    (bundle.folder / "image.onnx").write_bytes(b"not a graph")
    with pytest.raises(EncoderError, match=r"cannot load image\.onnx") as caught:
        OrtCudaEncoder(bundle, context)
    assert not isinstance(caught.value, BackendUnavailableError)


def test_a_run_that_fails(make_bundle, behaviour, log, context):
    encoder = OrtCudaEncoder(make_bundle(), context)
    behaviour.run_error = RuntimeError("Failed to allocate memory for requested buffer of size 17")
    with pytest.raises(EncoderError, match=r"failed on 2 pictures.*Failed to allocate.*lower Encod"):
        encoder.encode_images(pictures(2))


@pytest.mark.parametrize("shape", [(2, 8, 6), (2, 6, 8, 3), (2, 8, 6, 4)])
def test_wrong_arrays(make_bundle, log, context, shape):
    encoder = OrtCudaEncoder(make_bundle(), context)
    for given in (context.zeros(shape, np.uint8), np.zeros(shape, np.uint8)):
        with pytest.raises(ShapeError, match=r"expected \(n, 8, 6, 3\) of uint8"):
            encoder.encode_on_device(given)
    with pytest.raises(ShapeError, match="float32"):
        encoder.encode_on_device(context.zeros((2, 8, 6, 3), np.float32))


def test_closing(make_bundle, log, context):
    encoder = OrtCudaEncoder(make_bundle(), context)
    encoder.encode_images(pictures(1))
    encoder.close()
    encoder.close()
    assert not context.driver.is_closed
    for call in (lambda: encoder.encode_images(pictures(1)), lambda: encoder.encode_on_device(pictures(1))):
        with pytest.raises(EncoderError, match="closed"):
            call()
    owner = OrtCudaEncoder(make_bundle(), context, owns_context=True)
    context.driver.stream_error = EncoderError("a sticky error")
    owner.close()
    assert context.driver.is_closed


@pytest.mark.parametrize(
    "options",
    [{"use_tf32": 1}, {"use_cuda_graph": "yes"}, {"gpu_memory_bytes": 0}, {"gpu_memory_bytes": 1e9}],
)
def test_config_is_checked(options):
    with pytest.raises(ConfigError, match=rf"EncoderConfig\.{next(iter(options))}: expected"):
        EncoderConfig(**options)


def test_a_graph_with_float16_at_its_border_is_refused(make_bundle, log, context):
    onnx = pytest.importorskip("onnx", reason="needs the package onnx to make test graphs")
    bundle = make_bundle()
    model = onnx.load(bundle.folder / "image.onnx")
    model.graph.node[-1].output[0] = "full"
    model.graph.node.append(onnx.helper.make_node("Cast", ["full"], ["features"], to=onnx.TensorProto.FLOAT16))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, bundle.folder / "image.onnx")
    with pytest.raises(EncoderError, match=r"tensor\(float\) out, got tensor\(uint8\) and tensor\(float16\)"):
        OrtCudaEncoder(bundle, context)
