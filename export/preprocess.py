"""The geometry and colours of open_clip's validation transform as the manifest says them, held to that transform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import open_clip
from open_clip import pretrained as registry
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import nn

from kpl_engine.arrays import UInt8
from kpl_engine.errors import ConfigError, InputError, ParityError
from kpl_engine.imaging.preprocess import Preprocess

__all__ = ["preprocess_of_tags", "read_preprocess", "verify_preprocess"]

MAX_DIFFERENCE = 1e-4  # of normalised pixels; one level of 255 is 4e-3 or more
# Height and width of the pictures compared, in parts of the model's input: equal, upright, lying, enlarged.
SHAPES = ((1.0, 1.0), (2.3, 1.4), (1.2, 3.1), (0.7, 0.4))


def read_preprocess(model: nn.Module) -> dict[str, Any]:
    """The manifest's ``preprocess`` of a model open_clip built.

    Raises
    ------
    InputError
        Its configuration asks for what the runtime cannot do.
    """
    config = model.visual.preprocess_cfg
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else (size if len(size) == 2 else (size[0], size[0]))
    resize = config["resize_mode"] or "shortest"
    interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    if resize == "shortest" and height != width:
        interpolation = "bicubic"  # open_clip resizes to a non-square target by the class that ignores the option
    default = PreprocessCfg()
    try:
        preprocess = {
            "resize": resize,
            "height": int(height),
            "width": int(width),
            "interpolation": interpolation,
            "fill": int(config.get("fill_color", 0) or 0),
            "mean": _three(config["mean"] or default.mean),  # open_clip takes a bare 0 for unset as well
            "std": _three(config["std"] or default.std),
        }
        Preprocess.from_manifest(preprocess)
    except (ConfigError, TypeError, ValueError) as error:
        raise InputError(
            f"preprocess_cfg: the runtime cannot follow {dict(config)} ({str(error).split(';')[0]}). Correct it in "
            "open_clip_config.json"
        ) from error
    return preprocess


def _three(value: Any) -> list[float]:
    """One number for all channels, bare or in a list, or one a channel."""
    numbers = [float(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
    return numbers * 3 if len(numbers) == 1 else numbers


def verify_preprocess(model: nn.Module, preprocess: Mapping[str, Any], seed: int = 0) -> None:
    """Hold the runtime's pixels to open_clip's own validation transform, on pictures of several shapes.

    Raises
    ------
    InputError
        open_clip cannot make its transform from the configuration.
    ParityError
        The pixels differ.
    """
    try:
        transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    except Exception as error:  # asserts and whatever torchvision raises
        raise InputError(
            f"preprocess_cfg: open_clip cannot use {dict(model.visual.preprocess_cfg)} "
            f"({type(error).__name__}: {error}). Correct it in open_clip_config.json"
        ) from error
    runtime = Preprocess.from_manifest(preprocess)
    mean, std = np.array(runtime.mean, np.float32), np.array(runtime.std, np.float32)  # (3,) float32
    rng = np.random.default_rng(seed)
    for tall, wide in SHAPES:
        picture = _picture(rng, max(round(tall * runtime.height), 1), max(round(wide * runtime.width), 1))
        wanted = transform(Image.fromarray(picture)).numpy().transpose(1, 2, 0)  # (h, w, 3) float32
        got = (runtime.apply(picture).astype(np.float32) / 255 - mean) / std  # (h, w, 3) float32
        difference = float(np.abs(got - wanted).max()) if got.shape == wanted.shape else float("inf")
        if not difference <= MAX_DIFFERENCE / float(std.min()):
            raise ParityError(
                f"preprocess: the runtime's pixels of a {picture.shape[1]} x {picture.shape[0]} picture differ from "
                f"open_clip's transform by {difference:.2e} (allowed {MAX_DIFFERENCE / float(std.min()):.0e}). Nothing "
                "was written; please report the model and the versions of open_clip and Pillow"
            )


def _picture(rng: np.random.Generator, height: int, width: int) -> UInt8:
    """Noise over smooth blobs, (height, width, 3) uint8: both what resizing blurs and what it keeps."""
    coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(0, 64, (height, width, 3), dtype=np.uint8)
    return (np.asarray(smooth) // 4 * 3 + noise).astype(np.uint8)


def preprocess_of_tags(name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What all published weights of an architecture agree on, for weights that come without a tag.

    A weights file says nothing of its preprocessing, and open_clip's default would be wrong for SigLIP.
    Returns the settings and what to tell the user.
    """
    keys = ("mean", "std", "interpolation", "resize_mode")
    tags = [registry.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    known = [{key: tag[key] for key in keys if tag.get(key) is not None} for tag in tags]
    default = asdict(PreprocessCfg())
    if not known or all(entry == {key: default[key] for key in entry} for entry in known):
        return {}, ()
    if any(other != known[0] for other in known):
        return {}, (f"the published weights of {name} differ in their preprocessing: using open_clip's default",)
    return known[0], (f"preprocessing as all published weights of {name} have it",)
