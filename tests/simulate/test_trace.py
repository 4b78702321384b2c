"""One packet's way: the nine rules, what traffic taught, and each thing that the kernel does in its own manner.

integration/traffic/test_simulator.py holds the same code against the kernel itself.
"""

from __future__ import annotations

from socket import inet_ntoa
from typing import TYPE_CHECKING

import pytest

from istio_init.errors import InitError
from istio_init.formats.iptables_restore import parse as load
from istio_init.model.packet import Facts, Packet, scope
from istio_init.model.rules import BUILTIN_CHAINS, Chain, Jump, Protocol, Rule, Ruleset, Table, Verdict, ordered
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from istio_init.simulate.trace import trace
from istio_init.simulate.trace_steps import RuleStep, SkippedTable, Trace
from tests.kit.packets import (
    ADDRESSES,
    APP,
    ARTICLE,
    CLIENT,
    CLIENT6,
    POD,
    POD6,
    PROXY,
    SERVER,
    SERVER6,
    Sidecar,
    interface_address,
    packed,
)

if TYPE_CHECKING:
    from istio_init.model.rules import Match, Target

TPROXY = f"{ARTICLE} -m TPROXY"
DNS = "--redirect-dns --dns-servers 10.0.0.10,fd00::10"


@pytest.mark.parametrize(
    ("to", "owner", "source", "end", "rule"),
    [
        (POD, PROXY, "127.0.0.6", "application", 1),
        (POD, PROXY, "", "inbound", 2),
        (POD, APP, "", "application", 3),
        ("127.0.0.1", APP, "", "application", 3),
        (SERVER, PROXY, "", "wire", 4),
        (SERVER, (1337, 1000), "", "wire", 4),
        (SERVER, (0, 1337), "", "wire", 7),
        (POD, (0, 1337), "", "application", 3),
        ("127.0.0.1", PROXY, "", "application", 4),
        (SERVER, APP, "", "outbound", 9),
    ],
)
def test_the_nine_rules_of_the_article(to: str, owner: tuple[int, int], source: str, end: str, rule: int) -> None:
    for arguments in (ARTICLE, f"{ARTICLE} --compat-version 1.13"):
        sidecar = Sidecar(arguments)
        leg = sidecar.leg(sidecar.outbound(to, 80, owner=owner, source=source))
        assert leg.end == end
        assert leg.decisive
        step = leg.decisive.via if leg.decisive.chain != "ISTIO_OUTPUT" else leg.decisive
        assert step
        assert (step.chain, step.number) == ("ISTIO_OUTPUT", rule)


@pytest.mark.parametrize(("pod", "client", "server"), [(POD, CLIENT, SERVER), (POD6, CLIENT6, SERVER6)])
def test_both_ways_through_the_proxy(pod: str, client: str, server: str) -> None:
    for arguments in (ARTICLE, TPROXY):
        sidecar = Sidecar(arguments)
        assert sidecar.ends(sidecar.outbound(server, 443)) == ["outbound", "wire"]
        assert sidecar.ends(sidecar.inbound(9080, to=pod, source=client)) == ["inbound", "application"]
        assert sidecar.ends(sidecar.inbound(15090, to=pod, source=client)) == ["application"]


def test_the_app_that_calls_itself_by_a_service_goes_through_both_listeners() -> None:
    sidecar = Sidecar(ARTICLE)
    captured = sidecar.outbound(SERVER, 80)
    itself = captured.replace(destination=packed(POD))
    assert sidecar.ends(itself) == ["outbound", "inbound", "application"]


def test_without_the_passthrough_address_the_inbound_listener_meets_itself() -> None:
    sidecar = Sidecar(ARTICLE)
    assert sidecar.leg(sidecar.outbound(POD6, 9080, owner=PROXY)).end == "inbound"
    assert sidecar.leg(sidecar.outbound(POD6, 9080, owner=PROXY, source="::6")).end == "application"


def test_the_tunnel_port_is_spared_by_redirect_alone() -> None:
    assert Sidecar(ARTICLE).ends(Sidecar(ARTICLE).inbound(15008)) == ["tunnel"]
    assert Sidecar(TPROXY).ends(Sidecar(TPROXY).inbound(15008))[0] == "inbound"


