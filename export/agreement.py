"""What a plan is held to: pictures made on the spot, their features by the float32 graph, and labels. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.bundle.reader import Bundle
from kpl_engine.bundle.tensors import dump_tensors
from kpl_engine.config import EncoderConfig
from kpl_engine.encoder.ort import OrtEncoder
from kpl_engine.encoder.plans import PARITY_FILE
from kpl_engine.errors import EncoderError
from kpl_engine.knowledge.base import KnowledgeBase

__all__ = ["MIN_AGREEMENT", "check_labels", "dump_parity", "float32_features", "make_pictures", "stored_parity"]

MIN_AGREEMENT = 0.98  # share of pictures that keep their zero-shot label: at 1-cos 1e-3 a borderline one may not
_NUM_PICTURES = 6
_BATCH = 8


def make_pictures(height: int, width: int, num: int = _NUM_PICTURES, seed: int = 0) -> UInt8:
    """Noise, smooth blobs of high and of low contrast in turn, (num, h, w, 3) uint8: no patient's picture is kept."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (num, height, width, 3), dtype=np.uint8)
    for i in range(num):
        if i % 3 == 0:
            continue
        coarse = rng.uniform(0, 1, (6, 6, 3))
        smooth = _stretch(_stretch(coarse, height, 0), width, 1)
        low, span = (0, 255) if i % 3 == 1 else (90, 40)
        pixels[i] = np.rint(low + span * smooth).astype(np.uint8)
    return pixels


def _stretch(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Linear interpolation along one axis to ``size`` places."""
    places = np.linspace(0, values.shape[axis] - 1, size)
    left = np.minimum(places.astype(int), values.shape[axis] - 2)
    shape = [1] * values.ndim
    shape[axis] = size
    share = (places - left).reshape(shape)
    return np.asarray(np.take(values, left, axis) * (1 - share) + np.take(values, left + 1, axis) * share)


def float32_features(bundle: Bundle, pixels: UInt8) -> Float32:
    """Features (n, d) by the bundle's own graph in ONNX Runtime on the CPU."""
    with OrtEncoder(bundle, EncoderConfig(batch_size=_BATCH), ("CPUExecutionProvider",)) as encoder:
        return encoder.encode_images(pixels)


def stored_parity(bundle: Bundle, graph: str) -> tuple[UInt8, Float32] | None:
    """Pictures and features of an earlier build from the same graph, so that all plans of a bundle share them."""
    if PARITY_FILE not in bundle.names:
        return None
    tensors, metadata = bundle.tensors(PARITY_FILE)
    if metadata.get("graph") != graph or set(tensors) != {"pixels", "features"}:
        return None
    return tensors["pixels"], tensors["features"]


def dump_parity(pixels: UInt8, features: Float32, graph: str) -> bytes:
    """The bytes of the parity file."""
    return dump_tensors({"pixels": pixels, "features": features}, {"graph": graph})


def check_labels(bundle: Bundle, got: Float32, wanted: Float32, what: str) -> float | None:
    """The smallest share, over the bundle's knowledge bases, of pictures whose zero-shot label is the same.

    None without a knowledge base. `EncoderError` when it is below `MIN_AGREEMENT`.
    """
    shares = {base.name: float((_labels(got, base) == _labels(wanted, base)).mean()) for base in _knowledge(bundle)}
    if not shares:
        return None
    name = min(shares, key=lambda key: shares[key])
    if shares[name] < MIN_AGREEMENT:
        raise EncoderError(
            f"{what}: expected the float32 graph's zero-shot label of {name!r} for at least {MIN_AGREEMENT:.0%} of the "
            f"{len(got)} images, got {shares[name]:.1%}; give more images, or use fp16"
        )
    return shares[name]


def _knowledge(bundle: Bundle) -> Iterator[KnowledgeBase]:
    for entry in bundle.manifest.get("knowledge", {}).values():
        yield KnowledgeBase.from_tensors(*bundle.tensors(entry["file"]), f"{bundle.path}: {entry['file']}")


def _labels(features: Float32, base: KnowledgeBase) -> np.ndarray:
    means = np.stack([base.class_embeddings(j).mean(axis=0) for j in range(len(base.classes))])  # (c, d) float32
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray((features @ means.T).argmax(axis=1))
