"""Growth curves as an SVG: a panel for each kind, both axes logarithmic, readable on light and on dark pages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .growth import Point

# One panel's drawing area, and the room around it for numbers and titles.
WIDTH, HEIGHT = 300, 200
LEFT, TOP, RIGHT, BOTTOM = 76, 34, 26, 44
COLUMNS = 2
LEGEND = 34

# Named by what is drawn; colours that stand out on white and on near-black, and are told apart by colour-blind eyes.
SERIES = {
    "apply": ("istio-init, apply", "#0a84d0", ""),
    "in_place": ("istio-init, in place", "#0a84d0", "5 4"),
    "restore": ("iptables-legacy-restore", "#d1691e", ""),
}
# The greys are halfway, for pages that are dark without the browser saying so.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #768390 }
.title { font-weight: 600 }
.grid { stroke: #8c959f; stroke-opacity: .3 }
@media (prefers-color-scheme: dark) { text { fill: #9da7b3 } }
"""


class Scale:
    """From a value to a place on a logarithmic axis of whole decades that holds all the values."""

    def __init__(self, values: Iterable[float], begin: float, end: float) -> None:
        held = list(values)
        self.low = math.floor(math.log10(min(held)))
        self.high = max(math.ceil(math.log10(max(held))), self.low + 1)
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        """Where a value is drawn."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> list[float]:
        """The powers of ten on the axis."""
        return [10.0**exponent for exponent in range(self.low, self.high + 1)]


def draw(points: Sequence[Point], bare: float) -> str:
    """The SVG text; `bare` is the time of an empty Python program in milliseconds. ValueError without points."""
    if not points:
        raise ValueError("there is nothing to draw: no points")
    kinds = list(dict.fromkeys(point.kind for point in points))
    every = [bare, *(getattr(point, name) for point in points for name in SERIES)]
    across, down = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    # The legend needs both columns.
    width, height = across * COLUMNS, down * math.ceil(len(kinds) / COLUMNS) + LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        "<title>Time by number of excluded ports or networks</title>",
        f"<style>{STYLE}</style>",
        _legend(),
    ]
    for number, kind in enumerate(kinds):
        left, top = LEFT + number % COLUMNS * across, LEGEND + TOP + number // COLUMNS * down
        across_scale = Scale((point.count for point in points), left, left + WIDTH)
        up_scale = Scale(every, top + HEIGHT, top)
        mine = [point for point in points if point.kind == kind]
        parts += _panel(kind, mine, bare, across_scale, up_scale)
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> str:
    parts, place = [], LEFT
    named = [*SERIES.values(), ("python3 -I -S -c pass", "#8c959f", "2 3")]
    for label, colour, dash in named:
        parts.append(_path([(place, 20), (place + 26, 20)], colour, dash))
        parts.append(f'<text x="{place + 32}" y="24">{escape(label)}</text>')
        place += 58 + 6 * len(label)
    return "\n".join(parts)


def _panel(kind: str, points: Sequence[Point], bare: float, across: Scale, up: Scale) -> Iterable[str]:
    left, right = across(10.0**across.low), across(10.0**across.high)
    bottom, top = up(10.0**up.low), up(10.0**up.high)
    yield f'<text class="title" x="{left:.0f}" y="{top - 12:.0f}">{escape(kind)}</text>'
    for tick in across.ticks():
        x = across(tick)
        yield f'<path class="grid" d="M{x:.1f} {bottom:.1f}V{top:.1f}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 17:.1f}" text-anchor="middle">{tick:,.0f}</text>'
    for tick in up.ticks():
        y = up(tick)
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        yield f'<text x="{left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:,.0f} ms</text>'
    noun = kind.partition(",")[0]
    middle = (left + right) / 2
    yield f'<text x="{middle:.1f}" y="{bottom + 34:.1f}" text-anchor="middle">excluded {escape(noun)}</text>'
    yield _path([(left, up(bare)), (right, up(bare))], "#8c959f", "2 3")
    for name, (_, colour, dash) in SERIES.items():
        places = [(across(point.count), up(getattr(point, name))) for point in points]
        yield _path(places, colour, dash)
        for x, y in places if not dash else ():
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'


def _path(places: Sequence[tuple[float, float]], colour: str, dash: str) -> str:
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