def test_tproxy_keeps_the_clients_address_and_remembers_the_mark() -> None:
    sidecar = Sidecar(TPROXY)
    first, second = sidecar.path(sidecar.inbound(9080)).legs
    assert (first.arrived.tproxy_port, first.arrived.mark) == (15006, 1337)
    assert (first.arrived.destination, first.arrived.destination_port) == (packed(POD), 9080)
    assert (second.packet.source, second.packet.mark) == (packed(CLIENT), 1337)
    assert second.arrived.connmark == 1337
    answer = sidecar.outbound(CLIENT, 50000, source=POD, ctstate="ESTABLISHED", connmark=1337, reply=True)
    answered = sidecar.leg(answer)
    assert (answered.end, answered.arrived.in_interface) == ("application", "lo")


def test_tproxy_delivers_what_is_not_for_the_pod_itself() -> None:
    sidecar = Sidecar(TPROXY)
    assert sidecar.leg(sidecar.inbound(80, to=SERVER)).end == "inbound"
    assert Sidecar("-i '*'").leg(sidecar.inbound(80, to=SERVER)).end == "forwarded"


@pytest.mark.parametrize(
    ("runs_as", "inbound", "outbound"),
    [
        ((0, 1337), ["inbound", "application"], ["outbound", "wire"]),
        ((1337, 1337), ["inbound", "inbound", "LOOP"], ["outbound", "wire"]),
        ((0, 0), ["inbound", "application"], ["outbound", "outbound", "LOOP"]),
    ],
)
def test_tproxy_wants_envoy_to_be_root_with_the_proxys_group(
    runs_as: tuple[int, int], inbound: list[str], outbound: list[str]
) -> None:
    sidecar = Sidecar(TPROXY, runs_as=runs_as)
    assert sidecar.ends(sidecar.inbound(9080)) == inbound
    assert sidecar.ends(sidecar.outbound(SERVER, 443)) == outbound


def test_tproxy_with_dns_capture_breaks_tcp_port_53_of_the_pod() -> None:
    """A fault of Istio's own rules: rule 5, by gid, has no exception for port 53."""
    sidecar = Sidecar(f"{TPROXY} {DNS}")
    assert sidecar.ends(sidecar.inbound(53)) == ["inbound", "inbound", "LOOP"]
    assert sidecar.ends(sidecar.inbound(54)) == ["inbound", "application"]


def test_the_proxys_group_alone_calls_its_own_pod() -> None:
    assert Sidecar(ARTICLE).leg(Sidecar(ARTICLE).outbound(POD, 80, owner=(0, 1337))).end == "application"
    assert Sidecar(TPROXY).leg(Sidecar(TPROXY).outbound(POD, 80, owner=(0, 1337))).end == "inbound"


@pytest.mark.parametrize("server", ["10.0.0.10", "fd00::10"])
def test_dns_goes_to_the_agent_and_each_leg_has_its_zone(server: str) -> None:
    sidecar = Sidecar(f"{ARTICLE} {DNS}")
    path = sidecar.path(sidecar.outbound(server, 53, protocol=17))
    assert [leg.end for leg in path.legs] == ["dns", "wire"]
    assert [leg.arrived.zone for leg in path.legs] == [2, 1]
    answer = sidecar.inbound(50000, to=POD if "." in server else POD6, source=server, protocol=17, source_port=53)
    assert sidecar.leg(answer).arrived.zone == 1


def test_a_virtual_machines_traffic_is_outbound() -> None:
    sidecar = Sidecar("-i '*' -b '*' -k net1")
    sidecar.facts = sidecar.facts.replace(addresses=(*ADDRESSES, interface_address("10.9.0.1", 24, "net1")))
    path = sidecar.path(sidecar.inbound(443, to=SERVER, source="10.9.0.2", in_interface="net1"))
    assert [leg.end for leg in path.legs] == ["outbound", "wire"]
    assert path.legs[0].arrived.destination == packed("10.9.0.1")


def test_what_the_proxy_is_asked_for_by_its_own_port_it_refuses() -> None:
    assert Sidecar(ARTICLE).ends(Sidecar(ARTICLE).inbound(15006)) == ["inbound"]
    assert Sidecar(ARTICLE).ends(Sidecar(ARTICLE).outbound(SERVER, 15001)) == ["outbound"]


