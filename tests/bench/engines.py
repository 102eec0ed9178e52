"""Engines on the fake encoder, and one whose batches differ in their last bits as those of a graph may."""

import numpy as np
from PIL import Image

from kpl_engine.bench.samples import make_samples
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.encoder.fake import FakeEncoder
from kpl_engine.engine import Engine
from kpl_engine.knowledge import KnowledgeBase

CLASSES = ("normal", "nodule", "effusion")


class BatchedEncoder(FakeEncoder):
    """Rows of a batch of n are ``error`` away from what they are alone, in a direction that depends on n."""

    error = 0.0

    def encode_images(self, pixels):
        rows = super().encode_images(pixels)
        if len(rows) > 1:
            step = np.random.default_rng(len(rows)).normal(size=rows.shape)
            rows = rows + self.error * step / np.linalg.norm(step, axis=1, keepdims=True)
        return rows.astype(np.float32)


def make_engine(error=0.0, classes=CLASSES, seed=0, knowledge=True):
    """An engine of width 17 for pictures of 30 x 26."""
    encoder = BatchedEncoder(embed_dim=17, image_size=(30, 26), seed=seed)
    encoder.error = error
    texts = {label: [f"{label} sign {i}" for i in range(11)] for label in classes}
    bases = [KnowledgeBase.from_arrays({label: encoder.encode_texts(group) for label, group in texts.items()})]
    return Engine(encoder, bases if knowledge else [])


def settings_of(**given):
    """Of no bundle in particular: 19 pictures."""
    return BenchSettings("none.kpl", **{"num_samples": 19, **given})


def write_pictures(folder, count, seed=None):
    """PNG files of noise, 40 x 31."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{index:03d}.png" for index in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (31, 40, 3), dtype=np.uint8)).save(path)
    return paths


def samples_of(engine, **given):
    """Settings and samples of them."""
    settings = settings_of(**given)
    return settings, make_samples(settings, engine)
