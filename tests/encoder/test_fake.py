"""The fake encoder keeps every promise of the protocol, so that tests above may rely on it."""

from __future__ import annotations

import numpy as np
import pytest

from kpl_engine.encoder.base import Encoder
from kpl_engine.encoder.fake import FakeEncoder
from kpl_engine.errors import InputError, ShapeError, TextTooLongError

FROZEN_TEXT = [0.4864171, -0.8654435, -0.120025]


def pictures(n, seed=0, size=(32, 32)):
    return np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize(("d", "size"), [(1, (1, 1)), (16, (32, 32)), (7, (5, 40)), (512, (224, 224))])
def test_unit_rows_of_any_size(d, size):
    with FakeEncoder(d, size) as encoder:
        assert isinstance(encoder, Encoder)
        for rows in (encoder.encode_images(pictures(3, size=size)), encoder.encode_texts(["a", "", "b c"])):
            assert rows.shape == (3, d)
            assert rows.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float64), axis=1), 1, rtol=0, atol=1e-6)


def test_deterministic_and_independent_of_the_batch():
    pixels = pictures(9)
    whole = FakeEncoder().encode_images(pixels)
    np.testing.assert_array_equal(whole, np.concatenate([FakeEncoder().encode_images(p[None]) for p in pixels]))
    np.testing.assert_array_equal(FakeEncoder().encode_texts(["a", "b"])[1:], FakeEncoder().encode_texts(["b"]))
    # Frozen numbers: another machine or numpy version must give the same vectors.
    np.testing.assert_allclose(FakeEncoder(3).encode_texts(["lung"])[0], FROZEN_TEXT, rtol=0, atol=1e-6)


def test_content_decides():
    encoder = FakeEncoder()
    first, second = pictures(2)
    near = np.clip(first.astype(int) + 2, 0, 255).astype(np.uint8)
    a, b, c = encoder.encode_images(np.stack([first, near, second]))
    assert a @ b > 0.95 > a @ c
    black = encoder.encode_images(np.zeros((1, 32, 32, 3), dtype=np.uint8))
    assert np.isfinite(black).all()


def test_another_seed_is_another_model():
    assert FakeEncoder(seed=1).fingerprint != FakeEncoder().fingerprint
    assert FakeEncoder(seed=1).text_fingerprint != FakeEncoder().text_fingerprint
    assert (FakeEncoder(seed=1).encode_texts(["a"]) != FakeEncoder().encode_texts(["a"])).any()
    assert (FakeEncoder(seed=1).encode_images(pictures(1)) != FakeEncoder().encode_images(pictures(1))).any()


def test_texts_like_a_real_encoder():
    encoder = FakeEncoder(context_length=3)
    with pytest.raises(TextTooLongError, match=r"texts\[1\].*at most 3 words, got 4"):
        encoder.encode_texts(["a", "a b c d"])
    cut, same = encoder.encode_texts(["a b c d", "a b c"], truncate=True)
    np.testing.assert_array_equal(cut, same)
    with pytest.raises(InputError, match="single one"):
        encoder.encode_texts("a")
    with pytest.raises(InputError, match="no text tower"):
        FakeEncoder(has_text=False).encode_texts(["a"])


def test_wrong_pixels():
    with pytest.raises(ShapeError, match=r"\(n, 32, 32, 3\)"):
        FakeEncoder().encode_images(pictures(1, size=(31, 32)))
    assert FakeEncoder().encode_images(pictures(0)).shape == (0, 16)
