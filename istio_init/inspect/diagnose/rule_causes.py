"""Causes in the rules, the routing and the kernel's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.formats.iptables_save import rule_text
from istio_init.inspect.diagnose.case import Cause
from istio_init.inspect.diagnose.packets import (
    HOSTS,
    broken,
    calls_in,
    calls_out,
    followed,
    has_global,
    is_captured,
    outbound,
)
from istio_init.inspect.doctor.network_checks import strict_interfaces
from istio_init.model.ownership import chain_of
from istio_init.model.packet import LOOPBACKS
from istio_init.model.routing import Address, command
from istio_init.model.rules import IPV4, IPV6, OWN_CHAINS
from istio_init.planning.capture import uses_tproxy
from istio_init.planning.drift_text import difference_text
from istio_init.simulate.precedence import precedences
from istio_init.simulate.purposes import purposes
from istio_init.simulate.report import because, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.inspect.diagnose.case import Situation
    from istio_init.model.packet import Packet
    from istio_init.simulate.path import PacketPath

MOST_SHOWN = 3
AGAIN = "apply the rules again with the same options: istio-init apply --reconcile --netns PATH ..."


def flushed_chain(about: Situation) -> Cause | None:
    """A chain of Istio's that has lost all of its rules."""
    lost = [
        (ruleset.family, table.name, chain.name)
        for ruleset in about.plan.rulesets
        for table in ruleset.tables
        for chain in table.chains
        if chain.parts and chain.name in OWN_CHAINS and not _rules(about, ruleset.family, table.name, chain.name)
    ]
    if not lost or not about.backends:
        return None
    families = {family for family, _, _ in lost}
    if families == {IPV6} and not _has_any(about, IPV6):
        return None
    names = ", ".join(dict.fromkeys(name for _, _, name in lost))
    shown = tuple(f"{family} {table} {name} has no rules" for family, table, name in lost[:MOST_SHOWN])
    return Cause(
        "flushed-chain",
        "calls bypass the sidecar",
        f"a chain of Istio's was flushed or removed: {names}",
        shown,
        (AGAIN, "find what flushed it: an iptables -F in another container or agent of the pod"),
        broken(about),
    )


def _rules(about: Situation, family: str, table: str, name: str) -> bool:
    for ruleset in about.chosen:
        if ruleset.family == family:
            chain = chain_of(ruleset.table(table), name)  # type: ignore[arg-type]
            return bool(chain and chain.rules)
    return False


def _has_any(about: Situation, family: str) -> bool:
    tables = (table for ruleset in about.chosen if ruleset.family == family for table in ruleset.tables)
    return any(chain.name in OWN_CHAINS for table in tables for chain in table.chains)


def foreign_rule(about: Situation) -> Cause | None:
    """Another program's rule that decides before Istio's."""
    for planned in about.plan.rulesets:
        for ruleset in about.chosen:
            if ruleset.family != planned.family:
                continue
            for each in precedences(ruleset, planned):
                return Cause(
                    "foreign-rule",
                    "calls bypass the sidecar",
                    f"a rule of another program precedes Istio's in {each.table} {each.chain}",
                    (f"{each.family} {each.table} {each.chain} rule {each.number}: {rule_text(each.rule)}",),
                    (
                        "remove the rule, or have its program put it behind Istio's",
                        "or put Istio's jumps first: istio-init apply --reconcile --insert-jumps",
                    ),
                    _shown(about, each.packet),
                )
    path = broken(about)
    step = path.legs[0].decisive if path else None
    if path is None or step is None or step.chain in OWN_CHAINS or (step.via and step.via.chain in OWN_CHAINS):
        return None
    if not step.matched or step.rule.ours:
        return None
    return Cause(
        "foreign-rule",
        "calls do not reach the sidecar",
        f"a rule of another program decides first, in {step.table} {step.chain}",
        (f"{step.table} {step.chain} rule {step.number}: {rule_text(step.rule)}",),
        ("remove the rule, or have its program leave captured traffic alone",),
        path,
    )


def _shown(about: Situation, packet: Packet) -> PacketPath:
    """The path of an example packet, with the pod's own address and interface if it is not captured so either."""
    if packet.hook == "OUTPUT":
        adapted = packet.replace(source=about.facts.source_for(packet))
    else:
        device = about.facts.uplink
        own = about.facts.primary(device, packet.destination) or packet.destination
        adapted = packet.replace(destination=own, in_interface=device)
    path = followed(about, adapted)
    return followed(about, packet) if is_captured(path) else path


def foreign_table(about: Situation) -> Cause | None:
    """Another program's nftables table that translates destinations: of two translations the first counts."""
    if not about.foreign_tables or not about.backends:
        return None
    shown = tuple(
        f"nftables {each.family} {each.table}: {each.translations} rules that change destinations, "
        f"from {', '.join(each.chains)}"
        for each in about.foreign_tables[:MOST_SHOWN]
    )
    first = about.foreign_tables[0]
    return Cause(
        "foreign-table",
        "calls may go where another program sends them",
        f"another program's nftables table translates destinations: {first.table}",
        shown,
        (f"nft list table {first.family} {first.table} shows it; it must leave captured traffic alone",),
    )


def loopback_down(about: Situation) -> Cause | None:
    """Redirected calls cross lo."""
    if not about.interfaces or about.facts.is_local(LOOPBACKS[IPV4]) or not about.backends:
        return None
    return Cause(
        "loopback-down", "captured calls do not arrive", "interface lo is down: redirected calls cross it",
        ("lo has no address 127.0.0.1",), ("ip link set lo up",), calls_out(about, IPV4),
    )  # fmt: skip


