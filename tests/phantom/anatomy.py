"""What one phantom film shows: sampled attributes, before anything is drawn.

Only ``Generator.random`` is called, and only ``+ - * /`` and comparisons act on what it returns: the stream of that
one method is stable across NumPy versions, and no operation here rounds differently from one machine to the next.
``left`` and ``right`` are the patient's, so left is at the viewer's right, as on a real film.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

__all__ = ["CLASSES", "Draws", "Look", "Patient", "sample_look", "sample_patient"]

CLASSES = ("cardiomegaly", "effusion", "nodule", "normal", "pneumothorax")
Item = TypeVar("Item")


class Draws:
    """A source of random numbers for one film, reproducible from ``(seed, stream, index)`` alone."""

    def __init__(self, *key: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.generator.random())

    def chance(self, probability: float) -> bool:
        return float(self.generator.random()) < probability

    def choice(self, items: Sequence[Item], weights: Sequence[float] | None = None) -> Item:
        shares = [1.0] * len(items) if weights is None else list(weights)
        left = float(self.generator.random()) * sum(shares)
        for item, share in zip(items, shares, strict=True):
            left -= share
            if left < 0:
                return item
        return items[-1]

    def grid(self, rows: int, columns: int) -> np.ndarray:
        """Uniform numbers in [0, 1), (rows, columns) float64."""
        return self.generator.random((rows, columns))


@dataclass(frozen=True)
class Patient:
    """Attributes of the body and of its finding. Lengths are in half widths of the film."""

    label: str
    side: str  # "left", "right" or "both": where the finding is; "" when it has no side
    size: str  # "small", "moderate" or "large"; "" for a normal film
    zone: str  # "upper", "mid" or "lower", of a nodule; else ""
    count: int  # nodules; else 0
    margin: str  # "smooth" or "spiculated", of a nodule; else ""
    build: str  # "slim", "average" or "large"
    heart_ratio: float  # width of the heart over the inner width of the thorax
    amount: float  # severity from 0 (least) to 1 (most), within and across the three sizes
    breath: float  # 0 shallow .. 1 deep inspiration
    distractors: tuple[str, ...]  # harmless things that resemble findings


@dataclass(frozen=True)
class Look:
    """How the film was taken. `sample_look` draws it for the training clinic or for the shifted one."""

    width: int
    height: int
    exposure: float
    contrast: float
    grain: float
    blur: int
    edges: float
    zoom: float
    turn: float  # tangent of half the rotation angle: sine and cosine of it are rational functions
    shift_x: float
    shift_y: float
    vignette: float
    collimated: bool
    marker: str


def _finding(draws: Draws, label: str) -> dict[str, object]:
    size = draws.choice(("small", "moderate", "large"), (0.4, 0.35, 0.25))
    amount = ({"small": 0.0, "moderate": 1.0, "large": 2.0}[size] + draws.uniform(0.05, 0.95)) / 3.0
    side = draws.choice(("left", "right", "both"), (0.42, 0.42, 0.16))
    blank = {"side": "", "size": size, "zone": "", "count": 0, "margin": "", "amount": amount}
    if label == "normal":
        return blank | {"size": "", "amount": 0.0}
    if label == "cardiomegaly":
        return blank
    if label == "effusion":
        return blank | {"side": side}
    if label == "pneumothorax":
        return blank | {"side": draws.choice(("left", "right"))}
    count = draws.choice((1, 2, 3), (0.62, 0.25, 0.13))
    return blank | {
        "side": draws.choice(("left", "right")) if count == 1 else side,
        "zone": draws.choice(("upper", "mid", "lower")),
        "count": count,
        "margin": draws.choice(("smooth", "spiculated"), (0.6, 0.4)),
    }


def sample_patient(draws: Draws, label: str) -> Patient:
    """Attributes of one patient of class ``label``; the classes overlap at their mild ends on purpose."""
    found = _finding(draws, label)
    amount = float(found["amount"])  # type: ignore[arg-type]
    enlarged = label == "cardiomegaly"
    ratio = 0.54 + 0.17 * amount + draws.uniform(-0.01, 0.01) if enlarged else draws.uniform(0.40, 0.51)
    likely = {"skin fold": 0.12, "nipple shadow": 0.10, "electrode": 0.10, "raised diaphragm": 0.15}
    return Patient(
        label=label,
        build=draws.choice(("slim", "average", "large"), (0.3, 0.45, 0.25)),
        heart_ratio=ratio,
        breath=draws.uniform(0.0, 1.0),
        distractors=tuple(name for name, chance in likely.items() if draws.chance(chance)),
        **found,  # type: ignore[arg-type]
    )


def sample_look(draws: Draws, *, shifted: bool) -> Look:
    """One exposure: of the training clinic, or (``shifted``) of another clinic with another machine.

    The other clinic differs in level (softer contrast, brighter film, grain, sharpened edges, patients nearer
    to the plate) and in spread (turn, shift, format).
    """
    turn = 0.075 if shifted else 0.04
    width, height = draws.choice(((144, 144), (136, 160), (160, 136)), (0.6, 0.25, 0.15)) if shifted else (112, 112)
    return Look(
        width=width,
        height=height,
        exposure=draws.uniform(0.0, 0.14) if shifted else draws.uniform(-0.08, 0.08),
        contrast=draws.uniform(0.62, 0.92) if shifted else draws.uniform(0.80, 1.15),
        grain=draws.uniform(0.02, 0.06) if shifted else draws.uniform(0.01, 0.045),
        blur=draws.choice((0, 1, 2)) if shifted else draws.choice((0, 1, 2), (0.45, 0.45, 0.1)),
        edges=draws.uniform(0.0, 1.2) if shifted else draws.uniform(0.0, 0.4),
        zoom=draws.uniform(0.86, 1.12) if shifted else draws.uniform(0.92, 1.07),
        turn=draws.uniform(-turn, turn),
        shift_x=draws.uniform(-1, 1) * (0.09 if shifted else 0.04),
        shift_y=draws.uniform(-1, 1) * (0.09 if shifted else 0.04),
        vignette=draws.uniform(0.0, 0.25) if shifted else draws.uniform(0.0, 0.08),
        collimated=draws.chance(0.35 if shifted else 0.1),
        marker=draws.choice(("L", "R", ""), (0.35, 0.35, 0.3)),
    )
