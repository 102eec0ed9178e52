"""HTML and SVG from functions: what is not markup already is escaped, so that no text of a file can become any."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from kpl_engine.bench.report.words import printable

__all__ = ["Markup", "element", "join", "table"]

_EMPTY = {"br", "meta", "link"}
Content = str | float


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


def element(name: str, /, *children: Content, **attributes: Content) -> Markup:
    """``<name ...>children</name>``; ``class_`` is class, ``stroke_width`` is stroke-width."""
    opened = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_text(value))}"' for key, value in attributes.items()
    )
    if name in _EMPTY:
        return Markup(f"<{name}{opened}>")
    return Markup(f"<{name}{opened}>{join(children)}</{name}>")


def join(children: Iterable[Content]) -> Markup:
    return Markup("".join(child if isinstance(child, Markup) else html.escape(_text(child)) for child in children))


def table(header: Sequence[Content], rows: Iterable[Sequence[Content]], caption: str = "") -> Markup:
    """A table that scrolls by itself where the page is narrow; the first cell of a row names it."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = (
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    )
    whole = element("table", element("thead", head), element("tbody", *body))
    # Reachable by keyboard: a box that scrolls and cannot be focused shuts out who has no mouse.
    box = element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption or "table")
    return join([element("p", caption, class_="soft"), box]) if caption else box


def _text(value: Content) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return printable(str(value))
