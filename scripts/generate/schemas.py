"""The JSON schemas of what verbs print with --output json, and the page of the documentation that shows them.

`python -m scripts.generate` writes istio_init/schemas and docs/json.md anew. Each file is complete in itself. A field
is added within a version; one that goes or changes its meaning makes the next version, whose number is in every
answer's `schema`.
"""

from __future__ import annotations

import json

from scripts.generate.schema_kinds import Schema, body
from scripts.generate.schema_parts import COMMON
from scripts.generate.schema_table import OPTIONAL, SCHEMAS

BASE = "https://istio-init.github.io/istio-init/schemas/"

HEAD = """# JSON output

Generated from `scripts/generate/schemas.py` by `python -m scripts.generate`; don't edit it by hand.

Every subcommand takes `--output json`. What it prints then has a JSON Schema (draft 2020-12), which the package
contains: `istio_init/schemas/NAME.v1.json`. The first field, `schema`, names it with its version:

```
$ istio-init apply -i '*' --no-enable-ipv6 --output json --dry-run | head -n 5
```

Within a version fields may be added, but none is removed and none changes its meaning; that makes the next version.
So read the fields that you know, and leave the others alone. `manifest --output json` and
`inject --policy ... --output json` print Kubernetes' own objects, and have none. Errors are one line on standard error
and an [exit code](exit-codes.md), whatever the output; with `--log_as_json` that line is JSON as well.

| schema | printed by | what it is |
| --- | --- | --- |
"""


def _references(value: object) -> set[str]:
    """The definitions that a schema refers to, also by way of others."""
    if isinstance(value, dict):
        name = value.get("$ref")
        own = {name.rpartition("/")[2]} if isinstance(name, str) else set()
        further = {each for inner in own for each in _references(COMMON[inner])}
        return own | further | {each for inner in value.values() for each in _references(inner)}
    return {each for inner in value for each in _references(inner)} if isinstance(value, list) else set()


def schema(name: str) -> Schema:
    """A schema as a value."""
    _, about, fields = SCHEMAS[name]
    json_schema = body(schema={"const": f"{name}.v1", "description": "the name and version of this schema"}, **fields)
    json_schema["required"] = [field for field in json_schema["required"] if field not in OPTIONAL.get(name, ())]
    used = _references(json_schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{BASE}{name}.v1.json",
        "title": about,
        **json_schema,
        **({"$defs": {each: COMMON[each] for each in COMMON if each in used}} if used else {}),
    }


def file(name: str) -> str:
    """The text of a schema's file."""
    return json.dumps(schema(name), indent=1) + "\n"


def page() -> str:
    """docs/json.md, without what its command prints."""
    rows = [f"| [`{name}`](#{name}v1) | `{verb}` | {about} |\n" for name, (verb, about, _) in SCHEMAS.items()]
    return "".join((HEAD, *rows, *map(_section, SCHEMAS)))


def _section(name: str) -> str:
    fields = "".join(_rows(SCHEMAS[name][2], ""))
    return f"\n## {name}.v1\n\n| field | kind | meaning |\n| --- | --- | --- |\n{fields}"


def _rows(fields: dict[str, Schema], before: str) -> list[str]:
    rows = []
    for field, each in fields.items():
        about, inner = each.get("description", ""), each.get("items", each)
        deeper = inner.get("properties", {}) if isinstance(inner, dict) else {}
        words = each.get("enum")
        shown = f"{about}: {', '.join(f'`{word}`' for word in words if word is not None)}" if words else about
        rows.append(f"| `{before}{field}` | {_kind(each)} | {shown} |\n")
        rows += _rows(deeper, f"{before}{field}{'[]' if each.get('type') == 'array' else ''}.")
    return rows


def _kind(each: Schema) -> str:
    if "anyOf" in each:
        return "object or null"
    if "$ref" in each:
        return "object"
    kind = each.get("type", "string")
    if kind == "array":
        inner = each["items"]
        return f"list of {'objects' if '$ref' in inner or 'oneOf' in inner else _kind(inner) + 's'}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
