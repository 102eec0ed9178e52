"""A model by name, folder or hub id: architecture, weights and preprocessing, or an error that says what to do."""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import pretrained as registry
from torch import nn

from kpl_engine.errors import ConfigError, ExportError, InputError

from . import hub
from .environment import quiet
from .preprocess import preprocess_of_tags, read_preprocess
from .weights import check_file, find_weights, load_weights

__all__ = ["LoadedModel", "list_architectures", "load_model"]

LOCAL, HUB = "local-dir:", "hf-hub:"
CONFIG_FILE = "open_clip_config.json"
NO_WEIGHTS = "none"
SEED = 0  # random weights are the same on every run, so that their export is reproducible


@dataclass(frozen=True)
class LoadedModel:
    """An open_clip model in float32 and eval mode, with what the manifest records of it."""

    model: nn.Module
    traceable: nn.Module  # the same function in the form that is traced; usually the same module
    name: str  # as the manifest says it: never a local path
    identifier: str  # as open_clip is asked for it
    pretrained: str
    text_config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    folder: Path | None
    notes: tuple[str, ...] = ()


def list_architectures(pattern: str = "*") -> list[str]:
    """Names of open_clip's built-in architectures that match a shell pattern, or contain it."""
    folded = pattern.casefold()
    return [
        name
        for name in open_clip.list_models()
        if fnmatch.fnmatch(name.casefold(), folded) or folded in name.casefold()
    ]


def load_model(name: str, pretrained: str | None = None) -> LoadedModel:
    """Build the architecture ``name`` and fill it with weights.

    Parameters
    ----------
    name : str
        An open_clip architecture, ``local-dir:FOLDER`` or ``hf-hub:ORG/REPO``.
    pretrained : str, optional
        A tag of that architecture, a weights file, or ``none`` for random weights. Optional for folders
        and hub models, which bring their own.

    Raises
    ------
    ConfigError
        Unknown architecture or tag.
    InputError
        A folder, file or configuration that cannot be used.
    ExportError
        A download failed, or open_clip cannot build the model.
    """
    if name.startswith(LOCAL):
        return _load_folder(Path(name[len(LOCAL) :]), pretrained)
    if name.startswith(HUB):
        return _load_hub(name, pretrained)
    return _load_built_in(name, pretrained)


def _load_built_in(name: str, pretrained: str | None) -> LoadedModel:
    identifier = name.replace("/", "-")
    known = open_clip.list_models()
    if identifier not in known:
        near = difflib.get_close_matches(identifier, known, n=5, cutoff=0.4)
        raise ConfigError(
            f"--model: open_clip has no architecture {name!r}; nearest names: {', '.join(near) or 'none'}. "
            f"All of them: kpl-engine export --list. A folder: {LOCAL}PATH"
        )
    if not pretrained:
        raise ConfigError(
            f"--pretrained: {name} needs a tag, a weights file or {NO_WEIGHTS!r}; {_tags_text(identifier)}"
        )
    config = open_clip.get_model_config(identifier)
    tag = {} if pretrained == NO_WEIGHTS else registry.get_pretrained_cfg(identifier, pretrained)
    path = _resolve_weights(identifier, pretrained, tag)
    if path is not None:
        check_file(path)
    overrides, notes = _activation_of_tag(config, tag, pretrained)
    colours, more_notes = (dict(tag), ()) if tag else preprocess_of_tags(identifier)
    model = _build(identifier, {"force_preprocess_cfg": colours, **overrides})
    if path is not None:
        load_weights(model, path)
    label = pretrained if tag or path is None else f"file:{path.name}"
    return _loaded(model, identifier, identifier, label, config["text_cfg"], None, (*notes, *more_notes))


def _tags_text(name: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(name)
    return f"tags of {name}: {', '.join(tags)}" if tags else f"open_clip knows no tag for {name}"


def _resolve_weights(name: str, pretrained: str, tag: Mapping[str, Any]) -> Path | None:
    """The weights file that ``pretrained`` means, downloaded when it is a tag; None for random weights."""
    if pretrained == NO_WEIGHTS:
        return None
    if tag:
        return hub.download_weights(name, pretrained, tag)
    path = Path(pretrained).expanduser()
    if path.exists() or len(path.parts) > 1 or path.suffix in (".safetensors", ".pt", ".pth", ".bin"):
        return path
    near = difflib.get_close_matches(pretrained, open_clip.list_pretrained_tags_by_model(name), n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]})" if near else ""
    raise ConfigError(f"--pretrained: {pretrained!r} is neither a tag nor a file{hint}; {_tags_text(name)}")


