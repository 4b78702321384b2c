"""Annotations that have no effect and were meant to have one: warnings, each with what was probably meant.

Imported only for an annotation that looks like a known one and is none (annotations.suspicious): few pods have such.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from istio_init.errors import shown
from istio_init.options.annotations import NAMES, TRAFFIC, suspicious

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# How alike two names have to be, 0 to 1 (difflib.SequenceMatcher.ratio).
ALIKE = 0.8


def misspelt(annotations: Mapping[str, str]) -> Iterator[str]:
    """A warning for each annotation that has no effect, but whose name is much like that of one that has."""
    for name in suspicious(annotations):
        intended = _closest_name(name)
        hint = f"did you mean {intended}?" if intended else f"no annotation under {TRAFFIC} has this name"
        yield f"annotation {shown(name, 100)}: no effect: {hint}"


def _closest_name(name: str) -> str:
    names = {each.lower(): each for each in sorted(NAMES)}
    if name.lower() in names:
        return names[name.lower()]
    key = name.rpartition("/")[2].lower()
    for each in names.values():
        if each.rpartition("/")[2].lower() == key:
            return each
    keys = {each.rpartition("/")[2].lower(): each for each in names.values() if each.startswith(TRAFFIC)}
    close = get_close_matches(key, keys, 1, ALIKE)
    return keys[close[0]] if close else ""


def misplaced(document: Any, path: tuple[str | int, ...]) -> Iterator[str]:  # noqa: ANN401 (whatever YAML has)
    """A warning for each annotation of an object that makes pods which belongs to the pods' template.

    `path` leads from the document to the template.
    """
    if not path or path[-1] != "template":
        return
    owners = (_at(document, path[:length]) for length in range(len(path)))
    for owner in owners:
        metadata = owner.get("metadata") if isinstance(owner, dict) else None
        annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
        for name in _capturing(annotations if isinstance(annotations, dict) else ()):
            yield (
                f"annotation {name}: no effect: it is on {_title(owner)}; "
                f"move it to {'.'.join(str(key) for key in path)}.metadata.annotations"
            )


def _capturing(names: Iterable[Any]) -> list[str]:
    return [str(name) for name in names if name in NAMES]


def _title(owner: Mapping[str, Any]) -> str:
    return f"the {shown(str(owner.get('kind') or 'object'), 40)[1:-1]} itself"


def _at(document: Any, path: tuple[str | int, ...]) -> Any:  # noqa: ANN401 (whatever YAML has)
    for key in path:
        document = document[key]
    return document
