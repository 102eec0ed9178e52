"""The ONNX Runtime encoder on small graphs: right numbers, checked outputs, clear failures."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kpl_engine.config import EncoderConfig
from kpl_engine.encoder.base import Encoder
from kpl_engine.encoder.ort import OrtEncoder
from kpl_engine.encoder.tokenize import load_tokenizer
from kpl_engine.errors import EncoderError, InputError, ShapeError, TextTooLongError

# Two programs summing 48 pixels in another order differ by a few float32 roundings.
TOLERANCE = 2e-6


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 6, 3), dtype=np.uint8)


def expected_images(pixels, bundle):
    raw = (pixels.mean(axis=(1, 2), dtype=np.float64) + 1) @ bundle.weights.astype(np.float64)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def test_images_are_the_graphs_unit_rows(make_bundle):
    bundle = make_bundle()
    with OrtEncoder(bundle) as encoder:
        assert isinstance(encoder, Encoder)
        got = encoder.encode_images(pictures(11))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected_images(pictures(11), bundle), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(np.linalg.norm(got.astype(np.float64), axis=1), 1, rtol=0, atol=2e-7)
        assert (encoder.name, encoder.embed_dim, encoder.image_size) == ("tiny", 5, (8, 6))
        assert (encoder.fingerprint, encoder.text_fingerprint) == ("print", "text-print")
        assert encoder.providers == ("CPUExecutionProvider",)
        assert encoder.preprocess.resize == "squash"
        assert encoder.encode_images(pictures(0)).shape == (0, 5)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_batches_change_nothing(make_bundle, batch_size):
    encoder = OrtEncoder(make_bundle(), EncoderConfig(batch_size=batch_size))
    single = np.concatenate([encoder.encode_images(pictures(10)[i : i + 1]) for i in range(10)])
    np.testing.assert_allclose(encoder.encode_images(pictures(10)), single, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(num_threads=1, enable_arena=False, graph_optimization="disable"),
        EncoderConfig(num_threads=2, allow_spinning=True, graph_optimization="basic"),
        EncoderConfig(graph_optimization="extended"),
    ],
)
def test_every_option_gives_the_same_answer(make_bundle, config):
    bundle = make_bundle()
    got = OrtEncoder(bundle, config).encode_images(pictures(4))
    np.testing.assert_allclose(got, expected_images(pictures(4), bundle), rtol=0, atol=TOLERANCE)


def test_options_reach_the_session(make_bundle):
    encoder = OrtEncoder(make_bundle(), EncoderConfig(num_threads=2, enable_arena=False, graph_optimization="basic"))
    options = encoder._images.session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.enable_cpu_mem_arena is False
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize("int32", [False, True])
def test_texts(make_bundle, int32):
    bundle = make_bundle(int32=int32)
    encoder = OrtEncoder(bundle, EncoderConfig(batch_size=2))
    texts = ["lung", "a b", "", "Lung!", "lung ab"]
    ids = load_tokenizer(bundle.read_bytes("tokenizer.json")).encode(texts).ids
    raw = bundle.table.astype(np.float64)[ids].mean(axis=1)
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_texts(texts), expected, rtol=0, atol=TOLERANCE)
    assert encoder.encode_texts([]).shape == (0, 5)


def test_text_tower_is_loaded_when_first_used(make_bundle):
    bundle = make_bundle()
    encoder = OrtEncoder(bundle)
    encoder.encode_images(pictures(1))
    assert "text.onnx" not in bundle.asked
    encoder.encode_texts(["a"])
    encoder.encode_texts(["b"])
    assert bundle.asked.count("text.onnx") == 1


def test_overlong_text(make_bundle):
    encoder = OrtEncoder(make_bundle())
    with pytest.raises(TextTooLongError, match=r"texts\[1\].*at most 12 tokens, got 32"):
        encoder.encode_texts(["a", "b " * 30])
    assert encoder.notices == ()
    cut = encoder.encode_texts(["b " * 30, "c " * 30], truncate=True)
    np.testing.assert_allclose(cut[0], encoder.encode_texts(["b " * 10])[0], rtol=0, atol=TOLERANCE)
    encoder.encode_texts(["d " * 30], truncate=True)
    assert len(encoder.notices) == 1  # said once
    assert "lost their end" in encoder.notices[0]


def test_without_a_text_tower(make_bundle):
    encoder = OrtEncoder(make_bundle(has_text=False))
    assert not encoder.has_text
    assert encoder.text_fingerprint == ""
    with pytest.raises(InputError, match="no text tower"):
        encoder.encode_texts(["a"])


def test_external_weights_are_verified_and_read(make_bundle):
    bundle = make_bundle(external=True)
    got = OrtEncoder(bundle).encode_images(pictures(3))
    np.testing.assert_allclose(got, expected_images(pictures(3), bundle), rtol=0, atol=TOLERANCE)
    assert "image.onnx.data" in bundle.asked


def test_nan_names_the_images(make_bundle):
    encoder = OrtEncoder(make_bundle(spoil="nan"), EncoderConfig(batch_size=2))
    pixels = np.full((5, 8, 6, 3), 200, dtype=np.uint8)
    assert encoder.encode_images(pixels).shape == (5, 5)
    pixels[3] = 10
    with pytest.raises(EncoderError, match=r"not finite unit vectors.*images 3 "):
        encoder.encode_images(pixels)


def test_rows_that_are_not_unit_are_refused(make_bundle):
    with pytest.raises(EncoderError, match=r"length .*, expected 1"):
        OrtEncoder(make_bundle(spoil="unscaled")).encode_images(pictures(2))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 8, 6, 3), dtype=np.float32),
        np.zeros((8, 6, 3), dtype=np.uint8),
        np.zeros((2, 6, 8, 3), dtype=np.uint8),
        np.zeros((2, 8, 6, 4), dtype=np.uint8),
    ],
)
def test_wrong_pixels(make_bundle, pixels):
    with pytest.raises(ShapeError, match=r"expected \(n, 8, 6, 3\)"):
        OrtEncoder(make_bundle()).encode_images(pixels)


def test_pixels_that_are_not_contiguous(make_bundle):
    encoder = OrtEncoder(make_bundle())
    pixels = pictures(4)
    before = pixels.copy()
    np.testing.assert_array_equal(
        encoder.encode_images(pixels[::-1, :, ::-1]), encoder.encode_images(before[::-1, :, ::-1].copy())
    )
    np.testing.assert_array_equal(pixels, before)


def test_a_graph_that_does_not_load(make_bundle):
    bundle = make_bundle()
    (bundle.folder / "image.onnx").write_bytes(b"not a graph")
    with pytest.raises(EncoderError, match=r"tiny: image graph: ONNX Runtime cannot load image\.onnx: .*\w"):
        OrtEncoder(bundle)


@pytest.mark.parametrize("option", [{"input": "image"}, {"output": "vector"}])
def test_names_that_are_not_in_the_graph(make_bundle, option):
    with pytest.raises(EncoderError, match="expected the input"):
        OrtEncoder(make_bundle(**option))


def test_manifest_that_contradicts_itself(make_bundle):
    bundle = make_bundle()
    bundle.manifest["preprocess"]["height"] = 9
    with pytest.raises(EncoderError, match="preprocess makes"):
        OrtEncoder(bundle)
    bundle.manifest["preprocess"]["height"] = 8
    bundle.manifest["encoder"]["embed_dim"] = 6
    with pytest.raises(EncoderError, match=r"expected an output of \(1, 6\), got \(1, 5\)"):
        OrtEncoder(bundle).encode_images(pictures(1))
    bundle.manifest["encoder"]["text"]["context_length"] = 13
    with pytest.raises(EncoderError, match="13 tokens but its tokenizer makes 12"):
        OrtEncoder(bundle).encode_texts(["a"])
    bundle.manifest["encoder"] = None
    with pytest.raises(EncoderError, match="no encoder"):
        OrtEncoder(bundle)


def test_closed(make_bundle):
    encoder = OrtEncoder(make_bundle())
    encoder.close()
    encoder.close()
    for call in (lambda: encoder.encode_images(pictures(1)), lambda: encoder.encode_texts(["a"])):
        with pytest.raises(EncoderError, match="closed"):
            call()


def test_many_threads(make_bundle):
    bundle = make_bundle()
    encoder = OrtEncoder(bundle)

    def work(seed):
        pixels = pictures(5, seed)
        texts = encoder.encode_texts([f"{seed}"])
        np.testing.assert_allclose(
            encoder.encode_images(pixels), expected_images(pixels, bundle), rtol=0, atol=TOLERANCE
        )
        return texts

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(work, range(40)))
    expected = encoder.encode_texts([f"{seed}" for seed in range(40)])
    np.testing.assert_allclose(np.concatenate(got), expected, rtol=0, atol=TOLERANCE)
    assert bundle.asked.count("text.onnx") == 1


def test_nothing_is_printed(make_bundle, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OrtEncoder(make_bundle()).encode_images(pictures(2))
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
