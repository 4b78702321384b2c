"""A text of manifests with the capture put into its workloads, or taken out, and every other byte as it was.

What comes out is read back and compared with the same change made to the values, so that a text is either right or
refused. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.errors_rare import OptionError, UsageError
from istio_init.inject.containers import (
    FILLED,
    calls_istio_iptables,
    filled,
    is_placed,
    is_placeholder,
    placement,
)
from istio_init.inject.nodes import Document, TextNode, documents, find, values
from istio_init.inject.removal import fields_removed, item_removed
from istio_init.inject.splice import fields_added, insertion, list_replaced
from istio_init.inject.text import TextEdit, applied
from istio_init.options.manifest import INIT, VALIDATION
from istio_init.options.workload import INIT_CONTAINERS, Workload, workloads
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from istio_init.inject.containers import InitSpec, Placement

BYTE_ORDER_MARK = "\ufeff"


class Result(Record):
    """A text with the changes made.

    `notes` are (workload, what to know about it): why nothing was done, or what goes wrong. `workloads` is how many.
    """

    text: str
    notes: tuple[tuple[str, str], ...]
    workloads: int


class _Place(Record):
    """One workload of a text, the number of its document from 0, and where its pod's specification is."""

    document: int
    workload: Workload
    path: tuple[str | int, ...]
    spec: TextNode


class _Change(Record):
    """The edits of one workload, and the same change of its pod's specification as a value."""

    edits: tuple[TextEdit, ...]
    make: Callable[[dict[str, Any]], None]


def inject(text: str, request: InitSpec) -> Result:
    """The text with the requested init container in each workload that Istio would inject.

    ValueError or UsageError, one line that names document and workload, where a workload can't be understood, or the
    text can't be changed without touching more of it.
    """
    notes: dict[tuple[int, tuple[str | int, ...]], tuple[str, str]] = {}

    def stale(text: str, place: _Place) -> _Change | None:
        present = place.workload.init_container(request.name)
        if present is None or not is_placed(present):
            return None
        placed = placement(place.workload, request)
        differs = not placed.why_not and dict(placed.container) != dict(present.body)
        return _without(text, place, request.name) if differs else None

    def change(text: str, place: _Place) -> _Change | None:
        placed = placement(place.workload, request)
        if note := f"skipped: {placed.why_not}" if placed.why_not else placed.warning:
            notes[place.document, place.path] = (place.workload.title, note)
        return None if placed.why_not else _with(text, place, placed, request)

    mark, before = _parted(text)
    read = documents(before)
    fresh = _changed(before, read, stale)
    if fresh != before:
        read = documents(fresh)
    changed = _changed(fresh, read, change)
    return Result(mark + changed, tuple(notes.values()), sum(1 for _ in _places(read)))


def remove(text: str) -> Result:
    """The text without the init containers of this program and of Istio; the errors are those of `inject`."""
    notes: dict[tuple[int, tuple[str | int, ...]], tuple[str, str]] = {}

    def change(text: str, place: _Place) -> _Change | None:
        for name in (INIT, VALIDATION):
            present = place.workload.init_container(name)
            if present is None or is_placeholder(present):
                continue
            if calls_istio_iptables(present):
                return _without(text, place, name)
            notes[place.document, place.path] = (
                place.workload.title,
                f"left as it is: {present.title} is no plain call of istio-iptables",
            )
        return None

    mark, text = _parted(text)
    # One container of a workload at a time: the places of a second one move with the first.
    while True:
        read = documents(text)
        before, text = text, _changed(text, read, change)
        if before == text:
            return Result(mark + text, tuple(notes.values()), sum(1 for _ in _places(read)))


def _parted(text: str) -> tuple[str, str]:
    """A byte order mark and the text behind it."""
    return (BYTE_ORDER_MARK, text[1:]) if text.startswith(BYTE_ORDER_MARK) else ("", text)


def _changed(text: str, read: list[Document], decide: Callable[[str, _Place], _Change | None]) -> str:
    """The text, of which `read` are the documents, with the changes that are decided for its workloads."""
    expected = [_unshared(document.value) for document in read]
    edits: list[TextEdit] = []
    for place in _places(read):
        try:
            change = decide(text, place)
        except OptionError:
            raise  # a flag's value
        except (UsageError, ValueError) as error:
            where = f"document {place.document + 1}: " if len(read) > 1 else ""
            raise ValueError(f"{where}{place.workload.title}: {error}") from None
        if change is not None:
            edits += change.edits
            change.make(_at(expected[place.document], place.path))
    if not edits:
        return text
    result = applied(text, edits)
    if [_settled(value) for value in values(result)] != [_settled(value) for value in expected]:
        raise ValueError("can't be changed without changing more than that: write out what aliases share")
    return result


