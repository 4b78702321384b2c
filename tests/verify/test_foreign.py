"""Other programs' rules beside Istio's: what they do not touch stays proved, and what they do is named."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest

from istio_init.formats.iptables_restore import parse
from istio_init.model.rules import BUILTIN_CHAINS, Ruleset
from istio_init.verify.header_space import Space, intersection
from istio_init.verify.packet_set import bits
from istio_init.verify.proof import STARTS, prove
from istio_init.verify.reachability import Reachability
from istio_init.verify.sources import boundaries
from tests.kit.packets import ARTICLE, Sidecar
from tests.verify.test_proof import described, walked

HASH = "*mangle\n-A OUTPUT -p tcp -j HMARK --hmark-src-prefix 24 --hmark-rnd 0x1"
# kube-proxy's, Docker's, Calico's and firewalld's rules for what has nothing to do with a pod's own traffic.
HARMLESS = (
    "*nat\n-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n",
    "*nat\n-A POSTROUTING -o eth0 -j MASQUERADE --random-fully\n",
    "*nat\n-A OUTPUT -d 203.0.113.7/32 -p udp -m udp --dport 4789 -j DNAT --to-destination 10.9.9.9:4789\n",
    "*nat\n-A PREROUTING -m addrtype --dst-type MULTICAST -j RETURN\n",
    "*mangle\n-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu\n",
    "*mangle\n-A POSTROUTING -m limit --limit 5/min -j LOG --log-prefix x\n",
    "*filter\n-A FORWARD -m physdev --physdev-is-bridged -j REJECT --reject-with icmp-port-unreachable\n",
    "*filter\n-A INPUT -m set --match-set blocked src -j NFLOG --nflog-group 3\n",
    "*raw\n-A PREROUTING -m rpfilter --invert -j DROP\n",
    "*filter\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j ACCEPT\n",
    "*filter\n-A INPUT -m policy --dir in --pol ipsec -j DROP\n",
    "*mangle\n-A FORWARD -p tcp -m tcpmss --mss 1:500 -j TCPOPTSTRIP --strip-options 2\n",
    "*nat\n-A POSTROUTING -d 10.77.0.0/16 -j NETMAP --to 10.78.0.0/16\n",
    "*filter\n-A INPUT -m rateest --rateest a --rateest-gt --rateest-bps 1000Kbit -j RETURN\n",
    "*filter\n-A OUTPUT -m nfacct --nfacct-name http -j RETURN\n",
    "*mangle\n-A FORWARD -j RATEEST --rateest-name a --rateest-interval 250.0ms --rateest-ewmalog 500.0ms\n",
    "*mangle\n-A OUTPUT -m length --length 1:500 -j MARK --set-xmark 0x4000/0x4000\n",
    "*nat\n-A POSTROUTING -o eth0 -j SNAT --to-source 10.9.9.1-10.9.9.9\n",
    "*nat\n-A OUTPUT -d 203.0.113.7/32 -p udp -m udp --dport 4789 -j DNAT --to-destination 10.9.9.1-10.9.9.9:80-90\n",
    f"{HASH} --hmark-mod 10 --hmark-offset 100\n",
)
HARMFUL = (
    ("*nat\n-A OUTPUT -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.9.9.9:81\n", "outbound TCP goes to Envoy"),
    ("*nat\n-A OUTPUT -m statistic --mode random --probability 0.5 -j ACCEPT\n", "outbound TCP goes to Envoy"),
    ("*nat\n-A PREROUTING -m addrtype --dst-type LOCAL -j ACCEPT\n", "inbound TCP goes to Envoy"),
    ("*filter\n-A INPUT -p tcp -m tcp --dport 15006 -j REJECT --reject-with tcp-reset\n", "only invalid packets"),
    ("*raw\n-A PREROUTING -p tcp -j CT --notrack\n", "inbound TCP goes to Envoy"),
    ("*nat\n-A OUTPUT -p tcp -m owner ! --socket-exists -j ACCEPT\n", "outbound TCP goes to Envoy"),
    ("*nat\n-A OUTPUT -p tcp -m owner ! --uid-owner 1337 ! --gid-owner 1337 -j ACCEPT\n", "outbound TCP goes to Envoy"),
    ("*nat\n-A PREROUTING -m length --length 1:500 -j ACCEPT\n", "inbound TCP goes to Envoy"),
    ("*nat\n-A PREROUTING -j NETMAP --to 10.78.0.0/16\n", "inbound TCP goes to Envoy"),
    ("*nat\n-A PREROUTING -m set --match-set some src -j ACCEPT\n", "inbound TCP goes to Envoy"),
    ("*nat\n-A OUTPUT -p tcp -j REDIRECT --to-ports 15000-15002\n", "outbound TCP goes to Envoy"),
    ("*nat\n-A OUTPUT -p tcp -j REDIRECT\n", "outbound TCP goes to Envoy"),
    ("*nat\n-A OUTPUT -p tcp -j DNAT --to-destination 10.9.9.1-10.9.9.9\n", "outbound TCP goes to Envoy"),
    (f"{HASH} --hmark-mod 10 --hmark-offset 100\n-A OUTPUT -m mark --mark 0x64 -j DROP\n", "only invalid packets"),
    (
        "*mangle\n-A OUTPUT -j SET --map-set some dst --map-mark\n-A OUTPUT -m mark --mark 0x64 -j DROP\n",
        "only invalid",
    ),
)


@cache
def sidecar() -> Sidecar:
    return Sidecar(f"{ARTICLE} --no-enable-ipv6")


def beside(text: str) -> Ruleset:
    """Istio's rules, with other rules before them."""
    [planned] = sidecar().plan.rulesets
    chains = "".join(f":{chain} ACCEPT\n" for chain in BUILTIN_CHAINS[text[1 : text.index("\n")]])  # type: ignore[index]
    head, _, rules = text.partition("\n")
    [foreign] = parse(f"{head}\n{chains}{rules}COMMIT\n", "ipv4", foreign=True).tables
    tables = {table.name: table for table in planned.tables}
    own = tables.get(foreign.name)
    if own:
        before = {chain.name: chain.rules for chain in foreign.chains}
        own = own.replace(
            chains=tuple(each.replace(rules=(*before.get(each.name, ()), *each.rules)) for each in own.chains)
        )
    tables[foreign.name] = own or foreign
    return planned.replace(tables=tuple(tables[name] for name in BUILTIN_CHAINS if name in tables))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_does_not_touch_captured_traffic_breaks_nothing(text: str) -> None:
    pod = sidecar()
    proof = prove(pod.options, (beside(text),), pod.facts, pod.envoy)
    assert [(fault.invariant, fault.actual) for fault in proof.faults] == []


