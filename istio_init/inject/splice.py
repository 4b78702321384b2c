"""Where an init container goes into a text, and the edits that put it there.

Nothing is written anew: lines are inserted in block style, and in brackets the text between two values. What was there
before is remembered, so that `removal` can go back to the same bytes:

- a list that was not there is marked in its line by the comment ADDED; where it is in brackets, by more than one
  space, or a new line, between the bracket and the container;
- a null that became a list stays as the comment REPLACED; in brackets, by one space there, and behind the container
  as many as NULLS counts;
- an empty list in brackets has neither comment nor space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.inject.nodes import LIST, OBJECT, TextNode
from istio_init.inject.render import Style, block_item, block_lines, flow, style_of
from istio_init.inject.text import TextEdit, ends_line, indentation, is_blank, line_end, line_start, newline
from istio_init.options.workload import CONTAINERS, INIT_CONTAINERS

if TYPE_CHECKING:
    from collections.abc import Mapping

ADDED = "# added by istio-init inject"
REPLACED = "# filled by istio-init inject, was: "
# How YAML spells null where it spells it. In brackets as many spaces behind the container say which one it was.
NULLS = ("null", "~", "Null", "NULL")


def insertion(text: str, spec: TextNode, container: Mapping[str, Any], *, first: bool) -> TextEdit:
    """The edit that puts a container into a pod's specification, as its first init container or its last.

    ValueError where the specification is written in a way that has no place for it.
    """
    entry = spec.entry(INIT_CONTAINERS)
    if entry is None:
        return _new_list(text, spec, container)
    key, value = entry
    value = value.resolved
    if value.kind == LIST and value.items:
        style = _flow_item if value.flow else _block_item
        return style(text, entry, container, first=first)
    if value.kind == LIST:
        return TextEdit(value.start + 1, value.start + 1, flow(container, Style("", None, "")))
    return _null(text, spec, key, value, container)


# -- A list that has init containers.


def _block_item(text: str, entry: tuple[TextNode, TextNode], container: Mapping[str, Any], *, first: bool) -> TextEdit:
    key, value = entry
    items = value.resolved
    dash = indentation(text, dash_of(text, items, 0))
    if first:
        # Comments above the first entry stay with it: the new entry goes right after the key's line.
        above = line_start(text, dash_of(text, items, 0))
        behind_key = line_end(text, max(key.end, items.start if items.anchor else 0))
        at = behind_key if value is items and behind_key < above else above
        return _line(text, at, block_item(container, dash, newline(text, key.end)))
    return _line(text, _behind(text, items.end, len(dash)), block_item(container, dash, newline(text, key.end)))


def _line(text: str, at: int, lines: str) -> TextEdit:
    """Whole lines at the beginning of a line, or behind a last line that has no break."""
    if ends_line(text[:at]):
        return TextEdit(at, at, lines + newline(text, max(0, at - 2)))
    return TextEdit(at, at, newline(text, at) + lines)


def _behind(text: str, end: int, column: int) -> int:
    """The line behind a value that ends at `end`, and behind comments that are indented as part of it."""
    at = end if ends_line(text[:end]) else line_end(text, end)
    while at < len(text):
        line = text[at : line_end(text, at)]
        if not line.lstrip(" ").startswith("#") or len(line) - len(line.lstrip(" ")) <= column:
            break
        at = line_end(text, at)
    return at


def dash_of(text: str, items: TextNode, number: int) -> int:
    """Where the dash of an entry of a block list is."""
    at = items.items[number - 1].end if number else items.start
    while text[at] != "-":
        if text[at] in "#&!":  # a comment; the list's own anchor or tag
            at = line_end(text, at) if text[at] == "#" else _word_end(text, at)
        else:
            at += 1
    return at


def _word_end(text: str, at: int) -> int:
    while at < len(text) and not text[at].isspace():
        at += 1
    return at


def _flow_item(text: str, entry: tuple[TextNode, TextNode], container: Mapping[str, Any], *, first: bool) -> TextEdit:
    items = entry[1].resolved
    style = style_of(text, items, newline(text, items.start))
    between = style.newline + style.indent if style.unit is not None else " "
    if first:
        at = items.items[0].start
        return TextEdit(at, at, f"{flow(container, style)},{between}")
    at = items.items[-1].end
    return TextEdit(at, at, f",{between}{flow(container, style)}")


# -- No list.


def _new_list(text: str, spec: TextNode, container: Mapping[str, Any]) -> TextEdit:
    """The key and the list, before the pod's containers."""
    entry = spec.entry(CONTAINERS) or (spec.entries[0] if spec.entries else None)
    if entry is None:
        raise ValueError("the pod's specification has no field beside which a list could go")
    before = entry[0]
    if spec.flow:
        return _new_flow_list(text, spec, before, container)
    indent = indentation(text, before.start)
    at = line_start(text, before.start)
    dash = _dash_indentation(text, spec, indent)
    item = block_item(container, dash, newline(text, before.start))
    lines = f"{INIT_CONTAINERS}: {ADDED}{newline(text, before.start)}{item}"
    if not is_blank(text[at : before.start]):
        return TextEdit(before.start, before.start, f"{lines}{newline(text, before.start)}{indent}")
    at = _above_comments(text, at, len(indent))
    return TextEdit(at, at, f"{indent}{lines}{newline(text, before.start)}")


