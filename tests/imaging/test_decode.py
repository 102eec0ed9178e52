"""Every kind of picture gives the right pixels or a clear error that names it."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from kpl_engine.config import DecodeConfig
from kpl_engine.errors import ImageError
from kpl_engine.imaging.decode import decode_image

LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "PPM": {}, "JPEG2000": {}, "WEBP": {"lossless": True}}


def noise(h=40, w=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def grey_rgb(grey):
    return np.repeat(np.asarray(grey, dtype=np.uint8)[:, :, None], 3, axis=2)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


# Right answers


@pytest.mark.parametrize("name", sorted(LOSSLESS))
def test_lossless_formats(encode, name):
    expected = noise()
    got = decode_image(encode(expected, name, **LOSSLESS[name]))
    np.testing.assert_array_equal(got.pixels, expected)
    assert got.pixels.dtype == np.uint8
    assert got.notices == ()


def test_jpeg_equals_pillow(encode, gradient):
    data = encode(gradient, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(decode_image(data).pixels, expected)
    assert np.abs(expected.astype(int) - gradient).mean() < 8


def test_path_bytes_pil_and_arrays_agree(tmp_path, encode):
    expected = noise()
    path = tmp_path / "picture.dat"  # the suffix says nothing
    path.write_bytes(encode(expected, "PNG"))
    sources = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.fromarray(expected), expected]
    for source in sources:
        np.testing.assert_array_equal(decode_image(source).pixels, expected)
    got = decode_image(path)
    assert got.name == str(path)
    assert got.read_ms > 0
    assert got.decode_ms > 0


def test_grey_array_and_grey_file(encode):
    grey = noise()[:, :, 0]
    np.testing.assert_array_equal(decode_image(grey).pixels, grey_rgb(grey))
    np.testing.assert_array_equal(decode_image(encode(grey, "PNG")).pixels, grey_rgb(grey))


def test_one_pixel(encode):
    got = decode_image(encode(np.array([[[1, 2, 3]]], dtype=np.uint8), "PNG"))
    assert got.pixels.tolist() == [[[1, 2, 3]]]


def test_one_bit(encode):
    bits = np.random.default_rng(0).integers(0, 2, (9, 21)).astype(bool)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(bits), "PNG")).pixels, grey_rgb(bits * 255))


@pytest.mark.parametrize("name", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_keeps_its_range(encode, name):
    values = np.random.default_rng(2).integers(0, 65536, (20, 30)).astype(np.uint16)
    values[0, :3] = [0, 65535, 257 * 100 + 128]
    got = decode_image(encode(values, name))
    np.testing.assert_array_equal(got.pixels, grey_rgb(np.rint(values / 257.0)))
    assert got.notices == ()


def test_big_endian_sixteen_bit(encode):
    values = np.arange(0, 65536, 97, dtype=np.uint16)[:660].reshape(22, 30)
    picture = Image.frombytes("I;16B", (30, 22), values.astype(">u2").tobytes())
    expected = grey_rgb(np.rint(values / 257.0))
    np.testing.assert_array_equal(decode_image(picture).pixels, expected)
    np.testing.assert_array_equal(decode_image(encode(picture, "TIFF")).pixels, expected)


def test_thirty_two_bit_integers(encode):
    values = np.arange(600, dtype=np.int32).reshape(20, 30) * 109
    got = decode_image(encode(values, "TIFF"))
    np.testing.assert_array_equal(got.pixels, grey_rgb(np.rint(values / 257.0)))
    for wrong in (values - 5000, values + 10**6):
        with pytest.raises(ImageError, match="0 to 65535"):
            decode_image(encode(wrong, "TIFF"))


def test_twelve_bit_data_is_pointed_out(encode):
    values = np.random.default_rng(2).integers(0, 4096, (20, 30)).astype(np.uint16)
    (notice,) = decode_image(encode(values, "PNG"), name="ct.png").notices
    assert notice.startswith("ct.png:")
    assert "12-bit" in notice


def test_float_tiff(encode):
    values = np.random.default_rng(2).random((20, 30)).astype(np.float32)
    got = decode_image(encode(values, "TIFF"))
    np.testing.assert_array_equal(got.pixels, grey_rgb(np.rint(values * np.float32(255))))
    with pytest.raises(ImageError, match="from 0 to 1"):
        decode_image(encode(values * 255, "TIFF"))
    values[3, 4] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        decode_image(encode(values, "TIFF"))


def test_sixteen_bit_colour_png_takes_the_high_byte():
    values = np.random.default_rng(4).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode_image(b"\x89PNG\r\n\x1a\n" + chunks).pixels, values >> 8)


def test_palette(encode, gradient):
    picture = Image.fromarray(gradient).quantize(16)
    expected = np.asarray(picture.convert("RGB"))
    for name in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode_image(encode(picture, name)).pixels, expected)


def test_palette_with_transparency(encode, gradient):
    picture = Image.fromarray(gradient).quantize(16)
    expected = np.asarray(picture.convert("RGB"))
    for transparency in (3, bytes([0, 128, 255] + [255] * 13)):
        got = decode_image(encode(picture, "PNG", transparency=transparency))
        np.testing.assert_array_equal(got.pixels, expected)
        assert "transparent" in got.notices[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_said(encode, gradient, mode):
    picture = Image.fromarray(gradient).convert(mode)
    expected = np.asarray(Image.fromarray(gradient).convert(mode[:-1]).convert("RGB"))
    opaque = decode_image(encode(picture, "PNG"))
    np.testing.assert_array_equal(opaque.pixels, expected)
    assert opaque.notices == ()
    picture.putalpha(Image.fromarray(gradient[:, :, 0]))
    got = decode_image(encode(picture, "PNG"))
    np.testing.assert_array_equal(got.pixels, expected)
    assert "transparent" in got.notices[0]


def test_cmyk(encode):
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[:, 8:] = [0, 255, 255, 0]  # red
    picture = Image.frombytes("CMYK", (16, 16), ink.tobytes())
    got = decode_image(encode(picture, "TIFF"))
    assert got.pixels[0, 0].tolist() == [255, 255, 255]
    assert got.pixels[0, 15].tolist() == [255, 0, 0]
    jpeg = decode_image(encode(picture, "JPEG", quality=100)).pixels.astype(int)
    assert np.abs(jpeg[0, 0] - [255, 255, 255]).max() <= 3
    assert np.abs(jpeg[0, 15] - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animated_gives_the_first_frame(encode, name):
    first = np.zeros((24, 24, 3), dtype=np.uint8)
    first[:12] = [255, 0, 0]
    frames = [Image.fromarray(first), *(Image.fromarray(noise(24, 24, seed)) for seed in range(2))]
    options = {"lossless": True} if name == "WEBP" else {}
    got = decode_image(encode(frames[0], name, save_all=True, append_images=frames[1:], **options))
    np.testing.assert_array_equal(got.pixels, first)
    assert "3 frames" in got.notices[0]


def upright(pixels, orientation):
    """The definition of EXIF orientation: where row 0 and column 0 of the stored picture lie."""
    turned = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return turned[::-1] if orientation in (3, 4, 7, 8) else turned


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation(encode, gradient, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(gradient, name, exif=exif.tobytes() if name != "TIFF" else exif, **LOSSLESS[name])
    np.testing.assert_array_equal(decode_image(data).pixels, upright(gradient, orientation))


def test_exif_orientation_of_jpeg_and_of_sixteen_bit(encode, gradient):
    exif = Image.Exif()
    exif[0x0112] = 6
    straight = decode_image(encode(gradient, "JPEG")).pixels
    turned = decode_image(encode(gradient, "JPEG", exif=exif.tobytes())).pixels
    np.testing.assert_array_equal(turned, upright(straight, 6))
    values = np.arange(660, dtype=np.uint16).reshape(22, 30) * 99
    got = decode_image(encode(values, "PNG", exif=exif.tobytes())).pixels
    np.testing.assert_array_equal(got, upright(grey_rgb(np.rint(values / 257.0)), 6))


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"x" * 99]
)
def test_damaged_exif_is_ignored(encode, gradient, block):
    data = encode(gradient, "PNG", exif=b"Exif\0\0" + block)
    np.testing.assert_array_equal(decode_image(data).pixels, gradient)


@pytest.mark.filterwarnings("error")
def test_damaged_exif_in_jpeg_is_no_warning_either(encode, gradient):
    straight = decode_image(encode(gradient, "JPEG")).pixels
    data = encode(gradient, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode_image(data).pixels, straight)


# Clear errors


def fails(source, match, **options):
    with pytest.raises(ImageError, match=match) as caught:
        decode_image(source, DecodeConfig(**options), name="patient.png")
    assert caught.value.source == "patient.png"
    assert str(caught.value).startswith("patient.png: ")


@pytest.mark.parametrize("name", [*sorted(LOSSLESS), "JPEG", "GIF"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated(encode, name, kept):
    data = encode(noise(64, 64), name, **LOSSLESS.get(name, {}))
    fails(data[: int(len(data) * kept)], "damaged or incomplete|not an image")


def test_truncated_stays_an_error_when_the_host_allows_it(encode, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encode(noise(64, 64), "JPEG")
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(fails, data[: len(data) // 2], "damaged") for _ in range(40)]
        for job in jobs:
            job.result()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_corrupt_bytes(encode):
    data = bytearray(encode(noise(64, 64), "PNG"))
    data[200:260] = bytes(60)
    fails(bytes(data), "damaged")


@pytest.mark.parametrize("name", [*sorted(LOSSLESS), "JPEG", "GIF"])
def test_random_damage_never_raises_anything_else(encode, name):
    clean = encode(noise(24, 24), name, **LOSSLESS.get(name, {}))
    rng = np.random.default_rng(8)
    for _ in range(60):
        data = np.frombuffer(clean, np.uint8).copy()
        where = rng.integers(0, min(len(data), 400), 4)
        data[where] = rng.integers(0, 256, 4)
        try:
            pixels = decode_image(data.tobytes(), DecodeConfig(max_pixels=10_000)).pixels
        except ImageError:
            continue
        assert pixels.ndim == 3
        assert pixels.dtype == np.uint8


def test_bomb_is_refused_before_its_pixels():
    fails(bomb(60_000, 60_000), "max_pixels = 50000000")
    fails(bomb(12_000, 9_000), "max_pixels")  # where Pillow itself would only warn
    fails(bomb(11, 10), "max_pixels = 100", max_pixels=100)


def test_empty_text_and_unknown_formats(encode):
    fails(b"", "empty")
    fails(b"this is a text called .png", "not an image in a known format")
    fails(b"RIFF1234WAVE", "not an image in a known format")
    fails(encode(noise(), "ICO"), "not an image in a known format")  # readable by Pillow, not on the list
    fails(encode(noise(), "TGA"), "not an image in a known format")


def test_size_limit(tmp_path, encode):
    path = tmp_path / "big.png"
    path.write_bytes(encode(noise(), "PNG"))
    fails(path, "max_file_bytes = 100", max_file_bytes=100)
    fails(path.read_bytes(), "max_file_bytes = 100", max_file_bytes=100)


def test_paths_that_are_no_files(tmp_path):
    fails(tmp_path, "folder")
    fails(tmp_path / "missing.png", "no such file")
    fails("https://example.org/a.png", "not fetched")
    fails("a\0b", "cannot read")
    fails("x" * 5000, "cannot read")
    os.mkfifo(tmp_path / "pipe")
    fails(tmp_path / "pipe", "not a regular file")


def test_a_kernel_file_that_would_block_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "kmsg.png"
    path.write_bytes(b"x")

    class Waiting(io.FileIO):
        def read(self, *_):
            return None  # what a non-blocking descriptor without data gives

    monkeypatch.setattr("builtins.open", lambda name, *_, **__: Waiting(name))
    fails(path, "not a regular file")


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(b"x")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    fails(path, "Permission denied")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), dtype=np.float32),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((4, 4), dtype=np.uint16),
        np.zeros((1, 4, 4, 3), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.zeros(5, dtype=np.uint8),
    ],
)
def test_wrong_arrays(array):
    fails(array, r"\(h, w, 3\)|no pixels")


def test_wrong_types_and_empty_pil():
    fails(7, "expected a path")
    fails(None, "expected a path")
    fails(Image.new("RGB", (0, 5)), "no pixels")
    fails(Image.new("RGB", (50, 50)), "max_pixels", max_pixels=100)


def test_no_warning_and_no_grey_from_many_threads(encode):
    good = [encode(noise(50, 50, seed), "PNG") for seed in range(4)]
    errors = []

    def work(seed):
        try:
            for _ in range(20):
                np.testing.assert_array_equal(decode_image(good[seed]).pixels, noise(50, 50, seed))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
