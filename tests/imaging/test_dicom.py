"""DICOM files written by pydicom: grey levels, windows, colours, and no patient data in any message."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from kpl_engine.config import DecodeConfig
from kpl_engine.errors import ImageError
from kpl_engine.imaging.decode import decode_image

pydicom = pytest.importorskip("pydicom", reason="needs the dicom extra")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.pixels import apply_voi_lut, apply_windowing  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless, SecondaryCaptureImageStorage  # noqa: E402

PATIENT = "Doe^Jane"


def dataset(pixels, kind="MONOCHROME2", bits=None, frames=1, **values):
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = SecondaryCaptureImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = "1.2.3"
    found.PatientName, found.PatientID = PATIENT, "PID-4711"
    found.SamplesPerPixel = 1 if kind.startswith("MONO") else 3
    if found.SamplesPerPixel == 3:
        found.PlanarConfiguration = 0
    found.PhotometricInterpretation = kind
    if frames > 1:
        found.NumberOfFrames = frames
    found.Rows, found.Columns = pixels.shape[1:3] if frames > 1 else pixels.shape[:2]
    found.BitsAllocated = pixels.dtype.itemsize * 8
    found.BitsStored = bits or found.BitsAllocated
    found.HighBit = found.BitsStored - 1
    found.PixelRepresentation = int(pixels.dtype.kind == "i")
    found.PixelData = pixels.tobytes()
    for name, value in values.items():
        setattr(found, name, value)
    return found


def written(found):
    stream = io.BytesIO()
    found.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def grey(pixels):
    return decode_image(written(pixels)).pixels[:, :, 0]


@pytest.fixture
def ct():
    return np.random.default_rng(0).integers(0, 4096, (14, 20)).astype(np.uint16)


def test_without_a_window_the_own_range_is_used(ct):
    got = decode_image(written(dataset(ct, bits=12)))
    low, high = int(ct.min()), int(ct.max())
    np.testing.assert_array_equal(got.pixels[:, :, 0], np.rint((ct.astype(float) - low) / (high - low) * 255))
    np.testing.assert_array_equal(got.pixels[:, :, 0], got.pixels[:, :, 2])
    assert "no display window" in got.notices[0]


def test_constant_picture_without_a_window():
    assert (grey(dataset(np.full((4, 4), 9, dtype=np.uint16))) == 0).all()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_and_rescale_equal_pydicom(ct, function):
    values = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": [40, 900], "WindowWidth": [400, 90]}
    found = dataset(ct, bits=12, VOILUTFunction=function, **values)
    low, high = -1024.0, 2 * 4095 - 1024.0  # what pydicom maps the window to
    expected = (apply_windowing(ct * 2.0 - 1024, found) - low) / (high - low) * 255
    assert np.abs(grey(found) - expected).max() <= 0.5 + 1e-6


def test_monochrome1_is_inverted(ct):
    values = {"WindowCenter": 2000, "WindowWidth": 3000}
    np.testing.assert_array_equal(
        grey(dataset(ct, "MONOCHROME1", bits=12, **values)).astype(int), 255 - grey(dataset(ct, bits=12, **values))
    )


def test_signed_pixels():
    values = np.array([[-1000, 0], [500, 1000]], dtype=np.int16)
    np.testing.assert_array_equal(grey(dataset(values)), np.rint((values + 1000.0) / 2000 * 255))


def test_voi_table(ct):
    item = Dataset()
    table = np.sort(np.random.default_rng(1).integers(0, 65536, 3000)).astype(np.uint16)
    item.LUTDescriptor, item.LUTData = [3000, 500, 16], table.tobytes()
    found = dataset(ct, bits=12, VOILUTSequence=[item])
    item["LUTData"].VR = "OW"
    item["LUTDescriptor"].VR = "US"
    expected = apply_voi_lut(ct, found) / 65535 * 255
    assert np.abs(grey(found) - expected).max() <= 0.5 + 1e-6


def test_rgb():
    pixels = np.random.default_rng(2).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(written(dataset(pixels, "RGB"))).pixels, pixels)
    planar = dataset(np.ascontiguousarray(pixels), "RGB", PlanarConfiguration=1)
    planar.PixelData = pixels.transpose(2, 0, 1).tobytes() + b"\0"
    np.testing.assert_array_equal(decode_image(written(planar)).pixels, pixels)


def test_first_of_several_frames(ct):
    frames = np.stack([ct, ct[::-1], ct[:, ::-1]])
    got = decode_image(written(dataset(frames, frames=3, WindowCenter=2048, WindowWidth=4096)))
    one = decode_image(written(dataset(ct, WindowCenter=2048, WindowWidth=4096)))
    np.testing.assert_array_equal(got.pixels, one.pixels)
    assert "3 frames" in got.notices[0]


def test_run_length_compression(ct):
    plain = dataset(ct, bits=12, WindowCenter=2048, WindowWidth=4096)
    expected = grey(plain)
    plain.compress(RLELossless, encoding_plugin="pydicom")
    np.testing.assert_array_equal(grey(plain), expected)


def fails(data, match, config=None):
    with pytest.raises(ImageError, match=match) as caught:
        decode_image(data, config, name="scan.dcm")
    error = caught.value
    while error is not None:
        assert "Doe" not in str(error)
        assert "4711" not in str(error)
        error = error.__cause__
    return caught.value


def test_compression_without_a_decoder(ct):
    found = dataset(ct)
    found.file_meta.TransferSyntaxUID = JPEGLSLossless
    found.PixelData = pydicom.encaps.encapsulate([b"nothing at all"])
    found["PixelData"].is_undefined_length = True
    fails(written(found), "JPEG-LS.* has no decoder")


def test_damage_and_odd_files(ct):
    data = written(dataset(ct))
    for cut in (140, 300, len(data) // 2, len(data) - 9):
        fails(data[:cut], "damaged or incomplete")
    fails(written(dataset(ct, "PALETTE COLOR")), "not supported")
    fails(written(dataset(ct, WindowCenter=1, WindowWidth=0)), "window")
    fails(data, "max_pixels = 10", DecodeConfig(max_pixels=10))


def test_patient_data_is_not_parsed(ct):
    """A malformed patient element raises nothing, warns of nothing, and reaches no message."""
    data = written(dataset(ct)).replace(b"PID-4711", b"\xff\xfe\x81\x00\\\\^=")
    assert decode_image(data).pixels.shape == (14, 20, 3)


def test_missing_extra_names_itself(ct, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    error = fails(written(dataset(ct)), r"kpl-engine\[dicom\]")
    assert error.source == "scan.dcm"


@pytest.mark.parametrize(
    ("pixels", "values"),
    [
        (np.zeros((6, 5), np.uint16), {"PhotometricInterpretation": "RGB"}),
        (np.zeros((6, 5, 3), np.uint8), {"SamplesPerPixel": 3, "PlanarConfiguration": 0}),
        (np.zeros((6, 5, 3), np.int8), {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}),
    ],
)
def test_a_header_that_contradicts_itself_is_that_files_error(pixels, values):
    found = dataset(pixels, **values)
    if found.SamplesPerPixel == 3:
        found.PlanarConfiguration = 0
    with pytest.raises(ImageError, match=r"film\.dcm: the DICOM header contradicts itself"):
        decode_image(written(found), name="film.dcm")


def test_eight_bit_colour_stored_in_sixteen():
    pixels = np.random.default_rng(1).integers(0, 256, (6, 5, 3)).astype(np.uint16)
    got = decode_image(written(dataset(pixels, "RGB", bits=8))).pixels
    np.testing.assert_array_equal(got, pixels)
    assert got.dtype == np.uint8
