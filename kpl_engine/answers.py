"""Features to answers: what `Engine` and the server share once the pictures are encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from kpl_engine.arguments import Prior, check_choice, check_top, class_shares
from kpl_engine.arrays import Float64
from kpl_engine.classification import Classification, assemble, find_evidence
from kpl_engine.config import EngineConfig, MethodConfig, MethodName, ModeName
from kpl_engine.encoder.base import Encoder
from kpl_engine.encoder.pipeline import EncodedImages
from kpl_engine.errors import ConfigError, InputError, KnowledgeError, KplError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.opening import open_solver
from kpl_engine.query import QueryLike
from kpl_engine.solver.answering import check_method, of_width
from kpl_engine.solver.base import Answer, FrozenProxies, Notice
from kpl_engine.solver.grouped import solve_frozen_each
from kpl_engine.solver.labels import resolve_prior
from kpl_engine.solver.select import METHODS, Problem, StreamSolver, solve_frozen, solve_many, solve_on

__all__ = ["Answers"]

_StreamKey = tuple[str, MethodName, MethodConfig, tuple[float, ...] | None]
_MODES: tuple[ModeName, ...] = ("batch", "frozen", "stream")
_STREAM_METHODS = ("kpl_stream", "onzeta")
_SETTINGS_UNUSED = Notice(
    "settings_unused", "mode 'frozen' answers with the numbers it was fitted with; give the settings to fit instead"
)


class Answers:
    """Knowledge bases, fitted proxies and a solver; no pictures, no encoder but the one the vectors come from.

    Safe from several threads, except in ``stream`` mode, whose state has an order. It never closes ``encoder``.

    Parameters
    ----------
    encoder : Encoder
        Where the vectors come from: its width is checked, and on a GPU the solver shares its context.
    knowledge : iterable of KnowledgeBase
    frozen : mapping of name to FrozenProxies, optional
    config : EngineConfig, optional
    device : str
        What the encoder was asked for; only "auto" lets the CPU answer where the GPU fails.
    """

    def __init__(
        self,
        encoder: Encoder,
        knowledge: Iterable[KnowledgeBase],
        frozen: Mapping[str, FrozenProxies] | None = None,
        config: EngineConfig | None = None,
        device: str = "auto",
    ) -> None:
        self.config = EngineConfig() if config is None else config
        bases = list(knowledge)
        self.bases = {base.name: base for base in bases}
        if len(self.bases) != len(bases):
            raise KnowledgeError(f"expected knowledge bases of different names, got {[base.name for base in bases]}")
        self.frozen = dict(frozen or {})
        self._streams: dict[_StreamKey, StreamSolver] = {}
        for base in bases:
            _check_fits(base, encoder)
        self._context = getattr(encoder, "context", None)
        self._gpu, self._passed_over = open_solver(self.config.solver.device, encoder)
        asked = self.config.solver.device
        self._falls_back = (device if asked == "same" else asked) == "auto"

    @property
    def notices(self) -> tuple[str, ...]:
        """The device that ``auto`` chose for the solver, and what its driver has to tell."""
        said = () if self._passed_over is None else (self._passed_over.message,)
        return said + (() if self._gpu is None else self._gpu.context.driver.notes)

    @property
    def is_on_gpu(self) -> bool:
        """Whether proxies are learned on a GPU."""
        return self._gpu is not None

    def base(self, name: str | None = None) -> KnowledgeBase:
        """One knowledge base; ``None`` means the only one. Raises `KnowledgeError` naming the choices."""
        if name is None and len(self.bases) == 1:
            return next(iter(self.bases.values()))
        if not isinstance(name, str) or name not in self.bases:
            have = ", ".join(self.bases) or "none: add one with `kpl-engine knowledge build`"
            asked = "no knowledge base was named" if name is None else f"no knowledge base {name!r}"
            raise KnowledgeError(f"{asked}; expected one of the bundle's ({have})")
        return self.bases[name]

    def check(
        self,
        base: KnowledgeBase,
        method: MethodName | None,
        mode: ModeName,
        prior: Prior = None,
        settings: MethodConfig | None = None,
    ) -> tuple[MethodName, Float64 | None]:
        """The method that will answer and its prior (c,); raises what does not depend on the images.

        Raises
        ------
        InputError
            Unknown method or mode, ``frozen`` without proxies or with another method than they were fitted with, a
            prior that does not fit the classes or the mode, settings the method does not have.
        """
        check_choice("mode", mode, _MODES)
        config = self.settings(settings)
        shares = class_shares(prior, base)
        frozen = self.frozen.get(base.name)
        if mode == "frozen" and frozen is None:
            raise InputError(
                f"mode 'frozen' needs proxies fitted for {base.name!r}, and there are none; "
                "fit them on unlabelled images with `kpl-engine fit` or Engine.fit"
            )
        default: MethodName = frozen.method if mode == "frozen" and frozen else "kpl"
        if mode == "stream":
            default = "kpl_stream"
        chosen: MethodName = check_choice("method", default if method is None else method, METHODS)
        if mode == "frozen" and frozen is not None:
            _check_frozen(frozen, chosen, shares)
            return chosen, None
        if mode == "stream" and chosen not in _STREAM_METHODS:
            raise ConfigError(f"method: mode 'stream' expects 'kpl_stream' or 'onzeta', got {chosen!r}")
        check_method(chosen, config)
        resolve_prior(shares, len(base.classes), config.gamma if chosen in ("inmap", "kpl") else 0.0)
        return chosen, shares

    def settings(self, settings: MethodConfig | None) -> MethodConfig:
        """``settings`` or the engine's own; `ConfigError` for anything else."""
        if settings is not None and not isinstance(settings, MethodConfig):
            raise ConfigError(f"settings: expected a MethodConfig, got {type(settings).__name__}")
        return self.config.method if settings is None else settings

    def answer(
        self,
        base: KnowledgeBase,
        encoded: EncodedImages,
        method: MethodName | None = None,
        mode: ModeName = "batch",
        prior: Prior = None,
        settings: MethodConfig | None = None,
        top_evidence: int = 2,
    ) -> Classification:
        """Classify what was encoded; arguments and errors as `Engine.classify`."""
        chosen, shares = self.check(base, method, mode, prior, settings)
        config = self.settings(settings)
        if len(encoded.features) == 0:
            return assemble(base, encoded, None, chosen, mode, top_evidence)
        if mode == "batch":
            answer = self.solve(encoded, Problem(encoded.features, base, chosen, config, shares))
        elif mode == "stream":
            answer = self._stream(base, chosen, config, shares).answer(encoded.features)
        else:
            answer = solve_frozen(encoded.features, self.frozen[base.name])
            if config != self.config.method:
                answer = replace(answer, warnings=(*answer.warnings, _SETTINGS_UNUSED))
        return assemble(base, encoded, answer, chosen, mode, top_evidence)

    def answer_many(self, queries: Sequence[QueryLike]) -> list[Classification | KplError]:
        """Answers in the order of ``queries``, or the error of a query in its place; the others do not notice.

        Queries of mode "frozen" and one knowledge base are multiplied at once: each answer is that of its query alone
        but for the rounding of a float64 product, and in the compiled core to the bit. Queries of mode "batch" are
        solved beside each other, as `solve_many` does. ``timings_ms`` of a query that shared a product have the time
        of all that did.
        """
        found: dict[int, Classification | KplError] = {}
        groups: dict[str, list[int]] = {}
        for place, query in enumerate(queries):
            # "" holds the batches: it is no name of a knowledge base
            groups.setdefault(query.knowledge if query.mode == "frozen" else "", []).append(place)
        for name, places in groups.items():
            self._answer_group([(place, queries[place]) for place in places], bool(name), found)
        return [found[place] for place in range(len(queries))]

    def solve(self, encoded: EncodedImages, problem: Problem) -> Answer:
        """Learn from a batch, on the GPU if there is one, where its features may already be."""
        on_device = encoded.on_device if self._shares_gpu else None
        return solve_on(problem, self._gpu, self._num_threads, on_device, self._falls_back)

    def close(self) -> None:
        """Free what the solver keeps on a GPU; calling it twice is harmless."""
        if self._gpu is not None and self._shares_gpu:
            self._gpu.close()

    def _answer_group(
        self, asked: Sequence[tuple[int, QueryLike]], is_frozen: bool, found: dict[int, Classification | KplError]
    ) -> None:
        ready: list[tuple[int, QueryLike, Problem]] = []
        for place, query in asked:
            try:
                problem = self._problem(query)
            except KplError as error:
                found[place] = error
                continue
            if problem is None:
                found[place] = self._alone(query)
            else:
                ready.append((place, query, problem))
        if len(ready) > 1:
            try:
                solve_group = self._frozen_together if is_frozen else self._batches_together
                found.update(zip([place for place, _, _ in ready], solve_group(ready), strict=True))
                return
            except KplError:
                pass  # of one of them: each alone tells which
        for place, query, _ in ready:
            found[place] = self._alone(query)

    def _problem(self, query: QueryLike) -> Problem | None:
        """The query checked; None where none of its images could be used."""
        base = self.base(query.knowledge)
        check_top(query.top_evidence)
        chosen, shares = self.check(base, query.method, query.mode, query.prior)
        features = query.encoded.features
        if len(features) == 0:
            return None
        return Problem(of_width(features, base.embeddings.T), base, chosen, self.config.method, shares)

    def _alone(self, query: QueryLike) -> Classification | KplError:
        try:
            base = self.base(query.knowledge)
            return self.answer(
                base, query.encoded, query.method, query.mode, query.prior, top_evidence=query.top_evidence
            )
        except KplError as error:
            return error

    def _frozen_together(self, ready: Sequence[tuple[int, QueryLike, Problem]]) -> list[Classification]:
        base = cast(KnowledgeBase, ready[0][2].knowledge)
        features = [query.encoded.features for _, query, _ in ready]
        X, whole, answers = solve_frozen_each(features, self.frozen[base.name])
        most = max(query.top_evidence for _, query, _ in ready)
        evidence = find_evidence(X, base, whole, most)  # best first, so that fewer of them are a beginning
        done, start = [], 0
        for (_, query, _), answer in zip(ready, answers, strict=True):
            top, end = query.top_evidence, start + len(answer.labels)
            reasons = [each[:top] for each in evidence[start:end]]
            done.append(assemble(base, query.encoded, answer, answer.method, "frozen", top, reasons))
            start = end
        return done

    def _batches_together(self, ready: Sequence[tuple[int, QueryLike, Problem]]) -> list[Classification]:
        answers = self._solve_many([problem for _, _, problem in ready])
        return [
            assemble(
                cast(KnowledgeBase, problem.knowledge),
                query.encoded,
                answer,
                problem.method,
                "batch",
                query.top_evidence,
            )
            for (_, query, problem), answer in zip(ready, answers, strict=True)
        ]

    def _solve_many(self, problems: list[Problem]) -> list[Answer]:
        if self._gpu is None:
            return solve_many(problems, self._num_threads)
        from kpl_engine.solver.devices import using_device

        with using_device(self._gpu):
            return solve_many(problems, self._num_threads, "auto" if self._falls_back else "cuda")

    @property
    def _num_threads(self) -> int | None:
        return self.config.solver.num_threads or None

    @property
    def _shares_gpu(self) -> bool:
        """Whether encoder and solver have one stream: features of another come by way of the host."""
        return self._gpu is not None and self._gpu.context is self._context

    def _stream(
        self, base: KnowledgeBase, method: MethodName, config: MethodConfig, shares: Float64 | None
    ) -> StreamSolver:
        prior = None if shares is None else tuple(shares.tolist())
        key = (base.name, method, config, prior)  # another setting is another stream, never a mixture of two
        if key not in self._streams:
            self._streams[key] = StreamSolver(base, method, config, shares)
        return self._streams[key]


def _check_fits(base: KnowledgeBase, encoder: Encoder) -> None:
    width = base.embeddings.shape[1]
    if width != encoder.embed_dim:
        raise KnowledgeError(
            f"knowledge base {base.name!r}: expected embeddings of width {encoder.embed_dim}, that of "
            f"encoder {encoder.name!r}, got {width}; build it again with this encoder"
        )


def _check_frozen(frozen: FrozenProxies, method: MethodName, shares: Float64 | None) -> None:
    if method != frozen.method:
        raise InputError(
            f"mode 'frozen' holds proxies fitted with {frozen.method!r}, got method {method!r}; "
            f"leave the method out or fit again with --method {method}"
        )
    if shares is not None:
        raise InputError("a prior changes what is learned: give it to fit, not to classify in mode 'frozen'")
