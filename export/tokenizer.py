"""open_clip's tokenizer as data: one JSON that a runtime without torch reads.

``clip_bpe``  ``merges`` in order of rank, ``context_length``, ``clean``, ``sot``, ``eot``, ``pad``, ``vocab_size``.
    Ids: the 256 byte symbols, the same with ``</w>``, one id a merge, then ``sot`` and ``eot``.
``hf``        ``tokenizers_json``, the complete JSON of the `tokenizers` package with truncation and padding set
    as open_clip sets them, ``context_length``, ``clean``, ``pad``, and with ``strip_sep_token`` the id ``sep``
    that is replaced by 0 afterwards.
``clean`` is applied to the text first: ftfy and HTML entities, then "lower" (whitespace and lower case),
"whitespace", or "canonicalize" (underscores to spaces, punctuation out, lower case, whitespace).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer, get_clean_fn

from kpl_engine.errors import ExportError, InputError

from . import hub
from .environment import quiet
from .load import LoadedModel

__all__ = ["FORMAT", "describe_tokenizer", "load_tokenizer"]

FORMAT = 1
DEFAULT_CONTEXT_LENGTH = 77
BUILT_IN = "clip"
NUM_BYTE_SYMBOLS = 512
_UNSAFE = "trust_remote_code"  # would run Python code of the checkpoint's author


def load_tokenizer(loaded: LoadedModel, override: str | None = None) -> Any:
    """open_clip's tokenizer of a model, or the one ``override`` names.

    Parameters
    ----------
    loaded : LoadedModel
        Its text configuration says kind, cleaning and context length.
    override : str, optional
        A Hugging Face tokenizer folder, a ``tokenizer.json``, a merges file (``.txt``, ``.gz``), or ``clip``.

    Raises
    ------
    ExportError
        The tokenizer needs a download that failed.
    InputError
        ``override`` or the configured file is missing or unreadable.
    """
    options = dict(loaded.text_config.get("tokenizer_kwargs") or {})
    if options.pop(_UNSAFE, False):
        raise InputError(f"{loaded.name}: its tokenizer asks for {_UNSAFE}, which would run foreign code; refused")
    context_length = int(loaded.text_config.get("context_length", DEFAULT_CONTEXT_LENGTH))
    if override is not None:
        return _override(override, loaded, context_length, options)
    if options.get("bpe_path"):
        path = _inside(loaded, str(options.pop("bpe_path")))
        return _simple(path, context_length, options)
    try:
        repository = loaded.text_config.get("hf_tokenizer_name")
        if repository and loaded.folder is None and not Path(repository).is_dir():
            hub.require(repository, ["tokenizer.json", "tokenizer_config.json"])
        with quiet():
            return open_clip.get_tokenizer(loaded.identifier)
    except Exception as error:  # network stacks raise their own trees
        raise ExportError(
            f"the tokenizer of {loaded.name} could not be loaded ({type(error).__name__}: {str(error)[:160]}). "
            "Give it with --tokenizer (a Hugging Face tokenizer folder or tokenizer.json), or export the image tower "
            "alone with --no-text"
        ) from error


def _inside(loaded: LoadedModel, name: str) -> Path:
    """A file the checkpoint's configuration names, which must lie in the checkpoint's own folder."""
    if loaded.folder is None:
        raise InputError(f"{loaded.name}: its tokenizer needs the file {name!r}; give it with --tokenizer")
    path = (loaded.folder / name).resolve()
    if not path.is_relative_to(loaded.folder.resolve()):
        raise InputError(f"{loaded.folder}: bpe_path {name!r} leads out of the folder; copy the file into it")
    return path


def _simple(path: Path | None, context_length: int, options: Mapping[str, Any]) -> SimpleTokenizer:
    place = {} if path is None else {"bpe_path": str(path)}
    if path is not None and not path.is_file():
        raise InputError(f"{path}: no such merges file")
    try:
        return SimpleTokenizer(context_length=context_length, **place, **options)
    except (OSError, EOFError, UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{path}: expected a gzipped CLIP merges file, as open_clip reads it ({error})") from error


def _override(override: str, loaded: LoadedModel, context_length: int, options: dict[str, Any]) -> Any:
    path = Path(override).expanduser()
    if override == BUILT_IN or path.suffix in (".gz", ".txt"):
        options = {key: value for key, value in options.items() if key not in ("strip_sep_token", "bpe_path")}
        return _simple(None if override == BUILT_IN else path, context_length, options)
    if not path.exists():
        raise InputError(f"--tokenizer: {path}: no such file or folder")
    return _HuggingFace(path, context_length, options, loaded)


class _HuggingFace(HFTokenizer):
    """`HFTokenizer` over a folder or one ``tokenizer.json``, cleaning as the model it stands in for was trained."""

    def __init__(self, path: Path, context_length: int, options: Mapping[str, Any], loaded: LoadedModel) -> None:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        is_siglip = loaded.folder is None and "siglip" in loaded.identifier.lower() and not _is_hf_tower(loaded)
        self.tokenizer_mode = ""
        self.context_length = context_length
        self.clean_fn = get_clean_fn(options.get("clean") or ("canonicalize" if is_siglip else "whitespace"))
        self.strip_sep_token = bool(options.get("strip_sep_token", False))
        try:
            with quiet():
                self.tokenizer = (
                    AutoTokenizer.from_pretrained(str(path), local_files_only=True)
                    if path.is_dir()
                    else PreTrainedTokenizerFast(tokenizer_file=str(path))
                )
        except Exception as error:  # the Rust reader raises bare Exception
            raise InputError(f"--tokenizer: {path}: is not a Hugging Face tokenizer ({str(error)[:160]})") from error
        if is_siglip and not path.is_dir():  # the bare file does not say it; a folder's configuration does
            self.tokenizer.pad_token_id = 0 if "siglip2" in loaded.identifier.lower() else 1
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self._padding_of(path, loaded.text_config.get("pool_type") == "last")

    def _padding_of(self, path: Path, is_pooled: bool) -> str:
        """A bare ``tokenizer.json`` names no padding token: take the one it pads with, or a customary one.

        A guess is not good enough for a tower that reads its feature off the last token, padding included.
        """
        backend = self.tokenizer.backend_tokenizer
        customary = () if is_pooled else ("[PAD]", "<pad>", "<|padding|>")
        for name in ((backend.padding or {}).get("pad_token"), *customary):
            if name and backend.token_to_id(name) is not None:
                return str(name)
        raise InputError(f"--tokenizer: {path}: has no padding token; give the folder with its tokenizer_config.json")


def _is_hf_tower(loaded: LoadedModel) -> bool:
    return bool(loaded.text_config.get("hf_model_name"))


def describe_tokenizer(tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    """The descriptor of an open_clip tokenizer for a text tower with ``vocab_size`` embeddings.

    Raises
    ------
    ExportError
        A tokenizer that data alone cannot reproduce, or ids the tower has no embedding for.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        descriptor, largest = _describe_bpe(tokenizer)
    elif isinstance(tokenizer, (HFTokenizer, SigLipTokenizer)):
        descriptor, largest = _describe_hf(tokenizer)
    else:
        raise ExportError(f"tokenizer: expected one of open_clip's kinds, got {type(tokenizer).__name__}")
    if largest >= vocab_size:
        raise ExportError(
            f"tokenizer: gives ids up to {largest}, but the text tower has {vocab_size} embeddings; it belongs to "
            "another model. Give the right one with --tokenizer, or export with --no-text"
        )
    return {"format": FORMAT, **descriptor}


