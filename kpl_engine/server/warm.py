"""What is slow the first time, done before a model is ready."""

from __future__ import annotations

import numpy as np

from kpl_engine.answers import Answers
from kpl_engine.encoder.base import DeviceEncoder, Encoder
from kpl_engine.encoder.pipeline import EncodedImages

__all__ = ["buckets_up_to", "warm_answers", "warm_encoder"]


def buckets_up_to(most: int) -> tuple[int, ...]:
    """Batch sizes 1, 2, 4 .. and ``most`` itself: few, since ONNX Runtime's arena keeps memory for each it has seen."""
    return (*(1 << power for power in range((most - 1).bit_length())), most)


def warm_encoder(encoder: Encoder, buckets: tuple[int, ...]) -> None:
    """Run every batch size once, the largest first, so that what is allocated for it serves the others too.

    Raises
    ------
    EncoderError
        The graph does not run, or does not give unit vectors: better now than on the first request.
    """
    height, width = encoder.image_size
    picture = np.linspace(0, 255, height * width * 3).astype(np.uint8).reshape(height, width, 3)  # (h, w, 3) uint8
    for size in sorted(buckets, reverse=True):
        pixels = np.broadcast_to(picture, (size, height, width, 3)).copy()
        encoder.encode_images(pixels)
        if isinstance(encoder, DeviceEncoder):
            encoder.encode_on_device(pixels)
            encoder.check_encoded()


def warm_answers(answers: Answers) -> None:
    """Answer once for every knowledge base, so that no request loads a kernel or waits for a first allocation."""
    for base in answers.bases.values():
        # On a GPU a batch large enough to learn from, which loads its kernels; on a CPU there is nothing to load.
        n = 4 * len(base.classes) if answers.is_on_gpu else 1
        rows = base.embeddings[np.arange(n) % len(base.embeddings)]  # unit rows of the right width
        encoded = EncodedImages.from_features(np.ascontiguousarray(rows))
        answers.answer(base, encoded, "kpl" if answers.is_on_gpu else "zeroshot")
        if base.name in answers.frozen:
            answers.answer(base, encoded, mode="frozen")
