"""Launches ``kernels/preprocess.cu``: pictures of any size to model input, with the bits of the CPU path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.cuda.base import DeviceInfo, Launch
from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.errors import CudaError, ShapeError
from kpl_engine.imaging.preprocess import Plan, Preprocess

__all__ = ["PICTURE", "Picture", "launch_preprocess", "upload_images"]

_BLOCKS = (256, 128)  # threads; fewer where the shared memory of a block is small
_STRIP = 32  # kStrip of kernels/device/resample_rows.cuh
_STAGE = 2 * 4 * 608 + 3 * 48 * 16  # kStageBytes of each warp
_ALONG_ROWS = 64 * 3 * _STRIP * 4  # kGroups results of four rows
_ROW = 3 * _STRIP * 4  # sums of an output row
_BANDS = (
    56,
    28,
    14,
    8,
)  # output rows of a block; fewer repeat more rows where bands overlap, more keep fewer blocks busy
_ALIGNMENT = 16  # of a picture in the common upload: what one lane copies at once
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}

PICTURE = np.dtype(
    [("pixels", "<u8")]
    + [(name, "<i8") for name in ("height", "width", "row_stride", "channels", "resized_height", "resized_width")]
    + [(name, "<i8") for name in ("top", "left", "rows", "columns", "y", "x", "height_first")]
    + [(name, "<i8") for name in ("row_words", "column_words", "row_table", "column_table")]
)
"""``kpl::resample::Picture`` of kernels/device/resample.cuh."""


@dataclass(frozen=True)
class Picture:
    """One picture in device memory.

    Attributes
    ----------
    address : int
        Of the first pixel. The memory must be readable from the multiple of 16 below it to the next one behind the
        last pixel.
    row_stride : int
        Bytes from one row to the next.
    channels : int
        1 (grey), 3 (RGB) or 4 (the last is ignored).
    owner : object
        Keeps the memory alive.
    """

    address: int
    height: int
    width: int
    row_stride: int
    channels: int
    owner: Any = field(default=None, repr=False)


def upload_images(context: Context, images: Sequence[npt.NDArray[np.uint8]]) -> list[Picture]:
    """Pictures (h, w) or (h, w, channels) uint8 of any sizes, in one copy from pinned memory."""
    for image in images:
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or min(image.shape) < 1:
            raise ShapeError(f"images: expected (h, w) or (h, w, channels) of uint8, got {image.shape} {image.dtype}")
    starts = np.cumsum([0, *(-(-image.nbytes // _ALIGNMENT) * _ALIGNMENT for image in images)])
    staged = context.driver.pinned((max(int(starts[-1]), _ALIGNMENT),), np.uint8)
    for image, start in zip(images, starts, strict=False):
        staged[start : start + image.nbytes] = image.reshape(-1)
    pixels = context.empty(staged.shape, np.uint8)
    context.driver.copy_in(pixels.address, staged, context.stream)
    owner = pixels, staged  # the copy may still be under way
    return [
        Picture(pixels.address + int(start), len(image), image.shape[1], image[0].nbytes, _channels(image), owner)
        for image, start in zip(images, starts, strict=False)
    ]


def launch_preprocess(context: Context, pictures: Sequence[Picture], preprocess: Preprocess) -> DeviceArray:
    """Put the transform of all pictures into the stream.

    Returns
    -------
    DeviceArray
        (n, height, width, 3) uint8, the bits of `Preprocess.apply` of each picture.

    Raises
    ------
    ShapeError
        A picture without pixels, of other than 1, 3 or 4 channels, or with rows that overlap.
    ImageError
        Where `Preprocess.apply` raises it.
    """
    out = context.empty((len(pictures), preprocess.height, preprocess.width, 3), np.uint8)
    if not pictures:
        return out
    entries, table_ints = _describe(pictures, preprocess)
    described, tables = context.upload(entries), context.empty((table_ints,), np.int32)
    is_cubic = preprocess.plan(pictures[0].height, pictures[0].width).interpolation == "bicubic"
    weights = context.kernel("preprocess", "resample_weights")
    context.launch(weights, Launch(2 * len(pictures), _BLOCKS[0]), described, tables, np.int32(is_cubic))
    launch, band = _shape(context.driver.info, len(pictures) * -(-preprocess.width // _STRIP), preprocess.height)
    context.launch(
        context.kernel("preprocess", "preprocess"),
        launch,
        described,
        tables,
        out,
        np.int32(preprocess.height),
        np.int32(preprocess.width),
        np.int32(band),
        np.int32(preprocess.canvas_fill),
    )
    return out


def _describe(pictures: Sequence[Picture], preprocess: Preprocess) -> tuple[npt.NDArray[Any], int]:
    """Entries of `PICTURE`, and how many ints their tables take."""
    entries, table_ints = np.zeros(len(pictures), PICTURE), 0
    for entry, picture in zip(entries, pictures, strict=True):
        _check(picture)
        plan = preprocess.plan(picture.height, picture.width)
        for name in ("height", "width", "row_stride", "channels"):
            entry[name] = getattr(picture, name)
        entry["pixels"] = picture.address
        entry["resized_height"], entry["resized_width"] = plan.size
        entry["top"], entry["left"], entry["rows"], entry["columns"] = plan.window
        entry["y"], entry["x"] = plan.place
        entry["height_first"] = plan.height_first
        entry["row_words"], entry["column_words"] = _words(plan, 0, picture.height), _words(plan, 1, picture.width)
        for axis, count in (("row", plan.window[2]), ("column", plan.window[3])):
            entry[f"{axis}_table"] = table_ints
            table_ints += count * (2 + 3 * int(entry[f"{axis}_words"]))
    return entries, table_ints


def _words(plan: Plan, axis: int, num_pixels: int) -> int:
    """Words of four neighbours that the taps of one output can touch."""
    support = _SUPPORT[plan.interpolation] * max(num_pixels / plan.size[axis], 1.0)
    taps = min(2 * int(np.ceil(support)) + 1, num_pixels)
    return -(-(taps + 3) // 4)


def _shape(info: DeviceInfo, strips: int, height: int) -> tuple[Launch, int]:
    """The launch, and the output rows of a block: as many as leave two blocks for each multiprocessor."""
    for block in _BLOCKS:
        fixed = block // 32 * _STAGE + _ALONG_ROWS
        fitting = [band for band in _BANDS if fixed + band * _ROW <= info.max_shared_bytes]
        if fitting:
            break
    else:
        raise CudaError(f"preprocess: expected {fixed + _BANDS[-1] * _ROW} bytes of shared memory a block, {info}")
    wanted = 2 * info.num_multiprocessors
    band = next((band for band in fitting if strips * -(-height // band) >= wanted), fitting[-1])
    return Launch(strips * -(-height // band), block, fixed + band * _ROW), band


def _channels(image: npt.NDArray[np.uint8]) -> int:
    return 1 if image.ndim == 2 else image.shape[2]


def _check(picture: Picture) -> None:
    good = min(picture.height, picture.width) >= 1 and picture.channels in (1, 3, 4)
    if not good or picture.row_stride < picture.width * picture.channels:
        raise ShapeError(f"picture: expected pixels of 1, 3 or 4 channels and rows that do not overlap, got {picture}")
