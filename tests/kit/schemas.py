"""An answer in JSON against the schema that it names, more strictly than users would: no field may be missing in it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

import istio_init

DIRECTORY = Path(istio_init.__file__).parent / "schemas"


@cache
def validator(name: str) -> Draft202012Validator:
    """The validator of a schema, which takes no field that the schema does not have."""
    return Draft202012Validator(_strict(json.loads((DIRECTORY / f"{name}.json").read_text())))


def _strict(value: Any) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, list):
        return [_strict(each) for each in value]
    if not isinstance(value, dict):
        return value
    inner = {key: _strict(each) for key, each in value.items()}
    return {**inner, "additionalProperties": False} if "properties" in inner and "required" in inner else inner


def validated(text: str, name: str = "") -> dict[str, Any]:
    """The answer, where it is what its schema says; `name` is the schema that it has to have."""
    value: dict[str, Any] = json.loads(text)
    result = value["schema"]
    assert result.rpartition(".")[0] == (name or result.rpartition(".")[0])
    errors = sorted(validator(result).iter_errors(value), key=lambda error: len(error.path))
    assert [f"{'/'.join(map(str, each.absolute_path))}: {each.message[:300]}" for each in errors[:3]] == []
    return value
