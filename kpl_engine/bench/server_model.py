"""The model of a running server, found and compared with the bundle before anything is measured."""

from __future__ import annotations

import http.client
import json
from dataclasses import replace
from typing import Any

import numpy as np

from kpl_engine.bench.address import Address, read_token
from kpl_engine.bench.doors import Answer
from kpl_engine.bench.messages import Rows
from kpl_engine.bench.remote import Payloads, RemoteTarget, ServerModel
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.bench.targets import BROKEN
from kpl_engine.engine import Engine
from kpl_engine.errors import ConfigError
from kpl_engine.server.settings import is_model_name, model_name

__all__ = ["find_model"]

_PATIENCE_S = 30.0
# Of the cosine between the server's feature of a picture and ours. Half precision leaves 0.999 and more; the features
# of two encoders that were trained apart have nothing to do with each other.
_LEAST_COSINE = 0.98
_MOST_BYTES = 1 << 20


def find_model(settings: BenchSettings, engine: Engine) -> ServerModel:
    """The server's model with the parameters of every request, ``mode`` always named.

    It is asked for one picture: its classes and its feature must be those of the bundle. A fingerprint would not say:
    the server's covers its threads and its device as well.

    Raises
    ------
    ConfigError
        An address that is none, another model than the bundle, or one without proxies where ``mode`` leaves it to
        them.
    NotReadyError, UnknownModelError, UnauthorizedError, ServiceError
        The server does not answer, or not with this model.
    MissingExtraError
        gRPC without its extra.
    """
    if settings.url is None:
        raise ValueError("expected settings with a url")
    base = engine.knowledge(settings.knowledge)
    name = settings.model or model_name(settings.bundle)
    if not is_model_name(name):
        raise ConfigError(f"model: expected 1 to 128 letters, digits, '.', '_', '-', got {name[:200]!r}")
    model = ServerModel(Address.parse(settings.url), name, read_token(settings.token_file))
    if not model.address.is_grpc:
        model = replace(model, max_batch=_read_max_batch(model))
    given = {"task": base.name, "method": settings.method, "mode": settings.mode}
    model = replace(model, parameters=tuple((name, value) for name, value in given.items() if value is not None))
    rng = np.random.default_rng(settings.seed)
    picture = rng.integers(0, 256, (*engine.encoder.image_size, 3), dtype=np.uint8)
    target = RemoteTarget(model, Payloads.of("pixels", [picture]), patience_s=_PATIENCE_S)
    try:
        outputs, told = target.ask([0], ("class_name", "embedding"))
    finally:
        target.close()
    _check_same(model, outputs, engine, base.classes, picture)
    mode = str(told.get("mode", ""))
    if settings.mode is None and mode != "frozen":
        raise ConfigError(
            f"{model.address}: model {model.name!r} has no fitted proxies, so it answers each picture in mode "
            f"{mode!r}; fit them (kpl-engine fit) and serve that bundle, or ask for the mode by --mode"
        )
    return replace(model, parameters=tuple({**dict(model.parameters), "mode": mode}.items()))


def _check_same(
    model: ServerModel, outputs: dict[str, Rows], engine: Engine, classes: tuple[str, ...], picture: Any
) -> None:
    what = f"{model.address}: model {model.name!r} is not the bundle"
    found = [bytes(each).decode() for each in outputs["class_name"]]
    if found != list(classes):
        raise ConfigError(f"{what}: expected the classes {', '.join(classes)[:200]}; got {', '.join(found)[:200]}")
    theirs, ours = np.asarray(outputs["embedding"])[0], engine.encode([picture]).features[0]
    if theirs.shape != ours.shape:
        raise ConfigError(f"{what}: expected features of width {len(ours)}, got {len(theirs)}")
    cosine = float(theirs @ ours)
    if not cosine >= _LEAST_COSINE:
        raise ConfigError(
            f"{what}: expected the feature of a picture to have a cosine of {_LEAST_COSINE:g} or more with the "
            f"bundle's, got {cosine:.3f}; give the bundle that is served, or name another model by --model"
        )


def _read_max_batch(model: ServerModel) -> int:
    """Of the metadata; raises what a server that does not know the model deserves."""
    answer = _get(model, f"/v2/models/{model.name}")
    if answer.code != "200":
        model.read(answer)
    try:
        return int(json.loads(answer.body)["parameters"]["max_batch"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{model.address}: expected the metadata of a kpl-engine model, got {answer.body[:80]!r}; "
            "is this the address of `kpl-engine serve`?"
        ) from None


def _get(model: ServerModel, path: str) -> Answer:
    address = model.address
    connection: http.client.HTTPConnection
    if address.tls is None:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=_PATIENCE_S)
    else:
        connection = http.client.HTTPSConnection(address.host, address.port, timeout=_PATIENCE_S, context=address.tls)
    headers = {"Authorization": f"Bearer {model.token}"} if model.token else {}
    try:
        connection.request("GET", address.prefix + path, headers=headers)
        reply = connection.getresponse()
        return Answer(str(reply.status), reply.read(_MOST_BYTES))
    except (OSError, http.client.HTTPException) as error:
        return Answer(BROKEN, str(error).encode())
    finally:
        connection.close()
