"""Words for JSON schemas: kinds of values, each with what it is."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def of_kind(kind: str | list[str], about: str, **more: Any) -> Schema:  # noqa: ANN401 (JSON)
    return {"type": kind, "description": about, **more}


def text(about: str, **more: Any) -> Schema:  # noqa: ANN401 (JSON)
    """A string."""
    return of_kind("string", about, **more)


def maybe(about: str) -> Schema:
    """A string, or null where there is none."""
    return of_kind(["string", "null"], about)


def whole(about: str) -> Schema:
    """A whole number from 0."""
    return of_kind("integer", about, minimum=0)


def maybe_whole(about: str) -> Schema:
    """A whole number from 0, or null where there is none."""
    return of_kind(["integer", "null"], about, minimum=0)


def flag(about: str) -> Schema:
    """True or false."""
    return of_kind("boolean", about)


def one_of(about: str, words: list[str]) -> Schema:
    """One of a few words."""
    return text(about, enum=words)


def listed(items: Schema, about: str) -> Schema:
    """A list."""
    return of_kind("array", about, items=items)


def texts(about: str) -> Schema:
    """A list of strings."""
    return listed({"type": "string"}, about)


def body(**properties: Schema) -> Schema:
    """An object that has all of these fields."""
    return {"type": "object", "properties": properties, "required": [*properties]}


def perhaps(schema: Schema, **properties: Schema) -> Schema:
    """An object that may have these fields as well."""
    return {**schema, "properties": {**schema["properties"], **properties}}


def described(schema: Schema, about: str) -> Schema:
    """The same with what it is."""
    return {**schema, "description": about}


def ref(name: str) -> Schema:
    """A definition of COMMON."""
    return {"$ref": f"#/$defs/{name}"}


def maybe_ref(name: str) -> Schema:
    """A definition of COMMON, or null."""
    return {"anyOf": [ref(name), {"type": "null"}]}
