"""Edits CNI network configuration lists as text: adds and removes the plugin's entry, and changes nothing else.

A list belongs to another program (flannel, calico, cilium ...), so its text is edited, not written anew: order, spaces,
numbers and unknown keys stay byte for byte, and removing our plugin gives back the text that it was added to.
The format: https://www.cni.dev/docs/spec/#section-1-network-configuration-format

Every function raises ValueError with what is wrong where a text is no such list.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from istio_init.cni.plugin.protocol import OLDEST, VERSIONS
from istio_init.errors import shown
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PLUGIN = "istio-init-cni"
BLANKS = " \t\r\n"
OUR_INDENT = "  "


class Item(Record):
    """A member of a JSON object or array: its key (empty in an array), its value, and where that is in the text."""

    key: str
    value: Any
    begin: int
    end: int


def types(text: str) -> tuple[str, ...]:
    """The types of a list's plugins, in order."""
    return tuple(item.value["type"] for item in _plugins(text))


def name(text: str) -> str:
    """The name of a network."""
    return str(_document(text)["name"])


def plugin_entry(text: str) -> dict[str, Any] | None:
    """The plugin's configuration in a list; None if it is not in it."""
    return next((item.value for item in _plugins(text) if _ours(item)), None)


def is_chained_once(text: str) -> bool:
    """Whether the plugin is in a list exactly once, after another plugin."""
    items = _plugins(text)
    return sum(map(_ours, items)) == 1 and not _ours(items[0])


def with_plugin(text: str, plugin: Mapping[str, object]) -> str:
    """The list with the plugin appended.

    If it is already chained behind another, it keeps its position, since later plugins may depend on it; only its
    configuration is updated. Raises ValueError for a list of a version that the plugin does not speak as well.
    """
    require_supported_version(text)
    items = _plugins(text)
    ours = [item for item in items if _ours(item)]
    if is_chained_once(text):
        entry = ours[0]
        if entry.value == plugin:
            return text
        return text[: entry.begin] + _rendered(text, entry, plugin) + text[entry.end :]
    if len(ours) == len(items):
        raise ValueError(f"it has no plugin but {PLUGIN}, which only goes behind another")
    text = without_plugin(text)
    last = _plugins(text)[-1]
    between = text[_before(text, last.begin) : last.begin]
    return text[: last.end] + "," + (between or " ") + _rendered(text, last, plugin) + text[last.end :]


def require_supported_version(text: str) -> None:
    """Raise ValueError if a runtime would call the plugin with a version of the specification that it refuses."""
    document = _document(text)
    # From 1.1.0 on a list may name all versions that it is good for; a runtime chooses one of them.
    named = document.get("cniVersions")
    versions = [document.get("cniVersion") or OLDEST, *(named if isinstance(named, list) else [])]
    if not any(version in VERSIONS for version in versions):
        raise ValueError(
            f"cniVersion {shown(str(versions[0]))} is unknown to {PLUGIN}, which would keep every pod from starting; "
            f"it speaks {', '.join(VERSIONS)}"
        )


def without_plugin(text: str) -> str:
    """The list without the plugin; the same text if it is not in it."""
    while any(map(_ours, items := _plugins(text))):
        number = next(number for number, item in enumerate(items) if _ours(item))
        if len(items) == 1:
            raise ValueError(f"it has no plugin but {PLUGIN}, and would be empty without")
        begin, end = items[number].begin, items[number].end
        if number:
            begin = items[number - 1].end
        else:
            end = items[1].begin
        text = text[:begin] + text[end:]
    return text


def list_of_configuration(text: str) -> str:
    """Convert a single plugin's configuration (a .conf file) to a list, with its text unchanged."""
    document = _document(text)
    _typed(document, "it")
    head = {key: document[key] for key in ("cniVersion", "name") if key in document}
    lines = [f"{OUR_INDENT}{json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    inner = "\n".join(f"{OUR_INDENT * 2}{line}" for line in text.strip(BLANKS).split("\n"))
    network_list = "\n".join(["{", *lines, f'{OUR_INDENT}"plugins": [', inner, f"{OUR_INDENT}]", "}", ""])
    _plugins(network_list)
    return network_list


def plugin_configuration(text: str) -> dict[str, Any]:
    """The plugin's configuration from a user's JSON object; the type is always istio-init-cni."""
    document = _document(text)
    if document.get("type", PLUGIN) != PLUGIN:
        raise ValueError(f"type {shown(str(document['type']))}: leave it out, it is {PLUGIN}")
    return {"type": PLUGIN, **document}


def _ours(item: Item) -> bool:
    return bool(item.value["type"] == PLUGIN)


def _plugins(text: str) -> list[Item]:
    """The plugins of a list that a runtime would take."""
    document = _document(text)
    if not isinstance(document.get("name"), str) or not document["name"]:
        raise ValueError('it has no "name"')
    members = list(_items(text, _after(text, 0)))
    named = [member for member in members if member.key == "plugins"]
    if len(named) != 1 or not isinstance(named[0].value, list) or not named[0].value:
        raise ValueError('it has no "plugins", a list of at least one' if not named[1:] else 'it has "plugins" twice')
    items = list(_items(text, named[0].begin))
    for number, item in enumerate(items, 1):
        _typed(item.value, f"plugin {number}")
    return items


def _typed(plugin: object, what: str) -> None:
    kind = plugin.get("type") if isinstance(plugin, dict) else None
    if not isinstance(kind, str) or not kind:
        raise ValueError(f'{what} has no "type"')


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_constant)


def _document(text: str) -> dict[str, Any]:
    """The whole text as a JSON object."""
    try:
        document = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("no JSON that a runtime would take: nested too deep") from None
    if not isinstance(document, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 (a text's fault, not a caller's)
    return document


def _items(text: str, at: int) -> Iterator[Item]:
    """The members of the object or array that begins at `at`; the text is known to be JSON."""
    named, closing = text[at] == "{", "}" if text[at] == "{" else "]"
    at = _after(text, at + 1)
    while text[at] != closing:
        key = ""
        if named:
            key, at = _DECODER.raw_decode(text, at)
            at = _after(text, _after(text, at) + 1)
        value, end = _DECODER.raw_decode(text, at)
        yield Item(key, value, at, end)
        at = _after(text, end)
        if text[at] == ",":
            at = _after(text, at + 1)


def _after(text: str, at: int) -> int:
    """The first position from `at` on that is not white space."""
    while at < len(text) and text[at] in BLANKS:
        at += 1
    return at


def _before(text: str, at: int) -> int:
    """The position where the white space before `at` begins."""
    while at and text[at - 1] in BLANKS:
        at -= 1
    return at


def _rendered(text: str, neighbour: Item, plugin: Mapping[str, object]) -> str:
    """The plugin's entry in the style of its neighbour: on one line, or on several with the file's indentation."""
    if "\n" not in text[neighbour.begin : neighbour.end]:
        return json.dumps(plugin)
    line = text[text.rfind("\n", 0, neighbour.begin) + 1 :]
    margin = line[: len(line) - len(line.lstrip(" \t"))]
    newline = "\r\n" if "\r\n" in text else "\n"
    return json.dumps(plugin, indent=_indent(text)).replace("\n", newline + margin)


def _indent(text: str) -> str:
    """The indentation of one level: that of the first indented line."""
    for line in text.split("\n"):
        if (blank := line[: len(line) - len(line.lstrip(" \t"))]) and line.strip():
            return blank
    return OUR_INDENT
