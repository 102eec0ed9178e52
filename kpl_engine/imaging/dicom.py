"""DICOM -> RGB pixels, through pydicom when it is installed. No patient data is read, so none can leak.

Only the elements named in `_TAGS` are parsed; texts of pydicom's errors are not passed on.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from kpl_engine.arrays import Float64, Floats, UInt8
from kpl_engine.errors import MissingExtraError
from kpl_engine.imaging.rejected import Rejected

__all__ = ["decode_dicom", "is_dicom"]

_TAGS = ["SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"]
_TAGS += ["BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleIntercept", "RescaleSlope"]
_TAGS += ["ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"]
_TAGS += ["PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def is_dicom(data: bytes) -> bool:
    """Whether ``data`` starts with a DICOM preamble (128 free bytes, then ``DICM``)."""
    return data[128:132] == b"DICM"


def decode_dicom(data: bytes, max_pixels: int) -> tuple[UInt8, list[str]]:
    """First frame of a DICOM file as (h, w, 3) uint8, and notices.

    Grey: modality LUT or rescale, then the first VOI LUT or window (PS3.3 C.11.2; linear,
    linear exact or sigmoid), MONOCHROME1 inverted. Without a window the image's own range is
    used, and said. Colour: RGB and YBR, scaled from the stored bits to 8.

    Raises
    ------
    Rejected
        Damaged file, unsupported photometric interpretation, or a compression no installed decoder reads.
    MissingExtraError
        When pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", "dicom", "reading DICOM files") from None
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=list(_TAGS))
        shape = int(dataset.Rows), int(dataset.Columns)
        kind = str(dataset.PhotometricInterpretation)
        num_frames = int(dataset.get("NumberOfFrames") or 1)
    except Exception as error:
        raise _damaged(error) from None
    if min(shape) < 1 or shape[0] * shape[1] > max_pixels:
        raise Rejected(f"{shape[1]} x {shape[0]} pixels; expected 1 to max_pixels = {max_pixels}")
    if kind not in _GREY + _COLOUR:
        raise Rejected(
            f"DICOM photometric interpretation {kind[:40]!r} is not supported; convert to MONOCHROME2 or RGB"
        )
    notices = [f"{num_frames} frames; only frame 1 is used"] if num_frames > 1 else []
    pixels = _pixels(dataset)
    is_colour = kind in _COLOUR
    if pixels.shape != ((*shape, 3) if is_colour else shape) or (is_colour and pixels.dtype.kind != "u"):
        raise Rejected(
            f"the DICOM header contradicts itself: {kind} with pixels of shape {pixels.shape} and type {pixels.dtype}; "
            "export the file again"
        )
    try:
        if is_colour:
            return _colour(pixels, dataset), notices
        grey = _window(_rescale(pixels, dataset), dataset, notices)  # (h, w) float64, 0..1
    except Rejected:
        raise
    except Exception as error:
        raise _damaged(error) from None
    levels = np.rint((1.0 - grey if kind == "MONOCHROME1" else grey) * 255.0).astype(np.uint8)  # (h, w) uint8
    return np.repeat(levels[:, :, None], 3, axis=2), notices


def _damaged(error: Exception) -> Rejected:
    return Rejected(f"the DICOM data is damaged or incomplete ({type(error).__name__}); copy or export the file again")


def _pixels(dataset: Any) -> Any:
    """Stored values of the first frame: (h, w) or (h, w, 3), any integer type."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    try:
        syntax = dataset.file_meta.TransferSyntaxUID
        # get_decoder raises for syntaxes pydicom has never heard of, such as video.
        can_decode = not syntax.is_compressed or get_decoder(syntax).is_available
    except NotImplementedError:
        can_decode = False
    except Exception as error:
        raise _damaged(error) from None
    if not can_decode:
        raise Rejected(
            f"DICOM compression {str(syntax.name)[:80]!r} has no decoder here; "
            "install one (for example pylibjpeg with pylibjpeg-libjpeg) or export the file uncompressed"
        )
    try:
        return pixel_array(dataset, index=0)
    except Exception as error:
        raise _damaged(error) from None


def _colour(pixels: Any, dataset: Any) -> UInt8:
    bits = int(dataset.BitsStored)
    if bits == 8:
        return np.ascontiguousarray(np.minimum(pixels, 255), dtype=np.uint8)  # 8 bits may be stored in 16
    scaled = np.rint(pixels.astype(np.float64) * (255.0 / (2**bits - 1)))  # (h, w, 3) float64
    return np.asarray(np.clip(scaled, 0, 255), dtype=np.uint8)


def _rescale(pixels: Any, dataset: Any) -> Float64:
    """Stored values -> modality units (for CT: Hounsfield), (h, w) float64."""
    from pydicom.pixels.processing import apply_modality_lut

    values = np.asarray(apply_modality_lut(pixels, dataset), dtype=np.float64)
    if not np.isfinite(values).all():
        raise Rejected("the rescale slope or intercept gives NaN or infinite values; export the file again")
    return values


def _first(value: Any) -> float:
    return float(value if isinstance(value, (int, float, str)) else value[0])


def _window(values: Float64, dataset: Any, notices: list[str]) -> Float64:
    """Modality units -> display values 0..1."""
    if dataset.get("VOILUTSequence"):
        return _lookup(values, dataset.VOILUTSequence[0])
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        low, high = float(values.min()), float(values.max())
        notices.append(f"no display window in the file; its own range {low:g} to {high:g} is used")
        return (values - low) / (high - low) if high > low else np.zeros_like(values)
    centre, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    smallest = 1.0 if function == "LINEAR" else 0.0
    if not (np.isfinite(centre) and np.isfinite(width)) or width < smallest or (width == 0 and smallest == 0):
        raise Rejected(f"the display window (centre {centre:g}, width {width:g}) is not valid; export the file again")
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700, 700))))
    if function == "LINEAR":  # PS3.3 C.11.2.1.2.1: the half-pixel offsets are the standard's
        centre, width = centre - 0.5, width - 1.0
    if width == 0:
        return np.asarray(values > centre, dtype=np.float64)
    return np.asarray(np.clip((values - centre) / width + 0.5, 0.0, 1.0))


def _lookup(values: Float64, item: Any) -> Float64:
    """Through the table of a VOI LUT; values outside take the ends."""
    num_entries, first, bits = (int(v) for v in item.LUTDescriptor)
    raw = item.LUTData
    table: Floats = np.frombuffer(raw, "<u2") if isinstance(raw, bytes) else np.asarray(raw)
    table = np.asarray(table, dtype=np.float64)[: num_entries or 65536]
    index = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    return np.asarray(np.clip(table[index] / (2**bits - 1), 0.0, 1.0))
