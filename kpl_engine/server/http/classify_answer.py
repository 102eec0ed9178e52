"""From a reply of the service to the JSON of `/v1`; msgspec writes NaN as null."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from kpl_engine.classification import Classification
from kpl_engine.config import MethodName, ModeName
from kpl_engine.errors import NotReadyError, UnknownModelError
from kpl_engine.server.http.schemas import (
    ClassifyAnswer,
    EvidenceAnswer,
    ImageAnswer,
    KnowledgeAnswer,
    LimitsAnswer,
    ModelAnswer,
    ModelsAnswer,
    WarningAnswer,
)
from kpl_engine.server.port import IndexEntry, KnowledgeInfo, Service
from kpl_engine.server.requests import Reply

__all__ = ["answer_of", "images_of", "models_of"]

_STREAM_METHODS: tuple[MethodName, ...] = ("kpl_stream", "onzeta")


def _number(value: float) -> float:
    """The shortest decimal that is the float32 given."""
    return float(str(value))


def images_of(found: Classification, names: Sequence[str]) -> list[ImageAnswer]:
    """One entry an image, in order; the failed ones have their error and nothing else."""
    errors = {failure.index: failure.message for failure in found.failures}
    answers = []
    for i, name in enumerate(names):
        label = found.labels[i]
        if label is None:
            answers.append(ImageAnswer(name, error=errors.get(i, "no answer for this image")))
            continue
        shares = zip(found.classes, found.probabilities[i], strict=True)
        answers.append(
            ImageAnswer(
                name=name,
                label=label,
                probabilities={each: _number(share) for each, share in shares},
                margin=_number(found.margins[i]),
                is_undecided=bool(found.is_undecided[i]),
                evidence=[EvidenceAnswer(e.description, e.similarity, e.is_kept) for e in found.evidence[i]],
                text_label=found.text_labels[i],
            )
        )
    return answers


def answer_of(reply: Reply, names: Sequence[str]) -> ClassifyAnswer:
    """The whole answer; ``names`` are those of the request's pictures."""
    found = reply.classification
    return ClassifyAnswer(
        request_id=reply.request_id,
        model=reply.model,
        version=reply.version,
        task=found.knowledge,
        method=found.method,
        method_used=found.method_used,
        mode=found.mode,
        classes=list(found.classes),
        images=images_of(found, names),
        warnings=[WarningAnswer(notice.code, notice.message) for notice in found.warnings],
        timings_ms={stage: round(ms, 3) for stage, ms in reply.timings_ms.items()},
        agreement=found.agreement,
    )


def models_of(service: Service) -> ModelsAnswer:
    """What the server offers now."""
    limits = service.settings
    return ModelsAnswer(
        models=[_model(service, entry) for entry in sorted(service.index(), key=lambda each: each.name)],
        limits=LimitsAnswer(limits.max_images, limits.max_body_bytes, limits.max_pixels, limits.deadline_s),
    )


def _model(service: Service, entry: IndexEntry) -> ModelAnswer:
    plain = ModelAnswer(entry.name, entry.version, entry.state == "READY", entry.state, entry.reason)
    if not plain.is_ready:
        return plain
    try:
        info = service.model(entry.name, entry.version)
    except (NotReadyError, UnknownModelError) as error:  # unloaded since the index was made
        return ModelAnswer(entry.name, entry.version, False, "UNAVAILABLE", str(error))
    plain.encoder, plain.image_size = info.encoder, list(info.image_size)
    plain.providers, plain.notices = list(info.providers), list(info.notices)
    plain.knowledge = [_knowledge(each) for each in info.knowledge]
    return plain


def _knowledge(info: KnowledgeInfo) -> KnowledgeAnswer:
    modes: dict[ModeName, list[MethodName]] = {"batch": list(get_args(MethodName)), "stream": list(_STREAM_METHODS)}
    if info.frozen is not None:
        modes["frozen"] = [info.frozen]
    default: ModeName = "batch" if info.frozen is None else "frozen"
    return KnowledgeAnswer(info.name, list(info.classes), info.num_descriptions, info.frozen, modes, default)
