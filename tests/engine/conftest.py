"""An engine on the fake encoder: upper rooms are tested without any model."""

import numpy as np
import pytest

from kpl_engine.encoder.fake import FakeEncoder
from kpl_engine.engine import Engine
from kpl_engine.knowledge import KnowledgeBase


@pytest.fixture
def encoder():
    return FakeEncoder(embed_dim=16, image_size=(32, 32), seed=0)


@pytest.fixture
def make_knowledge(encoder):
    def make(name="chest", classes=("normal", "nodule", "effusion")):
        texts = {label: [f"{label} sign {i}" for i in range(10)] for label in classes}
        embeddings = {label: encoder.encode_texts(group) for label, group in texts.items()}
        return KnowledgeBase.from_arrays(embeddings, descriptions=list(texts.values()), name=name)

    return make


@pytest.fixture
def engine(encoder, make_knowledge):
    return Engine(encoder, [make_knowledge()])


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 24, 30, 3), dtype=np.uint8)
