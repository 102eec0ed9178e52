"""Synthetic chest films with captions. Phantoms for software tests: not for clinical use.

    python tests/phantom/generator.py --images kpl_engine/data/images     # the bundled test images
    python tests/phantom/generator.py --sheet sheet.png [--shifted]       # look at some

Film ``index`` of class ``label`` in a split depends on ``(seed, split, label, index)`` and on nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from anatomy import CLASSES, Draws, Look, Patient, sample_look, sample_patient
from captions import write_caption
from drawing import draw_film
from PIL import Image

__all__ = [
    "CLASSES",
    "SPLITS",
    "TEST_COUNTS",
    "TEST_SEED",
    "Film",
    "bundled_films",
    "make_film",
    "train_films",
    "write_images",
]

SPLITS = {"train": 0, "check": 1, "test": 2}
TRAIN_SHARES = {"cardiomegaly": 0.17, "effusion": 0.20, "nodule": 0.17, "normal": 0.32, "pneumothorax": 0.14}
TEST_SEED = 20
TEST_COUNTS = {"cardiomegaly": 24, "effusion": 27, "nodule": 26, "normal": 31, "pneumothorax": 24}
JPEG_EVERY = 8  # every eighth bundled image is a JPEG, so that the demo reads both formats


@dataclass(frozen=True)
class Film:
    """One drawn film with everything known about it; ``pixels`` is (height, width) uint8."""

    pixels: npt.NDArray[np.uint8]
    label: str
    caption: str
    patient: Patient
    look: Look


def make_film(seed: int, split: str, label: str, index: int, *, shifted: bool) -> Film:
    """Draw film ``index`` of class ``label``; ``split`` is one of `SPLITS`."""
    draws = Draws(seed, SPLITS[split], CLASSES.index(label), index)
    patient = sample_patient(draws, label)
    look = sample_look(draws, shifted=shifted)
    caption = write_caption(patient, draws)
    return Film(draw_film(patient, look, draws), label, caption, patient, look)


def train_films(seed: int, count: int, *, split: str = "train") -> Iterator[Film]:
    """``count`` films of the training clinic, classes as unequal as `TRAIN_SHARES`."""
    order = Draws(seed, SPLITS[split], len(CLASSES))
    for index in range(count):
        label = order.choice(list(TRAIN_SHARES), list(TRAIN_SHARES.values()))
        yield make_film(seed, split, label, index, shifted=False)


def bundled_films(seed: int = TEST_SEED) -> Iterator[tuple[str, Film]]:
    """The bundled films of the other clinic, each with its relative file name."""
    for label, count in TEST_COUNTS.items():
        for index in range(count):
            suffix = "jpg" if index % JPEG_EVERY == JPEG_EVERY - 1 else "png"
            yield f"{label}/{label}_{index:03d}.{suffix}", make_film(seed, "test", label, index, shifted=True)


def write_images(folder: Path, seed: int = TEST_SEED) -> int:
    """Write the bundled test images below ``folder``, one folder a class; returns their total size in bytes."""
    total = 0
    for name, film in bundled_films(seed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"quality": 92} if path.suffix == ".jpg" else {"optimize": True}
        Image.fromarray(film.pixels).save(path, **options)  # type: ignore[arg-type]
        total += path.stat().st_size
    return total


def draw_sheet(seed: int, columns: int, *, shifted: bool, cell: int = 160) -> Image.Image:
    """One row a class, for the eye."""
    sheet = Image.new("L", (columns * cell, len(CLASSES) * cell))
    for row, label in enumerate(CLASSES):
        for column in range(columns):
            film = make_film(seed, "check", label, column, shifted=shifted)
            sheet.paste(Image.fromarray(film.pixels).resize((cell, cell)), (column * cell, row * cell))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="write the bundled test images into this folder")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet to this file")
    parser.add_argument("--shifted", action="store_true", help="the sheet shows the other clinic")
    parser.add_argument("--seed", type=int, default=TEST_SEED)
    options = parser.parse_args()
    if options.images:
        print(f"{write_images(options.images, options.seed)} bytes in {options.images}")
    if options.sheet:
        draw_sheet(options.seed, 8, shifted=options.shifted).save(options.sheet)


if __name__ == "__main__":
    main()
