"""A picture as SVG, for light and dark backgrounds."""

from __future__ import annotations

from html import escape

from istio_init.errors import printable
from istio_init.formats.iptables_save import rule_text
from istio_init.simulate.report import purpose_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from istio_init.draw.highlight import Highlight
    from istio_init.draw.picture import Connector, Picture, PlacedBox, PlacedEnd, PlacedRow, Rect, Text

LEGS = 4  # connections with distinct colours
CAPTION = 20.0
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
SANS = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans','Helvetica Neue',Arial,sans-serif"

LIGHT = {
    "ground": "#ffffff", "band": "#f3f5f8", "box": "#ffffff", "edge": "#c9d1db", "text": "#1b2430", "dim": "#566273",
    "line": "#a9b4c2", "envoy": "#5b3fc4", "alone": "#1a6b3c", "dropped": "#b32433", "change": "#855000",
    "nine": "#22304a", "on-nine": "#ffffff", "leg-1": "#1769d2", "leg-2": "#a84a08", "leg-3": "#0b7d6e",
    "leg-4": "#a8309b",
}  # fmt: skip
DARK = {
    "ground": "#0f141b", "band": "#171e28", "box": "#1e2733", "edge": "#3a4657", "text": "#e4eaf2", "dim": "#a2afbf",
    "line": "#5a6779", "envoy": "#b3a1ff", "alone": "#6fd498", "dropped": "#ff8791", "change": "#efb55a",
    "nine": "#c8d5ea", "on-nine": "#141c28", "leg-1": "#6cb1ff", "leg-2": "#ffa45c", "leg-3": "#4fd1bf",
    "leg-4": "#f08be4",
}  # fmt: skip

RULES = f"""
.chart text{{fill:var(--text);font:12px {MONO};white-space:pre}}
.chart .head rect{{fill:none;stroke:var(--edge)}}
.chart .head text{{font:600 13px {SANS};letter-spacing:.02em}}
.chart .head text.about,.chart .end text.about{{font:12px {SANS};fill:var(--dim);letter-spacing:0}}
.chart .band>rect{{fill:var(--band)}}
.chart .band>text{{font:600 11px {SANS};letter-spacing:.08em;fill:var(--dim)}}
.chart .box>rect{{fill:var(--box);stroke:var(--edge)}}
.chart .box>text{{font:600 13px {MONO}}}
.chart .row .ground{{fill:transparent}}
.chart .row .number,.chart .row.rest text{{fill:var(--dim)}}
.chart .row .does{{font-weight:600}}
.chart .does.envoy{{fill:var(--envoy)}}.chart .does.alone{{fill:var(--alone)}}
.chart .does.dropped{{fill:var(--dropped)}}.chart .does.change{{fill:var(--change)}}
.chart .nine circle{{fill:var(--nine)}}
.chart .nine text{{font:600 11px {SANS};fill:var(--on-nine);text-anchor:middle}}
.chart .line{{fill:none;stroke:var(--line);stroke-width:1.3}}
.chart .tip{{fill:var(--line)}}
.chart .end rect{{fill:var(--box);stroke-width:1.5;stroke:var(--edge)}}
.chart .end text.title{{font:600 13px {SANS}}}
.chart .end.envoy rect{{stroke:var(--envoy)}}.chart .end.alone rect{{stroke:var(--alone)}}
.chart .end.dropped rect{{stroke:var(--dropped)}}
.chart.asked :is(.box,.end,.head):not(.met)>rect{{fill:none;stroke:var(--edge)}}
.chart.asked :is(.box,.end,.head):not(.met)>text{{fill:var(--dim);font-weight:400}}
.chart.asked .row:not(.hit):not(.tried) text{{fill:var(--dim);font-weight:400}}
.chart.asked .row:not(.hit):not(.tried) .nine circle{{fill:var(--dim)}}
.chart.asked .row:not(.hit):not(.tried) .nine text{{fill:var(--ground)}}
.chart.asked .row.tried .does{{font-weight:400}}
.chart .bar{{fill:none}}
.chart .row.hit text{{font-weight:600}}
.chart .caption{{font:12px {SANS}}}
"""
PER_LEG = """
.chart .row.hit.on-{n} .ground{{fill:var(--leg-{n});fill-opacity:.14}}
.chart .bar.on-{n}{{fill:var(--leg-{n})}}
.chart .bar.tried.on-{n}{{fill-opacity:.28}}
.chart .line.on-{n}{{stroke:var(--leg-{n});stroke-width:2.4}}
.chart .tip.on-{n}{{fill:var(--leg-{n})}}
.chart .end.on-{n} rect,.chart .box.on-{n}>rect{{stroke:var(--leg-{n})}}
.chart .end.on-{n} rect{{stroke-width:2.6}}
.chart .caption.on-{n}{{fill:var(--leg-{n})}}
"""


