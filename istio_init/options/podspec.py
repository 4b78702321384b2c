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
# The kernel's highest uid or gid; -1 means none.
HIGHEST_ID = (1 << 32) - 2
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
        return [
            string(word, f"{self.title}: {key}[{number}]")
            for key in ("command", "args")
            for number, word in enumerate(entries(self.body, key, f"{self.title}: "))
        ]

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
        for number, entry in enumerate(entries(self.body, "env", f"{self.title}: ")):
            place = f"{self.title}: env[{number}]"
            variable = mapping(entry, place)
            name = string(variable.get("name"), f"{place}: name")
            value = string(variable.get("value"), f"{self.title}: env {name}")
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
    return None if number is None else identity(number, f"{place}: {key}")


def identity(number: Any, place: str) -> int:  # noqa: ANN401 (whatever YAML can hold)
    """The id of a user or group, as the API takes it."""
    if not isinstance(number, int) or isinstance(number, bool):
        raise misfit(place, number, "a number")
    if not 0 <= number <= HIGHEST_ID:
        raise misfit(place, number, f"an id from 0 to {HIGHEST_ID}")
    return number


def boolean(body: Mapping[str, Any], key: str, place: str = "") -> bool | None:
    """A switch such as hostNetwork; None where there is none."""
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise misfit(f"{place}{key}", value, "true or false without quotes")
    return value


def string(value: Any, place: str) -> str:  # noqa: ANN401 (whatever YAML can hold)
    """A text; empty where there is nothing, as in `value:` of a template that had nothing to fill in."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise misfit(place, value, STRING)
    return value


def mapping(value: Any, place: str) -> Mapping[str, Any]:  # noqa: ANN401 (whatever YAML can hold)
    """An object's fields; none where there is nothing."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise misfit(place, value, "an object with fields")
    return value


def entries(body: Mapping[str, Any], key: str, place: str = "") -> list[Any]:
    """A field's list; empty where there is nothing."""
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise misfit(f"{place}{key}", value, "a list")
    return value


def strings(value: Any, what: str) -> dict[str, str]:  # noqa: ANN401 (whatever YAML can hold)
    """A map of strings to strings, such as annotations."""
    return {str(name): string(text, f"{what} {name}") for name, text in mapping(value, f"{what}s").items()}


def misfit(place: str, value: object, expected: str) -> ValueError:
    """The error for a value of another type than the API's."""
    return ValueError(f"{place}: {shown(str(value))}: not {expected}")
