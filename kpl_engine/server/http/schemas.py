"""What is said in JSON at `/v1`, both ways; the OpenAPI document is made from these."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from kpl_engine.config import MethodName, ModeName

__all__ = [
    "ClassifyAnswer",
    "ClassifyBody",
    "ErrorAnswer",
    "ErrorDetail",
    "EvidenceAnswer",
    "ImageAnswer",
    "KnowledgeAnswer",
    "LimitsAnswer",
    "ModelAnswer",
    "ModelsAnswer",
    "NamedImage",
    "Parameters",
    "WarningAnswer",
]

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
Base64 = Annotated[str, Meta(min_length=1, description="base64, or a data: URL of base64; other URLs are not fetched")]


class NamedImage(Struct, forbid_unknown_fields=True):
    """An encoded picture with the name that the answer calls it by."""

    data: Base64
    name: Annotated[str, Meta(max_length=4096)] = ""


class Parameters(Struct, forbid_unknown_fields=True, kw_only=True):
    """What may be said of a request: fields of a form, a query, or of `ClassifyBody`."""

    model: Name | None = None
    task: Name | None = None
    method: MethodName | None = None
    mode: ModeName | None = None
    top_k: Annotated[int, Meta(ge=0, le=1000, description="descriptions given as evidence for each image")] = 2
    prior: Annotated[
        str | dict[str, float] | None, Meta(description="shares of all classes: normal=0.8,effusion=0.2, or an object")
    ] = None
    priority: Annotated[int, Meta(ge=0, le=3, description="1 before 2 before 3; 0 is 2")] = 0
    timeout_ms: Annotated[float, Meta(gt=0, le=86_400_000)] | None = None


class ClassifyBody(Parameters, forbid_unknown_fields=True, kw_only=True):
    """The JSON form of a request."""

    images: Annotated[list[Base64 | NamedImage], Meta(min_length=1, description="JPEG, PNG, TIFF, DICOM ... files")]


class EvidenceAnswer(Struct):
    """A description of the label's class and its cosine with the image."""

    description: str
    similarity: float
    is_kept: Annotated[bool, Meta(description="one of the descriptions that made the text proxy")]


class ImageAnswer(Struct):
    """One image of the request, in its place; what could not be used has an ``error`` and nothing else."""

    name: str
    label: str | None = None
    probabilities: Annotated[dict[str, float] | None, Meta(description="in the order of classes")] = None
    margin: Annotated[float | None, Meta(description="between the two largest probabilities")] = None
    is_undecided: Annotated[bool, Meta(description="rounding decided between labels")] = False
    evidence: list[EvidenceAnswer] = []
    text_label: Annotated[str | None, Meta(description="the label of the text proxies alone")] = None
    error: str | None = None


class WarningAnswer(Struct):
    """A known failure mode that was met; ``code`` is stable."""

    code: str
    message: str


class ClassifyAnswer(Struct):
    """The answer to a request."""

    request_id: str
    model: str
    version: str
    task: str
    method: Annotated[MethodName, Meta(description="what was asked for")]
    method_used: Annotated[MethodName, Meta(description="what answered; warnings say why they differ")]
    mode: ModeName
    classes: list[str]
    images: list[ImageAnswer]
    warnings: list[WarningAnswer]
    timings_ms: Annotated[dict[str, float], Meta(description="decode, queue, encode, solve, total; stages overlap")]
    agreement: Annotated[float | None, Meta(description="share of images that the text proxies label alike")]


class ErrorDetail(Struct):
    """Why a request was refused. ``code`` is stable; ``message`` says what, expected, got and what to do."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(Struct):
    """The body of every refusal. ``images`` is there where no picture of the request could be used."""

    error: ErrorDetail
    images: list[ImageAnswer] | UnsetType = UNSET


class KnowledgeAnswer(Struct):
    """A knowledge base. ``default_mode`` is what a request without a mode gets."""

    name: str
    classes: list[str]
    num_descriptions: int
    fitted_method: Annotated[MethodName | None, Meta(description="what its proxies were fitted with")]
    modes: Annotated[dict[ModeName, list[MethodName]], Meta(description="the methods of each mode it has")]
    default_mode: ModeName


class ModelAnswer(Struct):
    """A model the server knows; details are there when it is loaded."""

    name: str
    version: str
    is_ready: bool
    state: str
    reason: str
    encoder: str | None = None
    image_size: list[int] | None = None
    providers: list[str] = []
    knowledge: list[KnowledgeAnswer] = []
    notices: list[str] = []


class LimitsAnswer(Struct):
    """Of one request."""

    max_images: int
    max_body_bytes: int
    max_pixels: int
    deadline_s: float


class ModelsAnswer(Struct):
    """What a user interface needs to offer choices."""

    models: list[ModelAnswer]
    limits: LimitsAnswer
