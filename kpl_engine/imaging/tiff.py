"""What Pillow's TIFF reader gets wrong without a word: polarity, signed bytes, separate 16-bit channels, 12 bits."""

from __future__ import annotations

from typing import Any

from PIL import Image, TiffImagePlugin

from kpl_engine.imaging.rejected import Rejected

__all__ = ["check_tiff", "is_inverted", "largest_value"]

_SAMPLE_FORMAT_SIGNED = 2
_WHITE_IS_ZERO = 0
_SEPARATE = 2


def _tag(picture: TiffImagePlugin.TiffImageFile, number: int, default: int) -> int:
    """The first value of a tag."""
    value: Any = picture.tag_v2.get(number, default)
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else default


def check_tiff(picture: Image.Image) -> None:
    """Raise `Rejected` for a TIFF file that Pillow would decode to other pixels than are in it."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return
    bits = _tag(picture, TiffImagePlugin.BITSPERSAMPLE, 1)
    if bits <= 8 and _tag(picture, TiffImagePlugin.SAMPLEFORMAT, 1) == _SAMPLE_FORMAT_SIGNED:
        raise Rejected("TIFF with signed 8-bit samples is not supported; save it with unsigned samples")
    is_separate = _tag(picture, TiffImagePlugin.PLANAR_CONFIGURATION, 1) == _SEPARATE
    if is_separate and bits > 8 and picture.info.get("compression") == "raw" and len(picture.getbands()) > 1:
        raise Rejected(
            f"TIFF with separate, uncompressed {bits}-bit channels is not supported; "
            "save it with interleaved channels, or compressed"
        )


def is_inverted(picture: Image.Image) -> bool:
    """Whether 0 means white in a picture of more than 8 bits; Pillow mends only 8 bits and fewer."""
    return (
        isinstance(picture, TiffImagePlugin.TiffImageFile)
        and _tag(picture, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == _WHITE_IS_ZERO
    )


def largest_value(picture: Image.Image) -> int:
    """The value of full brightness in a picture of 16-bit integers: 4095 where the file says 12 bits."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return 65535
    return 4095 if _tag(picture, TiffImagePlugin.BITSPERSAMPLE, 16) == 12 else 65535