@pytest.mark.parametrize(("text", "invariant"), HARMFUL)
def test_what_takes_captured_traffic_away_is_found(text: str, invariant: str) -> None:
    pod = sidecar()
    proof = prove(pod.options, (beside(text),), pod.facts, pod.envoy)
    assert [fault for fault in proof.faults if fault.invariant.startswith(invariant)]


CERTAIN = [
    text
    for text in (*HARMLESS, *dict(HARMFUL))
    # Of a network that addresses are mapped to, a set has each address.
    if not {"statistic", "tcp-flags", "--ctdir", "limit", "rateest", "nfacct", "NETMAP"} & set(text.split())
    # Nor has the simulator one address, port or mark where a rule leaves them open.
    and not {"HMARK", "length", "cpu", "--map-set", "--match-set"} & set(text.split())
    and not any("-" in word.lstrip("-") for word in text.split() if word[0].isdigit())
]
SAVED = "-A OUTPUT -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"
# Rules that leave a number open, and others that depend on it.
OPEN = (
    "*nat\n-A PREROUTING -m set --match-set some src -j ACCEPT\n",
    "*filter\n-A OUTPUT -m set --match-set some dst -j DROP\n-A OUTPUT -m length --length 1 -j ACCEPT\n",
    "*nat\n-A POSTROUTING -m set --match-set some dst -j SNAT --to-source 10.9.9.9\n",
    f"{HASH} --hmark-mod 10 --hmark-offset 1330\n",
    f"{HASH} --hmark-mod 1337\n-A OUTPUT -m mark --mark 0x539 -j DROP\n-A POSTROUTING -m mark --mark 0x1 -j DROP\n",
    f"{HASH} --hmark-mod 5\n{SAVED}\n-A PREROUTING -m connmark --mark 0x3/0x3 -j DROP\n",
    "*mangle\n-A OUTPUT -m cpu --cpu 1 -j MARK --set-xmark 0x539/0xff\n-A INPUT -m mark --mark 0x9/0xf -j DROP\n",
    "*mangle\n-A OUTPUT -j SET --map-set some dst --map-mark\n-A OUTPUT -m mark --mark 0x64/0xff -j DROP\n",
    "*nat\n-A OUTPUT -p tcp -j REDIRECT --to-ports 15000-15002\n",
    "*nat\n-A OUTPUT -p tcp -j REDIRECT --to-ports 1-80\n",
    "*nat\n-A OUTPUT -p tcp -j DNAT --to-destination 10.9.9.1-10.9.9.9:80-90\n",
    "*nat\n-A OUTPUT -p tcp -j DNAT --to-destination 10.0.0.0-10.255.255.255\n",
)


@pytest.mark.parametrize("text", [text for text in CERTAIN if "--tcp-flags" not in text])
def test_every_set_is_treated_as_the_simulator_treats_its_packets(text: str) -> None:
    """But for what chance decides: it makes two sets of one."""
    pod, chance, ruleset = sidecar(), Random(text), beside(text)
    space = Space("ipv4", (ruleset,), boundaries(pod.options, pod.facts, pod.envoy))
    walk = Reachability(space, ruleset, pod.facts)
    for hook, begin in STARTS.items():
        for packet_set in walk.travel(hook, begin(space, pod.facts)):
            cube = tuple(1 << chance.choice(list(bits(classes))) for classes in packet_set.cube)
            packet = space.packet(cube, hook)
            assert described(space, packet_set, packet) == walked(pod, ruleset, packet), packet


@pytest.mark.parametrize("text", OPEN)
def test_what_the_simulator_decides_in_spite_of_open_numbers_holds_for_all_sets(text: str) -> None:
    pod, chance, ruleset = sidecar(), Random(text), beside(text)
    space = Space("ipv4", (ruleset,), boundaries(pod.options, pod.facts, pod.envoy))
    walk = Reachability(space, ruleset, pod.facts)
    decided = 0
    for hook, begin in STARTS.items():
        sets = walk.travel(hook, begin(space, pod.facts))
        for packet_set in chance.sample(sets, min(len(sets), 100)):
            cube = tuple(1 << chance.choice(list(bits(classes))) for classes in packet_set.cube)
            packet = space.packet(cube, hook)
            end = walked(pod, ruleset, packet)[0]
            ends = {each.end for each in sets if intersection(each.cube, cube)}
            assert end == "undecided" or ends == {end}, packet
            decided += end != "undecided"
    assert decided
