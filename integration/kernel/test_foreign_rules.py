"""Rules that other programs write, through the kernel and back: printed as iptables-save prints them.

The rules are of the kinds that kube-proxy, Docker, Calico, Cilium and firewalld write.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
from pyroute2.ipset import IPSet

from integration.kit.backends import BACKENDS
from integration.kit.foreign_rules import RULES
from integration.kit.namespace import Namespace
from integration.kit.pod import options_of
from istio_init.formats.iptables_restore import parse
from istio_init.formats.iptables_save import dump
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from istio_init.model.unknown import UnknownMatch, UnknownTarget
from istio_init.runner import backends

if TYPE_CHECKING:
    from istio_init.model.rules import Family


NETLINK_NETFILTER, NFNL_SUBSYS_ACCT = 12, 7
NEW_WITH_ANSWER = 0x405  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE


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
        contents = rules(dump(namespace.inside(lambda: backends.firewall(options).read(family))))
    assert sorted(contents) == sorted(expected)


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


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_accounts_are_printed_by_their_names(backend: str) -> None:
    options = options_of(f"-i '*' {' '.join(BACKENDS[backend])}")
    with Namespace() as namespace:
        for name in ("http", "a b", "it's"):
            namespace.inside(lambda name=name: make_account(name))  # type: ignore[misc]
            namespace.run(f"iptables-{backend}", "-A", "OUTPUT", "-m", "nfacct", "--nfacct-name", name, "-j", "ACCEPT")
        text = namespace.run(f"iptables-{backend}-save")
        ruleset = namespace.inside(lambda: backends.firewall(options).read(IPV4))
        assert rules(dump(ruleset)) == rules(text)
        assert len(rules(text)) == 3


def make_account(name: str) -> None:
    """NFNL_MSG_ACCT_NEW of <linux/netfilter/nfnetlink_acct.h>; its attribute 1 is the name."""
    text = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(text), 1) + text + bytes(-len(text) % 4)
    body = struct.pack("=BBH", 0, 0, 0) + attribute
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as channel:
        channel.send(struct.pack("=IHHII", 16 + len(body), NFNL_SUBSYS_ACCT << 8, NEW_WITH_ANSWER, 1, 0) + body)
        assert struct.unpack_from("=i", channel.recv(4096), 16) == (0,)
