"""Texts -> token ids without torch, from the ``tokenizer.json`` descriptor the exporter wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kpl_engine.arrays import Ints
from kpl_engine.encoder.base import check_texts
from kpl_engine.encoder.bpe import BytePairEncoder
from kpl_engine.encoder.clean import CLEANERS
from kpl_engine.errors import EncoderError, MissingExtraError, TextTooLongError
from kpl_engine.strict_json import StrictJsonError, parse_strict, thaw

__all__ = ["TokenBatch", "Tokenizer", "load_tokenizer"]

_FORMAT = 1
_MAX_CONTEXT = 1 << 16
_MAX_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """``ids`` (m, context_length) int64, and which texts lost their end."""

    ids: Ints
    truncated: tuple[int, ...] = ()


class Tokenizer(Protocol):
    """Cleans, splits, frames and pads texts."""

    context_length: int

    def encode(self, texts: Sequence[str], truncate: bool = False) -> TokenBatch:
        """Token ids of ``texts``; `TextTooLongError` for one that does not fit unless ``truncate``."""


def load_tokenizer(data: bytes | Mapping[str, Any]) -> Tokenizer:
    """The tokenizer a descriptor (format 1, type ``clip_bpe`` or ``hf``) stands for.

    Equal to open_clip's tokenizer on every text without a literal special token. Such a literal
    ("<start_of_text>", "[SEP]") is ordinary text here, where open_clip takes it for the token.

    Raises
    ------
    EncoderError
        The descriptor is damaged or of an unknown format.
    MissingExtraError
        Type ``hf`` without the package `tokenizers`.
    """
    descriptor = _parse(data)
    if descriptor.get("format") != _FORMAT:
        raise _bad("format", _FORMAT, descriptor.get("format"))
    if descriptor.get("type") == "clip_bpe":
        return _ClipTokenizer(descriptor)
    if descriptor.get("type") == "hf":
        return _HuggingFaceTokenizer(descriptor)
    raise _bad("type", "'clip_bpe' or 'hf'", descriptor.get("type"))


class _ClipTokenizer:
    def __init__(self, descriptor: Mapping[str, Any]) -> None:
        self.context_length = _number(descriptor, "context_length", 3, _MAX_CONTEXT)
        self._clean = _cleaner(descriptor)
        merges = descriptor.get("merges")
        if not isinstance(merges, (list, tuple)):
            raise _bad("merges", "a list of pairs", type(merges).__name__)
        self._bpe = BytePairEncoder(merges)
        vocab_size = _number(descriptor, "vocab_size", self._bpe.num_ids + 2, 1 << 31)
        self._sot = _number(descriptor, "sot", self._bpe.num_ids, vocab_size - 1)
        self._eot = _number(descriptor, "eot", self._bpe.num_ids, vocab_size - 1)
        self._pad = _number(descriptor, "pad", 0, vocab_size - 1)
        if self._sot == self._eot:
            raise _bad("eot", "an id other than sot", self._eot)

    def encode(self, texts: Sequence[str], truncate: bool = False) -> TokenBatch:
        found = check_texts(texts)
        ids = np.full((len(found), self.context_length), self._pad, dtype=np.int64)  # (m, context_length) int64
        truncated = []
        for row, text in enumerate(found):
            tokens = [self._sot, *self._bpe.encode(self._clean(text)), self._eot]
            if len(tokens) > self.context_length:
                if not truncate:
                    raise _too_long(row, text, len(tokens), self.context_length)
                truncated.append(row)
                tokens = [*tokens[: self.context_length - 1], self._eot]
            ids[row, : len(tokens)] = tokens
        return TokenBatch(ids, tuple(truncated))


class _HuggingFaceTokenizer:
    def __init__(self, descriptor: Mapping[str, Any]) -> None:
        try:
            import tokenizers
        except ImportError:
            raise MissingExtraError("tokenizers", "tokenizers", "this model's text encoder") from None
        self.context_length = _number(descriptor, "context_length", 1, _MAX_CONTEXT)
        self._clean = _cleaner(descriptor)
        pad = _number(descriptor, "pad", 0, 1 << 31)
        strips = descriptor.get("strip_sep_token", False)
        if not isinstance(strips, bool):
            raise _bad("strip_sep_token", "true or false", strips)
        self._separator = _number(descriptor, "sep", 0, 1 << 31) if strips else None
        inner = descriptor.get("tokenizers_json")
        if not isinstance(inner, Mapping):
            raise _bad("tokenizers_json", "an object", type(inner).__name__)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(inner))
        except Exception as error:  # the Rust reader raises bare Exception
            raise EncoderError(f"tokenizer: the package `tokenizers` cannot read it: {error!s:.200}") from error
        # Text the user typed never becomes a special token.
        self._tokenizer.encode_special_tokens = True
        self._set_lengths(pad)

    def _set_lengths(self, pad: int) -> None:
        """Truncation and padding to the context, keeping direction and padding text of the file."""
        cut = self._tokenizer.truncation or {}
        padding = self._tokenizer.padding or {}
        self._tokenizer.enable_truncation(
            self.context_length,
            strategy=cut.get("strategy", "longest_first"),
            direction=cut.get("direction", "right"),
        )
        self._tokenizer.enable_padding(
            direction=padding.get("direction", "right"),
            pad_id=pad,
            pad_type_id=padding.get("pad_type_id", 0),
            pad_token=padding.get("pad_token", "[PAD]"),
            length=self.context_length,
        )

    def encode(self, texts: Sequence[str], truncate: bool = False) -> TokenBatch:
        found = check_texts(texts)
        encodings = [self._tokenizer.encode(self._clean(text)) for text in found]
        truncated = tuple(row for row, encoding in enumerate(encodings) if encoding.overflowing)
        if truncated and not truncate:
            row = truncated[0]
            # Every part that was cut off carries start and end tokens and padding of its own.
            num_cut = sum(part.special_tokens_mask.count(0) for part in encodings[row].overflowing)
            raise _too_long(row, found[row], self.context_length + num_cut, self.context_length)
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)  # (m, context_length) int64
        ids = ids.reshape(len(found), self.context_length)
        if self._separator is not None:
            ids[ids == self._separator] = 0
        return TokenBatch(ids, truncated)


def _parse(data: bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(data, Mapping):
        return dict(thaw(data))
    try:
        found = parse_strict(data, _MAX_BYTES)
    except StrictJsonError as error:
        raise EncoderError(f"tokenizer: not valid JSON ({error}); export the model again") from error
    if not isinstance(found, Mapping):
        raise _bad("descriptor", "an object", type(found).__name__)
    return found


def _cleaner(descriptor: Mapping[str, Any]) -> Any:
    name = descriptor.get("clean")
    if not isinstance(name, str) or name not in CLEANERS:
        raise _bad("clean", " or ".join(map(repr, CLEANERS)), name)
    return CLEANERS[name]


def _number(descriptor: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = descriptor.get(name)
    if type(value) is not int or not low <= value <= high:
        raise _bad(name, f"an integer from {low} to {high}", value)
    return value


def _bad(name: str, expected: object, got: object) -> EncoderError:
    return EncoderError(f"tokenizer.{name}: expected {expected}, got {got!r:.80}; export the model again")


def _too_long(row: int, text: str, num_tokens: int, context_length: int) -> TextTooLongError:
    return TextTooLongError(
        f"texts[{row}] {text[:60]!r}: expected at most {context_length} tokens, got {num_tokens}; "
        "shorten it, or pass truncate=True (on the command line --truncate)"
    )
