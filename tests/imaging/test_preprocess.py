"""Preprocessing equals open_clip's validation transform, and stays small on strange shapes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from kpl_engine.errors import ConfigError, ImageError
from kpl_engine.imaging.preprocess import Preprocess
from kpl_engine.imaging.resample import resample_window

MANIFEST = {
    "resize": "shortest",
    "height": 224,
    "width": 224,
    "interpolation": "bicubic",
    "fill": 0,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


def reference(open_clip, geometry, picture):
    """open_clip's transform up to the scaling to 0..1, as levels."""
    config = open_clip.transform.PreprocessCfg(
        size=(geometry.height, geometry.width),
        resize_mode=geometry.resize,
        interpolation=geometry.interpolation,
        fill_color=geometry.fill,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    return np.rint(transform(picture).numpy().transpose(1, 2, 0) * 255).astype(np.uint8)


@pytest.mark.torch
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (32, 32), (48, 80), (65, 33)])
def test_equals_open_clip(open_clip, resize, interpolation, size):
    rng = np.random.default_rng(sum(size) + len(resize) + len(interpolation))
    fill = int(rng.integers(0, 256))
    geometry = Preprocess(resize=resize, height=size[0], width=size[1], interpolation=interpolation, fill=fill)
    for trial in range(16):
        h, w = (int(v) for v in np.exp(rng.uniform(np.log(4), np.log(400), 2)))
        rgb = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        picture = Image.fromarray(rgb)
        if trial % 4 == 0:
            picture = picture.convert("L")
            rgb = np.asarray(picture.convert("RGB"))
        expected = reference(open_clip, geometry, picture)
        np.testing.assert_array_equal(geometry.apply(rgb), expected, err_msg=f"{h} x {w}")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_window_equals_pillow(interpolation):
    rng = np.random.default_rng(5)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    for _ in range(200):
        h, w = (int(v) for v in np.exp(rng.uniform(0, np.log(100), 2)))
        out_h, out_w = int(h * rng.uniform(1, 6)), int(w * rng.uniform(1, 6))
        rgb = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        top, left = int(rng.integers(0, out_h)), int(rng.integers(0, out_w))
        height, width = int(rng.integers(1, out_h - top + 1)), int(rng.integers(1, out_w - left + 1))
        whole = np.asarray(Image.fromarray(rgb).resize((out_w, out_h), filters[interpolation]))
        got = resample_window(rgb, (out_h, out_w), top, left, height, width, interpolation)
        np.testing.assert_array_equal(got, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("shape", [(1, 10_000), (10_000, 1), (2, 40_000), (40_000, 4)])
def test_extreme_aspect_is_exact_and_small(shape):
    rgb = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    tracemalloc.start()
    try:
        got = Preprocess().apply(rgb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20
    # The middle of the picture, resized alone: far from its ends the filter sees the same pixels.
    long = max(shape)
    middle = slice(long // 2 - 64, long // 2 + 64)
    part = rgb[:, middle] if shape[1] == long else rgb[middle]
    np.testing.assert_array_equal(got, Preprocess().apply(np.ascontiguousarray(part)))


def test_extreme_aspect_past_the_limit_is_a_clear_error():
    with pytest.raises(ImageError, match="aspect ratio is too extreme"):
        Preprocess(resize="squash").apply(np.zeros((2_000_000, 1, 3), dtype=np.uint8))


def test_longest_keeps_one_pixel_and_fills_the_rest():
    rgb = np.full((1, 10_000, 3), 200, dtype=np.uint8)
    got = Preprocess(resize="longest", height=32, width=32, fill=7).apply(rgb)
    assert sorted(np.unique(got).tolist()) == [7, 200]
    assert (got == 200).all(axis=(1, 2)).sum() == 1


def test_same_size_changes_nothing_and_input_is_not_touched():
    rgb = np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    before = rgb.copy()
    np.testing.assert_array_equal(Preprocess().apply(rgb), before)
    np.testing.assert_array_equal(rgb, before)


def test_one_pixel_fills_the_input():
    got = Preprocess().apply(np.array([[[9, 80, 200]]], dtype=np.uint8))
    assert got.shape == (224, 224, 3)
    assert (got == [9, 80, 200]).all()


def test_from_manifest_reads_every_field():
    geometry = Preprocess.from_manifest({**MANIFEST, "resize": "longest", "height": 20, "width": 30, "fill": 9})
    assert (geometry.resize, geometry.height, geometry.width, geometry.fill) == ("longest", 20, 30, 9)
    assert geometry.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resize", "nearest"),
        ("interpolation", "random"),
        ("height", 0),
        ("width", 224.0),
        ("width", True),
        ("height", 10**9),
        ("fill", 256),
        ("mean", [0.5]),
        ("std", [0.5, 0.0, 0.5]),
        ("mean", ["a", "b", "c"]),
        ("std", [float("nan")] * 3),
        ("resize", None),
    ],
)
def test_from_manifest_refuses_nonsense(key, value):
    with pytest.raises(ConfigError, match=key):
        Preprocess.from_manifest({**MANIFEST, key: value})


@pytest.mark.parametrize("key", sorted(MANIFEST))
def test_from_manifest_names_what_is_missing(key):
    with pytest.raises(ConfigError, match=f"missing {key}"):
        Preprocess.from_manifest({name: value for name, value in MANIFEST.items() if name != key})
