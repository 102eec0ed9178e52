"""ONNX Runtime's CUDA provider on a GPU, against the CPU; skipped, with the reason, where it is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kpl_engine.data
from kpl_engine.bundle.reader import Bundle
from kpl_engine.config import EncoderConfig
from kpl_engine.encoder.ort_cuda import OrtCudaEncoder
from kpl_engine.encoder.select import available_providers, load_encoder
from kpl_engine.errors import BackendUnavailableError

CUDA = "CUDAExecutionProvider"
GATE = 1e-6  # 1 - cos of float32 encoders, shared/export.md
TF32_GATE = 1e-4  # 10 bits of each factor instead of 23


def has_provider():
    try:
        return CUDA in available_providers()
    except ImportError:
        return False


@pytest.fixture
def bundle():
    with Bundle.open(Path(kpl_engine.data.__file__).parent / "demo.kpl") as opened:
        yield opened


@pytest.fixture
def need_provider():
    if not has_provider():
        pytest.skip(f"this onnxruntime has no {CUDA}: pip install onnxruntime-gpu")


def pictures(bundle, n):
    image = bundle.manifest["encoder"]["image"]
    return np.random.default_rng(n).integers(0, 256, (n, image["height"], image["width"], 3), dtype=np.uint8)


def one_minus_cos(a, b):
    return float(np.square(a.astype(np.float64) - b).sum(axis=1).max() / 2)


def test_cuda_by_name_without_the_provider_is_refused(bundle):
    if has_provider():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(BackendUnavailableError, match=r"pip install onnxruntime-gpu"):
        load_encoder(bundle, "cuda")


@pytest.mark.parametrize("use_cuda_graph", [False, True])
@pytest.mark.parametrize("n", [1, 5, 19])
def test_rows_equal_those_of_the_cpu(need_provider, context, bundle, n, use_cuda_graph):
    pixels = pictures(bundle, n)
    expected = load_encoder(bundle, "cpu").encode_images(pixels)
    config = EncoderConfig(batch_size=8, use_cuda_graph=use_cuda_graph)
    with OrtCudaEncoder(bundle, context, config) as encoder:
        assert encoder.providers[0] == CUDA
        first = encoder.encode_images(pixels)
        assert one_minus_cos(first, expected) <= GATE
        np.testing.assert_array_equal(encoder.encode_images(pixels), first)
        for given in (pixels, context.upload(pixels)):
            rows = context.download(encoder.encode_on_device(given))
            # Scaled on the device instead of the host: one rounding apart
            np.testing.assert_allclose(rows, first, rtol=2e-7, atol=0)
        encoder.check_encoded()


def test_tf32_is_what_it_is_told(need_provider, context, bundle):
    pixels = pictures(bundle, 4)
    expected = load_encoder(bundle, "cpu").encode_images(pixels)
    with OrtCudaEncoder(bundle, context, EncoderConfig(use_tf32=True)) as encoder:
        assert one_minus_cos(encoder.encode_images(pixels), expected) <= TF32_GATE


def test_texts(need_provider, context, bundle):
    texts = ["a chest x-ray", "effusion", "a nodule in the left lung"]
    with OrtCudaEncoder(bundle, context) as encoder:
        assert one_minus_cos(encoder.encode_texts(texts), load_encoder(bundle, "cpu").encode_texts(texts)) <= GATE


def test_the_arena_keeps_to_its_limit(need_provider, context, bundle):
    with OrtCudaEncoder(bundle, context, EncoderConfig(gpu_memory_bytes=1 << 30)) as encoder:
        encoder.encode_images(pictures(bundle, 3))


def test_auto_says_which_it_took(need_provider, bundle):
    with load_encoder(bundle, "auto") as encoder:
        assert encoder.providers[0] == CUDA
        assert CUDA in encoder.notices[0]
