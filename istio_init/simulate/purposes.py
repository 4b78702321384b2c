"""What each rule of a plan is for: the concern that made it, the article's number and steps, the flags to blame.

The nine rules and the sixteen steps are those of "Sidecar injection, transparent traffic hijacking and routing in
Istio" (Jimmy Song, for Istio 1.13), whose numbers people use when they talk about ISTIO_OUTPUT.
"""

from __future__ import annotations

from istio_init.model import parsers
from istio_init.model.extensions import CtState, CtZone, Mark, RestoreMark, SaveMark, SetMark, Tproxy
from istio_init.model.rules import (
    Destination,
    DestinationPorts,
    Jump,
    OutInterface,
    Owner,
    Redirect,
    Rule,
    Source,
    Verdict,
)
from istio_init.options.annotations import of_flag
from istio_init.planning import capture
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    from istio_init.model.rules import Family
    from istio_init.options.table import Options
    from istio_init.planning.capture import PlannedRule

    # Where a rule stands: its table, its chain, and itself.
    RuleLocation: TypeAlias = tuple[str, str, Rule]


class Purpose(Record):
    """Why a rule is there.

    `number` is the article's, 1 to 9, for ISTIO_OUTPUT's rules, else empty; `steps` the article's steps. `flags` are
    the options that made the rule, none where it always stands; `annotations` what sets them on a pod.
    """

    concern: str
    text: str
    number: str = ""
    steps: str = ""
    flags: tuple[str, ...] = ()

    @property
    def annotations(self) -> tuple[str, ...]:
        """The pod annotations by which Istio's injection sets the flags."""
        return tuple(found.title for flag in self.flags if (found := of_flag(flag)))


INBOUND_STEPS = "1 to 4"


def purposes(options: Options, family: Family) -> dict[RuleLocation, Purpose]:
    """The purpose of every rule of the plan, by where it stands; where two concerns made one rule, the first one's."""
    found: dict[RuleLocation, Purpose] = {}
    for concern in capture.CONCERNS:
        for step in (each for some in concern(options, family) for each in some.singly()):
            place = (step.table, step.chain, step.rule)
            if place not in found:
                found[place] = TELLERS[concern](step, options).replace(concern=concern.__name__)
    return found


def purpose(known: Mapping[RuleLocation, Purpose], table: str, chain: str, rule: Rule) -> Purpose | None:
    """The purpose of a rule, which may be a live one; None where the plan has no such rule in that chain."""
    return known.get((table, chain, rule))


def _said(text: str, *flags: str, number: str = "", steps: str = "") -> Purpose:
    return Purpose("", text, number, steps, flags)


def _exclude_interfaces(step: PlannedRule, _: Options) -> Purpose:
    way = "comes in" if step.chain == "PREROUTING" else "leaves"
    return _said(f"what {way} by an excluded interface is left alone", "-c")


def _virtual_machine_interfaces(_: PlannedRule, __: Options) -> Purpose:
    return _said("what a virtual machine sends is not inbound traffic", "-k")


def _drop_invalid(step: PlannedRule, _: Options) -> Purpose:
    if step.chain == "ISTIO_DROP":
        return _said("and drops them", "--drop-invalid")
    return _said("packets that connection tracking calls INVALID would be answered with a reset", "--drop-invalid")


def _redirect_chains(step: PlannedRule, options: Options) -> Purpose:
    if step.chain == "ISTIO_INBOUND":
        return _said("the HBONE tunnel's port, which Envoy listens on itself, is left alone", "-e", steps=INBOUND_STEPS)
    if step.chain == "ISTIO_REDIRECT":
        return _said(f"to Envoy's outbound listener, port {options.envoy_port}", "-p", steps="11 to 12")
    return _said(f"to Envoy's inbound listener, port {options.inbound_capture_port}", "-z", steps=INBOUND_STEPS)


def _inbound(step: PlannedRule, options: Options) -> Purpose:
    rule = step.rule
    if step.chain == "PREROUTING":
        return _said("TCP that comes in is looked at for inbound capture", "-b", "-m", steps=INBOUND_STEPS)
    if step.chain == "ISTIO_DIVERT":
        if isinstance(rule.target, SetMark):
            return _said("marked, so that the policy route delivers it here", "-t", "-m")
        return _said("and accepted, with no second look for a listener", "-m")
    if isinstance(rule.target, Tproxy):
        return _said(
            f"to Envoy's transparent inbound listener, port {options.inbound_capture_port}, its address kept",
            "-z", "-t", "-m", steps=INBOUND_STEPS,
        )  # fmt: skip
    if rule.target == Verdict("RETURN"):
        ports = next(match.ports for match in rule.matches if isinstance(match, DestinationPorts))
        if ports.low == ports.high == capture.SSH_PORT and ports not in options.istio_local_exclude_ports:
            return _said("Istio 1.13 left ssh alone", "--compat-version", steps=INBOUND_STEPS)
        return _said("an inbound port that is left alone", "-d", steps=INBOUND_STEPS)
    which = "all other" if options.istio_inbound_ports == parsers.ALL else "a listed port's"
    if any(isinstance(match, CtState) for match in rule.matches):
        return _said(f"{which} TCP of a connection that has a socket already goes to that socket", "-b", "-m")
    return _said(f"{which} TCP goes to Envoy's inbound listener", "-b", steps=INBOUND_STEPS)


