"""Which provider runs: by name or an error; auto says what it took."""

from __future__ import annotations

import numpy as np
import pytest

from kpl_engine.encoder import select
from kpl_engine.encoder.select import load_encoder
from kpl_engine.errors import BackendUnavailableError, ConfigError, EncoderError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class StandIn:
    """Takes the place of `OrtEncoder`: starts only what ``works``."""

    works = (CPU,)
    raises = False
    closed = 0

    def __init__(self, bundle, config=None, providers=(), notices=()):
        names = [name if isinstance(name, str) else name[0] for name in providers]
        if self.raises and names[0] not in self.works:
            raise EncoderError(f"cannot start {names[0]}")
        self.asked, self.notices = list(providers), tuple(notices)
        self.providers = tuple(name for name in names if name in self.works)

    def close(self):
        StandIn.closed += 1


@pytest.fixture
def stand_in(monkeypatch):
    def make(works, raises=False):
        monkeypatch.setattr(StandIn, "works", works)
        monkeypatch.setattr(StandIn, "raises", raises)
        monkeypatch.setattr(StandIn, "closed", 0)
        monkeypatch.setattr(select, "OrtEncoder", StandIn)

    return make


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


def test_cuda_device_number(stand_in):
    stand_in((CUDA, CPU))
    assert load_encoder(None, "cuda:3", available=lambda: [CUDA, CPU]).asked == [(CUDA, {"device_id": "3"}), CPU]
    assert load_encoder(None, "cuda", available=lambda: [CUDA, CPU]).asked[0] == (CUDA, {"device_id": "0"})


def test_cuda_by_name_that_silently_does_not_start(stand_in):
    stand_in((CPU,))
    with pytest.raises(BackendUnavailableError, match="did not start"):
        load_encoder(None, "cuda", available=lambda: [CUDA, CPU])
    assert StandIn.closed == 1


@pytest.mark.parametrize("raises", [False, True])
def test_auto_passes_over_what_does_not_start_and_says_so(stand_in, raises):
    stand_in((CPU,), raises)
    encoder = load_encoder(None, available=lambda: [CUDA, CPU])
    assert encoder.providers == (CPU,)
    assert f"runs on {CPU}; passed over {CUDA}" in encoder.notices[0]


def test_auto_prefers_cuda(stand_in):
    stand_in((CUDA, CPU))
    encoder = load_encoder(None, available=lambda: [CPU, "AzureExecutionProvider", CUDA])
    assert encoder.providers == (CUDA, CPU)
    assert encoder.notices == (f"device auto: the encoder runs on {CUDA}",)


def test_auto_without_any_known_provider():
    with pytest.raises(BackendUnavailableError, match="AzureExecutionProvider"):
        load_encoder(None, available=lambda: ["AzureExecutionProvider"])


def test_auto_does_not_hide_a_broken_bundle(make_bundle):
    bundle = make_bundle()
    (bundle.folder / "image.onnx").write_bytes(b"not a graph")
    with pytest.raises(EncoderError, match="cannot load"):
        load_encoder(bundle, available=lambda: [CPU])


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
