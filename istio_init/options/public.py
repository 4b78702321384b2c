"""`Options` as Python programs get it: with a signature and a description of each field, for help() and editors.

public.pyi, generated from the table of options by scripts/generate/options_stub.py, has the types that are taken.
"""

from __future__ import annotations

import inspect

from istio_init.options.arguments import text
from istio_init.options.table import OPTIONS, Option, Options

__all__ = ["Options"]


def description(each: Option) -> str:
    """What a field means, its unit and its default, in one line."""
    unit = {"DURATION": "seconds", "SECONDS": "seconds"}.get(each.metavar, "")
    default = "None" if each.default is None else text(each, each.default) or "empty"
    facts = [f"in {unit}" if unit else "", f"default: {default}", f"as --{each.flag}"]
    return f"{each.help} ({'; '.join(filter(None, facts))})"


def _signature() -> inspect.Signature:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature([inspect.Parameter(each.field, kind, default=each.default) for each in OPTIONS])


# Both are what pydoc and inspect look for in a class.
Options.__signature__ = _signature()  # type: ignore[attr-defined]
Options.__slots__ = {each.field: description(each) for each in OPTIONS}  # type: ignore[attr-defined]
