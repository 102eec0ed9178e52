"""What the rivals work on: one model, one knowledge base, pictures, and the answers that are right for them.

Run as a program with the folder to fill: it needs torch, which `rivals.py` itself must not load.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from clip_like import make_clip_like

__all__ = ["NUM_PICTURES", "adaptation", "checked_parts", "read_pictures"]

NUM_PICTURES, NUM_CHECKED = 64, 16
# Features of two pictures must differ by more than this in some coordinate, or a mix-up could pass the check.
FEWEST_APART = 1e-3


def read_pictures(work: Path) -> list[bytes]:
    """JPEG files, in order."""
    return [path.read_bytes() for path in sorted((work / "pictures").glob("*.jpg"))]


def adaptation(size: tuple[int, int, int]) -> tuple[Any, list[Any]]:
    """Features (n, d) and embedded descriptions (c arrays (12, d)), float32, of a problem of that size."""
    data = make_clip_like(*size, seed=size[0])
    return data.features, list(data.descriptions)


def checked_parts(size: int) -> list[slice]:
    """Which pictures are checked in calls of ``size``: sixteen in all, or one call where that is more."""
    return [slice(start, start + size) for start in range(0, max(NUM_CHECKED, size), size)]


def make_work(work: Path) -> dict[str, Any]:
    """Bundle (kept from run to run), pictures, descriptions, and the float32 torch model's features (64, d)."""
    from end_to_end import make_bundle
    from serving_setup import make_pictures

    from kpl_engine import Engine

    work.mkdir(parents=True, exist_ok=True)
    if not (work / "lung.kpl").exists():
        make_bundle(work, "ViT-B-32")
    pictures = make_pictures(NUM_PICTURES)
    (work / "pictures").mkdir(exist_ok=True)
    for index, picture in enumerate(pictures):
        (work / "pictures" / f"{index:04d}.jpg").write_bytes(picture)
    with Engine.load(work / "lung.kpl", "cpu") as engine:
        base = engine.knowledge()
    blocks = np.split(base.embeddings.astype(np.float32), base.offsets[1:-1])
    np.savez(work / "texts.npz", **{str(index): block for index, block in enumerate(blocks)})
    features = _torch_features(pictures)
    np.save(work / "features.npy", features)
    between = np.abs(features[:, None] - features[None]).max(axis=2)[np.triu_indices(len(features), 1)]
    if between.min() < FEWEST_APART:
        raise SystemExit("two pictures have nearly the same features; a mix-up could pass: use other pictures")
    return {
        "model": "ViT-B-32, random weights, float32",
        "pictures": f"{len(pictures)} JPEG files of 500 x 375",
        "jpeg_bytes_mean": float(np.mean([len(picture) for picture in pictures])),
        "features_apart": float(between.min()),
        "classes": len(blocks),
        "descriptions": [len(block) for block in blocks],
    }


def _torch_features(pictures: list[bytes]) -> Any:
    import torch
    from PIL import Image
    from rivals_torch import open_model

    model, transform = open_model()
    images = torch.stack([transform(Image.open(io.BytesIO(picture))) for picture in pictures])
    with torch.inference_mode():
        parts = [model.encode_image(part, normalize=True) for part in images.split(8)]
    return torch.cat(parts).numpy()


if __name__ == "__main__":
    print(json.dumps(make_work(Path(sys.argv[1]))))
