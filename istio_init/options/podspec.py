"""Parts of a Kubernetes pod as a document has them: containers, their arguments and variables, maps and lists.

Every function parses or raises ValueError, which names the place and the value; the caller names the file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from istio_init.errors import shown
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

STRING = "a string, put it in quotes"
# Kubernetes' references to variables (third_party/forked/golang/expansion): $(NAME), and $$ for a dollar.
REFERENCE = re.compile(r"\$(\$|\(([^)]*)\))")


class Container(Record):
    """One container; `title` is what an error calls it, `body` is it as Kubernetes' API has it."""

    title: str
    name: str
    body: Mapping[str, Any]
    init: bool = False

    @property
    def words(self) -> list[str]:
        """Its command and arguments as they are written."""
        words = [(key, n, word) for key in ("command", "args") for n, word in enumerate(entries(self.body, key))]
        for key, number, word in words:
            if not isinstance(word, str):
                raise misfit(f"{self.title}: {key}[{number}]", word, STRING)
        return [word for _, _, word in words]

    @property
    def argv(self) -> list[str]:
        """Its command and arguments, references to variables resolved."""
        words = self.words
        variables = self._variables()
        return [self._required(shown(word), expanded(word, variables)) for word in words]

    def environment(self, names: set[str]) -> dict[str, str]:
        """Those of its variables whose names are asked for; ValueError for one that only the cluster knows."""
        values = {}
        for name, value in self._variables().items():
            if name in names:
                values[name] = self._required(f"env {name}", value)
        return values

    def account(self, key: str) -> int | None:
        """An id of its securityContext, such as runAsUser; None where it gives none."""
        return account(self.body, key, f"{self.title}: ")

    def _required(self, place: str, value: str | None) -> str:
        if value is None:
            raise ValueError(f"{self.title}: {place}: only the cluster knows the value")
        return value

    def _variables(self) -> dict[str, str | None]:
        """Its variables; None for a value that is elsewhere (valueFrom)."""
        values: dict[str, str | None] = {}
        for number, entry in enumerate(entries(self.body, "env")):
            place = f"{self.title}: env[{number}]"
            variable = mapping(entry, place)
            name, value = variable.get("name"), variable.get("value", "")
            if not isinstance(name, str):
                raise misfit(f"{place}: name", name, STRING)
            if not isinstance(value, str):
                raise misfit(f"{self.title}: env {name}", value, STRING)
            values[name] = None if variable.get("valueFrom") else expanded(value, values)
        return values


def expanded(text: str, variables: Mapping[str, str | None]) -> str | None:
    """The text with its references to variables resolved; what names none stays. None where a value is not known."""
    if any(variables.get(name, "") is None for _, name in REFERENCE.findall(text)):
        return None
    return REFERENCE.sub(lambda match: "$" if match[1] == "$" else str(variables.get(match[2], match[0])), text)


def account(body: Mapping[str, Any], key: str, place: str = "") -> int | None:
    """An id in the securityContext of a pod or container, such as runAsUser; None where it gives none."""
    place = f"{place}securityContext"
    number = mapping(body.get("securityContext"), place).get(key)
    if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        raise misfit(f"{place}: {key}", number, "a number")
    return number


def mapping(value: Any, place: str) -> Mapping[str, Any]:  # noqa: ANN401 (whatever YAML can hold)
    """An object's fields; none where there is nothing."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise misfit(place, value, "an object with fields")
    return value


def entries(body: Mapping[str, Any], key: str) -> list[Any]:
    """A field's list; empty where there is nothing."""
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise misfit(key, value, "a list")
    return value


def strings(value: Any, what: str) -> dict[str, str]:  # noqa: ANN401 (whatever YAML can hold)
    """A map of strings to strings, such as annotations."""
    texts = {str(name): text for name, text in mapping(value, f"{what}s").items()}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise misfit(f"{what} {name}", text, STRING)
    return texts


def misfit(place: str, value: object, expected: str) -> ValueError:
    """The error for a value of another type than the API's."""
    return ValueError(f"{place}: {shown(str(value))}: not {expected}")
