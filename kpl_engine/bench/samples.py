"""The pictures of a run: given or made, encoded and decoded, with the features that the engine has for them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.bench.settings import BenchSettings, InputKind
from kpl_engine.encoder.pipeline import Prepared, prepare_picture
from kpl_engine.engine import Engine
from kpl_engine.errors import InputError
from kpl_engine.imaging.sources import expand_sources

__all__ = ["Samples", "make_samples", "smooth_jpeg"]

_SIZE = (500, 375)  # width and height of a picture that is made: the mean of ImageNet's
_COARSE = (16, 12)  # of the noise that it is blown up from
_QUALITY = 90


@dataclass(frozen=True, eq=False)
class Samples:
    """Pictures that LoadGen draws from; row i of each field is picture i.

    ``sha256`` is of the encoded files in order: two runs with the same one measured the same pictures.
    """

    kind: InputKind
    names: tuple[str, ...]
    files: list[bytes]  # encoded
    pixels: UInt8  # (n, h, w, 3) at the encoder's size
    features: Float32  # (n, d) unit rows, encoded one picture at a time
    description: str
    sha256: str

    @property
    def payloads(self) -> Sequence[Any]:
        """What a query of ``kind`` carries for each picture: bytes, (h, w, 3) uint8 or (d,) float32."""
        if self.kind == "files":
            return self.files
        return list(self.pixels if self.kind == "pixels" else self.features)


def make_samples(settings: BenchSettings, engine: Engine) -> Samples:
    """Read or make the pictures of ``settings`` and encode them one at a time.

    Of more files than ``num_samples`` as many are taken, evenly spaced, so that a folder sorted by class gives some of
    each. Files that are no usable pictures are left out; the description counts them.

    Raises
    ------
    InputError
        No such file, an empty folder, no usable picture among those given.
    KnowledgeError
        A bundle without knowledge, or of several knowledge bases and none named: found before any picture is encoded.
    """
    engine.knowledge(settings.knowledge)
    if settings.images:
        names, files, prepared, description = _read(settings, engine)
    else:
        names, files, prepared, description = _make(settings, engine)
    pixels = np.stack(prepared)
    rows = [engine.encoder.encode_images(pixels[i : i + 1]) for i in range(len(pixels))]
    return Samples(
        kind=settings.input_kind,
        names=tuple(names),
        files=files,
        pixels=pixels,
        features=np.concatenate(rows),
        description=description,
        sha256=_digest(files),
    )


_Found = tuple[list[str], list[bytes], list[UInt8], str]


def _read(settings: BenchSettings, engine: Engine) -> _Found:
    paths = expand_sources([str(path) for path in settings.images])
    chosen = [paths[i * len(paths) // count] for count in [min(settings.num_samples, len(paths))] for i in range(count)]
    names, files, pixels, reasons = [], [], [], []
    for path in chosen:
        made = _prepare(path, str(path), engine)
        if made.pixels is None:
            reasons.append(str(made.error))
            continue
        names.append(str(path))
        files.append(path.read_bytes())
        pixels.append(made.pixels)
    if not files:
        raise InputError(f"none of the {len(chosen)} pictures given can be used; the first: {reasons[0]}")
    left_out = f", {len(reasons)} unusable left out" if reasons else ""
    given = ", ".join(str(path) for path in settings.images)
    return names, files, pixels, f"{len(files)} of {len(paths)} files of {given:.200}{left_out}"


def _make(settings: BenchSettings, engine: Engine) -> _Found:
    rng = np.random.default_rng(settings.seed)
    names = [f"made-{index:04d}.jpg" for index in range(settings.num_samples)]
    files, pixels = [], []
    for name in names:
        files.append(smooth_jpeg(rng))
        made = _prepare(files[-1], name, engine)
        if made.pixels is None:
            raise InputError(f"the encoder takes no pictures of {_SIZE[0]} x {_SIZE[1]}: {made.error}; give pictures")
        pixels.append(made.pixels)
    size = f"{_SIZE[0]} x {_SIZE[1]}"
    return names, files, pixels, f"{len(files)} made JPEG files of {size}, seed {settings.seed}"


def _prepare(source: Path | bytes, name: str, engine: Engine) -> Prepared:
    return prepare_picture(source, name, engine.encoder.preprocess, engine.config.decode)


def smooth_jpeg(rng: np.random.Generator) -> bytes:
    """A picture of 500 x 375 that compresses and decodes as a photograph does; the same draws give the same bytes."""
    coarse = rng.integers(0, 256, (_COARSE[1], _COARSE[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(_SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _digest(files: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(len(file).to_bytes(8, "little"))
        digest.update(file)
    return digest.hexdigest()
