"""The pictures of a run: given or made, encoded and decoded, with the features that the engine has for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.bench.settings import BenchSettings, InputKind
from kpl_engine.engine import Engine

__all__ = ["Samples", "make_samples"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Pictures that LoadGen draws from; row i of each field is picture i."""

    kind: InputKind
    names: tuple[str, ...]
    files: tuple[bytes, ...]  # encoded
    pixels: UInt8  # (n, h, w, 3) at the encoder's size
    features: Float32  # (n, d) unit rows, encoded one picture at a time
    description: str
    sha256: str

    @property
    def payloads(self) -> Sequence[Any]:
        """What a query of ``kind`` carries for each picture: bytes, (h, w, 3) uint8 or (d,) float32."""
        return {"files": self.files, "pixels": self.pixels, "features": self.features}[self.kind]


def make_samples(settings: BenchSettings, engine: Engine) -> Samples:
    """Read or make the pictures of ``settings`` and encode them."""
    raise NotImplementedError
