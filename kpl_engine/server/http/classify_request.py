"""From the body, query and headers of `POST /v1/classify` to a request of the service."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

import msgspec

from kpl_engine.config import MethodName, ModeName
from kpl_engine.errors import RequestError, UnknownModelError
from kpl_engine.server.http.multipart import clean_name, parse_multipart
from kpl_engine.server.http.schemas import ClassifyBody, NamedImage, Parameters
from kpl_engine.server.infer import parse_prior
from kpl_engine.server.port import Service
from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.strict_json import StrictJsonError, parse_strict

__all__ = ["FILE_FIELDS", "PARAMETERS", "default_model", "parse_classify"]

FILE_FIELDS = ("image", "images", "file")
PARAMETERS = Parameters.__struct_fields__
_CHOICES: dict[str, tuple[str, ...]] = {"method": get_args(MethodName), "mode": get_args(ModeName)}
_RAW = re.compile(r"image/[a-z0-9.+-]+|application/(dicom|octet-stream)|")
_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,", re.IGNORECASE)
_HOW = (
    "expected multipart/form-data (curl -F image=@x.jpg), application/json, or a picture as it is "
    "(curl --data-binary @x.jpg -H 'Content-Type: image/jpeg')"
)
_LINE_ENDS = {10: None, 13: None}  # base64(1) breaks its lines
_Picture = tuple[bytes, str]
_P = TypeVar("_P", bound=Parameters)


def default_model(service: Service) -> str:
    """The model of a request that names none."""
    index = service.index()
    # A bundle that is only offered is no choice: one copied to the repository must not break who names no model.
    loaded = {entry.name for entry in index if entry.state == "READY"}
    names = sorted(loaded or {entry.name for entry in index})
    if len(names) == 1:
        return names[0]
    if not names:
        raise UnknownModelError("this server has no model")
    raise RequestError(f"model: expected one of {', '.join(names)}, got none")


def parse_classify(
    service: Service,
    content_type: str,
    query: Iterable[tuple[str, str]],
    body: bytes,
    request_id: str,
    traceparent: str,
) -> ClassifyRequest:
    """Take a request apart, in any of its three forms.

    Parameters
    ----------
    service : Service
        For its limits and the model of a request that names none.
    content_type : str
        Chooses the form; empty is a picture as it is.
    query : pairs of str
        Parameters, in any form; each may be given once in all.
    body : bytes
        Without its Content-Encoding.
    request_id, traceparent : str
        Passed on.

    Raises
    ------
    RequestError
        Malformed, an unknown parameter or a wrong value, no picture.
    TooLargeError
        More pictures in a form than one request may have; those of JSON are counted by the service.
    UnknownModelError
        No model is named and there is none.
    """
    kind = content_type.split(";", 1)[0].strip().lower()
    texts = _once(query, "query")
    if kind == "multipart/form-data":
        form = parse_multipart(body, content_type, service.settings.max_images)
        given, pictures = _from_texts([*texts.items(), *form.fields]), []
        for file in form.files:
            if file.field not in FILE_FIELDS:
                raise RequestError(f"expected files in the fields {', '.join(FILE_FIELDS)}; got {file.field[:80]!r}")
            pictures.append((file.data, file.name))
    elif kind == "application/json":
        given, pictures = _from_json(body, texts)
    elif _RAW.fullmatch(kind):
        given, pictures = _from_texts(texts.items()), [(body, "")] if body else []
    else:
        raise RequestError(f"Content-Type: {_HOW}; got {kind[:80]!r}")
    if not pictures:
        raise RequestError(f"no picture in the request: {_HOW}")
    return _request(service, given, pictures, request_id, traceparent)


def _request(
    service: Service, given: Parameters, pictures: list[_Picture], request_id: str, traceparent: str
) -> ClassifyRequest:
    return ClassifyRequest(
        given.model or default_model(service),
        images=[data for data, _ in pictures],
        names=tuple(name or f"image {i}" for i, (_, name) in enumerate(pictures)),
        task=given.task,
        method=given.method,
        mode=given.mode,
        prior=_prior(given.prior),
        top_k=given.top_k,
        skips_bad=True,
        priority=given.priority,
        timeout_s=None if given.timeout_ms is None else given.timeout_ms / 1e3,
        request_id=request_id,
        traceparent=traceparent,
    )


def _prior(given: str | Mapping[str, float] | None) -> dict[str, float] | None:
    if given is None or isinstance(given, str):
        return parse_prior(given) if given else None
    for name, share in given.items():
        if share < 0:
            raise RequestError(f"prior: expected shares >= 0, got {share} for {name[:80]!r}")
    return dict(given)


def _once(pairs: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, text in pairs:
        if name not in PARAMETERS:
            raise RequestError(f"{where}: expected parameters of {', '.join(PARAMETERS)}; got {name[:80]!r}")
        if name in found:
            raise RequestError(f"{name}: expected once, got it twice")
        found[name] = text
    return found


def _from_texts(pairs: Iterable[tuple[str, str]]) -> Parameters:
    """An empty text is a field of a form that was left empty."""
    given = {name: text for name, text in _once(pairs, "fields").items() if text}
    _check_choices(given)
    return _convert(given, Parameters, is_text=True)


def _from_json(body: bytes, texts: dict[str, str]) -> tuple[Parameters, list[_Picture]]:
    try:
        value = parse_strict(body, len(body))
    except StrictJsonError as error:
        raise RequestError(f"body: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"body: expected a JSON object, got {type(value).__name__}")
    _check_choices(value)
    named = _convert(value, ClassifyBody, is_text=False)
    if texts:
        _once([*((name, "") for name in value if name in PARAMETERS), *texts.items()], "query")
        from_query = _from_texts(texts.items())
        for name in texts:
            setattr(named, name, getattr(from_query, name))
    return named, [_picture(i, image) for i, image in enumerate(named.images)]


def _check_choices(given: Mapping[str, Any]) -> None:
    for name, choices in _CHOICES.items():
        if given.get(name) is not None and given[name] not in choices:
            raise RequestError(f"{name}: expected one of {', '.join(choices)}; got {given[name]!r:.80}")


def _convert(given: Mapping[str, Any], kind: type[_P], is_text: bool) -> _P:
    unknown = [name for name in given if name not in kind.__struct_fields__]
    if unknown:
        known = ", ".join(kind.__struct_fields__)
        raise RequestError(f"body: expected the fields {known}; got {unknown[0][:80]!r}")
    try:
        return msgspec.convert(dict(given), kind, strict=not is_text)
    except msgspec.ValidationError as error:
        raise RequestError(str(error).replace("$.", "").replace("`", "")[:500]) from error


def _picture(index: int, given: str | NamedImage) -> _Picture:
    text, name = (given, "") if isinstance(given, str) else (given.data, clean_name(given.name))
    start = text[:256]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", start):
        found = _DATA_URL.match(start)
        if found is None:
            raise RequestError(
                f"images[{index}]: expected base64 or a data: URL of base64, got {start[:40]!r}; "
                "addresses are not fetched, send the picture itself"
            )
        text = text[found.end() :]
    try:
        return base64.b64decode(text.translate(_LINE_ENDS), validate=True), name
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"images[{index}]: not base64: {error}") from error