def _places(read: list[Document]) -> Iterator[_Place]:
    for number, document in enumerate(read):
        if not isinstance(document.value, dict):
            continue
        for workload in workloads(document.value):
            path = workload.path if workload.piece else (*workload.path, "spec")
            spec = find(document.node, path)
            if spec is not None:
                yield _Place(number, workload, path, spec)


def _with(text: str, place: _Place, placed: Placement, request: InitSpec) -> _Change | None:
    """What puts a container in; None where it is there already."""
    container = dict(placed.container)
    present = place.workload.init_container(request.name)
    if present is None:

        def put(spec: dict[str, Any]) -> None:
            listed = spec.get(INIT_CONTAINERS) or []
            spec[INIT_CONTAINERS] = [container, *listed] if placed.first else [*listed, container]

        return _Change((insertion(text, place.spec, container, first=placed.first),), put)
    if dict(present.body) == container:
        return None
    number, node = _item(place, request.name)
    if is_placeholder(present):
        fields = {key: container[key] for key in FILLED if key in container and key not in present.body}
        edit = fields_added(text, node, fields)
        return _Change((edit,), lambda spec: spec[INIT_CONTAINERS][number].update(fields))
    if not calls_istio_iptables(present):
        raise ValueError(f"{present.title} is no plain call of istio-iptables: rename it, or take it out")
    return _replaced(text, node, number, container)


def _replaced(text: str, node: TextNode, number: int, container: dict[str, Any]) -> _Change | None:
    """What gives a container of Istio's the image and the arguments."""
    fields = {}
    edits = []
    image, args, command = node.entry("image"), node.entry("args"), node.entry("command")
    if args is None:
        raise ValueError(f"initContainer {container['name']}: its command has the arguments: write them as args")
    words = container["args"]
    if command is not None and any(each.resolved.value == words[0] for each in command[1].resolved.items):
        words = words[1:]
    if [each.resolved.value for each in args[1].resolved.items] != words:
        fields["args"] = words
        edits.append(list_replaced(text, args, words))
    if image is not None and image[1].resolved.value != container["image"]:
        fields["image"] = container["image"]
        edits.append(TextEdit(image[1].start, image[1].end, _quoted(container["image"])))
    return _Change(tuple(edits), lambda spec: spec[INIT_CONTAINERS][number].update(fields)) if edits else None


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _without(text: str, place: _Place, name: str) -> _Change:
    """What takes a container out, or what was filled in beside its image."""
    number, node = _item(place, name)
    present = place.workload.init_container(name)
    if present is not None and (count := filled(present)):
        keys = list(present.body)[-count:]

        def cut(spec: dict[str, Any]) -> None:
            for key in keys:
                del spec[INIT_CONTAINERS][number][key]

        return _Change((fields_removed(text, node, count),), cut)
    return _Change((item_removed(text, place.spec, number),), lambda spec: spec[INIT_CONTAINERS].pop(number))


def _item(place: _Place, name: str) -> tuple[int, TextNode]:
    """A container's number in its list, and its node."""
    number = next(n for n, each in enumerate(place.workload.spec[INIT_CONTAINERS]) if each.get("name") == name)
    node = find(place.spec, (INIT_CONTAINERS, number))
    if node is None:
        raise ValueError(f"{INIT_CONTAINERS} is no plain list")
    return number, node


# -- Values.


def _unshared(value: Any) -> Any:  # noqa: ANN401 (whatever YAML has)
    """A copy in which no two places share an object."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _settled(value: Any) -> Any:  # noqa: ANN401 (whatever YAML has)
    """A value without empty lists of init containers: Kubernetes takes none, null and [] for the same."""
    if isinstance(value, dict):
        rest = {key: inner for key, inner in value.items() if key != INIT_CONTAINERS or inner not in (None, [])}
        return {key: _settled(inner) for key, inner in rest.items()}
    return [_settled(inner) for inner in value] if isinstance(value, list) else value


def _at(value: Any, path: tuple[str | int, ...]) -> Any:  # noqa: ANN401 (whatever YAML has)
    for step in path:
        value = value[step]
    return value
