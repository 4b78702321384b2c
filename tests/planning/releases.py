"""What Istio's releases put into a namespace, as iptables-restore takes it: written from their sources, by release.

Each entry has the rules of each family as Istio's program appended and inserted them; routing as ip(8) takes it.
Rules in Istio's own chains are shortened: all of a chain goes, whatever is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from istio_init.model.rules import IPV4

OWNERS = ("uid", "gid")


class Release(NamedTuple):
    """The rules of each family, by table, and the routing."""

    ipv4: Mapping[str, str]
    ipv6: Mapping[str, str] = MappingProxyType({})
    routing: tuple[str, ...] = ()

    def text(self, family: str) -> str:
        """The input of iptables-restore --noflush."""
        tables = self.ipv4 if family == IPV4 else self.ipv6
        return "".join(f"*{table}\n{_heads(rules)}{rules.strip()}\nCOMMIT\n" for table, rules in tables.items())


def _heads(rules: str) -> str:
    chains = {word for line in rules.splitlines() for word in line.split()[1:] if word.startswith("ISTIO_")}
    return "".join(f":{chain} - [0:0]\n" for chain in sorted(chains))


REDIRECTS = """
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
"""
OUTPUT = """
-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
"""
INBOUND = """
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp -m tcp --dport 22 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
"""
PLAIN = f"{REDIRECTS}{INBOUND}-A OUTPUT -p tcp -j ISTIO_OUTPUT\n{OUTPUT}"
# Since 1.24 all protocols enter ISTIO_OUTPUT.
CURRENT = PLAIN.replace("-A OUTPUT -p tcp", "-A OUTPUT")
SIX = PLAIN.replace("127.0.0.6/32", "::6/128").replace("127.0.0.1/32", "::1/128")
# Releases up to 1.9 kept IPv6 out of a pod that has none.
NO_IPV6 = """
-A INPUT -m state --state ESTABLISHED -j ACCEPT
-A INPUT -d ::1/128 -i lo -j ACCEPT
-A INPUT -j REJECT --reject-with icmp6-port-unreachable
"""


def owned(rule: str, user: str = "1337") -> str:
    """A rule for the proxy's user, and the same for its group."""
    return "".join(f"{rule.format(f'-m owner --{kind}-owner {user}')}\n" for kind in OWNERS)


