"""`Engine`: images in, labels with probabilities and reasons out. The only file that runs encoder and solver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy.typing as npt

from kpl_engine.answers import Answers
from kpl_engine.arguments import Prior, as_sources, check_choice, check_config, check_top, class_shares
from kpl_engine.arrays import check_array
from kpl_engine.bundle import Bundle
from kpl_engine.classification import Classification, assemble
from kpl_engine.config import EngineConfig, MethodConfig, MethodName, ModeName
from kpl_engine.encoder.base import Encoder
from kpl_engine.encoder.pipeline import EncodedImages, encode_stream
from kpl_engine.encoder.select import load_encoder
from kpl_engine.errors import InputError, KnowledgeError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.opening import read_frozen, read_knowledge
from kpl_engine.solver.base import FrozenProxies
from kpl_engine.solver.select import METHODS, Problem, freeze

__all__ = ["Engine"]

Progress = Callable[[int, int], None]


class Engine:
    """An encoder and its knowledge bases, ready to classify.

    Safe to call from several threads, except in ``stream`` mode, whose state has an order.
    """

    def __init__(
        self,
        encoder: Encoder,
        knowledge: Iterable[KnowledgeBase],
        *,
        frozen: Mapping[str, FrozenProxies] | None = None,
        config: EngineConfig | None = None,
        bundle: Bundle | None = None,
        device: str = "auto",
    ) -> None:
        self.encoder = encoder
        self._bundle = bundle  # a zipped bundle keeps its unpacked files as long as it is open
        self.config = check_config(config)
        self._answers = Answers(encoder, knowledge, frozen, self.config, device)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", config: EngineConfig | None = None) -> Engine:
        """Open a bundle (folder or stored zip), verify every byte, start the encoder.

        Parameters
        ----------
        path : path
            A ``*.kpl`` bundle.
        device : str
            ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``, for the encoder and the solver. A device asked for by
            name never falls back; ``auto`` may, and says so in ``notices``. `SolverConfig.device` separates the two.
        config : EngineConfig, optional

        Raises
        ------
        BundleError
            Missing, corrupt, unsafe or of an unknown version.
        BackendUnavailableError
            The device asked for by name is not there.
        """
        settings = check_config(config)
        bundle = Bundle.open(path)
        try:
            bases = [read_knowledge(bundle, name) for name in bundle.manifest.get("knowledge", {})]
            frozen = {base.name: found for base in bases if (found := read_frozen(bundle, base)) is not None}
            encoder = load_encoder(bundle, device, settings.encoder)
            return cls(encoder, bases, frozen=frozen, config=settings, bundle=bundle, device=device)
        except BaseException:
            bundle.close()
            raise

    @property
    def knowledge_names(self) -> tuple[str, ...]:
        """Names of the knowledge bases, in the order of the bundle."""
        return tuple(self._answers.bases)

    @property
    def notices(self) -> tuple[str, ...]:
        """What `load` decided on its own, for example the device that ``auto`` chose."""
        return self.encoder.notices + self._answers.notices

    def knowledge(self, name: str | None = None) -> KnowledgeBase:
        """One knowledge base; ``None`` means the only one. Raises `KnowledgeError` naming the choices."""
        return self._answers.base(name)

    def encode(self, images: Any, *, progress: Progress | None = None) -> EncodedImages:
        """Decode, preprocess and encode; a bad image lands in ``failures`` and the rest go on.

        ``images``: a sequence of paths, bytes, PIL images or (h, w, 3) uint8 arrays, or one
        (n, h, w, 3) uint8 array.
        """
        return encode_stream(as_sources(images), self.encoder, self.config.decode, progress=progress)

    def classify(
        self,
        images: Any = None,
        method: MethodName | None = None,
        mode: ModeName = "batch",
        *,
        features: npt.ArrayLike | None = None,
        knowledge: str | None = None,
        prior: Prior = None,
        settings: MethodConfig | None = None,
        top_evidence: int = 2,
        progress: Progress | None = None,
    ) -> Classification:
        """Classify images against one knowledge base.

        Parameters
        ----------
        images
            As for `encode`. Give either ``images`` or ``features``.
        method : str, optional
            One of method.md section 4; the default is ``"kpl"``, in ``frozen`` mode what was fitted,
            in ``stream`` mode ``"kpl_stream"``.
        mode : str
            ``"batch"`` adapts to the images of this call, ``"frozen"`` answers each image alone with
            proxies from `fit`, ``"stream"`` adapts to all images seen by this engine so far.
        features : (n, d) array, optional
            Unit-norm image features computed before.
        knowledge : str, optional
            Name of the knowledge base; may be left out when there is one.
        prior : (c,) array or mapping of class name to share, optional
            Known class shares, used instead of uniform ones by ``inmap``, ``kpl``, ``kpl_stream``.
        settings : MethodConfig, optional
        top_evidence : int
            Descriptions returned per image.

        Raises
        ------
        InputError
            Unknown method, mode or knowledge base, no images, features of another width. One bad
            image does not raise: it stands in ``failures``.
        """
        base = self.knowledge(knowledge)
        check_top(top_evidence)
        started = perf_counter()
        encoded = self._encoded(images, features, progress)
        result = self._answers.answer(base, encoded, method, mode, prior, settings, top_evidence)
        timings = dict(result.timings_ms)
        timings["total"] = (perf_counter() - started) * 1e3
        return replace(result, timings_ms=timings)

    def answer(
        self,
        encoded: EncodedImages,
        method: MethodName | None = None,
        mode: ModeName = "batch",
        *,
        knowledge: str | None = None,
        prior: Prior = None,
        settings: MethodConfig | None = None,
        top_evidence: int = 2,
    ) -> Classification:
        """`classify` for pictures that `encode` has encoded before."""
        base = self.knowledge(knowledge)
        check_top(top_evidence)
        return self._answers.answer(base, encoded, method, mode, prior, settings, top_evidence)

    def check(
        self,
        method: MethodName | None = None,
        mode: ModeName = "batch",
        *,
        knowledge: str | None = None,
        prior: Prior = None,
        settings: MethodConfig | None = None,
    ) -> None:
        """Raise what `classify` would raise for these arguments whatever the images are: `InputError`."""
        self._answers.check(self.knowledge(knowledge), method, mode, prior, settings)

    def classify_each(
        self,
        images: Any = None,
        knowledge: Sequence[str] | None = None,
        method: MethodName | None = None,
        mode: ModeName = "batch",
        *,
        features: npt.ArrayLike | None = None,
        prior: Prior = None,
        settings: MethodConfig | None = None,
        top_evidence: int = 2,
        progress: Progress | None = None,
    ) -> dict[str, Classification]:
        """Classify the same images against several knowledge bases; they are encoded once.

        ``knowledge`` holds names (default: all); the rest is as for `classify`.
        """
        if isinstance(knowledge, str):
            raise KnowledgeError(f"knowledge: expected a list of names, got one text; write [{knowledge!r}]")
        bases = [self.knowledge(name) for name in (self.knowledge_names if knowledge is None else knowledge)]
        check_top(top_evidence)
        encoded = self._encoded(images, features, progress)
        return {
            base.name: self._answers.answer(base, encoded, method, mode, prior, settings, top_evidence)
            for base in bases
        }

    def fit(
        self,
        images: Any = None,
        method: MethodName = "kpl",
        *,
        features: npt.ArrayLike | None = None,
        knowledge: str | None = None,
        prior: Prior = None,
        settings: MethodConfig | None = None,
        progress: Progress | None = None,
    ) -> tuple[FrozenProxies, Classification]:
        """Learn proxies from unlabelled images and keep them for ``mode="frozen"``.

        Returns the proxies and the answers for the images they were learned from.
        Raises `InputError` when there are too few usable images to learn from.
        """
        base = self.knowledge(knowledge)
        encoded = self._encoded(images, features, progress)
        chosen = check_choice("method", method, METHODS)
        if len(encoded.features) == 0:
            raise InputError(f"cannot fit: none of the {len(encoded.names)} images could be used; {_first(encoded)}")
        shares = class_shares(prior, base)
        answer = self._answers.solve(
            encoded, Problem(encoded.features, base, chosen, self._answers.settings(settings), shares)
        )
        if answer.method_used != chosen:
            reasons = " ".join(notice.message for notice in answer.warnings)
            raise InputError(f"cannot fit {chosen!r} on {len(encoded.features)} images: {reasons}")
        frozen = freeze(answer)
        self._answers.frozen[base.name] = frozen
        return frozen, assemble(base, encoded, answer, chosen, "batch", 2)

    def frozen_proxies(self, knowledge: str | None = None) -> FrozenProxies | None:
        """The fitted proxies of a knowledge base, or ``None``."""
        return self._answers.frozen.get(self.knowledge(knowledge).name)

    def close(self) -> None:
        """Free the encoder, what the solver keeps on a GPU, and the files of the bundle."""
        self._answers.close()
        self.encoder.close()
        if self._bundle is not None:
            self._bundle.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encoded(self, images: Any, features: npt.ArrayLike | None, progress: Progress | None) -> EncodedImages:
        if (images is None) == (features is None):
            raise InputError("expected either images or features, got " + ("neither" if images is None else "both"))
        if features is None:
            encoded = self.encode(images, progress=progress)
        else:
            encoded = EncodedImages.from_features(check_array("features", features, ("n", self.encoder.embed_dim)))
        if len(encoded.names) == 0:
            raise InputError("expected at least one image, got none")
        return encoded


def _first(encoded: EncodedImages) -> str:
    return f"the first: {encoded.failures[0][2]}" if encoded.failures else "give some"
