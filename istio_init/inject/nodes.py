"""A document's values with their places in the text, so that text can go in between them.

The tree is made of PyYAML's events, which have marks, or of JSON's tokens. An alias stays an alias: what it stands for
is one place in the text, however often it is used.
"""

from __future__ import annotations

import re
from json.decoder import py_scanstring  # type: ignore[attr-defined]  # typeshed leaves it out
from typing import TYPE_CHECKING, Any

from istio_init.formats import yaml_json
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

OBJECT, LIST, VALUE, ALIAS = "object", "list", "value", "alias"
_SPACE = re.compile(r"[ \t\r\n]*")
_LITERAL = re.compile(r"[-+.0-9A-Za-z]+")


class TextNode:
    """One value: from `start` to `end` in the text, anchor and tag included.

    A block collection ends where its last value ends, without the comments behind it. `value` is the text of a scalar,
    as it is read. `flow` tells whether a collection is written in brackets.
    """

    __slots__ = ("anchor", "end", "entries", "flow", "items", "kind", "start", "target", "value")

    def __init__(self, kind: str, start: int, end: int = -1, value: str = "", *, flow: bool = False) -> None:
        self.kind, self.start, self.end, self.value, self.flow = kind, start, end, value, flow
        self.anchor: str | None = None
        self.target: TextNode | None = None
        self.items: list[TextNode] = []
        self.entries: list[tuple[TextNode, TextNode]] = []

    @property
    def resolved(self) -> TextNode:
        """What an alias stands for; the node itself where it is none."""
        return self.target or self

    def entry(self, key: str) -> tuple[TextNode, TextNode] | None:
        """The entry of an object with this key, of its own and not by a merge; its value may be an alias."""
        return next((each for each in self.entries if each[0].kind == VALUE and each[0].value == key), None)

    def child(self, step: str | int) -> TextNode | None:
        """The value at a key or a position, merge keys included."""
        if isinstance(step, int):
            return self.items[step].resolved if step < len(self.items) else None
        if (own := self.entry(step)) is not None:
            return own[1].resolved
        for merged in self._merged():
            if (value := merged.child(step)) is not None:
                return value
        return None

    def _merged(self) -> Iterator[TextNode]:
        if (merge := self.entry("<<")) is not None:
            value = merge[1].resolved
            yield from (each.resolved for each in value.items) if value.kind == LIST else [value]


class Document(Record):
    """One document of a text: its value (None where it is empty), and the same with places."""

    value: Any
    node: TextNode | None


def find(node: TextNode | None, path: tuple[str | int, ...]) -> TextNode | None:
    """The node at a path of keys and positions."""
    for step in path:
        node = node.child(step) if node is not None else None
    return node


def documents(text: str) -> list[Document]:
    """The documents of a text, JSON or YAML. ValueError, one line that names the line, where it is neither."""
    if (value := yaml_json.load_json(text)) is not None:
        return [Document(value, _json_node(text, _SPACE.match(text).end()))]  # type: ignore[union-attr]
    nodes = list(_yaml_nodes(text))
    return [Document(value, node) for value, node in zip(yaml_json.load_checked(text), nodes, strict=True)]


def values(text: str) -> list[Any]:
    """The same values without their places."""
    value = yaml_json.load_json(text)
    return yaml_json.load_documents(text) if value is None else [value]


def _yaml_nodes(text: str) -> Iterator[TextNode | None]:
    yaml = yaml_json.module("give JSON, as of kubectl get pod NAME -o json")
    anchors: dict[str, TextNode] = {}
    # The open collections, and of an object the key whose value comes next.
    stack: list[tuple[TextNode, list[TextNode]]] = []
    root: TextNode | None = None

    def put(node: TextNode) -> None:
        nonlocal root
        if not stack:
            root = node
            return
        parent, pending = stack[-1]
        if parent.kind == LIST:
            parent.items.append(node)
        elif pending:
            parent.entries.append((pending.pop(), node))
        else:
            pending.append(node)

    with yaml_json.reading(yaml):
        for event in yaml_json.events(yaml, text):
            start, end = _place(event.start_mark), _place(event.end_mark)
            if isinstance(event, yaml.DocumentStartEvent):
                anchors, root = {}, None
            elif isinstance(event, yaml.DocumentEndEvent):
                yield root
            elif isinstance(event, yaml.AliasEvent):
                node = TextNode(ALIAS, start, end)
                node.target = anchors[event.anchor or ""]
                put(node)
            elif isinstance(event, yaml.ScalarEvent):
                node = TextNode(VALUE, start, end, event.value)
                _name(node, event.anchor, anchors)
                put(node)
            elif isinstance(event, yaml.CollectionStartEvent):
                kind = OBJECT if isinstance(event, yaml.MappingStartEvent) else LIST
                node = TextNode(kind, start, flow=bool(event.flow_style))
                _name(node, event.anchor, anchors)
                put(node)
                stack.append((node, []))
            elif isinstance(event, yaml.CollectionEndEvent):
                node, _ = stack.pop()
                node.end = end if node.flow else _last_end(node)


def _place(mark: Any) -> int:  # noqa: ANN401 (a mark in C or in Python)
    index: int = mark.index
    return index


def _name(node: TextNode, anchor: str | None, anchors: dict[str, TextNode]) -> None:
    node.anchor = anchor
    if anchor:
        anchors[anchor] = node


def _last_end(node: TextNode) -> int:
    """Where the last value of a block collection ends."""
    if node.kind == LIST:
        return node.items[-1].end if node.items else node.start
    if not node.entries:
        return node.start
    key, value = node.entries[-1]
    return max(key.end, value.end)


def _json_node(text: str, at: int) -> TextNode:
    """The value that begins at `at` in a text that is JSON."""
    opening = text[at]
    if opening == '"':
        value, end = py_scanstring(text, at + 1)
        return TextNode(VALUE, at, end, value)
    if opening not in "{[":
        literal = _LITERAL.match(text, at)
        return TextNode(VALUE, at, literal.end() if literal else at + 1, literal[0] if literal else "")
    node = TextNode(OBJECT if opening == "{" else LIST, at, flow=True)
    at = _skip(text, at + 1)
    while text[at] not in "}]":
        child = _json_node(text, at)
        at = _skip(text, child.end)
        if node.kind == OBJECT:
            value_node = _json_node(text, _skip(text, at + 1))  # behind the colon
            node.entries.append((child, value_node))
            at = _skip(text, value_node.end)
        else:
            node.items.append(child)
        if text[at] == ",":
            at = _skip(text, at + 1)
    node.end = at + 1
    return node


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at
