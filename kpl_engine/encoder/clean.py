"""Text cleaning before tokenising, as the models were trained with it.

Behaviour of open_clip's ``lower``, ``whitespace`` and ``canonicalize`` cleaning: mended encoding
(ftfy), HTML entities resolved twice, then whitespace, case and punctuation.
"""

from __future__ import annotations

import html
import string
from collections.abc import Callable

__all__ = ["CLEANERS"]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _mend(text: str) -> str:
    import ftfy

    return str(html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _lower(text: str) -> str:
    return _squeeze(_mend(text)).lower()


def _whitespace(text: str) -> str:
    return _squeeze(_mend(text))


def _canonicalize(text: str) -> str:
    return _squeeze(_mend(text).replace("_", " ").translate(_NO_PUNCTUATION).lower())


CLEANERS: dict[str, Callable[[str], str]] = {
    "lower": _lower,
    "whitespace": _whitespace,
    "canonicalize": _canonicalize,
}
