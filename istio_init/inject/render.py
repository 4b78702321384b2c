"""An init container as text, in the style of the place that it goes to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from istio_init.formats import yaml_json
from istio_init.inject.nodes import OBJECT, TextNode
from istio_init.inject.text import indentation, line_start

if TYPE_CHECKING:
    from collections.abc import Mapping


def block_lines(fields: Mapping[str, Any]) -> list[str]:
    """The fields as lines of YAML's block style, without indentation."""
    return yaml_json.dump(dict(fields), "yaml").split("\n")[:-1]


def block_item(container: Mapping[str, Any], dash: str, newline: str) -> str:
    """A container as an entry of a block list whose dashes are indented by `dash`; without a last line break."""
    first, *rest = block_lines(container)
    return newline.join([f"{dash}- {first}", *(f"{dash}  {line}" for line in rest)])


def flow(value: Any, style: Style) -> str:  # noqa: ANN401 (whatever JSON has)
    """A value in JSON, which is YAML's flow style as well, on one line or on many as the place has it."""
    if style.unit is None:
        return json.dumps(value, ensure_ascii=False)
    lines = json.dumps(value, ensure_ascii=False, indent=style.unit).split("\n")
    return (style.newline + style.indent).join(lines)


class Style:
    """How the values around a place are written in brackets.

    `indent` comes before each line of what goes there. `unit` is one level more, None where all is on one line.
    """

    __slots__ = ("indent", "newline", "unit")

    def __init__(self, indent: str, unit: str | None, newline: str) -> None:
        self.indent, self.unit, self.newline = indent, unit, newline

    def deeper(self) -> Style:
        """The same one level deeper."""
        return Style(self.indent + (self.unit or ""), self.unit, self.newline)


def style_of(text: str, parent: TextNode, newline: str) -> Style:
    """The style of a collection in brackets, by its first entry: on a line of its own, or all on one line."""
    first = parent.entries[0][0] if parent.kind == OBJECT and parent.entries else next(iter(parent.items), None)
    if first is None or line_start(text, first.start) <= parent.start:
        return Style("", None, newline)
    indent, outer = indentation(text, first.start), _line_indentation(text, parent.start)
    unit = indent[len(outer) :] if indent.startswith(outer) and len(indent) > len(outer) else "  "
    return Style(indent, unit, newline)


def _line_indentation(text: str, at: int) -> str:
    line = text[line_start(text, at) : at]
    return line[: len(line) - len(line.lstrip(" \t"))]
