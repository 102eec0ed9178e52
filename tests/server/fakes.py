"""Models without bundles for the tests of the service: encoders that wait, count and fail on request."""

import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np

from kpl_engine.classification import Classification
from kpl_engine.config import MethodConfig
from kpl_engine.encoder.fake import FakeEncoder
from kpl_engine.errors import EncoderError, InputError, KnowledgeError, UnknownModelError
from kpl_engine.server.parts import Lane
from kpl_engine.server.port import IndexEntry, ModelInfo

PATIENCE_S = 20.0  # no test waits longer for anything


class GatedEncoder(FakeEncoder):
    """``gate`` holds every batch; ``sizes`` are those that ran; a picture that is 255 all over is poison."""

    def __init__(self, **kwargs):
        super().__init__(image_size=(4, 4), embed_dim=4, **kwargs)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.sizes, self.seen = [], []
        self.raises = None

    def encode_images(self, pixels):
        self.sizes.append(len(pixels))
        self.seen.extend(int(picture[0, 0, 1]) for picture in pixels)
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if self.raises is not None:
            raise self.raises
        if (pixels == 255).all(axis=(1, 2, 3)).any():
            raise EncoderError("the encoder returned images that are not finite unit vectors")
        return super().encode_images(pixels)

    def await_entry(self):
        assert self.entered.acquire(timeout=PATIENCE_S)


class InstantEncoder(FakeEncoder):
    """Returns at once: what is left is the service."""

    def __init__(self):
        super().__init__(image_size=(4, 4), embed_dim=4)
        self._rows = np.full((64, 4), 0.5, np.float32)
        self.gate = threading.Event()

    def encode_images(self, pixels):
        return self._rows[: len(pixels)]


class FakeModel:
    def __init__(self, name, lane, frozen=True):
        self.lane, self.method_config, self._has_frozen = lane, MethodConfig(), frozen
        self.info = ModelInfo(name, "1", "fake", 4, (4, 4), lane.buckets[-1], (), ("cpu",), "f")
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.groups = []  # names of the modes and number of queries of every call
        self.fails = {}  # task -> error raised by the whole call

    def base(self, task):
        if task not in (None, "k", "other"):
            raise KnowledgeError(f"no knowledge base {task!r}; expected k or other")
        return SimpleNamespace(name=task or "k", classes=("a", "b"))

    def frozen(self, task):
        return object() if self._has_frozen else None

    def check(self, task, method, mode, prior):
        if method == "nonsense":
            raise InputError("method: expected kpl, got 'nonsense'")

    def solve(self, queries, instance=0):
        self.groups.append([query.mode for query in queries])
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        for query in queries:
            if query.knowledge in self.fails:
                raise self.fails[query.knowledge]
        return [answer(query) for query in queries]


def answer(query, mode=None):
    encoded = query.encoded
    n = len(encoded.names)
    indices = np.full(n, -1)
    indices[encoded.ok_index] = (encoded.features[:, 0] > 0).astype(int)
    nothing = np.zeros((n, 2), np.float32)
    return Classification(
        ("a", "b"), encoded.names, ("a",) * n, indices, nothing, nothing[:, 0], nothing[:, 0] > 1, ((),) * n,
        ("a",) * n, nothing, query.knowledge, "kpl", "kpl", mode or query.mode, (), tuple(encoded.failures), {},
    )  # fmt: skip


class FakeModels:
    """``held`` counts what was acquired and not released."""

    def __init__(self, *models):
        self._models = {model.info.name: model for model in models}
        self.held = Counter()
        self.changed = threading.Condition()
        self.is_closed = False

    def start(self):
        pass

    def acquire(self, name, version=""):
        with self.changed:
            if name not in self._models or version not in ("", "1"):
                raise UnknownModelError(f"no model {name!r}")
            self.held[name] += 1
            return self._models[name]

    def release(self, model):
        with self.changed:
            self.held[model.info.name] -= 1
            assert self.held[model.info.name] >= 0
            self.changed.notify_all()

    def lanes(self):
        return list({id(model.lane): model.lane for model in self._models.values()}.values())

    def index(self):
        return [IndexEntry(name, "1", "READY") for name in self._models]

    def load(self, name):
        raise UnknownModelError(name)

    def unload(self, name):
        with self.changed:
            del self._models[name]
            assert self.changed.wait_for(lambda: not self.held[name], PATIENCE_S)

    def close(self):
        self.is_closed = True


def lane_of(*encoders, key="lane", buckets=(1, 2, 4, 8), pads=False):
    return Lane(key, tuple(encoders), buckets, pads)