DNS_OF_PROXY = owned("-A OUTPUT -p udp -m udp --dport 53 {} -j RETURN")
DNS_1_8 = (
    f"{DNS_OF_PROXY}-A OUTPUT -d 10.96.0.10/32 -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.1:15053\n"
    "-A POSTROUTING -d 127.0.0.1/32 -p udp -m udp --dport 15053 -j SNAT --to-source 127.0.0.1\n"
)
DNS_1_8_ALL = (
    f"{DNS_OF_PROXY}-A OUTPUT -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.1:15053\n"
    "-A POSTROUTING -p udp -m udp --dport 15053 -j SNAT --to-source 127.0.0.1\n"
)
DNS_1_10 = f"{DNS_OF_PROXY}-A OUTPUT -d 10.96.0.10/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053\n"
DNS_1_10_ALL = f"{DNS_OF_PROXY}-A OUTPUT -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053\n"
ZONES = (
    f"{owned('-A OUTPUT -p udp -m udp --dport 53 {} -j CT --zone 1')}"
    f"{owned('-A OUTPUT -p udp -m udp --sport 15053 {} -j CT --zone 2')}"
)
ZONES_1_10 = (
    f"{ZONES}-A OUTPUT -d 10.96.0.10/32 -p udp -m udp --dport 53 -j CT --zone 2\n"
    "-A PREROUTING -s 10.96.0.10/32 -p udp -m udp --sport 53 -j CT --zone 1\n"
)
ZONES_ALL = (
    f"{ZONES}-A OUTPUT -p udp -m udp --dport 53 -j CT --zone 2\n-A PREROUTING -p udp -m udp --sport 53 -j CT --zone 1\n"
)
# Since 1.23 the rules for DNS are in chains of their own.
ZONES_1_23 = "-A OUTPUT -j ISTIO_OUTPUT_DNS\n-A PREROUTING -j ISTIO_INBOUND\n" + ZONES_ALL.replace(
    "-A OUTPUT", "-A ISTIO_OUTPUT_DNS"
).replace("-A PREROUTING", "-A ISTIO_INBOUND")
TPROXY_CHAINS = """
-A ISTIO_DIVERT -j MARK --set-xmark 0x539/0xffffffff
-A ISTIO_DIVERT -j ACCEPT
-A ISTIO_TPROXY ! -d 127.0.0.1/32 -p tcp -j TPROXY --on-port 15006 --on-ip 0.0.0.0 --tproxy-mark 0x539/0xffffffff
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp -m tcp --dport 22 -j RETURN
"""
TPROXY_1_5 = (
    f"{TPROXY_CHAINS}-A ISTIO_INBOUND -p tcp -m socket -j ISTIO_DIVERT\n-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY\n"
)
MARKS = (
    "-A PREROUTING -p tcp -m mark --mark 0x539 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff\n"
    "-A OUTPUT -o lo -p tcp -m mark --mark 0x539 -j RETURN\n"
    f"{owned('-A OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp {} -j MARK --set-xmark 0x53a/0xffffffff')}"
    "-A OUTPUT -p tcp -m connmark --mark 0x539 -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n"
)
TPROXY_1_13 = (
    f"{TPROXY_CHAINS}-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT\n"
    f"-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY\n{MARKS}"
)
ROUTING = ("-4 rule add fwmark 1337 lookup 133", "-4 route add local default dev lo table 133")
EXCLUDED = "-A PREROUTING -i net1 -j RETURN\n-A OUTPUT -o net1 -j RETURN\n"
VIRTUAL = "-I PREROUTING 1 -i k6t-eth0 -j RETURN\n-I PREROUTING 1 -i k6t-eth0 -j ISTIO_REDIRECT\n"
VIRTUAL_CIDR = "-I PREROUTING 1 -i k6t-eth0 -j RETURN\n-I PREROUTING 1 -d 10.0.0.0/8 -i k6t-eth0 -j ISTIO_REDIRECT\n"