def tracking_full(about: Situation) -> Cause | None:
    """A connection that can't be tracked is dropped."""
    usage = about.tracked
    if usage is None or usage.entries < usage.limit:
        return None
    return Cause(
        "conntrack-full",
        "new calls are dropped",
        "connection tracking is full: a call that cannot be tracked is dropped",
        (f"{usage.entries} of {usage.limit} entries (net.netfilter.nf_conntrack_count, nf_conntrack_max)",),
        ("on the node: sysctl -w net.netfilter.nf_conntrack_max=... larger; find who opens so many connections",),
    )


def not_captured(about: Situation) -> Cause | None:
    """A call that the plan captures, and that is not, for whatever reason."""
    path = broken(about)
    if path is None or not about.backends:
        return None
    first = path.legs[0]
    word = verdict(path)
    reason = because(first, purposes(about.options, first.packet.family)).removeprefix("because ")
    return Cause(
        "not-captured",
        "calls bypass the sidecar" if word == "not captured" else f"calls: {word}",
        reason,
        ("the rules of the options are in place, and the packet below does not reach the proxy",),
        ("istio-init explain --live shows each step of the packet",),
        path,
    )


def older_istio(about: Situation) -> Cause | None:
    """Rules of Istio 1.13, where nobody asks for them."""
    if about.options.compat_version != "1.13" or not about.inferred:
        return None
    return Cause(
        "older-istio",
        "the rules are those of an older Istio",
        "the rules are those of Istio 1.13 or older, which the present proxy does not expect",
        (
            "no rule leaves the tunnel's port (HBONE, 15008) alone, and port 22 is not captured",
            "only TCP enters ISTIO_OUTPUT",
        ),
        ("create the pod anew with the injection of the running Istio, or: istio-init apply --reconcile ...",),
        calls_in(about, about.families[0]),
    )


def missing_route(about: Situation) -> Cause | None:
    """A policy rule, a route, or ::6, that the rules need."""
    if not about.missing:
        return None
    address = all(isinstance(each, Address) for each in about.missing)
    cause = (
        "the address ::6 is missing on lo: Envoy's IPv6 connections to the app have another source, and loop"
        if address
        else "the policy route of TPROXY is missing: captured packets are not delivered to Envoy"
    )
    return Cause(
        "missing-route",
        "calls do not arrive",
        cause,
        tuple(f"missing: {command(each)}" for each in about.missing[:MOST_SHOWN]),
        tuple(command(each) for each in about.missing[:MOST_SHOWN]),
        calls_in(about, IPV6 if address else about.families[0]),
    )


def marked_sources(about: Situation) -> Cause | None:
    """src_valid_mark or tcp_fwmark_accept, which TPROXY does not bear."""
    if not (uses_tproxy(about.options) and about.options.istio_inbound_ports):
        return None
    strict = strict_interfaces(about.sysctls)
    accepts = about.sysctls.get("net/ipv4/tcp_fwmark_accept")
    if not strict and not accepts:
        return None
    if strict:
        cause = "src_valid_mark is on: the kernel takes TPROXY's marked packets for its own and drops them"
        evidence = f"net.ipv4.conf: src_valid_mark 1 without accept_local on {', '.join(strict)}"
        remedy = (
            "sysctl -w net.ipv4.conf.all.accept_local=1 (or src_valid_mark=0), in the pod's securityContext.sysctls"
        )
    else:
        cause = (
            "tcp_fwmark_accept is on: accepted connections inherit TPROXY's mark, and Envoy's answers stay in the pod"
        )
        evidence = "net.ipv4.tcp_fwmark_accept = 1"
        remedy = "sysctl -w net.ipv4.tcp_fwmark_accept=0, in the pod's securityContext.sysctls"
    return Cause(
        "marked-sources", "inbound calls hang", cause, (evidence, "the rules use TPROXY (-m)"), (remedy,),
        calls_in(about, IPV4),
    )  # fmt: skip


def uncaptured_ipv6(about: Situation) -> Cause | None:
    """IPv6 addresses, and no rules for IPv6. A manifest or a dump alone does not say which addresses there are."""
    if not about.interfaces or not has_global(about.facts, IPV6) or _has_any(about, IPV6) or not about.backends:
        return None
    path = followed(about, outbound(about.facts, HOSTS[IPV6][0], 443))
    if is_captured(path):
        return None
    planned = about.plan.ruleset(IPV6) is not None
    return Cause(
        "ipv6",
        "calls by IPv6 bypass the sidecar",
        "IPv6 is not captured: the pod has IPv6 addresses, and no IPv6 rules",
        ("IPv4 has Istio rules, IPv6 has none", f"the options {'want' if planned else 'leave out'} IPv6"),
        ("dual-stack: ISTIO_DUAL_STACK=true (--dual-stack) or --enable-ipv6, and create the pod anew",),
        path,
    )


def changed_rules(about: Situation) -> Cause | None:
    """Whatever else is not as the options want it."""
    texts = tuple(_changes(about))
    if not texts or not about.backends:
        return None
    path = broken(about)
    return Cause(
        "changed-rules",
        "calls are not treated as the options want" if path else "the rules are not what the options make",
        f"the rules were changed: {len(texts)} difference{'s' * (len(texts) > 1)} from {about.origin}",
        texts[:MOST_SHOWN],
        (AGAIN,),
        path,
    )


def _changes(about: Situation) -> Iterator[str]:
    for family, each in about.differences:
        yield difference_text(family, each)