def _clean_name(clean: Any) -> str:
    for name in ("lower", "whitespace", "canonicalize"):
        if get_clean_fn(name) is clean:
            return name
    raise ExportError("tokenizer: its cleaning function is none of open_clip's")


def _describe_bpe(tokenizer: SimpleTokenizer) -> tuple[dict[str, Any], int]:
    if tokenizer.reduction_fn is not None or len(tokenizer.all_special_ids) != 2:
        raise ExportError("tokenizer: reduction masks and additional special tokens are not supported; use --no-text")
    merges = [pair for pair, _ in sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])]
    while merges and not merges[-1]:  # the line after the file's last newline takes an id and never matches
        merges.pop()
    ids = [tokenizer.encoder.get("".join(pair)) for pair in merges]
    if any(len(pair) != 2 for pair in merges) or ids != list(range(NUM_BYTE_SYMBOLS, NUM_BYTE_SYMBOLS + len(merges))):
        raise ExportError("tokenizer: its merges are not pairs that each make a new token; check the merges file")
    descriptor = {
        "type": "clip_bpe",
        "merges": [" ".join(pair) for pair in merges],
        "context_length": tokenizer.context_length,
        "clean": _clean_name(tokenizer.clean_fn),
        "sot": tokenizer.sot_token_id,
        "eot": tokenizer.eot_token_id,
        "pad": 0,
        "vocab_size": tokenizer.vocab_size,
    }
    return descriptor, max(tokenizer.encoder.values())


def _describe_hf(tokenizer: Any) -> tuple[dict[str, Any], int]:
    if getattr(tokenizer, "tokenizer_mode", ""):
        raise ExportError(f"tokenizer: mode {tokenizer.tokenizer_mode!r} is not supported; use --no-text")
    inner = tokenizer.tokenizer
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"tokenizer: {type(inner).__name__} has no `tokenizers` form; give a tokenizer.json")
    example = tokenizer(["a"])  # leaves truncation and padding set in the JSON below
    is_siglip = isinstance(tokenizer, SigLipTokenizer)
    strips = bool(getattr(tokenizer, "strip_sep_token", False))
    descriptor = {
        "type": "hf",
        "tokenizers_json": json.loads(backend.to_str()),
        "context_length": int(example.shape[1]),
        "clean": "canonicalize" if is_siglip else _clean_name(tokenizer.clean_fn),
        "pad": inner.pad_token_id,
        "strip_sep_token": strips,
        "sep": inner.sep_token_id if strips else None,
        "vocab_size": len(inner),
    }
    return descriptor, max(backend.get_vocab(with_added_tokens=True).values())
