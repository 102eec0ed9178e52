"""`Engine`: images in, labels with probabilities and reasons out. The only file that runs encoder and solver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy.typing as npt

from kpl_engine.arguments import Prior, as_sources, check_choice, check_config, check_top, class_shares
from kpl_engine.arrays import Float32, Float64, check_array
from kpl_engine.bundle import Bundle
from kpl_engine.classification import Classification, assemble
from kpl_engine.config import EngineConfig, MethodConfig, MethodName, ModeName
from kpl_engine.encoder.base import Encoder
from kpl_engine.encoder.pipeline import EncodedImages, encode_stream
from kpl_engine.encoder.select import load_encoder
from kpl_engine.errors import ConfigError, InputError, KnowledgeError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.opening import open_solver, read_frozen, read_knowledge
from kpl_engine.solver.base import Answer, FrozenProxies, Notice
from kpl_engine.solver.select import METHODS, Problem, StreamSolver, freeze, solve_frozen, solve_on

__all__ = ["Engine"]

Progress = Callable[[int, int], None]
_StreamKey = tuple[str, MethodName, MethodConfig, tuple[float, ...] | None]
_SETTINGS_UNUSED = Notice(
    "settings_unused", "mode 'frozen' answers with the numbers it was fitted with; give the settings to fit instead"
)


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
        bases = list(knowledge)
        self._knowledge = {base.name: base for base in bases}
        if len(self._knowledge) != len(bases):
            raise KnowledgeError(f"expected knowledge bases of different names, got {[base.name for base in bases]}")
        self._frozen = dict(frozen or {})
        self._streams: dict[_StreamKey, StreamSolver] = {}
        for base in self._knowledge.values():
            self._check_fits(base)
        self._gpu, self._passed_over = open_solver(self.config.solver.device, encoder)
        asked = self.config.solver.device
        self._falls_back = (device if asked == "same" else asked) == "auto"

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
        return tuple(self._knowledge)

    @property
    def notices(self) -> tuple[str, ...]:
        """What `load` decided on its own, for example the device that ``auto`` chose."""
        said = () if self._passed_over is None else (self._passed_over.message,)
        return self.encoder.notices + said + (() if self._gpu is None else self._gpu.context.driver.notes)

    def knowledge(self, name: str | None = None) -> KnowledgeBase:
        """One knowledge base; ``None`` means the only one. Raises `KnowledgeError` naming the choices."""
        if name is None and len(self._knowledge) == 1:
            return next(iter(self._knowledge.values()))
        if not isinstance(name, str) or name not in self._knowledge:
            have = ", ".join(self._knowledge) or "none: add one with `kpl-engine knowledge build`"
            asked = "no knowledge base was named" if name is None else f"no knowledge base {name!r}"
            raise KnowledgeError(f"{asked}; expected one of the bundle's ({have})")
        return self._knowledge[name]

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
        result = self._answer(base, encoded, method, mode, prior, settings, top_evidence)
        timings = dict(result.timings_ms)
        timings["total"] = (perf_counter() - started) * 1e3
        return replace(result, timings_ms=timings)

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
        return {base.name: self._answer(base, encoded, method, mode, prior, settings, top_evidence) for base in bases}

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
        answer = self._solve(encoded, Problem(encoded.features, base, chosen, self._settings(settings), shares))
        if answer.method_used != chosen:
            reasons = " ".join(notice.message for notice in answer.warnings)
            raise InputError(f"cannot fit {chosen!r} on {len(encoded.features)} images: {reasons}")
        frozen = freeze(answer)
        self._frozen[base.name] = frozen
        return frozen, assemble(base, encoded, answer, chosen, "batch", 2)

    def frozen_proxies(self, knowledge: str | None = None) -> FrozenProxies | None:
        """The fitted proxies of a knowledge base, or ``None``."""
        return self._frozen.get(self.knowledge(knowledge).name)

    def close(self) -> None:
        """Free the encoder, what the solver keeps on a GPU, and the files of the bundle."""
        if self._gpu is not None and self._shares_gpu:
            self._gpu.close()
        self.encoder.close()
        if self._bundle is not None:
            self._bundle.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_fits(self, base: KnowledgeBase) -> None:
        width = base.embeddings.shape[1]
        if width != self.encoder.embed_dim:
            raise KnowledgeError(
                f"knowledge base {base.name!r}: expected embeddings of width {self.encoder.embed_dim}, that of "
                f"encoder {self.encoder.name!r}, got {width}; build it again with this encoder"
            )

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

    def _answer(
        self,
        base: KnowledgeBase,
        encoded: EncodedImages,
        method: MethodName | None,
        mode: ModeName,
        prior: Prior,
        settings: MethodConfig | None,
        top_evidence: int,
    ) -> Classification:
        check_choice("mode", mode, ("batch", "frozen", "stream"))
        config = self._settings(settings)
        shares = class_shares(prior, base)
        frozen = self._frozen.get(base.name)
        if mode == "frozen" and frozen is None:
            raise InputError(
                f"mode 'frozen' needs proxies fitted for {base.name!r}, and there are none; "
                "fit them on unlabelled images with `kpl-engine fit` or Engine.fit"
            )
        default: MethodName = frozen.method if mode == "frozen" and frozen else "kpl"
        if mode == "stream":
            default = "kpl_stream"
        chosen = check_choice("method", default if method is None else method, METHODS)
        if len(encoded.features) == 0:
            return assemble(base, encoded, None, chosen, mode, top_evidence)
        if mode == "batch":
            answer = self._solve(encoded, Problem(encoded.features, base, chosen, config, shares))
        elif mode == "stream":
            answer = self._stream(base, chosen, config, shares).answer(encoded.features)
        else:
            answer = _answer_frozen(encoded.features, frozen, chosen, shares)
            if config != self.config.method:
                answer = replace(answer, warnings=(*answer.warnings, _SETTINGS_UNUSED))
        return assemble(base, encoded, answer, chosen, mode, top_evidence)

    def _solve(self, encoded: EncodedImages, problem: Problem) -> Answer:
        threads = self.config.solver.num_threads or None
        on_device = encoded.on_device if self._shares_gpu else None
        return solve_on(problem, self._gpu, threads, on_device, self._falls_back)

    @property
    def _shares_gpu(self) -> bool:
        """Whether encoder and solver have one stream: features of another come by way of the host."""
        return self._gpu is not None and self._gpu.context is getattr(self.encoder, "context", None)

    def _settings(self, settings: MethodConfig | None) -> MethodConfig:
        if settings is not None and not isinstance(settings, MethodConfig):
            raise ConfigError(f"settings: expected a MethodConfig, got {type(settings).__name__}")
        return self.config.method if settings is None else settings

    def _stream(
        self, base: KnowledgeBase, method: MethodName, config: MethodConfig, shares: Float64 | None
    ) -> StreamSolver:
        prior = None if shares is None else tuple(shares.tolist())
        key = (base.name, method, config, prior)  # another setting is another stream, never a mixture of two
        if key not in self._streams:
            self._streams[key] = StreamSolver(base, method, config, shares)
        return self._streams[key]


def _answer_frozen(
    features: Float32, frozen: FrozenProxies | None, method: MethodName, shares: Float64 | None
) -> Answer:
    if frozen is None:
        raise InputError("no frozen proxies")
    if method != frozen.method:
        raise InputError(
            f"mode 'frozen' holds proxies fitted with {frozen.method!r}, got method {method!r}; "
            f"leave the method out or fit again with --method {method}"
        )
    if shares is not None:
        raise InputError("a prior changes what is learned: give it to fit, not to classify in mode 'frozen'")
    return solve_frozen(features, frozen)


def _first(encoded: EncodedImages) -> str:
    return f"the first: {encoded.failures[0][2]}" if encoded.failures else "give some"
