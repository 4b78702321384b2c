"""The edits that take an init container out of a text, back to the bytes from before `splice` put it there."""

from __future__ import annotations

from istio_init.inject.nodes import LIST, TextNode
from istio_init.inject.splice import ADDED, NULLS, REPLACED, dash_of
from istio_init.inject.text import TextEdit, ends_line, line_end, line_start
from istio_init.options.workload import INIT_CONTAINERS


def item_removed(text: str, spec: TextNode, number: int) -> TextEdit:
    """The edit that takes the init container of this number out; ValueError where there is no plain list."""
    entry = spec.entry(INIT_CONTAINERS)
    if entry is None or entry[1].resolved.kind != LIST:
        raise ValueError(f"{INIT_CONTAINERS} is no plain list of this pod's own")
    items = entry[1].resolved
    if len(items.items) > 1:
        return _flow(items, number) if items.flow else _block(text, items, number)
    return _whole_flow(text, spec, entry) if items.flow else _whole_block(text, entry)


def _block(text: str, items: TextNode, number: int) -> TextEdit:
    start = line_start(text, dash_of(text, items, number))
    return _lines(text, start, items.items[number].end)


def _lines(text: str, start: int, end: int) -> TextEdit:
    """Whole lines away; the break before them, where they are the last and have none."""
    end = end if ends_line(text[:end]) else line_end(text, end)
    if end == len(text) and not ends_line(text) and start:
        start -= 2 if text[:start].endswith("\r\n") else 1
    return TextEdit(start, end, "")


def _whole_block(text: str, entry: tuple[TextNode, TextNode]) -> TextEdit:
    key, value = entry
    items = value.resolved
    behind = text[key.end + 1 : line_end(text, key.end)]
    lines = _lines(text, line_start(text, dash_of(text, items, 0)), items.end)
    if value is not items:
        raise ValueError(f"{INIT_CONTAINERS} is an alias of a list elsewhere")
    comment = behind.strip()
    if comment == ADDED:
        return TextEdit(*_key_lines(text, key, lines), "")
    if comment.startswith(REPLACED):
        at = text.index(REPLACED, key.end)
        return TextEdit(at, lines.end, text[at + len(REPLACED) : lines.start])
    return lines


def _key_lines(text: str, key: TextNode, lines: TextEdit) -> tuple[int, int]:
    start = line_start(text, key.start)
    if text[start : key.start].strip(" \t"):
        # Something comes before the key in its line: what follows the list takes its place there.
        end = lines.end
        while end < len(text) and text[end] in " \t":
            end += 1
        return key.start, end
    return start, lines.end


def _flow(items: TextNode, number: int) -> TextEdit:
    if number:
        return TextEdit(items.items[number - 1].end, items.items[number].end, "")
    return TextEdit(items.items[0].start, items.items[1].start, "")


def _whole_flow(text: str, spec: TextNode, entry: tuple[TextNode, TextNode]) -> TextEdit:
    key, value = entry
    items = value.resolved
    head = text[items.start + 1 : items.items[0].start]
    tail = text[items.items[-1].end : items.end - 1]
    if not head:
        return TextEdit(items.start + 1, items.items[-1].end, "")
    if head == " " and spec.flow:
        return TextEdit(items.start, items.end, NULLS[min(max(len(tail), 1), len(NULLS)) - 1])
    keys = [each for each, _ in spec.entries]
    following = keys.index(key) + 1
    if spec.flow and following < len(keys):
        return TextEdit(key.start, keys[following].start, "")
    return TextEdit(items.start + 1, items.items[-1].end, "")


def fields_removed(text: str, container: TextNode, count: int) -> TextEdit:
    """The last fields of a container away, as `splice.fields_added` put them there."""
    previous, first = container.entries[-count - 1][1], container.entries[-count][0]
    if container.flow:
        return TextEdit(previous.end, container.entries[-1][1].end, "")
    return _lines(text, line_start(text, first.start), container.end)
