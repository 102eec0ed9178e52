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
