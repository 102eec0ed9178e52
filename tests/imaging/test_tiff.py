"""TIFF files that Pillow itself never writes: the right pixels, or a refusal that says which kind it is."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from kpl_engine.errors import ImageError
from kpl_engine.imaging.decode import decode_image

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def tiff(pixels, photometric=BLACK_IS_ZERO, sample_format=UNSIGNED, planar=1, bits=None, data=None):
    """An uncompressed little-endian TIFF of (h, w) or (h, w, 3); ``data`` replaces the stored bytes."""
    height, width = pixels.shape[:2]
    num_samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    planes = [pixels] if planar == 1 else [pixels[:, :, i] for i in range(num_samples)]
    blocks = [data] if data is not None else [np.ascontiguousarray(plane).tobytes() for plane in planes]
    starts = [8 + sum(map(len, blocks[:i])) for i in range(len(blocks))]
    tags = [(256, [width]), (257, [height]), (258, [bits or 8 * pixels.dtype.itemsize] * num_samples), (259, [1])]
    tags += [(262, [photometric]), (273, starts), (277, [num_samples]), (278, [height])]
    tags += [(279, [len(block) for block in blocks]), (284, [planar]), (339, [sample_format] * num_samples)]
    end_of_table = 8 + sum(map(len, blocks)) + 2 + 12 * len(tags) + 4
    table, beyond = struct.pack("<H", len(tags)), b""
    for tag, values in tags:
        raw = struct.pack(f"<{len(values)}I", *values)
        if len(values) == 1:
            table += struct.pack("<HHI", tag, 4, 1) + raw
        else:
            table += struct.pack("<HHII", tag, 4, len(values), end_of_table + len(beyond))
            beyond += raw
    header = b"II*\0" + struct.pack("<I", 8 + sum(map(len, blocks)))
    return header + b"".join(blocks) + table + bytes(4) + beyond


def noise(dtype, shape=(9, 14), high=None, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, high or np.iinfo(dtype).max + 1, shape).astype(dtype)


def levels(values, top):
    return np.repeat(np.rint(values / top * 255.0)[:, :, None], 3, axis=2).astype(np.uint8)


def off_by(data, expected):
    return np.abs(decode_image(data).pixels.astype(int) - expected).max()


def test_the_writer_of_this_test_agrees_with_pillow():
    for pixels, photometric in ((noise(np.uint8), BLACK_IS_ZERO), (noise(np.uint16), BLACK_IS_ZERO)):
        assert off_by(tiff(pixels, photometric), levels(pixels, np.iinfo(pixels.dtype).max)) == 0
    colour = noise(np.uint8, (9, 14, 3))
    np.testing.assert_array_equal(decode_image(tiff(colour, RGB)).pixels, colour)
    np.testing.assert_array_equal(decode_image(tiff(colour, RGB, planar=2)).pixels, colour)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_is_turned_black_on_white(dtype):
    if dtype is np.float32:
        pixels = noise(np.uint16).astype(np.float32) / 65535
        data, top = tiff(pixels, WHITE_IS_ZERO, FLOAT), 1
    else:
        pixels = noise(dtype)
        data, top = tiff(pixels, WHITE_IS_ZERO), np.iinfo(dtype).max
    assert off_by(data, levels(top - pixels.astype(np.float64), top)) <= 1  # halves may round to either side


def test_twelve_bits_fill_the_whole_range():
    values = noise(np.uint16, high=4096)
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, ((pairs[:, 0] & 15) << 4) | (pairs[:, 1] >> 8), pairs[:, 1] & 255], axis=1)
    data = tiff(values, bits=12, data=packed.astype(np.uint8).tobytes())
    assert off_by(data, levels(values, 4095)) <= 1
    assert decode_image(data).notices == ()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (tiff(noise(np.uint8), sample_format=SIGNED), "signed 8-bit"),
        (tiff(noise(np.uint16, (9, 14, 3)), RGB, planar=2), "separate, uncompressed 16-bit"),
        (tiff(noise(np.uint8), photometric=32803), "not supported"),
        (tiff(noise(np.uint16).astype(np.float64), sample_format=FLOAT), "not supported"),
        (tiff(np.full((4, 5), -3, np.int16), sample_format=SIGNED), "0 to 65535"),
    ],
)
def test_kinds_that_would_give_wrong_pixels_are_refused(data, says):
    with pytest.raises(ImageError, match=says) as caught:
        decode_image(data, name="film.tif")
    assert str(caught.value).startswith("film.tif: ")
    assert "damaged" not in str(caught.value)
