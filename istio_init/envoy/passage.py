"""A connection's passage through Envoy, as a value: its steps, its end, and what Envoy dials."""

from __future__ import annotations

from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.envoy.client import Client

    Part: TypeAlias = Literal["listener", "listener filter", "filter chain", "filter", "route", "cluster", "endpoint"]
    # dials: an endpoint; answers: Envoy itself, by HTTP; closes: without an answer; hangs: both sides wait;
    # undecided: an unsupported feature decides.
    Ending: TypeAlias = Literal["dials", "answers", "closes", "hangs", "undecided"]


class Other(Record):
    """An entry that was not chosen, and why."""

    name: str
    why: str
    path: str = ""


class Step(Record):
    """One decision: the part of Envoy, the choice in words, its path in the dump, and the alternatives."""

    part: Part
    text: str
    path: str = ""
    others: tuple[Other, ...] = ()


class Stop(Record):
    """How a passage ended: in words, and as in Envoy's access log, by response flag and HTTP status (0 for none)."""

    kind: Ending
    text: str
    flag: str = ""
    status: int = 0


class Dial(Record):
    """A connection that Envoy makes: its destination, source address (None for any), mark, and client."""

    address: bytes
    port: int
    source: bytes | None
    mark: int
    client: Client


class Passage(Record):
    """A connection's path through Envoy, with the access log's names; `conditions` may change the result."""

    steps: tuple[Step, ...]
    end: Stop
    listener: str = ""
    chain: str = ""
    route: str = ""
    cluster: str = ""
    dials: tuple[Dial, ...] = ()
    conditions: tuple[str, ...] = ()


class ListenerArrival(Record):
    """How a connection reached Envoy: its socket, its source, and its original destination.

    `transparent` is whether TPROXY delivered it, which requires a transparent socket.
    """

    address: bytes
    port: int
    source: bytes
    source_port: int
    original: bytes
    original_port: int
    transparent: bool = False