def test_nat_is_asked_about_the_first_packet_alone() -> None:
    sidecar = Sidecar(ARTICLE)
    leg = sidecar.leg(sidecar.outbound(SERVER, 443, ctstate="ESTABLISHED"))
    assert leg.end == "outbound"  # as its first packet
    assert not any(isinstance(step, RuleStep) for hook_trace in leg.traces for step in hook_trace.steps)
    assert any(isinstance(step, SkippedTable) and "ESTABLISHED" in step.why for step in leg.traces[0].steps)
    assert sidecar.leg(sidecar.outbound(SERVER, 443, ctstate="INVALID")).end == "wire"
    assert sidecar.leg(sidecar.outbound(SERVER, 0, protocol=1, ctstate="RELATED")).end == "wire"


def test_invalid_packets_are_dropped_where_that_is_asked_for() -> None:
    sidecar = Sidecar(f"{ARTICLE} --drop-invalid")
    leg = sidecar.leg(sidecar.inbound(80, ctstate="INVALID"))
    assert leg.decisive
    assert (leg.end, leg.decisive.chain) == ("dropped", "ISTIO_DROP")


FACTS = Facts(ADDRESSES)
DROP = Verdict("DROP")
PACKET = Packet("OUTPUT", 6, packed(POD), packed(SERVER), 40000, 443, out_interface="eth0", uid=1000, gid=1000)


def parsed(*lines: str) -> Ruleset:
    """A ruleset from iptables-save lines: tables begin with *, chains of a user's are declared as it does."""
    text = ""
    for line in lines:
        names = next((hooks for table, hooks in BUILTIN_CHAINS.items() if line == f"*{table}"), ())
        builtin = "".join(f":{name} ACCEPT [0:0]\n" for name in names)
        text += ("COMMIT\n" if text and builtin else "") + f"{line}\n{builtin}"
    return load(text + "COMMIT\n", "ipv4")


def walked(*rules: str, packet: Packet = PACKET, table: str = "nat") -> Trace:
    return trace(parsed(f"*{table}", *rules), packet, FACTS)


def test_a_goto_does_not_come_back() -> None:
    chains = (":A - [0:0]", ":B - [0:0]")
    hook_trace = walked(
        *chains, "-A OUTPUT -j A", "-A OUTPUT -j DROP", "-A A -g B", "-A A -j ACCEPT", "-A B -p udp -j ACCEPT"
    )
    assert hook_trace.outcome == "DROP"
    assert [(step.chain, step.number) for step in hook_trace.rules] == [
        ("OUTPUT", 1),
        ("A", 1),
        ("B", 1),
        ("OUTPUT", 2),
    ]


def test_a_return_from_a_built_in_chain_is_its_policy() -> None:
    assert walked("-A OUTPUT -j RETURN", "-A OUTPUT -j DROP").outcome == "ACCEPT"


def test_an_accept_ends_the_table_and_a_drop_everything() -> None:
    rules = parsed("*mangle", "-A OUTPUT -j ACCEPT", "-A OUTPUT -j DROP", "*nat", "-A OUTPUT -j DROP")
    hook_trace = trace(rules, PACKET, FACTS)
    assert hook_trace.outcome == "DROP"
    assert [(step.table, step.number) for step in hook_trace.rules] == [("mangle", 1), ("nat", 1)]


def test_the_first_zone_stays() -> None:
    hook_trace = walked("-A OUTPUT -j CT --zone 1", "-A OUTPUT -j CT --zone 2", table="raw")
    assert hook_trace.packet.zone == 1
    assert walked("-A OUTPUT -j CT --zone 1", packet=PACKET.replace(tracked=True, zone=0), table="raw").packet.zone == 0


def test_marks_are_set_under_their_masks() -> None:
    hook_trace = walked("-A OUTPUT -j MARK --set-xmark 0x12/0xff", packet=PACKET.replace(mark=0x3456), table="mangle")
    assert hook_trace.packet.mark == 0x3412
    saved = walked(
        "-A OUTPUT -j CONNMARK --save-mark --nfmask 0xf0 --ctmask 0xff",
        packet=PACKET.replace(mark=0x34, connmark=0xFFF),
    )
    assert saved.packet.connmark == 0xF30


def test_a_packet_without_a_socket_has_no_owner() -> None:
    unowned = PACKET.replace(uid=None, gid=None)
    assert walked("-A OUTPUT -m owner --uid-owner 0-4294967294 -j DROP", packet=unowned).outcome == "ACCEPT"
    assert walked("-A OUTPUT -m owner ! --uid-owner 0 -j DROP", packet=unowned).outcome == "DROP"