RELEASES: dict[str, Release] = {
    "1.5": Release({"nat": PLAIN}, {"filter": NO_IPV6}),
    "1.5-ipv6": Release({"nat": PLAIN}, {"nat": SIX}),
    "1.5-tproxy": Release({"nat": PLAIN, "mangle": TPROXY_1_5}, {"filter": NO_IPV6}, ROUTING),
    "1.5-kubevirt": Release({"nat": f"{PLAIN}{VIRTUAL}"}, {"filter": NO_IPV6}),
    "1.6-kubevirt-cidr": Release({"nat": f"{PLAIN}{VIRTUAL_CIDR}"}),
    "1.8-dns": Release({"nat": f"{PLAIN}{DNS_1_8}"}, {"filter": NO_IPV6}),
    "1.8-dns-all": Release({"nat": f"{PLAIN}{DNS_1_8_ALL}"}),
    "1.8-dns-twice": Release({"nat": f"{PLAIN}{DNS_1_8}{DNS_1_8}"}),
    "1.8-dns-without-chains": Release({"nat": DNS_1_8}),
    "1.10-dns": Release({"nat": f"{PLAIN}{DNS_1_10}", "raw": ZONES_1_10}, {"nat": SIX}),
    "1.10-dns-all": Release({"nat": f"{PLAIN}{DNS_1_10_ALL}", "raw": ZONES_ALL}),
    "1.10-dns-without-chains": Release({"nat": DNS_1_10, "raw": ZONES_1_10}),
    "1.11-excluded": Release({"nat": f"{EXCLUDED}{PLAIN}"}, {"nat": f"{EXCLUDED}{SIX}"}),
    "1.11-excluded-tproxy": Release(
        {"nat": f"{EXCLUDED}{PLAIN}", "mangle": f"{EXCLUDED}{TPROXY_1_5}"}, routing=ROUTING
    ),
    "1.13-tproxy": Release({"nat": PLAIN, "mangle": TPROXY_1_13}, routing=ROUTING),
    "1.13-tproxy-marks-without-chains": Release({"mangle": MARKS}),
    "1.17-dual-stack-dns": Release(
        {"nat": f"{PLAIN}{DNS_1_10}", "raw": ZONES_1_10},
        {
            "nat": f"{SIX}{DNS_1_10_ALL}",
            "raw": ZONES_ALL,
        },
        ("-6 addr add ::6/128 dev lo",),
    ),
    "1.23-dns": Release({"nat": f"{PLAIN}-A ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS\n", "raw": ZONES_1_23}),
    "1.24": Release({"nat": CURRENT}),
    "1.25-drop-invalid": Release(
        {
            "nat": CURRENT,
            "mangle": "-A PREROUTING -m conntrack --ctstate INVALID -j ISTIO_DROP\n-A ISTIO_DROP -j DROP\n",
        }
    ),
    "1.27-tproxy-dns": Release(
        {"nat": CURRENT, "mangle": TPROXY_1_13, "raw": ZONES_1_23},
        {"nat": SIX},
        (*ROUTING, "-6 addr add ::6/128 dev lo"),
    ),
    "ambient-pod": Release(
        {
            "raw": "-A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n"
            "-A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1\n"
            "-A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1\n",
            "mangle": "-A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n"
            "-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark\n"
            "-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff\n",
            "nat": "-A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n"
            "-A ISTIO_OUTPUT -d 169.254.7.127/32 -p tcp -m tcp -j ACCEPT\n"
            "-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n"
            "-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001\n"
            "-A ISTIO_PRERT -s 169.254.7.127/32 -p tcp -m tcp -j ACCEPT\n"
            "-A ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp -m tcp ! --dport 15008 -j REDIRECT --to-ports 15006\n",
        }
    ),
    "ambient-node": Release(
        {
            "nat": "-A POSTROUTING -j ISTIO_POSTRT\n"
            "-A ISTIO_POSTRT -p tcp -m owner --socket-exists -j SNAT --to 169.254.7.127\n"
        }
    ),
}
# Rules that only look like Istio's: each is left, and named.
SUSPECTS: dict[str, tuple[str, str, str]] = {
    "interface": (IPV4, "nat", "PREROUTING -i eth0 -j RETURN"),
    "interface-out": ("ipv6", "nat", "OUTPUT -o eth0 -j RETURN"),
    "invalid": (IPV4, "mangle", "PREROUTING -m conntrack --ctstate INVALID -j DROP"),
    "dns": (IPV4, "nat", "OUTPUT -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053"),
    "dns-owner": (IPV4, "nat", "OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 1337 -j RETURN"),
    "zone": (IPV4, "raw", "OUTPUT -p udp -m udp --dport 53 -j CT --zone 2"),
    "mark": (IPV4, "mangle", "OUTPUT -o lo -p tcp -m mark --mark 0x539 -j RETURN"),
}
# Another mesh whose rules have Istio's shapes, user and all.
KUMA = Release(
    {
        "nat": f"{DNS_1_10_ALL}-A OUTPUT -p tcp -j RETURN\n",
        "raw": ZONES_ALL,
    }
)

# Istio's native tables, which are its own alone; one rule has what no plan has.
NATIVE = """
table inet istio-proxy-nat {
  chain prerouting {
    type nat hook prerouting priority -100
    meta l4proto tcp counter jump istio-inbound
  }
  chain output { type nat hook output priority -100; policy accept; counter jump istio-output
  }
  chain istio-inbound {
    tcp dport 15008 counter return
    meta l4proto tcp counter jump istio-in-redirect
  }
  chain istio-redirect { meta l4proto tcp counter redirect to :15001
  }
  chain istio-in-redirect { meta l4proto tcp counter redirect to :15006
  }
  chain istio-output {
    oifname "lo" ip saddr 127.0.0.6/32 counter return
    oifname "lo" ip daddr != 127.0.0.1/32 tcp dport != 15008 meta skuid 1337 counter jump istio-in-redirect
    ct status dnat fib saddr type local limit rate 3/second counter return
    counter jump istio-redirect
  }
}
table inet istio-proxy-mangle {
  chain prerouting { type filter hook prerouting priority -150
    ct state invalid counter drop
  }
}
table inet istio-proxy-raw {
  chain output { type filter hook output priority -300
    udp dport 53 meta skuid 1337 counter notrack
  }
}
table inet other {
  chain output {
    type nat hook output priority 0
    tcp dport 1 redirect to :2
  }
}
"""
