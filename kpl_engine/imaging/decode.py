"""Encoded picture -> upright RGB pixels, or an `ImageError` that says why not. Safe to call from many threads."""

from __future__ import annotations

import io
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from kpl_engine.arrays import UInt8
from kpl_engine.config import DecodeConfig
from kpl_engine.errors import ImageError, MissingExtraError
from kpl_engine.imaging.dicom import decode_dicom, is_dicom
from kpl_engine.imaging.pixels import to_rgb
from kpl_engine.imaging.rejected import Rejected
from kpl_engine.imaging.tiff import check_tiff

__all__ = ["DecodedImage", "ImageSource", "decode_image", "source_name"]

ImageSource = Path | str | bytes | bytearray | memoryview | Image.Image | npt.NDArray[Any]


class _JpegFile(JpegImagePlugin.JpegImageFile):
    """Reads no EXIF for the resolution nobody asks for: a damaged block would end in a warning, one a process."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


# The allow-list. Pillow's classes are called directly and not through `Image.open(formats=...)`:
# that one compares the size with a process-wide limit by means of warnings, which cannot be
# silenced safely in a thread, and it would pick the multi-picture reader for some JPEG files.
_READERS: tuple[tuple[str, tuple[bytes, ...], Any], ...] = (
    ("JPEG", (b"\xff\xd8\xff",), _JpegFile),
    ("PNG", (b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ("WebP", (b"RIFF",), WebPImagePlugin.WebPImageFile),
    ("GIF", (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ("JPEG 2000", (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"), Jpeg2KImagePlugin.Jpeg2KImageFile),
    ("PPM", (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImagePlugin.PpmImageFile),
    ("BMP", (b"BM",), BmpImagePlugin.BmpImageFile),
)
_FORMATS = ", ".join(name for name, _, _ in _READERS) + ", DICOM"


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One picture: upright RGB ``pixels`` (h, w, 3) uint8, what to tell the user, and the time it took."""

    pixels: UInt8
    name: str
    notices: tuple[str, ...]
    read_ms: float
    decode_ms: float


def decode_image(source: ImageSource, config: DecodeConfig | None = None, name: str = "") -> DecodedImage:
    """Decode one picture to upright RGB.

    Parameters
    ----------
    source : path, bytes, PIL image, or (h, w, 3) or (h, w) uint8 array
        The format is found from the first bytes, never from the suffix. Read, never changed.
    config : DecodeConfig, optional
        Limits, checked before pixels are decoded.
    name : str
        How errors and notices call the picture; by default its path.

    Returns
    -------
    DecodedImage
        ``pixels`` are EXIF-upright; alpha is dropped (as open_clip does), palettes are looked up,
        CMYK is converted by Pillow, 16-bit grey is scaled from 0..65535, the first frame of a
        multi-frame file is taken. Whatever loses something is said in ``notices``.

    Raises
    ------
    ImageError
        The picture cannot be used; ``source`` of the error is the name.
    """
    config = DecodeConfig() if config is None else config
    name = name or source_name(source)
    start = time.perf_counter()
    try:
        data = _read(source, config)
        read = time.perf_counter()
        pixels, notices = _decode(data, config)
    except (Rejected, MissingExtraError) as error:
        raise ImageError(f"{name}: {error}", source=name) from error
    return DecodedImage(
        pixels=pixels,
        name=name,
        notices=tuple(f"{name}: {notice}" for notice in notices),
        read_ms=(read - start) * 1e3,
        decode_ms=(time.perf_counter() - read) * 1e3,
    )


def source_name(source: ImageSource, index: int | None = None) -> str:
    """What to call a picture nobody named: its path, or its type and its place in the call."""
    if isinstance(source, (str, Path)):
        return str(source)
    filename = getattr(source, "filename", "") if isinstance(source, Image.Image) else ""
    if filename:
        return str(filename)
    kind = "array" if isinstance(source, np.ndarray) else type(source).__name__
    return f"<{kind}>" if index is None else f"<{kind} {index}>"


def _read(source: ImageSource, config: DecodeConfig) -> bytes | Image.Image | npt.NDArray[Any]:
    """The bytes of an encoded picture; decoded ones pass through."""
    if isinstance(source, (Image.Image, np.ndarray)):
        return source
    if isinstance(source, (str, Path)):
        return _read_file(source, config.max_file_bytes)
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise Rejected(f"expected a path, bytes, a PIL image or a (h, w, 3) uint8 array, got {type(source).__name__}")
    if len(source) > config.max_file_bytes:
        raise Rejected(_too_large(len(source), config.max_file_bytes))
    return bytes(source)


