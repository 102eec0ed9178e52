"""Pictures for people: a contact sheet of answers and a confusion matrix, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from kpl_engine.arrays import Ints, UInt8

__all__ = ["Tile", "draw_confusion", "draw_contact_sheet"]

_INK = (24, 28, 36)
_GREY = (110, 116, 128)
_GOOD = (20, 122, 72)
_BAD = (190, 40, 40)
_PAPER = (255, 255, 255)


@dataclass(frozen=True)
class Tile:
    """One image of a contact sheet: its pixels (h, w, 3) uint8, a title, lines below, and whether it is right."""

    pixels: UInt8
    title: str
    lines: tuple[str, ...] = ()
    is_right: bool | None = None


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """``text`` shortened with an ellipsis until it is at most ``width`` pixels wide."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."


def _wrap(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    """``text`` on at most two lines of ``width`` pixels, the second one shortened if it must be."""
    words = text.split()
    for count in range(len(words), 0, -1):
        first = " ".join(words[:count])
        if draw.textlength(first, font=font) <= width:
            rest = " ".join(words[count:])
            return [first, _fit(draw, rest, font, width)] if rest else [first]
    return [_fit(draw, text, font, width)]


def draw_contact_sheet(
    tiles: Sequence[Tile], path: Path, *, heading: str, num_columns: int = 5, size: int = 210
) -> None:
    """Write a PNG with one captioned thumbnail per tile; a green or red frame says right or wrong."""
    num_lines = max((2 * len(tile.lines) for tile in tiles), default=0)  # every line may wrap once
    cell_width, cell_height = size + 24, size + 34 + 15 * num_lines
    num_rows = -(-len(tiles) // num_columns)
    sheet = Image.new("RGB", (num_columns * cell_width + 16, num_rows * cell_height + 48), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((16, 12), _fit(draw, heading, _font(18), sheet.width - 32), fill=_INK, font=_font(18))
    for index, tile in enumerate(tiles):
        left = 16 + (index % num_columns) * cell_width
        top = 48 + (index // num_columns) * cell_height
        _draw_tile(sheet, draw, tile, left, top, size)
    sheet.save(path, format="PNG")


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int, size: int) -> None:
    sheet.paste(ImageOps.pad(Image.fromarray(tile.pixels), (size, size), color=_INK), (left, top))
    colour = _GREY if tile.is_right is None else _GOOD if tile.is_right else _BAD
    draw.rectangle((left - 2, top - 2, left + size + 1, top + size + 1), outline=colour, width=2)
    draw.text((left, top + size + 4), _fit(draw, tile.title, _font(13), size), fill=colour, font=_font(13))
    wrapped = [piece for line in tile.lines for piece in _wrap(draw, line, _font(11), size)]
    for row, line in enumerate(wrapped):
        draw.text((left, top + size + 22 + 15 * row), line, fill=_GREY, font=_font(11))


def draw_confusion(matrix: Ints, classes: Sequence[str], path: Path, *, heading: str) -> None:
    """Write a PNG of a confusion matrix (c, c) of counts: rows are true classes, columns predicted ones."""
    num_classes = len(classes)
    cell = 56 if num_classes <= 20 else max(6, 1100 // num_classes)
    with_text = cell >= 30
    font, left, top = _font(13), 190, 200
    size = num_classes * cell
    sheet = Image.new("RGB", (left + size + 30, top + size + 30), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((16, 10), _fit(draw, heading, _font(18), sheet.width - 24), fill=_INK, font=_font(18))
    draw.text((16, 36), "rows: true class, columns: predicted", fill=_GREY, font=_font(12))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # (c, c) float64, row shares
    for row in range(num_classes):
        for column in range(num_classes):
            x, y = left + column * cell, top + row * cell
            shade = float(shares[row, column])
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=_shade(shade, row == column))
            if with_text:
                ink = _PAPER if shade > 0.55 else _INK
                draw.text((x + cell / 2, y + cell / 2), str(int(matrix[row, column])), fill=ink, font=font, anchor="mm")
    if cell >= 14:
        _draw_names(sheet, draw, classes, cell, left, top)
    sheet.save(path, format="PNG")


def _shade(share: float, is_diagonal: bool) -> tuple[int, int, int]:
    end = _GOOD if is_diagonal else _BAD
    red, green, blue = (round(255 + (channel - 255) * share) for channel in end)
    return red, green, blue


def _draw_names(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, classes: Sequence[str], cell: int, left: int, top: int
) -> None:
    font = _font(13 if cell >= 20 else 10)
    for index, name in enumerate(classes):
        middle = index * cell + cell / 2
        draw.text((left - 8, top + middle), _fit(draw, name, font, left - 20), fill=_INK, font=font, anchor="rm")
        label = Image.new("RGB", (135, 18), _PAPER)  # written level, then turned upright
        pen = ImageDraw.Draw(label)
        pen.text((2, 9), _fit(pen, name, font, 130), fill=_INK, font=font, anchor="lm")
        sheet.paste(label.rotate(90, expand=True), (round(left + middle - 9), top - 8 - 135))
