"""Pictures: sizes, colours where they must be, and class counts from one to many."""

import numpy as np
import pytest
from PIL import Image

from kpl_engine.pictures import Tile, draw_confusion, draw_contact_sheet

GREEN, RED = (20, 122, 72), (190, 40, 40)


def test_contact_sheet_frames_right_and_wrong(tmp_path):
    pixels = np.full((40, 60, 3), 128, dtype=np.uint8)
    tiles = [Tile(pixels, "normal 0.93", ("a line " * 30, "b"), True), Tile(pixels, "nodule 0.51", (), False)]
    path = tmp_path / "sheet.png"
    draw_contact_sheet(tiles, path, heading="two", num_columns=2, size=100)
    sheet = np.asarray(Image.open(path).convert("RGB"))
    left, right = sheet[:, : sheet.shape[1] // 2], sheet[:, sheet.shape[1] // 2 :]
    assert (left == GREEN).all(axis=2).any()
    assert not (left == RED).all(axis=2).any()
    assert (right == RED).all(axis=2).any()


def test_contact_sheet_without_tiles_is_a_picture(tmp_path):
    draw_contact_sheet([], tmp_path / "empty.png", heading="none")
    with Image.open(tmp_path / "empty.png") as picture:
        assert picture.size[0] > 0


@pytest.mark.parametrize("num_classes", [1, 2, 30, 300])
def test_confusion_cells_are_shaded_by_share(tmp_path, num_classes):
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    matrix[0, 0] = 5
    if num_classes > 1:
        matrix[1, 0] = 9
    path = tmp_path / "confusion.png"
    draw_confusion(matrix, [f"class number {j}" for j in range(num_classes)], path, heading="h")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert (pixels == GREEN).all(axis=2).any()
    assert (pixels == RED).all(axis=2).any() == (num_classes > 1)
