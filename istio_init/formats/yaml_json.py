"""YAML and JSON as Kubernetes reads and writes them: text to values and back.

PyYAML is imported here alone. Where it is missing, as in the image, JSON still works.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from istio_init.errors import InitError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    import yaml

MISSING = "YAML needs PyYAML (pip install pyyaml), which is not here: {}"


# Bounds that no real manifest meets: nested levels, and values with each alias counted as what it stands for.
DEEPEST = 200
MOST_VALUES = 1_000_000


def load(text: str) -> list[Any]:
    """The documents of a text, JSON or YAML, those that hold nothing left out.

    ValueError where it is neither, gives a key twice, or is nested or repeated by aliases beyond what manifests are.
    """
    if (value := load_json(text)) is not None:
        return [value]
    return [document for document in load_documents(text) if document is not None]


def load_json(text: str) -> Any | None:  # noqa: ANN401 (an object or a list)
    """The object or list that a text is in JSON; None where it is no JSON. ValueError as `load`."""
    if not text.lstrip(" \t\r\n").startswith(("{", "[")):
        return None
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except DuplicateKey:
        raise
    except ValueError:
        return None  # Perhaps YAML's flow style; if not, YAML's complaint tells the line as well.
    except RecursionError:
        raise Excess("nested too deeply") from None
    _check_depth(value)
    return value


def load_documents(text: str) -> list[Any]:
    """The documents of a text in YAML, None for one that holds nothing. ValueError as `load`."""
    yaml = module("give JSON, as of kubectl get pod NAME -o json")
    with reading(yaml):
        for _ in events(yaml, text):
            pass
    return load_checked(text)


def load_checked(text: str) -> list[Any]:
    """The documents of a YAML text whose `events` have been checked; ValueError if it is not YAML."""
    yaml = module("give JSON, as of kubectl get pod NAME -o json")
    with reading(yaml):
        return list(yaml.load_all(text, Loader=loader(yaml)))


@contextmanager
def reading(yaml: Any) -> Iterator[None]:  # noqa: ANN401 (the module)
    """Turns what PyYAML raises into ValueError, one line that names the line in the text."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"not YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (DuplicateKey, Excess):
        raise
    except ValueError as error:  # A date that there is none of, an integer of too many digits.
        raise ValueError(f"not YAML: {error}") from None


def loader(yaml: Any) -> Any:  # noqa: ANN401 (the module, and its class)
    """PyYAML's safe loader with Kubernetes' scalars: the one in C, some ten times as fast, where its wheel has it."""
    from istio_init.formats import yaml_scalars

    return yaml_scalars.loader(yaml, "CSafeLoader" if hasattr(yaml, "CSafeLoader") else "SafeLoader")


class DuplicateKey(ValueError):
    """A key that an object gives twice; which one counts depends on the reader."""


class Excess(ValueError):
    """Nested deeper, or larger once its aliases are resolved, than any manifest."""


def events(yaml: Any, text: str) -> Iterator[Any]:  # noqa: ANN401 (the module, and its events)
    """The events of a YAML text, held to the bounds before anything is made of them.

    DuplicateKey, Excess or ValueError (an alias of nothing) name the line; PyYAML's own exceptions pass.
    """
    bounds = _Bounds()
    for event in yaml.parse(text, Loader=loader(yaml)):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            bounds.alias(event.anchor, line)
        elif isinstance(event, yaml.ScalarEvent):
            bounds.scalar(event.anchor, event.value, line)
        elif isinstance(event, yaml.CollectionStartEvent):
            bounds.begin(event.anchor, isinstance(event, yaml.MappingStartEvent), line)
        elif isinstance(event, yaml.CollectionEndEvent):
            bounds.end()
        elif isinstance(event, yaml.DocumentStartEvent):
            bounds.sizes.clear()
        yield event


class _Bounds:
    """How much a text's events come to: nesting, the keys of the open objects, and sizes with aliases resolved."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.total = 0
        # Of each open collection: its anchor, its size, its keys (None for a list), and whether a key comes next.
        self.open: list[tuple[str | None, int, set[str] | None, bool]] = []

    def scalar(self, anchor: str | None, value: str, line: int) -> None:
        keys, key_next = self.open[-1][2:] if self.open else (None, False)
        if keys is not None and key_next:
            if value in keys:
                raise DuplicateKey(f"line {line}: the key {shown(value, 60)} is given twice")
            keys.add(value)
        if anchor:
            self.sizes[anchor] = 1
        self._count(1, line)

    def alias(self, anchor: str, line: int) -> None:
        if any(anchor == each[0] for each in self.open):
            raise Excess(f"line {line}: the alias *{anchor[:60]} is inside of what it stands for")
        if anchor not in self.sizes:
            raise ValueError(f"line {line}: found undefined alias")
        self._count(self.sizes[anchor], line)

    def begin(self, anchor: str | None, is_object: bool, line: int) -> None:  # noqa: FBT001 (two kinds)
        if len(self.open) >= DEEPEST:
            raise Excess(f"line {line}: nested too deeply: more than {DEEPEST} levels")
        self._count(1, line)
        self.open.append((anchor, 1, set() if is_object else None, is_object))

    def end(self) -> None:
        anchor, size, _, _ = self.open.pop()
        if anchor:
            self.sizes[anchor] = size
        if self.open:
            outer, so_far, keys, key_next = self.open[-1]
            # The collection itself was counted, as one value, when it began.
            self.open[-1] = (outer, so_far + size - 1, keys, key_next)

    def _count(self, size: int, line: int) -> None:
        self.total += size
        if self.total > MOST_VALUES:
            raise Excess(f"line {line}: more than {MOST_VALUES} values, aliases resolved: no manifest")
        if self.open:
            anchor, so_far, keys, key_next = self.open[-1]
            self.open[-1] = (anchor, so_far + size, keys, not key_next if keys is not None else False)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DuplicateKey(f"the key {shown(twice, 60)} is given twice")
    return fields


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise Excess(f"nested too deeply: more than {DEEPEST} levels")


def dump(value: Any, form: str) -> str:  # noqa: ANN401 (whatever JSON can hold)
    """The value as "yaml" or "json", its order kept. InitError for YAML where PyYAML is missing."""
    if form == "json":
        return json.dumps(value, indent=2) + "\n"
    yaml = module("use --output json")
    text: str = yaml.dump(value, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=1 << 30)
    return text


def module(advice: str) -> Any:  # noqa: ANN401 (the module)
    """PyYAML; InitError with this advice where it is missing."""
    try:
        import yaml
    except ImportError:
        raise InitError(MISSING.format(advice)) from None
    return yaml


def _dumper() -> type[yaml.SafeDumper]:
    """A dumper that puts every entry of a list in quotes, and indents no list.

    Those are a container's arguments. What a bare word is depends on who reads it: to Go's YAML library y is
    a boolean and 1e3 a number. Elsewhere a word is in quotes that either reader takes for something else.
    """
    import yaml

    from istio_init.formats import yaml_scalars

    class Dumper(yaml.SafeDumper):
        pass

    for tag, pattern, letters in yaml_scalars.RESOLVERS:
        Dumper.add_implicit_resolver(f"{yaml_scalars.TAG}{tag}", pattern, letters)

    def represented(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
        node = dumper.represent_sequence("tag:yaml.org,2002:seq", data)
        for each in node.value:
            if each.tag == "tag:yaml.org,2002:str":
                each.style = '"'
        return node

    Dumper.add_representer(list, represented)
    return Dumper
