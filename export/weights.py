"""Weights from a file into a model: read as tensors only, every mismatch named."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import safetensors
import torch
from open_clip.factory import load_checkpoint
from torch import nn

from kpl_engine.errors import InputError

from .environment import quiet

__all__ = ["check_file", "find_weights", "load_weights"]

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")
# The order open_clip prefers among several files of one folder.
PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
NUM_KEYS_SHOWN = 3


def find_weights(folder: Path) -> Path | None:
    """The checkpoint open_clip would take from ``folder``: a known name first, then safetensors, then by name."""
    for name in PREFERRED:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth", ".pt"))
    found.sort(key=lambda path: path.suffix != ".safetensors")
    return found[0] if found else None


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill every parameter of ``model`` from ``path``; nothing in the file is executed.

    Raises
    ------
    InputError
        No such file, unreadable or corrupt, a TorchScript archive, or weights of another architecture.
    """
    check_file(path)
    keys = _read_keys(path)
    try:
        with quiet():
            result = load_checkpoint(model, str(path), strict=False, weights_only=True)
    except Exception as error:  # converters of foreign layouts fail in as many ways as there are layouts
        raise InputError(_mismatch_message(path, model, error, keys)) from error
    missing, unexpected = getattr(result, "missing_keys", []), getattr(result, "unexpected_keys", [])
    if missing or unexpected:
        raise InputError(
            f"{path}: the weights are of another architecture than {type(model).__name__} as configured: "
            f"{_some('missing', missing)}; {_some('unexpected', unexpected)}. Check --model, or the open_clip config"
        )


def check_file(path: Path) -> None:
    """Raise `InputError` when ``path`` cannot be a weights file; reads a few bytes only."""
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a weights file ending in one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the weights file is empty; copy or download it again")
    _check_beginning(path)
    if path.suffix != ".safetensors" and _is_torchscript(path):
        raise InputError(
            f"{path}: is a TorchScript archive, which carries code and is therefore not loaded. "
            "For OpenAI's models say --pretrained openai. Otherwise convert the file once, if you trust it: "
            'python -c "import torch; from safetensors.torch import save_file; '
            "s = torch.jit.load('IN.pt', 'cpu').state_dict(); "
            "save_file({k: v.clone() for k, v in s.items() "
            "if k not in ('input_resolution', 'context_length', 'vocab_size')}, 'OUT.safetensors')\""
        )


def _check_beginning(path: Path) -> None:
    """What downloads leave in place of weights is text, and worth naming."""
    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip().lower()
    except OSError as error:
        raise InputError(f"{path}: the weights file cannot be read ({error.strerror})") from error
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(f"{path}: is a web page, not weights (an error page or a login?); download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a Git LFS pointer, not the weights; run: git lfs pull")


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).name == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _read_keys(path: Path) -> tuple[str, ...]:
    """Names of the tensors in the file, without keeping them."""
    try:
        if path.suffix == ".npz":
            return ()
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                return tuple(file.keys())
        with quiet():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file fails wherever the damage lies
        raise InputError(
            f"{path}: cannot be read as weights ({_first_line(error)}). Expected a whole .safetensors file, or a "
            "torch checkpoint that holds tensors only; copy or download it again"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        got = f"a dict of {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) else ""
        raise InputError(
            f"{path}: expected a state dict (names to tensors), alone or under 'state_dict', got "
            f"{got or type(content).__name__}; save the model's state_dict() alone"
        )
    return tuple(map(str, content))


def _mismatch_message(path: Path, model: nn.Module, error: Exception, keys: tuple[str, ...]) -> str:
    sizes = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    if sizes:
        return (
            f"{path}: the weights are of another architecture: {sizes[0]}"
            f"{f' (and {len(sizes) - 1} more)' if len(sizes) > 1 else ''}. Check --model, or the open_clip config"
        )
    wanted = model.state_dict().keys()
    return (
        f"{path}: the weights do not fit this architecture ({_first_line(error)}): "
        f"{_some('missing', [key for key in wanted if key not in keys])}; "
        f"{_some('unexpected', [key for key in keys if key not in wanted])}. Check --model, or the open_clip config"
    )


def _some(word: str, keys: Iterable[str]) -> str:
    names = list(keys)
    shown = ", ".join(names[:NUM_KEYS_SHOWN])
    return f"{len(names)} {word}" + (f" (first: {shown})" if names else "")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
