"""What the imaging tests share: pictures as bytes, and open_clip where it is installed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def encode():
    """(array or PIL image, format, options) -> the bytes of an image file."""

    def make(picture, format_name, **options):
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        stream = io.BytesIO()
        picture.save(stream, format_name, **options)
        return stream.getvalue()

    return make


@pytest.fixture
def gradient():
    """A small picture without any symmetry: (11, 17, 3) uint8."""
    rows, columns = np.mgrid[0:11, 0:17]
    return np.stack([rows * 20, columns * 14, (rows * columns) % 256], axis=2).astype(np.uint8)


@pytest.fixture(scope="session")
def open_clip():
    """open_clip, with the operators a CPU-only torchvision fails to find declared first."""
    torch = pytest.importorskip("torch", reason="needs the export extra")
    if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("open_clip", reason="needs the export extra")
