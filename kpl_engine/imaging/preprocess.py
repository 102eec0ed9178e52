"""Picture -> model input: the geometry of the exporter's validation transform, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL
from PIL import Image

from kpl_engine.arrays import UInt8
from kpl_engine.errors import ConfigError, ImageError
from kpl_engine.imaging.resample import resample_window

__all__ = ["Plan", "Preprocess"]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_MAX_RESIZED_PIXELS = 1 << 24  # 64 MiB in Pillow's four bytes a pixel; enlarging past it computes the crop only
_MAX_WORK_PIXELS = 1 << 26  # between the two passes
_KNOWS_HEIGHT_FIRST = int(PIL.__version__.split(".", maxsplit=1)[0]) >= 13


@dataclass(frozen=True)
class Plan:
    """What becomes of a picture of one size: heights before widths, tops before lefts."""

    size: tuple[int, int]  # of the whole, resized
    window: tuple[int, int, int, int]  # top, left, height and width of what is kept of it
    place: tuple[int, int]  # top and left of that in the model input
    interpolation: Literal["bicubic", "bilinear"]
    height_first: bool  # the order of Pillow's two passes


@dataclass(frozen=True)
class Preprocess:
    """Resize and crop or pad, as open_clip's ``image_transform_v2(cfg, is_train=False)`` does.

    ``resize`` is ``"shortest"`` (shortest edge to the target, centre crop), ``"squash"`` (both
    edges, aspect ratio lost) or ``"longest"`` (longest edge to the target, rest filled with
    ``fill``). ``mean`` and ``std`` are informational: scaling is part of the graph.

    Measured against open_clip 3.3.0 on RGB and L pictures of random sizes, all modes: largest
    difference **0 levels** with the same Pillow on both sides. (Where the height shrinks by
    more than twice as many pixels as the width, Pillow 13 resizes it first, which is one level off
    Pillow 12 here and there.)
    Palette, 16-bit and rotated (EXIF) files differ by design: open_clip resizes palettes by nearest
    neighbour, clips 16-bit values, and ignores EXIF; `kpl_engine.imaging.decode` turns all of them
    into upright RGB first.
    """

    resize: Literal["shortest", "squash", "longest"] = "shortest"
    height: int = 224
    width: int = 224
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 0
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        _check(self.resize in ("shortest", "squash", "longest"), "resize", "shortest, squash or longest", self.resize)
        _check(self.interpolation in _FILTERS, "interpolation", "bicubic or bilinear", self.interpolation)
        for name in ("height", "width"):
            value = getattr(self, name)
            _check(type(value) is int and 1 <= value <= 4096, name, "an integer from 1 to 4096", value)
        _check(type(self.fill) is int and 0 <= self.fill <= 255, "fill", "an integer from 0 to 255", self.fill)
        for name in ("mean", "std"):
            value = getattr(self, name)
            good = isinstance(value, tuple) and len(value) == 3 and all(_is_finite(v) for v in value)
            _check(good and (name == "mean" or min(value) > 0), name, "three finite numbers (std > 0)", value)

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> Preprocess:
        """Read the ``preprocess`` object of a manifest; every key is required. Raises `ConfigError`."""
        if not isinstance(entry, Mapping):
            raise ConfigError(f"preprocess: expected an object, got {type(entry).__name__}; export the model again")
        names = ("resize", "height", "width", "interpolation", "fill", "mean", "std")
        missing = [name for name in names if name not in entry]
        if missing:
            raise ConfigError(f"preprocess: expected the keys {', '.join(names)}; missing {', '.join(missing)}")
        values = {name: entry[name] for name in names}
        for name in ("mean", "std"):
            values[name] = tuple(values[name]) if isinstance(values[name], (list, tuple)) else values[name]
        return cls(**values)

    def apply(self, rgb: UInt8) -> UInt8:
        """One picture as the model sees it.

        Parameters
        ----------
        rgb : (h, w, 3) uint8

        Returns
        -------
        (height, width, 3) uint8

        Raises
        ------
        ImageError
            When the aspect ratio is so extreme that squashing would need more than 2^26 pixels on the way.
        """
        plan = self.plan(rgb.shape[0], rgb.shape[1])
        resized = _resize(rgb, plan)  # (<= height, <= width, 3) uint8
        if resized.shape[:2] == (self.height, self.width):
            return resized
        canvas = np.full((self.height, self.width, 3), self.canvas_fill, dtype=np.uint8)  # (height, width, 3) uint8
        y, x = plan.place
        canvas[y : y + resized.shape[0], x : x + resized.shape[1]] = resized
        return canvas

    def plan(self, h: int, w: int) -> Plan:
        """What `apply` does with h x w pixels; raises as it does."""
        size = self._resized_size(h, w)
        if _work(h, w, size) > _MAX_WORK_PIXELS and not _enlarges(h, w, size) and (size[0] > h or size[1] > w):
            raise ImageError(
                f"cannot resize {w} x {h} pixels to {size[1]} x {size[0]}: the aspect ratio is too extreme; "
                "crop the picture to the part that matters first"
            )
        top, left = _offset(size[0], self.height), _offset(size[1], self.width)
        height, width = min(size[0], self.height), min(size[1], self.width)
        return Plan(
            size,
            (max(top, 0), max(left, 0), height, width),
            ((self.height - height) // 2, (self.width - width) // 2),
            self._filter_name(),
            _KNOWS_HEIGHT_FIRST and size[0] < h and h - size[0] > 2 * (w - size[1]),
        )

    @property
    def canvas_fill(self) -> int:
        """The level around a picture that is smaller than the model input."""
        return self.fill if self.resize == "longest" else 0

    def _resized_size(self, h: int, w: int) -> tuple[int, int]:
        """Height and width after resizing, before crop or pad."""
        if self.resize == "squash":
            return self.height, self.width
        if self.resize == "shortest" and self.height == self.width:
            short, long = min(h, w), max(h, w)
            long = int(self.height * long / short)  # torchvision truncates the long side
            return (self.height, long) if h <= w else (long, self.width)
        choose = max if self.resize == "longest" else min
        ratio = choose(h / self.height, w / self.width)
        # A side that rounds to nothing keeps one pixel, where open_clip raises.
        return max(round(h * 1.0 / ratio), 1), max(round(w * 1.0 / ratio), 1)

    def _filter_name(self) -> Literal["bicubic", "bilinear"]:
        # open_clip resizes to a target that is not square with its default filter, whatever the setting.
        is_default = self.resize == "shortest" and self.height != self.width
        return "bicubic" if is_default else self.interpolation


def _resize(rgb: UInt8, plan: Plan) -> UInt8:
    """The window of ``rgb`` resized."""
    size, (top, left, height, width) = plan.size, plan.window
    h, w = rgb.shape[:2]
    if size == (h, w):
        return np.ascontiguousarray(rgb[top : top + height, left : left + width])
    if _work(h, w, size) > _MAX_RESIZED_PIXELS and _enlarges(h, w, size):
        return resample_window(rgb, size, top, left, height, width, plan.interpolation)
    filter_ = _FILTERS[plan.interpolation]
    resized = np.asarray(Image.fromarray(rgb).resize((size[1], size[0]), filter_))  # (*size, 3) uint8
    return np.ascontiguousarray(resized[top : top + height, left : left + width])


def _work(h: int, w: int, size: tuple[int, int]) -> int:
    """Pixels between the two passes, width first."""
    return max(size[0], h) * size[1]


def _enlarges(h: int, w: int, size: tuple[int, int]) -> bool:
    return size[0] >= h and size[1] >= w


def _offset(size: int, target: int) -> int:
    return int(round((size - target) / 2.0))  # noqa: RUF046 - the transform's own words: half to even


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _check(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"preprocess.{name}: expected {expected}, got {got!r}; export the model again")