def _activation_of_tag(
    config: Mapping[str, Any], tag: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Some tags were trained with QuickGELU under an architecture name that says GELU: follow the training.

    Not the other way round: a tag that is silent may belong to an architecture that says QuickGELU itself.
    """
    if not tag.get("quick_gelu", False) or config.get("quick_gelu", False):
        return {}, ()
    return {"quick_gelu": True}, (f"the weights {name!r} were trained with QuickGELU: exporting with QuickGELU",)


def _load_folder(folder: Path, pretrained: str | None) -> LoadedModel:
    folder = folder.expanduser()
    config = _read_folder_config(folder)
    text_config = deepcopy(config["text_cfg"])
    overrides: dict[str, Any] = {}
    if text_config.get("hf_model_name"):
        text_config["hf_model_name"] = _text_tower_config(folder, text_config["hf_model_name"])
        text_config["hf_model_pretrained"] = False
        overrides["text_cfg"] = text_config
    path = None
    if pretrained != NO_WEIGHTS:
        path = Path(pretrained).expanduser() if pretrained else find_weights(folder)
        if path is None:
            raise InputError(f"{folder}: no weights file in the folder; add one, or say --pretrained {NO_WEIGHTS}")
        check_file(path)
    identifier = f"{LOCAL}{folder}"
    model = _build(identifier, overrides)
    if path is not None:
        load_weights(model, path)
    label = NO_WEIGHTS if path is None else f"file:{path.name}"
    return _loaded(model, folder.resolve().name, identifier, label, config["text_cfg"], folder)


def _read_folder_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder (from {LOCAL}{folder})")
    if not path.is_file():
        raise InputError(f"{folder}: expected an open_clip checkpoint folder with {CONFIG_FILE}, found none")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: is not readable JSON ({error})") from error
    config = content.get("model_cfg") if isinstance(content, dict) else None
    parts = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    wrong = [
        key for key, kind in parts.items() if not isinstance(config, dict) or not isinstance(config.get(key), kind)
    ]
    if wrong:
        raise InputError(
            f"{path}: expected 'model_cfg' with embed_dim, vision_cfg and text_cfg; wrong: {', '.join(wrong)}"
        )
    return dict(config)


def _text_tower_config(folder: Path, name: str) -> str:
    """Where the configuration of a Hugging Face text tower lies: in the checkpoint's folder when it is there."""
    for place in (folder / name, folder):
        if place.resolve().is_relative_to(folder.resolve()) and (place / "config.json").is_file():
            return str(place)
    return name


def _load_hub(name: str, pretrained: str | None) -> LoadedModel:
    if pretrained not in (None, NO_WEIGHTS):
        raise ConfigError(f"--pretrained: {name} brings its own weights; leave it out, or say {NO_WEIGHTS}")
    is_random = pretrained == NO_WEIGHTS
    try:
        hub.require(name[len(HUB) :], [CONFIG_FILE])
        config = open_clip.get_model_config(name)
        model = _build(name, {"load_weights": not is_random, "require_pretrained": not is_random})
    except Exception as error:  # network stacks raise their own trees
        raise ExportError(
            f"{name} could not be fetched or built ({type(error).__name__}: {str(error)[:200]}). Without a network, "
            f"copy the repository's files into a folder and say --model {LOCAL}FOLDER"
        ) from error
    return _loaded(model, name[len(HUB) :], name, NO_WEIGHTS if is_random else "hf-hub", config["text_cfg"], None)


def _build(identifier: str, overrides: Mapping[str, Any]) -> nn.Module:
    options = {"load_weights": False, "pretrained_text": False, **overrides}
    try:
        _require_text_tower(overrides.get("text_cfg") or open_clip.get_model_config(identifier)["text_cfg"])
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = open_clip.create_model(identifier, precision="fp32", device="cpu", **options)
    except Exception as error:  # a configuration can be wrong in any way the model classes can fail
        hint = (
            f". Without a network, put the config.json of its text tower into the folder of a {LOCAL} checkpoint"
            if isinstance(error, OSError)
            else ""
        )
        raise ExportError(
            f"open_clip could not build {identifier}: {type(error).__name__}: {str(error)[:300]}{hint}"
        ) from error
    return model


def _require_text_tower(text_config: Mapping[str, Any]) -> None:
    """Raise `OSError` when the configuration of a Hugging Face text tower is neither here nor to be had."""
    name = text_config.get("hf_model_name")
    if name and not Path(name).is_dir():
        hub.require(name, ["config.json"])


def _loaded(
    model: nn.Module,
    name: str,
    identifier: str,
    pretrained: str,
    text_config: Mapping[str, Any],
    folder: Path | None,
    notes: tuple[str, ...] = (),
) -> LoadedModel:
    model = model.float().eval().requires_grad_(False)
    text = getattr(model, "text", None)
    if hasattr(text, "transformer") and hasattr(text.transformer, "set_attn_implementation"):
        text.transformer.set_attn_implementation("eager")  # the smallest graph of a Hugging Face tower
    if pretrained == NO_WEIGHTS:
        notes = (
            *notes,
            "RANDOM WEIGHTS (--pretrained none): the features mean nothing; for tests of the plumbing only",
        )
    return LoadedModel(
        model, _reparameterized(model), name, identifier, pretrained, text_config, read_preprocess(model), folder, notes
    )


def _reparameterized(model: nn.Module) -> nn.Module:
    """MobileCLIP's training branches folded into one convolution each, in a copy; other models as they are."""
    if not any(hasattr(module, "reparameterize") for module in model.modules()):
        return model
    from timm.utils.model import reparameterize_model

    folded: nn.Module = reparameterize_model(model, inplace=False)
    return folded.eval().requires_grad_(False)
