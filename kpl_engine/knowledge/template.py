"""Prompts from class names and descriptions, by plain substitution."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kpl_engine.errors import KnowledgeError

__all__ = ["DEFAULT_NAME_TEMPLATE", "DEFAULT_TEMPLATE", "Template"]

DEFAULT_TEMPLATE = "a photo of a {class}, which has {feature}"
DEFAULT_NAME_TEMPLATE = "a photo of a {class}"
_FIELD = re.compile(r"\{(class|feature)\}")
_BRACES = re.compile(r"\{[^{}]*\}|[{}]")


@dataclass(frozen=True)
class Template:
    """The two sentences of a knowledge base.

    ``feature`` makes the prompt of a description (fields ``{class}`` and ``{feature}``, the latter
    required), ``name`` that of a class without descriptions (field ``{class}``, required). A field is
    replaced by its text and by nothing else: no attributes, no formats, and braces inside a class
    name or a description stay as they are.
    """

    feature: str = DEFAULT_TEMPLATE
    name: str = DEFAULT_NAME_TEMPLATE

    def __post_init__(self) -> None:
        _check("template", self.feature, allowed=("{class}", "{feature}"), required="{feature}")
        _check("name_template", self.name, allowed=("{class}",), required="{class}")

    def prompts(self, label: str, descriptions: tuple[str, ...]) -> list[str]:
        """Prompts of one class: one a description, or one from its name when there are none."""
        if not descriptions:
            return [_fill(self.name, label, "")]
        return [_fill(self.feature, label, text) for text in descriptions]


def _fill(template: str, label: str, feature: str) -> str:
    # One pass: a "{feature}" inside a class name is text, not a field.
    return _FIELD.sub(lambda match: label if match[1] == "class" else feature, template)


def _check(what: str, template: str, allowed: tuple[str, ...], required: str) -> None:
    if not isinstance(template, str):
        raise KnowledgeError(f"{what}: expected a string, got {type(template).__name__}")
    for brace in _BRACES.findall(template):
        if brace not in allowed:
            raise KnowledgeError(f"{what}: {brace!r} is no field; the fields are {' and '.join(allowed)}")
    if required not in template:
        raise KnowledgeError(f"{what}: expected the field {required} in it, got {template!r}")
