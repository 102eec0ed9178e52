"""Which provider runs: by name or an error; auto says what it took."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from kpl_engine.encoder import select
from kpl_engine.encoder.select import load_encoder
from kpl_engine.errors import BackendUnavailableError, ConfigError, CudaError, EncoderError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class StandIn:
    """Takes the place of the encoders: those named in ``broken`` raise."""

    broken: ClassVar[dict[str, str]] = {}

    def __init__(self, name, notices):
        if name in self.broken:
            raise EncoderError(self.broken[name])
        self.providers, self.notices = (name,), tuple(notices)


class Bundle:
    """With a TensorRT plan, of which nothing but its being there is looked at."""

    def __init__(self, has_plan):
        self.manifest = {"encoder": {}, "plans": {"h200": {}}} if has_plan else {"encoder": {}}


@pytest.fixture
def opened(monkeypatch):
    """GPUs opened, and closed, in order; ``broken`` back ends do not start."""
    calls = []

    class Context:
        def __init__(self, ordinal):
            if "GPU" in StandIn.broken:
                raise CudaError(StandIn.broken["GPU"])
            calls.append(f"open {ordinal}")

        def close(self):
            calls.append("close")

    def ort_cuda(bundle, context, config, notices, *, owns_context):
        assert isinstance(context, Context)
        assert owns_context
        return StandIn(CUDA, notices)

    monkeypatch.setattr(StandIn, "broken", {})
    monkeypatch.setattr(select, "OrtCudaEncoder", ort_cuda)
    monkeypatch.setattr(select, "OrtEncoder", lambda bundle, config, providers, notices: StandIn(CPU, notices))
    monkeypatch.setattr(select, "open_context", Context)
    return calls


def load(device="auto", has_plan=False, present=(CUDA, CPU)):
    return load_encoder(
        Bundle(has_plan),
        device,
        available=lambda: list(present),
        open_context=select.open_context,
        open_plan=lambda bundle, context, config, notices: StandIn("TensorRT", notices),
    )


def test_cpu_and_auto_really_run(make_bundle):
    for device in ("cpu", "auto"):
        with load_encoder(make_bundle(), device, available=lambda: [CPU]) as encoder:
            assert encoder.providers == (CPU,)
            assert encoder.encode_images(np.ones((1, 8, 6, 3), dtype=np.uint8)).shape == (1, 5)
            assert len(encoder.notices) == (device == "auto")
    assert "CPUExecutionProvider" in encoder.notices[0]


def test_the_real_list_has_a_cpu(make_bundle):
    assert CPU in select.available_providers()
    assert load_encoder(make_bundle()).providers[-1] == CPU


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_by_name_where_it_is_not(make_bundle, device):
    with pytest.raises(BackendUnavailableError, match=r"CUDAExecutionProvider was asked for.*onnxruntime-gpu"):
        load_encoder(make_bundle(), device, available=lambda: ["AzureExecutionProvider", CPU])


@pytest.mark.parametrize(("device", "ordinal"), [("cuda", 0), ("cuda:3", 3), ("auto", 0)])
def test_the_gpu_asked_for_is_opened_once(opened, device, ordinal):
    assert load(device).providers == (CUDA,)
    assert opened == [f"open {ordinal}"]


def test_a_plan_goes_before_onnx_runtime_and_that_before_the_cpu(opened):
    encoder = load(has_plan=True)
    assert encoder.notices == ("device auto: the encoder runs on TensorRT",)
    assert load("cuda", has_plan=True).providers == ("TensorRT",)
    assert load().notices == (f"device auto: the encoder runs on {CUDA}",)
    assert load("cuda").notices == ()
    assert load("cpu", has_plan=True).providers == (CPU,)


def test_a_plan_needs_no_onnx_runtime_for_the_gpu(opened):
    assert load("cuda", has_plan=True, present=[CPU]).providers == ("TensorRT",)
    assert load(has_plan=True, present=[CPU]).providers == ("TensorRT",)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_what_is_passed_over_is_said(opened, device):
    StandIn.broken["TensorRT"] = "it was built for GPU T4"
    (notice,) = load(device, has_plan=True).notices
    assert notice == f"device {device}: the encoder runs on {CUDA}; passed over TensorRT (it was built for GPU T4)"
    assert opened == ["open 0"]


def test_auto_falls_to_the_cpu_and_says_why(opened):
    StandIn.broken.update({"TensorRT": "it was built for GPU T4", CUDA: "its libraries"})
    (notice,) = load(has_plan=True).notices
    assert notice.startswith(f"device auto: the encoder runs on {CPU}; passed over TensorRT (it was built for GPU T4)")
    assert notice.endswith(f"{CUDA} (its libraries)")
    assert opened == ["open 0", "close"]


def test_auto_without_a_gpu_that_works(opened):
    StandIn.broken["GPU"] = "the driver is too old"
    (notice,) = load().notices
    assert notice == f"device auto: the encoder runs on {CPU}; passed over {CUDA} (the driver is too old)"


def test_auto_opens_no_gpu_that_nothing_would_use(opened):
    assert load(present=[CPU]).notices == (f"device auto: the encoder runs on {CPU}",)
    assert opened == []


def test_by_name_never_falls_back(opened):
    StandIn.broken.update({"TensorRT": "it was built for GPU T4", CUDA: "its libraries"})
    with pytest.raises(EncoderError, match="its libraries"):
        load("cuda")
    with pytest.raises(BackendUnavailableError, match="no encoder started: it was built for GPU T4; its libraries"):
        load("cuda:1", has_plan=True)
    assert opened == ["open 0", "close", "open 1", "close"]
    StandIn.broken["GPU"] = "the driver is too old"
    with pytest.raises(BackendUnavailableError, match="device cuda: the driver is too old"):
        load("cuda", has_plan=True)


def test_auto_without_any_known_provider(make_bundle):
    with pytest.raises(BackendUnavailableError, match="AzureExecutionProvider"):
        load_encoder(make_bundle(), available=lambda: ["AzureExecutionProvider"])


def test_auto_does_not_hide_a_broken_bundle(make_bundle):
    bundle = make_bundle()
    (bundle.folder / "image.onnx").write_bytes(b"not a graph")
    with pytest.raises(EncoderError, match="cannot load"):
        load_encoder(bundle, available=lambda: [CPU])


def test_a_provider_by_name_that_silently_does_not_start(make_bundle, behaviour, log):
    behaviour.providers = [CPU]
    with pytest.raises(BackendUnavailableError, match="did not start"):
        load_encoder(make_bundle(), providers=[CUDA, CPU], available=lambda: [CUDA, CPU])
    behaviour.providers = [CUDA, CPU]
    assert load_encoder(make_bundle(), providers=[CUDA, CPU], available=lambda: [CUDA, CPU]).providers == (CUDA, CPU)


def test_providers_by_name(make_bundle):
    assert load_encoder(make_bundle(), providers=[CPU], available=lambda: [CPU]).notices == ()
    with pytest.raises(BackendUnavailableError, match="TensorrtExecutionProvider"):
        load_encoder(make_bundle(), providers=["TensorrtExecutionProvider", CPU], available=lambda: [CPU])
    with pytest.raises(ConfigError, match="at least one"):
        load_encoder(make_bundle(), providers=[], available=lambda: [CPU])


@pytest.mark.parametrize("device", ["gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "", None, 0])
def test_unknown_device(device):
    with pytest.raises(ConfigError, match="device"):
        load_encoder(None, device, available=lambda: [CPU])


@pytest.mark.parametrize(
    ("absence", "said"), [("no NVIDIA driver: none. Install it", ", and no NVIDIA driver: none."), (None, "")]
)
def test_a_machine_without_a_gpu_is_told_so_besides(monkeypatch, absence, said):
    monkeypatch.setattr("kpl_engine.cuda.select.explain_absence", lambda ordinal: absence)
    with pytest.raises(BackendUnavailableError) as caught:
        load_encoder(Bundle(False), "cuda:1", available=lambda: ["CPUExecutionProvider"])
    assert f"this ONNX Runtime has CPUExecutionProvider{said}" in str(caught.value)