def style(scope: str = ":root") -> str:
    """The style sheet; colours are set on `scope`, light or dark as the reader's system prefers."""
    light, dark = ("".join(f"--{name}:{colour};" for name, colour in each.items()) for each in (LIGHT, DARK))
    legs = "".join(PER_LEG.format(n=number) for number in range(1, LEGS + 1))
    return f"{scope}{{{light}}}\n@media(prefers-color-scheme:dark){{{scope}{{{dark}}}}}{RULES}{legs}"


def svg(picture: Picture, highlighted: Sequence[Highlight] = (), captions: Sequence[str] = ()) -> str:
    """A file of its own; `highlighted` are the highlights to highlight, and each has its caption."""
    lines = [line for number, text in enumerate(captions, 1) for line in _wrapped(text, number, picture.width)]
    above = CAPTION * len(lines) + (8 if lines else 0)
    height = picture.height + above
    texts = "".join(
        f'<text class="caption on-{(number - 1) % LEGS + 1}" x="16" y="{CAPTION * at + 22:g}">{_xml(text)}</text>\n'
        for at, (number, text) in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {picture.width:g} {height:g}" '
        f'width="{picture.width:g}" height="{height:g}" class="chart{" asked" if highlighted else ""}" role="img">\n'
        f"<title>The chains of {picture.graph.family}</title>\n<style>{style('svg')}</style>\n"
        f'<rect fill="var(--ground)" width="{picture.width:g}" height="{height:g}"/>\n{texts}'
        f'<g transform="translate(0 {above:g})">\n{elements(picture, highlighted)}</g>\n</svg>\n'
    )


def _wrapped(text: str, number: int, width: float) -> Iterator[tuple[int, str]]:
    """The lines of a caption, wrapped by an upper bound of the letters' average width."""
    room, line = int((width - 40) / 7.4), ""
    for word in printable(text).split(" "):
        if line and len(line) + len(word) >= room:
            yield number, line
            line = "    "
        line += (" " if line.strip() else "") + word[:room]
    yield number, line


def elements(picture: Picture, highlighted: Sequence[Highlight] = ()) -> str:
    """The picture's elements, for a file or a page. Keys are in data-key."""
    return "".join(_elements(picture, highlighted))


def _elements(picture: Picture, highlighted: Sequence[Highlight]) -> Iterator[str]:
    for band in picture.bands:
        name = _label("", band.rect.x + 12, band.rect.y + 18, band.name.upper())
        yield f'<g class="band">{_rect(band.rect, 8)}{name}</g>\n'
    heads = picture.heads
    reached = frozenset[str]().union(*(highlight.reached for highlight in highlighted))
    for head in heads:
        on = " met" if f"hook/{head.hook}" in reached or not highlighted else ""
        x, y = head.rect.x + 10, head.rect.y
        yield (
            f'<g class="head{on}" data-hook="{head.title}">{_rect(head.rect, 8)}'
            f"{_label('', x, y + 19, head.title)}{_label('about', x, y + 36, head.text)}</g>\n"
        )
    for line in sorted(
        picture.lines, key=lambda line: any(line.source in highlight.links for highlight in highlighted)
    ):
        yield from _line(line, highlighted)
    for box in picture.boxes:
        yield from _box(box, highlighted)
    for end in picture.ends:
        yield _end(end, highlighted)


def _on(keys: Sequence[frozenset[str]], key: str) -> list[int]:
    """The colours of the highlights that contain a key."""
    return [number % LEGS + 1 for number, each in enumerate(keys) if key in each]


def _line(line: Connector, highlighted: Sequence[Highlight]) -> Iterator[str]:
    legs = _on([highlight.links for highlight in highlighted], line.source)
    (x, y), tip = line.points[-1], " ".join(f"{x:g},{y:g}" for x, y in line.points)
    # Several connections on one line are drawn side by side.
    for shift, leg in enumerate(legs or [0]):
        on, move = (f" on-{leg}", f' transform="translate({3 * shift} {-3 * shift})"') if leg else ("", "")
        key = f' data-key="{_xml(line.source)}"'
        yield (
            f'<polyline class="line{on}" points="{tip}"{move}{key}/>'
            f'<path class="tip{on}" d="M{x - 4:g} {y - 7:g}h8l-4 7z"{key}/>\n'
        )