def test_a_packet_without_a_connection_has_no_connection_mark() -> None:
    for rule in ("-A OUTPUT -m connmark --mark 0x0 -j DROP", "-A OUTPUT -m connmark ! --mark 0x1 -j DROP"):
        assert walked(rule, table="mangle").outcome == "DROP"
        assert walked(rule, packet=PACKET.replace(ctstate="INVALID"), table="mangle").outcome == "ACCEPT"


def test_ports_are_those_of_tcp_and_udp() -> None:
    assert walked("-A OUTPUT -p tcp -m multiport ! --dports 1,2 -j DROP").outcome == "DROP"
    assert walked("-A OUTPUT -p tcp -m multiport --ports 40000,2 -j DROP").outcome == "DROP"
    icmp = PACKET.replace(protocol=1, source_port=0, destination_port=0)
    assert walked("-A OUTPUT -p tcp -m tcp ! --dport 1 -j DROP", packet=icmp).outcome == "ACCEPT"


@pytest.mark.parametrize(("name", "held"), [("eth0", True), ("eth+", True), ("eth", False), ("lo", False)])
def test_an_interface_may_be_a_prefix(name: str, held: bool) -> None:
    assert (walked(f"-A OUTPUT ! -s 1.2.3.4 -o {name} -j DROP").outcome == "DROP") is held


def unknown(match: tuple[Match, ...] = (), target: Target = DROP) -> Trace:
    rules = (Rule((*match,), target), Rule((), Verdict("ACCEPT")))
    chain = Chain("OUTPUT", rules, "ACCEPT")
    return trace(Ruleset("ipv4", (Table("nat", ordered("nat", {"OUTPUT": chain})),)), PACKET, FACTS)


def test_what_is_not_known_is_not_guessed() -> None:
    hook_trace = unknown((UnknownMatch("bpf", 1, b""),))
    assert hook_trace.outcome == "UNDECIDED"
    assert hook_trace.decisive
    assert hook_trace.decisive.failed == UnknownMatch("bpf", 1, b"")
    assert unknown(target=UnknownTarget("DNAT", 2, b"")).outcome == "UNDECIDED"


@pytest.mark.parametrize(
    ("network", "becomes"), [("192.0.2.0/24", "192.0.2.{}"), ("192.0.2.7/32", "192.0.2.7"), ("192.0.2.7", "192.0.2.7")]
)
def test_netmap_replaces_the_network_and_keeps_the_host(network: str, becomes: str) -> None:
    hook_trace = unknown(target=UnknownTarget("NETMAP", -1, b"", f"--to {network}"))
    assert hook_trace.outcome == "ACCEPT"
    assert inet_ntoa(hook_trace.packet.destination) == becomes.format(PACKET.destination[-1])


def test_what_is_not_known_may_not_matter() -> None:
    failing = (Protocol(17),)
    assert unknown((UnknownMatch("bpf", 1, b""), *failing)).outcome == "ACCEPT"
    assert unknown((UnknownMatch("bpf", 1, b""),), Verdict("")).outcome == "ACCEPT"
    assert unknown(target=UnknownTarget("LOG", 0, b"")).outcome == "ACCEPT"
    assert unknown(target=UnknownTarget("REJECT", 0, b"")).outcome == "DROP"


def test_a_jump_to_nowhere_is_an_error() -> None:
    chain = Chain("OUTPUT", (Rule((), Jump("NOWHERE")),), "ACCEPT")
    with pytest.raises(InitError, match="'NOWHERE', which does not exist"):
        trace(Ruleset("ipv4", (Table("nat", (chain,)),)), PACKET, FACTS)


