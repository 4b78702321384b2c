"""The page about the Python API, from its docstrings: `python -m scripts.generate.api_page > docs/api.md`."""

from __future__ import annotations

import inspect
import sys

import istio_init
from istio_init.options.public import description
from istio_init.options.table import OPTIONS
from scripts.generate.options_stub import kind

HEAD = """# Python API

Generated from docstrings by `python -m scripts.generate.api_page`; don't edit it by hand.

```python
from istio_init import Options, apply, dump, plan

rules = plan(Options(istio_service_cidr="*", istio_inbound_ports="*", proxy_uid=1337))
print(dump(rules))
apply(rules, network_namespace="/var/run/netns/pod")
```

The package is typed (PEP 561): mypy --strict and pyright check programs that use it.
"""
FUNCTIONS = ("plan", "dump", "apply")
VALUES = ("Plan", "Changes", "PortRange", "Network", "InitError", "OptionError")
OPTIONS_HEAD = """
## Options

One keyword argument for each option; what is not given has its default. Types are those that a program may give:
`Ports`, `Range` and `Address` are text, a number, an object of `ipaddress`, a `PortRange` or a `Network`, or a tuple.

| field | type | meaning |
| --- | --- | --- |
"""


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for name in FUNCTIONS:
        function = getattr(istio_init, name)
        parts.append(
            f"\n## {name}\n\n```python\n{name}{inspect.signature(function)}\n```\n\n{inspect.getdoc(function)}\n"
        )
    parts.append(OPTIONS_HEAD)
    for each in OPTIONS:
        row = (f"`{each.field}`", f"`{kind(each)}`".replace("|", "\\|"), description(each).replace("|", "\\|"))
        parts.append(f"| {' | '.join(row)} |\n")
    parts.extend(f"\n## {name}\n\n{inspect.getdoc(getattr(istio_init, name))}\n" for name in VALUES)
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
