"""A sidecar for tests: its rules, its pod's address, and a dump of Istio's own configuration for five services."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from istio_init.envoy.addresses import packed
from istio_init.envoy.client import CLIENTS, HttpCall
from istio_init.envoy.dump import Dump, read
from istio_init.envoy.path import Answer, Pod, answers, follow
from istio_init.envoy.path import Path as EnvoyPath
from istio_init.envoy.walk import Configuration
from istio_init.model.packet import Facts, Packet
from istio_init.model.routing import Address
from istio_init.model.rules import IPV4, LOOPBACK_INTERFACE, Network, Ruleset
from istio_init.planning.plan import build
from istio_init.simulate.path import proxy, routed
from tests.kit.options import options

DUMPS = Path(__file__).parent / "dumps"
ARTICLE = "-p 15001 -z 15006 -u 1337 -i * -b * -d 15090,15020"
POD = bytes((10, 44, 0, 2))
CLIENT = bytes((10, 44, 9, 9))
LO = Address(Network(b"\x7f\0\0\1", 8), LOOPBACK_INTERFACE)
UPLINK = Address(Network(POD, 24), "eth0")


@cache
def text(mode: str) -> str:
    """The text of the dump for an interception mode."""
    return (DUMPS / f"{mode.lower()}.json").read_text()


def value(mode: str = "REDIRECT") -> Any:  # noqa: ANN401 (JSON)
    """The dump for an interception mode as JSON, to be changed."""
    return json.loads(text(mode))


def listener(dump: Any, name: str) -> Any:  # noqa: ANN401
    """A dynamic listener of a dump in JSON."""
    result = (each for part in dump["configs"] for each in part.get("dynamic_listeners", ()) if each["name"] == name)
    return next(result)["active_state"]["listener"]


def cluster(dump: Any, name: str) -> Any:  # noqa: ANN401
    """A cluster of a dump in JSON."""
    result = (each["cluster"] for part in dump["configs"] for each in part.get("dynamic_active_clusters", ()))
    return next(each for each in result if each["name"] == name)


def pod(dump: Dump | Any = None, mode: str = "REDIRECT", line: str = ARTICLE) -> Pod:  # noqa: ANN401
    """The pod with these rules and this configuration."""
    result = options([*line.split(), "-m", mode], {})
    assert result
    plan = build(result)
    facts = Facts((LO, *plan.addresses, UPLINK), plan.policy_rules, plan.routes)
    recorded = dump if isinstance(dump, Dump) else read(value(mode) if dump is None else dump)
    return Pod(plan.ruleset(IPV4) or Ruleset(IPV4, ()), facts, proxy(result), Configuration(recorded))


def outbound(about: Pod, destination: str, port: int) -> Packet:
    """What the app sends."""
    address = packed(destination)
    assert address
    sent = Packet("OUTPUT", 6, about.facts.source(address), address, 40000, port, uid=1000, gid=1000)
    return routed(sent, about.facts).packet


def inbound(port: int, source: bytes = CLIENT) -> Packet:
    """What comes to the pod."""
    return Packet("PREROUTING", 6, source, POD, 40000, port, in_interface="eth0")


def only(about: Pod, packet: Packet, speaks: str = "http", **request: Any) -> EnvoyPath:  # noqa: ANN401
    """The one path of a kind of client."""
    (result,) = follow(about, packet, CLIENTS[speaks].replace(request=HttpCall(**request)))
    return result


def all_answers(about: Pod, packet: Packet, **request: Any) -> tuple[Answer, ...]:  # noqa: ANN401
    """What becomes of all kinds of clients."""
    return answers(about, packet, [client.replace(request=HttpCall(**request)) for client in CLIENTS.values()])
