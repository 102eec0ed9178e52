"""What the tests of streams share: a knowledge base, requests that a number decides, and states that compare."""

import numpy as np

from kpl_engine.config import MethodConfig
from kpl_engine.encoder.pipeline import EncodedImages
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.server.streams import Streams

WIDTH, CLASSES, ROWS = 7, 3, 3
CONFIG = MethodConfig(k=2, min_batch=4)


def unit(rng, *shape):
    rows = rng.standard_normal(shape) + 0.7
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def knowledge(seed=1, name="chest"):
    rng = np.random.default_rng(seed)
    return KnowledgeBase.from_arrays([unit(rng, m, WIDTH) for m in (3, 5, 2)], name=name)


def request(number, seed=0):
    """Features of the ``number``-th request: ``ROWS`` pictures."""
    return EncodedImages.from_features(unit(np.random.default_rng([seed, number]), ROWS, WIDTH))


def ask(streams, number, base, method="kpl_stream", model="demo", config=CONFIG, encoder="e1", seed=0):
    return streams.answer(model, base, method, config, request(number, seed), 2, encoder)


def same(left, right):
    """Whether two classifications are equal to the last bit."""
    return (
        left.probabilities.tobytes() == right.probabilities.tobytes()
        and left.labels == right.labels
        and left.evidence == right.evidence
        and left.margins.tobytes() == right.margins.tobytes()
        and left.warnings == right.warnings
    )


def answers(count, base, method="kpl_stream", start=0, streams=None):
    """Answers to requests ``start .. count``, of a stream that never stopped unless one is given."""
    kept = streams or Streams(None, 1.0)
    return [ask(kept, i, base, method) for i in range(start, count)]


def images_of(streams):
    return [each["images"] for each in streams.status()["streams"]]
