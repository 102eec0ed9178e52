"""From attributes to an 8-bit film: the anatomy, then the finding, then the exposure.

Coordinates: ``x`` to the viewer's right, ``y`` down, 1 = half the shorter side. ``t = ±x`` runs outwards from the
midline of one half of the chest. Brightness 0 is air (black), 1 is dense (white).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from anatomy import Draws, Look, Patient
from fields import Field, bump, lerp, segment, smooth, soften, step, wave

__all__ = ["draw_film"]

SIDES = {"left": 1.0, "right": -1.0}  # sign of x
WALL, LUNG, DENSE = 0.50, 0.17, 0.74  # brightness of chest wall, aerated lung, heart and liver
GIRTH = {"slim": 0.90, "average": 1.0, "large": 1.10}


@dataclass(frozen=True)
class Half:
    """One half of the chest: distance fields, positive inside."""

    name: str
    t: Field
    cavity: Field  # to the inner chest wall, without the diaphragm
    floor: Field  # y of the diaphragm at every pixel
    air: Field  # share of lung or free air, 0..1
    marked: Field  # share of lung that shows vessels, 0..1


def _affected(patient: Patient, name: str) -> bool:
    return patient.side in (name, "both")


def _shift(patient: Patient) -> float:
    """Displacement of heart and trachea by a large one-sided finding, away from it."""
    if patient.label in ("effusion", "pneumothorax") and patient.side in SIDES:
        return -SIDES[patient.side] * 0.16 * max(0.0, patient.amount - 0.6)
    return 0.0


def _half(patient: Patient, draws: Draws, x: Field, y: Field, name: str) -> Half:
    t = SIDES[name] * x
    reach = (y - 0.55) / 1.52
    half_width = 0.37 * np.sqrt(np.clip(1.0 - reach * reach, 0.0, 1.0))
    apex = 0.5 * (y + 0.80) - 0.9 * (t - 0.34) * (t - 0.34)  # rounds the top, which the half ellipse leaves pointed
    cavity = np.minimum(half_width - np.abs(t - 0.37 - 0.03 * y), apex)
    dome = 0.42 + 0.10 * patient.breath + (0.07 if name == "left" else 0.0) + draws.uniform(-0.02, 0.02)
    raised = name == "right" and "raised diaphragm" in patient.distractors
    off = (t - 0.34) / 0.42
    floor = dome - (0.14 if raised else 0.0) + 0.20 * off * off
    air = step(cavity, 0.02) * step(floor - y, 0.02)
    return Half(name, t, cavity, floor, air, air)


def _body(patient: Patient, x: Field, y: Field) -> Field:
    girth = GIRTH[patient.build]
    across = np.abs(x)
    slope = np.clip(across - 0.20, 0.0, None)
    shoulder = -0.86 + 0.10 * slope + 0.55 * slope * slope
    waist = 1.0 * girth - 0.05 * y
    trunk = step(y - shoulder, 0.03) * step(waist - across, 0.03)
    return np.maximum(trunk, step(0.21 * girth - across, 0.03))


def _ribs(half: Half, y: Field, pitch: float, phase: float) -> Field:
    """Posterior ribs fall gently outwards, anterior ones steeply inwards; both fade outside the cage."""
    cage = step(half.cavity + 0.06, 0.04) * step(0.72 - y, 0.10)
    bend = half.t - 0.25
    back = wave((y - 0.22 * bend - 0.55 * bend * bend) / pitch + phase)
    front = wave((y + 0.50 * half.t - 0.30 * half.t * half.t) / (pitch * 1.1) + phase + 0.4)
    strong = np.clip(back * 2.2 - 1.2, 0.0, 1.0)
    weak = np.clip(front * 2.2 - 1.3, 0.0, 1.0) * step(half.t - 0.30, 0.15)
    return cage * (0.105 * strong + 0.055 * weak)


def _vessels(half: Half, draws: Draws, x: Field, y: Field) -> Field:
    """Branches that leave the hilum and thin out, (h, w) float64."""
    sign = SIDES[half.name]
    root = (sign * 0.17, draws.uniform(-0.06, 0.02))
    total = 0.13 * bump(((x - root[0]) ** 2 + (y - root[1]) ** 2 * 0.6) / 0.026)
    for rise in (-0.55, -0.30, -0.04, 0.20, 0.40):
        end = (sign * (0.46 + draws.uniform(-0.10, 0.10)), root[1] + rise + draws.uniform(-0.07, 0.07))
        bend = (0.55 * root[0] + 0.45 * end[0], 0.5 * (root[1] + end[1]) + draws.uniform(-0.09, 0.09))
        outer, inner = segment(x, y, bend, end) / 0.026, segment(x, y, root, bend) / 0.036
        total = np.maximum(total, np.maximum(0.050 * bump(outer * outer), 0.085 * bump(inner * inner)))
    return total * half.marked


def _centre(patient: Patient, draws: Draws, x: Field, y: Field) -> Field:
    """Mediastinum, aortic knob and heart as one dense share, (h, w) float64 in 0..1."""
    shift = _shift(patient)
    band = step(0.115 + 0.04 * np.abs(y + 0.2) - np.abs(x - shift), 0.03)
    knob = bump(((x - shift - 0.11) ** 2 + (y + 0.34) ** 2) / 0.016)
    width = patient.heart_ratio * 1.44
    middle, level = shift + 0.125 * width + draws.uniform(-0.01, 0.01), 0.29 + 0.04 * patient.breath
    across, down = x - middle, y - level - 0.28 * (x - middle)
    tall = 0.31 + 0.34 * (patient.heart_ratio - 0.40)
    radius = np.sqrt((across / (0.5 * width)) ** 2 + (down / tall) ** 2)
    heart = step((1.0 - radius) * 0.5 * width, 0.022)
    return np.maximum(np.maximum(0.92 * band, 0.9 * knob), 0.96 * heart)


def _bones(patient: Patient, draws: Draws, x: Field, y: Field) -> Field:
    total = 0.07 * step(0.075 - np.abs(x), 0.02) * (0.55 + 0.45 * wave(y / 0.125))
    for sign in SIDES.values():
        inner, outer = (sign * 0.07, -0.54), (sign * 0.80, -0.66 + draws.uniform(-0.04, 0.04))
        elbow = (sign * 0.42, (inner[1] + outer[1]) / 2 - 0.05)
        near = np.minimum(segment(x, y, inner, elbow), segment(x, y, elbow, outer)) / 0.042
        blade = step(0.13 - np.abs(sign * x - 0.80 - 0.16 * (y + 0.4)), 0.05) * step(
            0.12 - np.abs(y + 0.33) + 0.25, 0.1
        )
        total = total + 0.16 * step(1.0 - near, 0.35) + 0.07 * blade
    return total


def _nodules(patient: Patient, draws: Draws, x: Field, y: Field) -> Field:
    total = np.zeros_like(x)  # (h, w) float64
    height = {"upper": -0.46, "mid": -0.08, "lower": 0.24}[patient.zone]
    for number in range(patient.count):
        name = patient.side if patient.side in SIDES else ("left", "right")[number % 2]
        middle = SIDES[name] * draws.uniform(0.34, 0.58), height + draws.uniform(-0.12, 0.10)
        radius = 0.045 + 0.085 * patient.amount
        across, down = x - middle[0], y - middle[1]
        distance = 1.0 - np.sqrt(across * across + down * down) / radius
        share = step(distance, 0.30)
        if patient.margin == "spiculated":
            for way in ((1.5, 0.5), (0.7, 1.4), (-0.6, 1.5), (-1.6, 0.3), (-1.0, -1.3), (0.5, -1.6), (1.4, -0.9)):
                tip = middle[0] + radius * way[0] * draws.uniform(0.8, 1.3), middle[1] + radius * way[1]
                near = segment(x, y, middle, tip) / (0.016 + 0.1 * radius)
                share = np.maximum(share, 0.7 * bump(near * near))
        total = np.maximum(total, (0.20 + 0.14 * patient.amount) * share)
    return total


def _pneumothorax(patient: Patient, half: Half, y: Field) -> tuple[Half, Field]:
    """The half with its lung drawn back from the wall, and the change of brightness that this makes."""
    apical = np.clip((0.55 - y) / 1.2, 0.0, 1.0)
    gap = (0.05 + 0.30 * patient.amount) * (0.35 + 0.65 * apical)
    inner = half.cavity - gap
    lung = step(inner, 0.015)
    edge = inner / 0.018
    change = (
        0.15 * bump(edge * edge) * half.air - 0.10 * half.air * (1.0 - lung) + 0.07 * patient.amount * half.air * lung
    )
    return Half(half.name, half.t, half.cavity, half.floor, half.air, half.air * lung), change


def _fluid(patient: Patient, half: Half, y: Field) -> Field:
    """Share of pleural fluid: a level with a meniscus that climbs the outer wall."""
    out = np.clip((half.t - 0.12) / 0.60, 0.0, 1.2)
    surface = 0.60 - 0.72 * patient.amount - (0.16 + 0.12 * patient.amount) * out * out * out
    return step(half.cavity, 0.02) * step(y - surface, 0.035)


def _distract(patient: Patient, draws: Draws, x: Field, y: Field) -> Field:
    total = np.zeros_like(x)  # (h, w) float64
    if "skin fold" in patient.distractors:
        sign = draws.choice((1.0, -1.0))
        start = (sign * 0.62, draws.uniform(-0.5, -0.2))
        near = segment(x, y, start, (sign * 0.50, start[1] + 0.6)) / 0.018
        total = total + 0.09 * bump(near * near)
    if "nipple shadow" in patient.distractors:
        for sign in SIDES.values():
            total = total + 0.13 * bump(((x - sign * 0.46) ** 2 + (y - draws.uniform(0.22, 0.30)) ** 2) / 0.0036)
    if "electrode" in patient.distractors:
        place = draws.choice((1.0, -1.0)) * draws.uniform(0.3, 0.6), draws.uniform(-0.5, 0.2)
        radius = np.sqrt((x - place[0]) ** 2 + (y - place[1]) ** 2)
        total = total + 0.45 * step(0.030 - radius, 0.008)
        near = segment(x, y, place, (place[0] * 1.6, 1.0)) / 0.012
        total = total + 0.22 * bump(near * near)
    return total


def _expose(look: Look, draws: Draws, scene: Field, r_squared: Field, frame: tuple[Field, Field]) -> Field:
    scene = soften(scene, look.blur)
    scene = scene + look.edges * (scene - soften(scene, 3))
    scene = 0.45 + look.contrast * (scene - 0.45) + look.exposure - look.vignette * 0.3 * r_squared
    grain = sum((draws.grid(*scene.shape) for _ in range(3)), np.zeros_like(scene)) - 1.5
    scene = scene + 2.0 * look.grain * (0.6 * grain + 1.2 * soften(grain, 1)) * (0.5 + 0.5 * scene)
    if look.collimated:
        across, down = frame
        scene = scene * step(0.93 - np.abs(across), 0.01) * step(0.93 - np.abs(down), 0.01)
    return scene


def _stamp(marker: str, across: Field, down: Field) -> Field:
    """The letter of the side marker in the upper corner, as a share of white."""
    if not marker:
        return np.zeros_like(across)
    left = 0.74 if marker == "L" else -0.82
    strokes = [((left, -0.88), (left, -0.74))]
    if marker == "L":
        strokes.append(((left, -0.74), (left + 0.08, -0.74)))
    else:
        strokes += [((left, -0.88), (left + 0.07, -0.85)), ((left + 0.07, -0.85), (left, -0.81)),
                    ((left, -0.81), (left + 0.08, -0.74))]  # fmt: skip
    near = np.minimum.reduce([segment(across, down, start, end) for start, end in strokes])
    return step(0.017 - near, 0.01)


def _frame(look: Look) -> tuple[Field, Field]:
    short = min(look.width, look.height)
    columns = (2.0 * np.arange(look.width, dtype=np.float64) + 1.0 - look.width) / short
    rows = (2.0 * np.arange(look.height, dtype=np.float64) + 1.0 - look.height) / short
    across, down = np.meshgrid(columns, rows)  # both (h, w) float64
    return across, down


def draw_film(patient: Patient, look: Look, draws: Draws) -> npt.NDArray[np.uint8]:
    """Draw one film, (height, width) uint8. Equal arguments give equal bytes on every machine."""
    across, down = _frame(look)
    square = look.turn * look.turn
    cosine, sine = (1.0 - square) / (1.0 + square), 2.0 * look.turn / (1.0 + square)
    x = (cosine * across + sine * down - look.shift_x) / look.zoom
    y = (cosine * down - sine * across - look.shift_y) / look.zoom
    pitch, phase = draws.uniform(0.165, 0.19), draws.uniform(0.0, 1.0)
    halves = [_half(patient, draws, x, y, name) for name in SIDES]
    body, extra, dense = _body(patient, x, y), np.zeros_like(x), _centre(patient, draws, x, y)
    for index, half in enumerate(halves):
        dense = np.maximum(dense, step(y - half.floor, 0.02) * step(half.t, 0.01))
        if patient.label == "pneumothorax" and _affected(patient, half.name):
            halves[index], change = _pneumothorax(patient, half, y)
            extra = extra + change
        if patient.label == "effusion" and _affected(patient, half.name):
            dense = np.maximum(dense, _fluid(patient, half, y))
    air = np.maximum(halves[0].air, halves[1].air)
    scene = lerp(WALL + 0.05 * (GIRTH[patient.build] - 1.0) * 10, LUNG, air) + extra
    for half in halves:
        scene = scene + _vessels(half, draws, x, y) + _ribs(half, y, pitch, phase)
    if patient.label == "nodule":
        scene = scene + _nodules(patient, draws, x, y) * np.maximum(air, 0.15)
    clouds = smooth(draws.grid(9, 9), look.height, look.width) - 0.5
    scene = scene + 0.05 * clouds * air + 0.03 * clouds
    scene = lerp(scene, DENSE + 0.04 * clouds + 0.25 * (scene - 0.45), 0.9 * dense)
    scene = scene - 0.20 * step(0.038 - np.abs(x - 0.6 * _shift(patient)), 0.015) * step(-0.16 - y, 0.05)
    bubble = ((x - 0.36) / 0.16) ** 2 + ((y - 0.70) / 0.07) ** 2
    scene = scene - 0.22 * step(1.0 - bubble, 0.3)
    scene = (scene + _bones(patient, draws, x, y) + _distract(patient, draws, x, y)) * body + 0.03
    film = _expose(look, draws, scene, across * across + down * down, (across, down))
    film = np.maximum(film, 0.95 * _stamp(look.marker, across, down))
    return np.floor(np.clip(film, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