def _box(placed: PlacedBox, highlighted: Sequence[Highlight]) -> Iterator[str]:
    box = placed.box
    classes = " met" if _on([highlight.reached for highlight in highlighted], box.key) else ""
    title = _text(placed.title, "")
    yield f'<g class="box{classes}" data-key="{_xml(box.key)}">{_rect(placed.rect, 6)}{title}\n'
    for row in placed.rows:
        yield _row(row, highlighted)
    yield "</g>\n"


def _row(placed: PlacedRow, highlighted: Sequence[Highlight]) -> str:
    row, rect = placed.row, placed.rect
    hit, tried = (
        _on([highlight.hit for highlight in highlighted], row.key),
        _on([highlight.tried for highlight in highlighted], row.key),
    )
    classes = "".join([" hit"] * bool(hit) + [" tried"] * bool(tried and not hit) + [f" on-{leg}" for leg in hit[:1]])
    bars = "".join(
        f'<rect class="bar on-{leg}{"" if leg in hit else " tried"}" x="{rect.x + 2 + 4 * at:g}" y="{rect.y + 2:g}" '
        f'width="3" height="{rect.height - 4:g}"/>'
        for at, leg in enumerate(sorted({*hit, *tried})[:3])
    )
    number = "" if placed.nine and placed.nine.x < placed.number.x else _text(placed.number, "number")
    return (
        f'<g class="row{" rest" if not row.number else ""}{classes}" data-key="{_xml(row.key)}">'
        f'<title>{_xml(_tooltip(row))}</title><rect class="ground" {_place(rect)}/>{bars}{number}'
        f"{_nine(placed.nine) if placed.nine else ''}{_text(placed.condition, 'asks')}"
        f"{_text(placed.action, f'does {_kind(row.to, row.action)}')}</g>\n"
    )


def _tooltip(row: object) -> str:
    rule, why, number = row.rule, row.why, row.number  # type: ignore[attr-defined]
    if rule is None:
        return "the end of this chain, for packets that no rule decides about"
    return printable(f"{number}: {rule_text(rule)}") + (f" - {purpose_text(why)}" if why else "")


def _kind(to: str, does: str) -> str:
    """The CSS class of a target's text, by its effect."""
    if to.startswith("end/alone") or does in {"RETURN", "ACCEPT"}:
        return "alone"
    if to.startswith(("end/dropped", "end/queued")):
        return "dropped"
    if to.startswith("end/"):
        return "envoy"
    return "jump" if to else "change"


def _nine(text: Text) -> str:
    x, y = text.x + 8, text.y - 4
    return (
        f'<g class="nine"><circle cx="{x:g}" cy="{y:g}" r="8.5"/>'
        f'<text x="{x:g}" y="{text.y:g}">{_xml(text.text)}</text></g>'
    )


def _end(placed: PlacedEnd, highlighted: Sequence[Highlight]) -> str:
    end, rect = placed.end, placed.rect
    legs = _on([highlight.reached for highlight in highlighted], end.key)
    kind = {"alone": "alone", "dropped": "dropped", "queued": "dropped"}.get(end.kind, "envoy")
    on = "".join([" met"] * bool(legs) + [f" on-{leg}" for leg in legs[:1]])
    return (
        f'<g class="end {kind}{on}" data-key="{_xml(end.key)}">{_rect(rect, END_RADIUS)}'
        f"{_label('title', rect.x + 14, rect.y + 19, end.title)}"
        f"{_label('about', rect.x + 14, rect.y + 36, end.text)}</g>\n"
    )


END_RADIUS = 14


def _rect(rect: Rect, radius: int) -> str:
    return f'<rect {_place(rect)} rx="{radius}"/>'


def _place(rect: Rect) -> str:
    return f'x="{rect.x:g}" y="{rect.y:g}" width="{rect.width:g}" height="{rect.height:g}"'


def _label(name: str, x: float, y: float, text: str) -> str:
    return f'<text{f" class={chr(34)}{name}{chr(34)}" if name else ""} x="{x:g}" y="{y:g}">{_xml(text)}</text>'


def _text(text: Text, name: str) -> str:
    """A line of text. Letters that monospaced fonts may lack are fitted to the computed width."""
    anchor = ' text-anchor="end"' if text.at_end else ""
    fixed_width = "" if text.text.isascii() else f' textLength="{text.width:g}" lengthAdjust="spacingAndGlyphs"'
    only_symbols = fixed_width and "".join(each for each in text.text if not each.isascii()) in {"→", "…"}
    return (
        f'<text{f" class={chr(34)}{name}{chr(34)}" if name else ""} x="{text.x:g}" y="{text.y:g}"{anchor}'
        f"{'' if only_symbols else fixed_width}>{_xml(text.text)}</text>"
    )


def _xml(text: str) -> str:
    return escape(printable(text))