def _outbound_entry(step: PlannedRule, _: Options) -> Purpose:
    if step.chain == "OUTPUT":
        return _said("whatever the pod sends is looked at for outbound capture", steps="5 to 6, 9 to 10, 13 to 14")
    if any(isinstance(match, Source) for match in step.rule.matches):
        return _said(
            "Envoy's connections to the app in its own pod, which come from this address, go straight there; "
            "they would come back to the inbound listener otherwise, in a loop",
            number="1", steps="6 to 7",
        )  # fmt: skip
    return _said("an outbound port that is left alone", "-o")


def _proxy_identities(step: PlannedRule, _: Options) -> Purpose:
    owner = next(match for match in step.rule.matches if isinstance(match, Owner))
    by_gid = owner.kind == "gid"
    flag, who = ("-g", "group") if by_gid else ("-u", "user")
    if isinstance(step.rule.target, Jump):
        text = f"the proxy, told by its {who}, calls a service of its own pod: that is inbound traffic"
        return _said(text, flag, number="5" if by_gid else "2", steps="16")
    if owner.negated:
        text = f"the app, told by not being the proxy's {who}, calls its own pod: nobody's business"
        return _said(text, flag, number="6" if by_gid else "3", steps="6 to 7")
    text = f"the proxy, told by its {who}, calls the world: passed on, or it would be captured again"
    return _said(text, flag, number="7" if by_gid else "4", steps="14 to 15")


def _owner_groups(_: PlannedRule, options: Options) -> Purpose:
    if options.istio_outbound_owner_groups == parsers.ALL:
        return _said("a group whose traffic is left alone", "--istio-outbound-owner-groups-exclude")
    return _said("only the listed groups' traffic is captured", "--istio-outbound-owner-groups")


def _dns_capture(step: PlannedRule, _: Options) -> Purpose:
    flags = ("--redirect-dns", "--dns-servers")
    target = step.rule.target
    if isinstance(target, Jump):
        what = {"raw": "conntrack zones", "nat": "DNS capture"}[step.table]
        return _said(f"packets are looked at for {what}", *flags)
    if isinstance(target, Redirect):
        return _said(f"a DNS query goes to the agent, port {capture.AGENT_DNS_PORT}", *flags)
    agents = isinstance(target, CtZone) and target.zone == capture.PROXY_ZONE
    leg = "the agent's own leg" if agents else "the app's leg"
    return _said(f"{leg} of a DNS query has a conntrack zone of its own, or one would inherit the other's NAT", *flags)


def _outbound(step: PlannedRule, options: Options) -> Purpose:
    rule = step.rule
    if step.chain == "PREROUTING":
        return _said("what a virtual machine sends is outbound traffic, for Envoy's outbound listener", "-k", "-i")
    if rule.target == Verdict("RETURN"):
        networks = [match.network for match in rule.matches if isinstance(match, Destination)]
        if networks and networks[0] == capture.loopback(options, networks[0].family):
            return _said(
                "the app calls the loopback address: straight there",
                "--istio-outbound-ipv4-loopback-cidr", number="8",
            )  # fmt: skip
        return _said("a destination that is left alone", "-x")
    if any(isinstance(match, DestinationPorts) for match in rule.matches):
        return _said("a port that is captured wherever it leads", "-q", steps="10 to 11")
    if any(isinstance(match, Destination) for match in rule.matches):
        return _said("a destination that is captured", "-i", number="9", steps="10 to 11")
    return _said("everything else goes to Envoy's outbound listener", "-i", number="9", steps="10 to 11")


def _tproxy_marks(step: PlannedRule, _: Options) -> Purpose:
    target, matches = step.rule.target, step.rule.matches
    if isinstance(target, SaveMark):
        return _said("the mark of Envoy's connection to the app is remembered for its answers", "-m", "-t")
    if isinstance(target, RestoreMark):
        return _said(
            "the app's answers get the mark back, and so find the way to Envoy by the policy route", "-m", "-t"
        )
    if isinstance(target, SetMark):
        return _said("the proxy's call to its own pod is marked, to be told from the app's", "-m", "-u", "-g")
    if any(isinstance(match, Source) for match in matches):
        return _said("Envoy's connection to the app from its own address is not captured again", "-m")
    marks = [match for match in matches if isinstance(match, Mark)]
    if marks and marks[0].negated:
        return _said("the app's calls to its own pod are left alone; the proxy's bear a mark", "-m")
    if any(isinstance(match, OutInterface) for match in matches):
        return _said("what Envoy sends to the app with the mark is left as it is", "-m", "-t")
    return _said("Envoy's marked connection to the app is not captured again", "-m", "-t")


TELLERS: dict[Callable[[Options, Family], Iterator[PlannedRule]], Callable[[PlannedRule, Options], Purpose]] = {
    capture.exclude_interfaces: _exclude_interfaces,
    capture.virtual_machine_interfaces: _virtual_machine_interfaces,
    capture.drop_invalid: _drop_invalid,
    capture.redirect_chains: _redirect_chains,
    capture.inbound: _inbound,
    capture.outbound_entry: _outbound_entry,
    capture.proxy_identities: _proxy_identities,
    capture.owner_groups: _owner_groups,
    capture.dns_capture: _dns_capture,
    capture.outbound: _outbound,
    capture.tproxy_marks: _tproxy_marks,
}