def _read_file(path: str | Path, max_bytes: int) -> bytes:
    try:
        # Without O_NONBLOCK a named pipe would block here for ever.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Rejected("not a regular file; give the path of an image file")
            if status.st_size > max_bytes:
                raise Rejected(_too_large(status.st_size, max_bytes))
            data = file.read(max_bytes + 1)
            if data is None:  # a file of the kernel that would make the reader wait
                raise Rejected("not a regular file; give the path of an image file")
    except IsADirectoryError:
        raise Rejected("this is a folder; give image files, or the folder to a command that lists it") from None
    except FileNotFoundError:
        raise Rejected("no such file; check the path (addresses on the network are not fetched)") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Rejected(f"cannot read the file: {reason}") from None
    if len(data) > max_bytes:
        raise Rejected(_too_large(len(data), max_bytes))
    return data


def _too_large(num_bytes: int, max_bytes: int) -> str:
    return f"the file has {num_bytes} bytes, more than max_file_bytes = {max_bytes}; raise that limit if it is genuine"


def _decode(data: bytes | Image.Image | npt.NDArray[Any], config: DecodeConfig) -> tuple[UInt8, list[str]]:
    if isinstance(data, np.ndarray):
        return _from_array(data, config.max_pixels), []
    if isinstance(data, Image.Image):
        with _as_rejection("picture"):
            return _load(data, config.max_pixels)
    if not data:
        raise Rejected("the file is empty (0 bytes); copy it again")
    if is_dicom(data):
        return decode_dicom(data, config.max_pixels)
    label, reader = _find_reader(data)
    with _as_rejection(label), io.BytesIO(data) as file, reader(file, "") as picture:
        return _load(picture, config.max_pixels)


def _find_reader(data: bytes) -> tuple[str, Any]:
    for label, magics, reader in _READERS:
        if data.startswith(magics) and (label != "WebP" or data[8:12] == b"WEBP"):
            return label, reader
    head = data[:8].hex(" ")
    raise Rejected(f"not an image in a known format (first bytes {head}); expected one of {_FORMATS}")


def _load(picture: Image.Image, max_pixels: int) -> tuple[UInt8, list[str]]:
    width, height = picture.size
    if width < 1 or height < 1:
        raise Rejected(f"the picture has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise Rejected(
            f"{width} x {height} = {width * height} pixels, more than max_pixels = {max_pixels}; "
            "raise that limit if the picture is genuine"
        )
    check_tiff(picture)
    notices = []
    num_frames = getattr(picture, "n_frames", 1)
    if num_frames > 1:
        shown = picture.tell() + 1
        notices.append(f"{num_frames} frames; only frame {shown} is used")
    with _strict_loading():
        picture.load()
    pixels, more = to_rgb(picture)
    return pixels, notices + more


def _from_array(array: npt.NDArray[Any], max_pixels: int) -> UInt8:
    is_grey = array.ndim == 2
    if array.dtype != np.uint8 or not (is_grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise Rejected(
            f"expected an array (h, w, 3) or (h, w) of uint8, got {array.shape} {array.dtype}; scale to 0..255 first"
        )
    if array.size == 0:
        raise Rejected(f"the array has no pixels, shape {array.shape}")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise Rejected(f"{array.shape[1]} x {array.shape[0]} pixels, more than max_pixels = {max_pixels}")
    rgb = np.repeat(array[:, :, None], 3, axis=2) if is_grey else array  # (h, w, 3) uint8
    return np.ascontiguousarray(rgb)


@contextmanager
def _as_rejection(label: str) -> Iterator[None]:
    """Any failure inside a decoder is a fault of that file: damaged input raises nearly every type there is."""
    try:
        yield
    except Rejected:
        raise
    except MemoryError:
        raise Rejected("not enough memory to decode it; make the picture smaller") from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        if reason == "unknown pixel mode":  # Pillow's words for a TIFF that is whole, but of a kind it does not read
            raise Rejected(
                f"this kind of {label} (bits, sample format or colour space) is not supported; "
                "save it as 8- or 16-bit grey or RGB"
            ) from error
        raise Rejected(f"the {label} data is damaged or incomplete ({reason}); copy or save the file again") from error


class _StrictState:
    lock = threading.Lock()
    depth = 0
    saved = False


@contextmanager
def _strict_loading() -> Iterator[None]:
    """Truncated files raise in here, even where the host program asked Pillow to fill them with grey.

    The switch is one per process; it is put back when the last of our threads leaves.
    """
    with _StrictState.lock:
        if _StrictState.depth == 0:
            _StrictState.saved = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _StrictState.depth += 1
    try:
        yield
    finally:
        with _StrictState.lock:
            _StrictState.depth -= 1
            if _StrictState.depth == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _StrictState.saved
