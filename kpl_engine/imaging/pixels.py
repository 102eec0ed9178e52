"""Pillow modes -> upright RGB, without the traps of ``Image.convert``."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from kpl_engine.arrays import UInt8
from kpl_engine.imaging.rejected import Rejected
from kpl_engine.imaging.tiff import is_inverted, largest_value

__all__ = ["scale_grey", "to_rgb"]

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(picture: Image.Image) -> tuple[UInt8, list[str]]:
    """Pixels (h, w, 3) uint8 of a loaded picture, EXIF-upright, and what the user should know."""
    notices: list[str] = []
    turn = _UPRIGHT.get(_orientation(picture))
    upright = picture if turn is None else picture.transpose(turn)
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(upright)  # (h, w) uint16, int32 or float32
        if values.dtype.byteorder not in "=|":
            values = values.astype(values.dtype.newbyteorder("="))
        grey = scale_grey(values, notices, largest_value(picture))
        grey = 255 - grey if is_inverted(picture) else grey
        return np.repeat(grey[:, :, None], 3, axis=2), notices  # (h, w, 3) uint8
    if picture.has_transparency_data:
        # Through RGBA even for palettes: Pillow warns, and needs not, on some direct conversions.
        rgba = np.asarray(upright.convert("RGBA"))  # (h, w, 4) uint8
        if rgba[:, :, 3].min() < 255:
            notices.append("some of it is transparent; the colours behind are used as they are")
        return np.ascontiguousarray(rgba[:, :, :3]), notices
    return np.array(upright.convert("RGB")), notices


def scale_grey(values: npt.NDArray[Any], notices: list[str], largest: int = 65535) -> UInt8:
    """Grey values of more than 8 bits -> (h, w) uint8, linearly over the full range of the type.

    Integers run from 0 to ``largest`` and give ``round(255 * value / largest)``; floats run from 0 to 1.
    Pillow's own conversion clips at 255 instead, which turns most X-rays white.
    """
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise Rejected("some pixels are NaN or infinite; repair or window the picture first")
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise Rejected(f"expected float pixels from 0 to 1, got {low:g} to {high:g}; scale the picture first")
        return np.asarray(np.rint(values * np.float32(255)), dtype=np.uint8)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > largest:
        raise Rejected(
            f"expected grey values from 0 to {largest}, got {low} to {high}; window the picture to 8 bits first"
        )
    if high < 4096 <= largest:
        notices.append(
            f"16-bit grey whose highest value is {high}: it looks like 12-bit data and will be nearly black; "
            "window it first"
        )
    return np.asarray((values.astype(np.int64) * 255 + largest // 2) // largest, dtype=np.uint8)


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation 1..8; 1 for anything absent or odd.

    Read here because Pillow's reader answers damaged EXIF blocks with warnings. TIFF files are
    turned by Pillow while loading.
    """
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return 1
    block = picture.info.get("exif")
    if block is None and isinstance(picture.info.get("Raw profile type exif"), str):
        # ImageMagick's form: a name, a length, then hexadecimal text.
        lines = picture.info["Raw profile type exif"].split("\n")[3:]
        try:
            block = bytes.fromhex("".join(lines))
        except ValueError:
            return 1
    if not isinstance(block, bytes):
        return 1
    try:
        return _find_orientation(block.removeprefix(b"Exif\0\0"))
    except struct.error:
        return 1


def _find_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    (offset,) = struct.unpack_from(order + "I", tiff, 4)
    (num_entries,) = struct.unpack_from(order + "H", tiff, offset)
    for index in range(num_entries):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, offset + 2 + 12 * index)
        if tag == _ORIENTATION_TAG:
            return int(value) if kind == 3 and count == 1 and 1 <= value <= 8 else 1
    return 1