def _above_comments(text: str, at: int, column: int) -> int:
    """The first of the comment lines above a line that are indented as it is."""
    while at:
        above = line_start(text, max(0, at - 1 - text[:at].endswith("\r\n")))
        line = text[above:at]
        if not line.lstrip(" ").startswith("#") or len(line) - len(line.lstrip(" ")) != column:
            break
        at = above
    return at


def _dash_indentation(text: str, spec: TextNode, indent: str) -> str:
    """How far the dashes of the pod's lists are indented, by its containers."""
    entry = spec.entry(CONTAINERS)
    if entry is None or entry[1].kind != LIST or entry[1].flow or not entry[1].items:
        return indent
    dash = indentation(text, dash_of(text, entry[1], 0))
    return dash if dash.startswith(indent) else indent


def _new_flow_list(text: str, spec: TextNode, before: TextNode, container: Mapping[str, Any]) -> TextEdit:
    style = style_of(text, spec, newline(text, spec.start))
    quote = '"' if text[before.start] == '"' else ""
    key = f"{quote}{INIT_CONTAINERS}{quote}: "
    if style.unit is None:
        return TextEdit(before.start, before.start, f"{key}[  {flow(container, style)}], ")
    inner = style.deeper()
    lines = f"{key}[{style.newline}{inner.indent}{flow(container, inner)}{style.newline}{style.indent}]"
    return TextEdit(before.start, before.start, f"{lines},{style.newline}{style.indent}")


def _null(text: str, spec: TextNode, key: TextNode, value: TextNode, container: Mapping[str, Any]) -> TextEdit:
    """A null becomes a list."""
    source = text[value.start : value.end]
    if source not in {*NULLS, ""}:
        raise ValueError(f"{INIT_CONTAINERS} is no plain list")
    if spec.flow:
        if not source:
            raise ValueError(f"{INIT_CONTAINERS} has no value: write [] for it")
        tail = " " * (1 + NULLS.index(source))
        return TextEdit(value.start, value.end, f"[ {flow(container, Style('', None, ''))}{tail}]")
    item = block_item(container, _dash_indentation(text, spec, indentation(text, key.start)), newline(text, key.end))
    end = line_end(text, value.end)
    if not source:
        return _line(text, end, item)
    line = text[value.start : end]
    was = line.rstrip("\r\n\x85\u2028\u2029")
    tail = line[len(was) :]
    return TextEdit(value.start, end, f"{REPLACED}{was}{tail or newline(text, value.end)}{item}{tail}")


# -- A container that is there already.


def fields_added(text: str, container: TextNode, fields: Mapping[str, Any]) -> TextEdit:
    """Further fields of a container, behind those that it has."""
    if container.kind != OBJECT or not container.entries:
        raise ValueError("the init container is no plain object")
    last = container.entries[-1]
    if container.flow:
        style = style_of(text, container, newline(text, container.start))
        between = style.newline + style.indent if style.unit is not None else " "
        quote = '"' if text[container.entries[0][0].start] == '"' else ""
        more = "".join(f",{between}{quote}{key}{quote}: {flow(value, style)}" for key, value in fields.items())
        return TextEdit(last[1].end, last[1].end, more)
    column = indentation(text, last[0].start)
    lines = newline(text, container.start).join(column + line for line in block_lines(fields))
    return _line(text, _behind(text, container.end, max(0, len(column) - 1)), lines)


def list_replaced(text: str, entry: tuple[TextNode, TextNode], words: list[str]) -> TextEdit:
    """The value of a field becomes this list of words, in the style that it is in."""
    key, value = entry
    if value.kind != LIST or value.flow or not value.items:
        return TextEdit(value.start, value.end, flow(words, Style("", None, "")))
    dash = dash_of(text, value, 0)
    indent = indentation(text, dash)
    lines = [line for line in block_lines({"x": words}) if line.startswith("-")]
    last = newline(text, key.end) if ends_line(text[: value.end]) else ""
    return TextEdit(dash, value.end, (newline(text, key.end) + indent).join(lines) + last)
