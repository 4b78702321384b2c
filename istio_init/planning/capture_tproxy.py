"""The rules of TPROXY, which keeps the client's address: inbound packets go to Envoy by mark and policy route."""

from __future__ import annotations

from istio_init.model import parsers
from istio_init.model.extensions import ConnMark, Mark, RestoreMark, SaveMark, SetMark, Tproxy
from istio_init.model.rules import IPV4, Destination, Source
from istio_init.planning.capture import (
    ACCEPT,
    BY_LO,
    FROM_LO,
    INBOUND_STEPS,
    IS_TCP,
    PASSTHROUGH,
    RETURN,
    PlannedRule,
    istio_rule,
    loopback,
    proxy_owners,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.rules import Family
    from istio_init.options.table import Options
    from istio_init.planning.capture import Why


def inbound_chains(options: Options, family: Family) -> Iterator[PlannedRule]:
    """The chains that ISTIO_INBOUND jumps to."""
    mark = options.istio_inbound_tproxy_mark
    any_address = bytes(4 if family == IPV4 else 16)
    target = Tproxy(options.inbound_capture_port, any_address, mark)
    not_loopback = Destination(loopback(options, family), negated=True)
    why: Why = ("marked, so that the policy route delivers the packet locally", "-t -m")
    yield PlannedRule("mangle", "ISTIO_DIVERT", istio_rule(to=SetMark(mark)), why)
    why = ("accepted, without a second lookup of a listener", "-m")
    yield PlannedRule("mangle", "ISTIO_DIVERT", istio_rule(to=ACCEPT), why)
    why = (
        "to Envoy's transparent inbound listener, port {options.inbound_capture_port}, with its destination kept",
        "-z -t -m",
        "",
        INBOUND_STEPS,
    )
    yield PlannedRule("mangle", "ISTIO_TPROXY", istio_rule(not_loopback, IS_TCP, to=target), why)


def marks(options: Options, family: Family) -> Iterator[PlannedRule]:
    """Envoy's packets back to the client are routed by mark; the mark 1338 is on the proxy's own calls to the pod."""
    mark = Mark(options.istio_inbound_tproxy_mark)
    outbound_mark = parsers.OUTBOUND_MARK
    not_loopback = Destination(loopback(options, family), negated=True)
    why: Why = ("the mark of Envoy's connection to the app is saved for its replies", "-m -t")
    yield PlannedRule("mangle", "PREROUTING", istio_rule(IS_TCP, mark, to=SaveMark()), why)
    why = ("marked packets from Envoy to the app are left unchanged", "-m -t")
    yield PlannedRule("mangle", "OUTPUT", istio_rule(BY_LO, IS_TCP, mark, to=RETURN), why)
    why = ("the proxy's calls to its own pod are marked, to distinguish them from the app's", "-m -u -g")
    for owner in proxy_owners(options):
        marking = istio_rule(not_loopback, BY_LO, IS_TCP, owner, to=SetMark(outbound_mark))
        yield PlannedRule("mangle", "OUTPUT", marking, why)
    why = ("the mark is restored on the app's replies, so that the policy route returns them to Envoy", "-m -t")
    yield PlannedRule("mangle", "OUTPUT", istio_rule(IS_TCP, ConnMark(mark.value), to=RestoreMark()), why)
    why = ("Envoy's marked connection to the app is not captured again", "-m -t")
    yield PlannedRule("mangle", "ISTIO_INBOUND", istio_rule(IS_TCP, mark, to=RETURN), why, at=1)
    why = ("Envoy's connection to the app from its own address is not captured again", "-m")
    from_envoy = istio_rule(Source(PASSTHROUGH[family]), FROM_LO, IS_TCP, to=RETURN)
    yield PlannedRule("mangle", "ISTIO_INBOUND", from_envoy, why, at=2)
    why = ("the app's calls to its own pod are not captured; the proxy's have a mark", "-m")
    unmarked = istio_rule(FROM_LO, IS_TCP, Mark(outbound_mark, negated=True), to=RETURN)
    yield PlannedRule("mangle", "ISTIO_INBOUND", unmarked, why, at=3)
