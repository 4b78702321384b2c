"""Causes at the two ends of a capture: the sidecar, the agent's resolver, and who the application runs as."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.formats.addresses import address_text
from istio_init.inspect.diagnose.case import Cause
from istio_init.inspect.diagnose.packets import calls_in, calls_out, followed, is_captured, query, sent
from istio_init.model import parsers
from istio_init.model.rules import Destination
from istio_init.planning.capture import AGENT_DNS_PORT
from istio_init.simulate.report import verdict

if TYPE_CHECKING:
    from istio_init.inspect.diagnose.case import Resident, Situation
    from istio_init.model.rules import Family, Network

# Ports that a sidecar of Istio's listens on.
SIDECAR_PORTS = frozenset({15000, 15001, 15004, 15006, 15008, 15020, 15021, 15090})
MOST_SHOWN = 3


def proxy_ports(about: Situation) -> Cause | None:
    """Nobody listens where the rules lead."""
    if about.listening is None or not about.backends:
        return None
    options = about.options
    ends = (
        (options.envoy_port, "outbound", calls_out(about, about.families[0]), "-p"),
        (options.inbound_capture_port, "inbound", calls_in(about, about.families[0]), "-z"),
    )
    silent = [
        (port, direction, path, flag) for port, direction, path, flag in ends if path and port not in about.listening
    ]
    if not silent:
        return None
    port, direction, path, flag = silent[0]
    evidence = tuple(
        f"the rules lead {direction} calls to port {port}, where nobody listens" for port, direction, _, _ in silent
    )
    listening = sorted((SIDECAR_PORTS & about.listening) - {end[0] for end in ends})
    if listening:
        return Cause(
            "other-ports",
            f"{direction} calls are refused: they are captured, and nobody takes them",
            f"the rules have other ports than the proxy's: {port} ({flag})",
            (*evidence, f"the sidecar listens on {', '.join(map(str, listening))}"),
            ("apply the rules with the proxy's ports: -p 15001 -z 15006 are Istio's",),
            path,
        )
    runs = f"{about.proxies[0].text} runs" if about.proxies else "no process of the sidecar (envoy, pilot-agent) runs"
    return Cause(
        "proxy-not-listening",
        f"{direction} calls are refused: they are captured, and nobody takes them",
        "the proxy is not listening",
        (*evidence, runs),
        ("look at the sidecar: kubectl logs POD -c istio-proxy; is it ready, and has it got its configuration?",),
        path,
    )


def proxy_identity(about: Situation) -> Cause | None:
    """A proxy that the rules capture: its calls come back to it."""
    options = about.options
    groups = options.proxy_gid or options.proxy_uid
    for each in about.proxies:
        if each.uid is None or each.uid in options.proxy_uid or each.gid in groups:
            continue
        if each.name == "pilot-agent" and each.uid == 0:
            continue
        for family in about.families:
            path = sent(about, family, (each.uid, each.uid if each.gid is None else each.gid))
            if verdict(path) in {"captured", "loop"}:
                users = ", ".join(map(str, options.proxy_uid))
                return Cause(
                    "proxy-loop",
                    "calls go round in a loop",
                    f"the proxy's uid is not spared: it runs as {each.uid}, and its own calls are captured",
                    (f"{each.text} has uid {each.uid}, gid {each.gid}; the rules spare uid {users} (-u)",),
                    (f"run the proxy as uid {users} (runAsUser), or make the rules with -u {each.uid}",),
                    path,
                )
    return None


def app_as_proxy(about: Situation) -> Cause | None:
    """An application with the proxy's uid or gid."""
    options = about.options
    groups = options.proxy_gid or options.proxy_uid
    for each in about.residents:
        if each.is_proxy or not about.backends:
            continue
        kind = "uid" if each.uid in options.proxy_uid else "gid" if each.gid in groups else ""
        if not kind:
            continue
        path = sent(about, about.families[0], _ids(each))
        if is_captured(path):
            continue
        number = each.uid if kind == "uid" else each.gid
        field = "runAsUser" if kind == "uid" else "runAsGroup"
        return Cause(
            "app-as-proxy",
            "the app's calls bypass the sidecar",
            f"the app runs as the proxy's {kind} {number}, whose calls are not captured",
            (f"{each.text} has uid {each.uid}, gid {each.gid}; {kind} {number} is the proxy's (-{kind[0]})",),
            (f"run the app as another one: securityContext.{field} other than {number}",),
            path,
        )
    return None


def _ids(each: Resident) -> tuple[int, int]:
    uid = 0 if each.uid is None else each.uid
    return uid, 0 if each.gid is None else each.gid


def dns(about: Situation) -> Cause | None:
    """DNS capture without the agent, or without conntrack zones."""
    options = about.options
    rules = [rule for family in about.families for rule in _chain(about, family, "nat", "ISTIO_OUTPUT_DNS")]
    if not rules:
        return None
    servers = [m.network.address for rule in rules for m in rule.matches if isinstance(m, Destination)]
    servers += [each.address for each in options.dns_servers or ()]
    path = followed(about, query(about.facts, servers[0] if servers else bytes((10, 96, 0, 10))))
    if not any(_chain(about, family, "raw", "ISTIO_OUTPUT_DNS") for family in about.families):
        return Cause(
            "dns-zones",
            "DNS queries are captured, and answers get lost",
            "DNS is captured without conntrack zones: the app's query and the agent's own are one connection",
            ("nat ISTIO_OUTPUT_DNS redirects queries; raw ISTIO_OUTPUT_DNS has no rule that sets a zone (CT)",),
            ("apply the rules again with --redirect-dns: istio-init apply --reconcile; the kernel needs xt_CT",),
            path,
        )
    heard = (about.listening, about.bound)
    if None in heard or AGENT_DNS_PORT in (about.bound or ()):
        return None
    return Cause(
        "dns-agent",
        "DNS queries are captured, and nobody answers",
        f"DNS is captured without the agent: nobody listens on port {AGENT_DNS_PORT}",
        (f"queries are redirected to UDP port {AGENT_DNS_PORT}, which no socket has",),
        ("set ISTIO_META_DNS_CAPTURE=true for the proxy (proxyMetadata), or make the rules without --redirect-dns",),
        path,
    )


def other_nameserver(about: Situation) -> Cause | None:
    """DNS capture for other servers than those that the pod asks."""
    if about.options.capture_all_dns:
        return None
    rules = [rule for family in about.families for rule in _chain(about, family, "nat", "ISTIO_OUTPUT_DNS")]
    captured = {match.network for rule in rules for match in rule.matches if isinstance(match, Destination)}
    uncaptured = [each for each in about.nameservers if each not in captured and not parsers.is_loopback(each)]
    if not rules or not captured or not uncaptured:
        return None
    servers = ", ".join(address_text(each.address) for each in uncaptured)
    return Cause(
        "other-nameserver",
        "DNS queries bypass the agent",
        f"DNS is captured for other servers than the pod asks: {servers}",
        (f"resolv.conf names {servers}; the rules redirect queries to {_texts(captured)}",),
        ("make the rules with --dns-servers, or --capture-all-dns, and create the pod anew",),
        followed(about, query(about.facts, uncaptured[0].address)),
    )


def _texts(networks: set[Network]) -> str:
    return ", ".join(sorted(address_text(each.address) for each in networks))


def _chain(about: Situation, family: Family, table: str, name: str) -> tuple:  # type: ignore[type-arg]
    for ruleset in about.chosen:
        if ruleset.family == family and (existing := ruleset.table(table)):  # type: ignore[arg-type]
            chain = existing.chain(name)
            return chain.rules if chain else ()
    return ()
