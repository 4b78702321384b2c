"""What a plain word in YAML is to Kubernetes: text, a number, a boolean or nothing.

kubectl and the API server read YAML with go-yaml v2 (sigs.k8s.io/yaml), which differs from PyYAML: dates and 12:30 are
text, y and n are booleans, 1e3 and 1.0 are whole numbers.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from istio_init.errors import shown

if TYPE_CHECKING:
    from types import ModuleType

TAG = "tag:yaml.org,2002:"
TRUE = frozenset({"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
FALSE = frozenset({"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
NULL = frozenset({"", "~", "null", "Null", "NULL"})
INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F_]+)|0[bB]([01_]+)|0[oO]?([0-7_]+)|([0-9][0-9_]*))\Z", re.ASCII)
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?\Z", re.ASCII)


def _words(words: frozenset[str]) -> re.Pattern[str]:
    return re.compile(f"(?:{'|'.join(map(re.escape, sorted(words)))})\\Z")


# In the order of go-yaml: the tag, the pattern, and the first letters of what it matches, by which PyYAML looks it up.
RESOLVERS = (
    ("bool", _words(TRUE | FALSE), [*"yYnNtTfFoO"]),
    ("null", _words(NULL), ["", *"~nN"]),
    ("int", INTEGER, [*"-+0123456789"]),
    ("float", FLOAT, [*"-+.0123456789"]),
    ("merge", re.compile(r"<<\Z"), ["<"]),
)


@cache
def loader(module: ModuleType, base: str) -> Any:  # noqa: ANN401 (a class of PyYAML's)
    """A subclass of PyYAML's class of this name that reads plain words as Kubernetes does."""
    subclass: Any = type("Loader", (getattr(module, base),), {"yaml_implicit_resolvers": {}})
    for tag, pattern, letters in RESOLVERS:
        subclass.add_implicit_resolver(TAG + tag, pattern, letters)
    for tag, construct in (("bool", _boolean), ("int", _integer), ("float", _float), ("timestamp", _text)):
        subclass.add_constructor(TAG + tag, construct)
    return subclass


def _text(loader: Any, node: Any) -> str:  # noqa: ANN401 (PyYAML's)
    return str(loader.construct_scalar(node))


def _boolean(loader: Any, node: Any) -> bool:  # noqa: ANN401 (PyYAML's)
    word = _text(loader, node)
    if word not in TRUE | FALSE:
        raise _misfit(node, word, "boolean")
    return word in TRUE


def _integer(loader: Any, node: Any) -> int:  # noqa: ANN401 (PyYAML's)
    word = _text(loader, node)
    parts = INTEGER.match(word)
    if parts is None:
        raise _misfit(node, word, "integer")
    sign, *digits = parts.groups()
    base, number = next((base, text) for base, text in zip((16, 2, 8, 10), digits, strict=True) if text)
    value = int(number.replace("_", "") or "0", base)
    return -value if sign == "-" else value


def _float(loader: Any, node: Any) -> float | str:  # noqa: ANN401 (PyYAML's)
    """A number as JSON has it: 1.0 is 1, and what no float holds stays text."""
    word = _text(loader, node)
    if FLOAT.match(word) is None:
        raise _misfit(node, word, "number")
    value = float(word.replace("_", ""))
    if math.isinf(value):
        return word
    return int(value) if value.is_integer() else value


def _misfit(node: Any, word: str, kind: str) -> ValueError:  # noqa: ANN401 (PyYAML's)
    return ValueError(f"line {node.start_mark.line + 1}: {shown(word, 60)} is no {kind}")
