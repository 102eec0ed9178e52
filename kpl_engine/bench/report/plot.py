"""One picture: frame, ticks, lines, points, whiskers. 380 px wide, so that a phone shows its text large enough."""

from __future__ import annotations

from collections.abc import Sequence

from kpl_engine.bench.report.axes import Axis
from kpl_engine.bench.report.markup import Markup, element

__all__ = ["BOTTOM", "HEIGHT", "LEFT", "RIGHT", "TOP", "WIDTH", "Plot", "picture"]

WIDTH, HEIGHT = 380.0, 264.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 368.0, 34.0, 216.0
_HALF_WHISKER = 5.0


class Plot:
    """Marks over two axes, in the order they are drawn."""

    def __init__(
        self,
        x: Axis,
        y: Axis,
        x_label: str,
        y_label: str,
        x_ticks: Sequence[tuple[float, str]] = (),
        y_ticks: Sequence[tuple[float, str]] = (),
    ) -> None:
        self.x, self.y = x, y
        self._marks: list[Markup] = []
        for value, label in y_ticks or [(tick, _tick(tick)) for tick in y.ticks()]:
            self._add("line", class_="grid", x1=LEFT, x2=RIGHT, y1=y.at(value), y2=y.at(value))
            self._text(label, LEFT - 7, y.at(value) + 4.5, "end", "tick")
        for value, label in x_ticks or [(tick, _tick(tick)) for tick in x.ticks()]:
            self._add("line", class_="grid", x1=x.at(value), x2=x.at(value), y1=TOP, y2=BOTTOM)
            self._text(label, x.at(value), BOTTOM + 18, "middle", "tick")
        self._add("path", class_="axis", d=f"M{LEFT:g} {TOP:g}V{BOTTOM:g}H{RIGHT:g}")
        self._text(x_label, (LEFT + RIGHT) / 2, BOTTOM + 38, "middle", "label")
        self._text(y_label, 4, TOP - 16, "start", "label")

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        places = " L".join(f"{self.x.at(x):.1f} {self.y.at(y):.1f}" for x, y in points)
        self._add("path", class_=f"line {kind}", d=f"M{places}")

    def steps(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line that keeps to right angles: a share is reached at a value, not between two."""
        places = [f"M{self.x.at(points[0][0]):.1f} {self.y.at(points[0][1]):.1f}"]
        places += [f"H{self.x.at(x):.1f}V{self.y.at(y):.1f}" for x, y in points[1:]]
        self._add("path", class_=f"line {kind}", d="".join(places))

    def point(self, x: float, y: float, kind: str, is_hollow: bool = False) -> None:
        shape = f"{'hollow' if is_hollow else 'point'} {kind}"
        self._add("circle", class_=shape, cx=self.x.at(x), cy=self.y.at(y), r=3.2)

    def whisker_x(self, low: float, high: float, y: float, kind: str) -> None:
        """An interval along x."""
        a, b, c, h = self.x.at(low), self.x.at(high), self.y.at(y), _HALF_WHISKER
        self._add(
            "path", class_=f"whisker {kind}", d=f"M{a:.1f} {c - h:.1f}v{2 * h:g}m0 {-h:g}H{b:.1f}m0 {-h:g}v{2 * h:g}"
        )

    def whisker_y(self, x: float, low: float, high: float, kind: str) -> None:
        """An interval along y."""
        a, b, c, h = self.y.at(low), self.y.at(high), self.x.at(x), _HALF_WHISKER
        self._add(
            "path", class_=f"whisker {kind}", d=f"M{c - h:.1f} {a:.1f}h{2 * h:g}m{-h:g} 0V{b:.1f}m{-h:g} 0h{2 * h:g}"
        )

    def upright(self, x: float, text: str, kind: str, is_top: bool = True) -> None:
        """A line from bottom to top with its name at one of its ends."""
        place = self.x.at(x)
        self._add("line", class_=kind, x1=place, x2=place, y1=TOP, y2=BOTTOM)
        is_right = place > (LEFT + RIGHT) / 2
        y = TOP + 10 if is_top else BOTTOM - 8
        self._text(text, place + (-5 if is_right else 5), y, "end" if is_right else "start", f"tag {kind}")

    def level(self, y: float, text: str, kind: str) -> None:
        """A line from left to right with its name."""
        place = self.y.at(y)
        self._add("line", class_=kind, x1=LEFT, x2=RIGHT, y1=place, y2=place)
        self._text(text, LEFT + 5, place - 5, "start", f"tag {kind}")

    def tag(self, text: str, x_px: float, y_px: float, kind: str, anchor: str = "start") -> None:
        """Words at a place."""
        self._text(text, x_px, y_px, anchor, f"tag {kind}")

    def draw(self, identity: str, title: str, description: str) -> Markup:
        return picture(identity, title, description, self._marks, HEIGHT)

    def _add(self, name: str, **attributes: str | float) -> None:
        self._marks.append(element(name, **attributes))

    def _text(self, text: str, x: float, y: float, anchor: str, kind: str) -> None:
        self._marks.append(element("text", text, x=x, y=y, text_anchor=anchor, class_=kind))


def picture(identity: str, title: str, description: str, marks: Sequence[Markup], height: float) -> Markup:
    """An SVG that a screen reader reads by its title and description."""
    return element(
        "svg",
        element("title", title, id=f"{identity}-title"),
        element("desc", description, id=f"{identity}-desc"),
        *marks,
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        role="img",
        aria_labelledby=f"{identity}-title {identity}-desc",
    )


def _tick(value: float) -> str:
    return f"{value:,.10g}"
