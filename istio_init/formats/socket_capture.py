"""A SocketCapture as JSON: what a dry run prints with capture by eBPF."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from istio_init.formats.addresses import network_text, ports_text
from istio_init.model.rules import Network, PortRange

if TYPE_CHECKING:
    from istio_init.model.socket_capture import SocketCapture


def dump(capture: SocketCapture) -> str:
    """The capture as the text of one JSON object."""
    return json.dumps(as_json(capture), indent=2) + "\n"


def as_json(capture: SocketCapture) -> dict[str, Any]:
    """The capture field by field; networks as CIDRs, ports as numbers or "low-high"."""
    return {"capture_backend": "ebpf", **{name: _plain(getattr(capture, name)) for name in capture.__match_args__}}


def _plain(value: object) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, Network):
        return network_text(value)
    if isinstance(value, PortRange):
        return value.low if value.low == value.high else ports_text(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