@pytest.mark.parametrize(
    ("source", "to", "switches", "end", "hooks"),
    [
        (POD, POD, {}, "dropped", 1),
        (POD, POD, {"accept_local": ("eth0",)}, "inbound", 2),
        (POD, POD, {"accept_local": ("eth1",)}, "dropped", 1),
        ("127.0.0.1", POD, {"accept_local": ("eth0",)}, "dropped", 1),
        (CLIENT, "127.0.0.1", {}, "inbound", 2),
        ("0.0.0.1", POD, {}, "dropped", 1),
        ("224.0.0.1", POD, {}, "dropped", 1),
        (CLIENT, CLIENT, {}, "inbound", 2),
        (POD6, POD6, {}, "inbound", 2),
        ("::1", POD6, {}, "dropped", 0),
        (CLIENT6, "::1", {}, "dropped", 0),
        ("ff02::1", POD6, {}, "dropped", 0),
    ],
)
def test_martians_are_dropped_whatever_the_rules(
    source: str, to: str, switches: dict[str, tuple[str, ...]], end: str, hooks: int
) -> None:
    sidecar = Sidecar(ARTICLE)
    sidecar.facts = sidecar.facts.replace(**switches)
    leg = sidecar.leg(sidecar.inbound(80, source=source, to=to))
    assert (leg.end, len(leg.traces)) == (end, hooks)
    assert bool(leg.refused) is (end == "dropped")


def test_what_is_left_alone_and_goes_to_loopback_is_a_martian() -> None:
    sidecar = Sidecar(ARTICLE)
    assert "route_localnet is 0" in sidecar.leg(sidecar.inbound(15090, to="127.0.0.1")).refused
    assert "martian destination" in sidecar.leg(sidecar.inbound(15090, to="0.0.0.1")).refused
    sidecar.facts = sidecar.facts.replace(route_localnet=("eth0",))
    assert sidecar.leg(sidecar.inbound(15090, to="127.0.0.1")).end == "application"


def test_redirect_goes_to_the_interface_that_a_packet_came_in_by() -> None:
    rule = "-A PREROUTING -p tcp -j REDIRECT --to-ports 15006"
    arriving = PACKET.replace(hook="PREROUTING", in_interface="eth0", out_interface="", uid=None, gid=None)
    assert walked(rule, packet=arriving).packet.destination == packed(POD)
    assert walked(rule, packet=arriving.replace(in_interface="eth7")).outcome == "DROP"
    after = walked(rule.replace("15006", "15006-15007"), packet=arriving).packet
    assert [(each.field, each.low, each.high) for each in after.unclear] == [("destination_port", 15006, 15007)]


@pytest.mark.parametrize(
    ("address", "narrow"),
    [("fd00::1", ""), ("::", ""), ("::1", "loopback"), ("::6", "compatible"), ("fe80::1", "link"),
     ("fec0::1", "site"), ("2001:db8::1", "")],
)  # fmt: skip
def test_redirect_of_ipv6_minds_the_scope(address: str, narrow: str) -> None:
    assert scope(packed(address)) == narrow
    both = Facts((interface_address("fd00::5", 64, "eth0"), interface_address("fe80::5", 64, "eth0")))
    actual = both.primary("eth0", packed(address))
    assert actual == {"": packed("fd00::5"), "link": packed("fe80::5")}.get(narrow)


@pytest.mark.parametrize(
    ("to", "source"),
    [
        ("127.0.0.1", "127.0.0.1"), ("127.9.9.9", "127.0.0.1"), ("127.0.0.7", "127.0.0.7"), ("10.5.0.1", "10.5.0.1"),
        ("10.5.0.2", "10.5.0.1"), ("10.5.0.3", "10.5.0.3"), ("10.6.0.1", "10.6.0.1"), (SERVER, "10.5.0.1"),
        ("fd05::2", "fd05::2"), (SERVER6, "fd05::1"),
    ],
)  # fmt: skip
def test_the_source_is_that_of_the_route(to: str, source: str) -> None:
    """An address that is a second one of its network is called from the first."""
    lo = [interface_address("127.0.0.1", 8, "lo"), interface_address("127.0.0.7", 32, "lo")]
    own = ("10.5.0.1/24", "10.5.0.2/24", "10.5.0.3/32", "10.6.0.1/24", "fd05::1/64", "fd05::2/64")
    eth0 = [interface_address(each[:-3], int(each[-2:]), "eth0") for each in own]
    assert Facts((*lo, *eth0)).source(packed(to)) == packed(source)


def test_what_envoy_passes_on_to_the_unspecified_address_goes_to_its_own() -> None:
    sidecar = Sidecar(ARTICLE)
    first, second = sidecar.path(sidecar.inbound(80, to="0.0.0.0")).legs
    assert (first.end, second.end) == ("inbound", "application")
    assert (second.packet.source, second.packet.destination) == (packed("127.0.0.6"), packed("127.0.0.6"))
