"""Rules that other programs write, through the kernel and back: printed as iptables-save prints them.

The rules are of the kinds that kube-proxy, Docker, Calico, Cilium and firewalld write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pyroute2.ipset import IPSet

from integration.kit.backends import BACKENDS
from integration.kit.namespace import Namespace
from integration.kit.pod import options_of
from istio_init.formats.iptables_restore import parse
from istio_init.formats.iptables_save import dump
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from istio_init.runner import backends

if TYPE_CHECKING:
    from istio_init.model.rules import Family

RULES: dict[Family, str] = {
    IPV4: """\
*raw
-A PREROUTING -j CT --notrack
-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp
COMMIT
*mangle
-A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j ACCEPT
-A PREROUTING -m conntrack ! --ctstate NEW --ctproto 6 --ctorigdst 10.0.0.0/8 --ctorigdstport 80 -j ACCEPT
-A PREROUTING -m conntrack --ctstatus ASSURED -j ACCEPT
-A PREROUTING -m state --state RELATED,ESTABLISHED -j ACCEPT
-A PREROUTING -m rpfilter --loose --validmark --invert -j DROP
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A FORWARD -p tcp -m tcp --sport 1:5 ! --dport 80 --tcp-flags FIN,SYN,RST,ACK SYN -j TCPMSS --set-mss 1400
-A FORWARD -m iprange ! --src-range 10.0.0.1-10.0.0.9 --dst-range 1.1.1.1-2.2.2.2 -j ACCEPT
-A FORWARD -j CONNMARK --set-xmark 0x1/0xff
-A FORWARD -m limit --limit 5/min -j ACCEPT
-A FORWARD -m limit --limit 10/sec --limit-burst 20 -j ACCEPT
-A FORWARD -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A FORWARD -p icmp -m icmp --icmp-type 3/4 -j ACCEPT
-A FORWARD -m pkttype ! --pkt-type broadcast -j ACCEPT
COMMIT
*nat
:KUBE-SVC - [0:0]
-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -j DNAT --to-destination 10.0.0.1:8080
-A PREROUTING -p tcp -m tcp --dport 80 -m comment --comment "a b" -j DNAT --to-destination 10.0.0.1-10.0.0.9:80-90
-A OUTPUT -m statistic --mode random --probability 0.33333333349 -j KUBE-SVC
-A OUTPUT -m statistic --mode nth --every 3 --packet 1 -j KUBE-SVC
-A POSTROUTING -s 10.0.0.0/24 ! -o docker0 -j MASQUERADE --random-fully
-A POSTROUTING -p tcp -j MASQUERADE --to-ports 1024-2048
-A POSTROUTING -d 10.1.0.0/16 -j SNAT --to-source 10.2.2.2 --persistent
-A POSTROUTING -m physdev --physdev-is-bridged -j ACCEPT
-A POSTROUTING -m physdev ! --physdev-in eth+ --physdev-out eth1 -j ACCEPT
COMMIT
*filter
-A INPUT -j REJECT --reject-with icmp-port-unreachable
-A INPUT -p tcp -j REJECT --reject-with tcp-reset
-A INPUT -j LOG --log-prefix "foo: " --log-level 6 --log-uid
-A INPUT -j LOG
-A INPUT -j NFLOG --nflog-prefix "x y" --nflog-group 3 --nflog-threshold 5
-A INPUT -j NFLOG --nflog-group 3 --nflog-size 20
-A INPUT -j NFQUEUE --queue-num 3 --queue-bypass
-A INPUT -j NFQUEUE --queue-balance 0:3
-A INPUT -m addrtype ! --src-type LOCAL,MULTICAST --limit-iface-in -j ACCEPT
COMMIT
""",
    IPV6: """\
*nat
-A PREROUTING -p tcp -j DNAT --to-destination [fd00::1]:8080
-A PREROUTING -j DNAT --to-destination fd00::1
-A POSTROUTING -j MASQUERADE
COMMIT
*filter
-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT
-A INPUT -m conntrack --ctstate NEW --ctorigdst fd00::/8 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp6-port-unreachable
COMMIT
""",
}


def rules(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("-A")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_rules_of_other_programs_are_printed_as_iptables_save_prints_them(backend: str, family: Family) -> None:
    program = f"{'ip6' if family == IPV6 else 'ip'}tables-{backend}"
    options = options_of(f"-i '*' {' '.join(BACKENDS[backend])}")
    with Namespace() as namespace:
        namespace.run(f"{program}-restore", text=RULES[family])
        expected = rules(namespace.run(f"{program}-save"))
        found = rules(dump(namespace.inside(lambda: backends.firewall(options).read(family))))
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_save_of_such_rules_is_read_and_printed_again(family: Family) -> None:
    with Namespace() as namespace:
        program = f"{'ip6' if family == IPV6 else 'ip'}tables-legacy"
        namespace.run(f"{program}-restore", text=RULES[family])
        text = namespace.run(f"{program}-save")
    ruleset = parse(text, family, foreign=True)
    assert sorted(rules(dump(ruleset))) == sorted(rules(text))
    every = [rule for table in ruleset.tables for chain in table.chains for rule in chain.rules]
    parts = [part for rule in every for part in (*rule.matches, rule.target)]
    assert not [part for part in parts if isinstance(part, UnknownMatch | UnknownTarget) and part.options is None]


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_ip_sets_have_their_names(backend: str) -> None:
    """A rule has a set's number alone, which is another set's in another namespace."""
    lines = [
        "-A OUTPUT -m set --match-set {} src,dst -j ACCEPT",
        "-A OUTPUT -m set ! --match-set istio-inpod-probes-v4 dst -j ACCEPT",
        "-A OUTPUT -j SET --add-set {} src,dst --exist --timeout 7",
        "-A OUTPUT -j SET --add-set istio-inpod-probes-v4 dst --del-set {} src,src",
    ]
    options = options_of(f"-i '*' {' '.join(BACKENDS[backend])}")
    with Namespace() as first, Namespace() as second:
        for namespace, name in ((first, "ports"), (second, "more-ports")):
            order = ["istio-inpod-probes-v4", name] if namespace is first else [name, "istio-inpod-probes-v4"]
            namespace.inside(lambda order=order: make_sets(order))  # type: ignore[misc]
            for line in lines:
                namespace.run(f"iptables-{backend}", *line.format(name).split())
            text = namespace.run(f"iptables-{backend}-save")
            ruleset = namespace.inside(lambda: backends.firewall(options).read(IPV4))
            assert rules(dump(ruleset)) == rules(text) == [line.format(name) for line in lines]


def make_sets(names: list[str]) -> None:
    with IPSet() as sets:
        for name in names:
            kind = "hash:ip" if name.startswith("istio") else "hash:ip,port"
            sets.create(name, stype=kind, timeout=100)
