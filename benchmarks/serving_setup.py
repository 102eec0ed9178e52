"""What the benchmark of the server works on: a ViT-B-32 with fitted proxies, pictures, requests with right answers."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from end_to_end import make_bundle
from load.payloads import PayloadSet, bytes_input, pixels_input
from PIL import Image

from kpl_engine import Engine
from kpl_engine.building import add_proxies
from kpl_engine.imaging.decode import decode_image

NUM_PICTURES = 64
MODEL = "lung"
# On the machine of the results a batch of any size gave the same bits; elsewhere a float32 encoder may give other last
# bits in another batch (features within 2e-6), which tau_i = 0.04 multiplies by 25 in the logits. Two pictures differ
# by more: `make_work` checks it.
TOLERANCE = 2e-4
FEATURE_TOLERANCE = 1e-5


def make_pictures(count: int = NUM_PICTURES, seed: int = 5) -> list[bytes]:
    """JPEG files of 500 x 375: smooth shapes under fine grain, about as long as photographs of that size."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (*rng.integers(4, 25, 2), 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 10, (375, 500, 1))
        target = io.BytesIO()
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(target, "JPEG", quality=85)
        pictures.append(target.getvalue())
    return pictures


def prepared(engine: Engine, pictures: list[bytes]) -> npt.NDArray[np.uint8]:
    """The pictures as the encoder takes them, (n, 224, 224, 3) uint8."""
    geometry = engine.encoder.preprocess
    return np.stack([geometry.apply(decode_image(picture).pixels) for picture in pictures])


def make_work(folder: Path) -> dict[str, Any]:
    """Bundle, pictures and payload sets in ``folder``, made once and found again."""
    bundle = folder / f"{MODEL}.kpl"
    if not bundle.exists():
        _make_bundle(folder, bundle)
    pictures = make_pictures()
    with Engine.load(bundle, "cpu") as engine:
        pixels = prepared(engine, pictures)
        features = engine.encode(pixels).features
        # one picture at a time: the definition of a frozen answer
        alone = [engine.classify([picture], mode="frozen").probabilities for picture in pixels]
    expected = np.asarray(np.concatenate(alone), np.float32)
    apart = np.sort(expected[:, 0])
    if np.median(np.diff(apart)) <= TOLERANCE:
        raise SystemExit("the answers to different pictures are too close to tell a mix-up; use other pictures")
    np.save(folder / "pixels.npy", pixels)
    (folder / "pictures").mkdir(exist_ok=True)
    for i, picture in enumerate(pictures):
        (folder / "pictures" / f"{i:04d}.jpg").write_bytes(picture)
    _write_payloads(folder, pictures, pixels, expected, features)
    return {
        "bundle": str(bundle),
        "jpeg_bytes_mean": float(np.mean([len(picture) for picture in pictures])),
        "answers_median_distance": float(np.median(np.diff(apart))),
        "tolerance": TOLERANCE,
    }


def _make_bundle(folder: Path, bundle: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = make_bundle(folder, "ViT-B-32") if not (folder / "fresh.kpl").exists() else folder / "fresh.kpl"
    fresh = folder / "fresh.kpl"
    if made != fresh:
        os.replace(made, fresh)
    with Engine.load(fresh, "cpu") as engine:
        base = engine.knowledge(None)
        frozen, _ = engine.fit(make_pictures(), "kpl")
    entry = {"method": frozen.method, "num_images": frozen.num_images, "knowledge_fingerprint": base.fingerprint}
    add_proxies(fresh, base.name, *frozen.to_tensors(), entry, bundle)


def _write_payloads(
    folder: Path,
    pictures: list[bytes],
    pixels: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.float32],
    features: npt.NDArray[np.float32],
) -> None:
    frozen = {"mode": "frozen"}
    images = [(bytes_input("image", [picture]), expected[i : i + 1]) for i, picture in enumerate(pictures)]
    tensors = [(pixels_input("pixels", pixels[i : i + 1]), expected[i : i + 1]) for i in range(len(pixels))]
    eights = [(pixels_input("pixels", pixels[i : i + 8]), expected[i : i + 8]) for i in range(0, len(pixels), 8)]
    rival = [(pixels_input("pixels", pixels[i : i + 1]), features[i : i + 1]) for i in range(len(pixels))]
    for door in ("http", "grpc"):
        root = folder / "payloads"
        PayloadSet.write(root / f"{door}-jpeg", door, MODEL, images, "probabilities", TOLERANCE, frozen)
        PayloadSet.write(root / f"{door}-pixels", door, MODEL, tensors, "probabilities", TOLERANCE, frozen)
        PayloadSet.write(root / f"{door}-pixels8", door, MODEL, eights, "probabilities", TOLERANCE, frozen)
        PayloadSet.write(root / f"{door}-rival", door, "rival", rival, "features", FEATURE_TOLERANCE, {})
