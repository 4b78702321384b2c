"""The pod's addresses in a CNI result of any version, as the previous plugins assigned them.

Up to 0.2.0 a result has `ip4` and `ip6`, from 0.3.0 on a list `ips` (https://www.cni.dev/docs/spec-upgrades/).
"""

from __future__ import annotations

from istio_init.model import parsers
from istio_init.model.routing import Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# The interface's name does not matter here.
INTERFACE = "eth0"


def addresses(result: Any) -> tuple[Address, ...]:  # noqa: ANN401 (JSON)
    """The addresses in a result, in its order; what can't be read as one is left out."""
    return tuple(_addresses(result)) if isinstance(result, dict) else ()


def _addresses(result: dict[str, Any]) -> Iterator[Address]:
    listed = result.get("ips")
    for entry in listed if isinstance(listed, list) else []:
        yield from _address(entry, "address")
    for key in ("ip4", "ip6"):
        yield from _address(result.get(key), "ip")


def _address(entry: Any, key: str) -> Iterator[Address]:  # noqa: ANN401 (JSON)
    text = entry.get(key) if isinstance(entry, dict) else None
    try:
        # Without its prefix: the host's bits count here.
        yield Address(parsers.address(str(text).partition("/")[0]), INTERFACE)
    except ValueError:
        return
