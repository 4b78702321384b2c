"""Other programs' rules, in every table and by many extensions, that no run may touch.

Each bears counters that no traffic gave it: so a canary differs from an equal Istio rule, and it shows if a
rewrite of the table forgets them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from integration.kit.program import RESTORE, SAVE
from istio_init.model.rules import FAMILIES, IPV4

if TYPE_CHECKING:
    from istio_init.model.rules import Family

# Those for eth9 are what -c eth9 and -k eth9 would write. Policies have no counters here: libiptc loses those, with
# iptables itself as with us.
COMMON = {
    "raw": """
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:CANARY - [0:0]
-A PREROUTING -p tcp -m tcp --dport 1 -j CT --notrack
-A PREROUTING -i eth9 -j CANARY
-A OUTPUT -m comment --comment "not ours" -m limit --limit 5/min -j CANARY
-A CANARY -m addrtype --dst-type MULTICAST -j RETURN
""",
    "mangle": """
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:ISTIO_OUTPUT2 - [0:0]
:MY_ISTIO_INBOUND - [0:0]
-A PREROUTING -i eth9 -j RETURN
-A PREROUTING -p tcp -m multiport --dports 1,2:3 -j MARK --set-xmark 0x1/0xff
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A OUTPUT -d {far} -j ISTIO_OUTPUT2
-A POSTROUTING -d {far} -m statistic --mode random --probability 0.50000000000 -j DSCP --set-dscp 0x10
-A ISTIO_OUTPUT2 -m connmark --mark 0x7/0xff -j MY_ISTIO_INBOUND
-A MY_ISTIO_INBOUND -m string --string "ISTIO_INBOUND" --algo bm --to 65535 -j TOS --set-tos 0x10/0x3f
""",
    "nat": """
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:ALPHA - [0:0]
:ZULU - [0:0]
-A PREROUTING -i eth9 -j RETURN
-A PREROUTING -d {far} -p tcp -m tcp --dport 80 -j ALPHA
-A OUTPUT -o eth9 -j RETURN
-A OUTPUT -d {far} -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080
-A POSTROUTING -s {far} -j MASQUERADE --random
-A ALPHA -m recent --set --name canary --mask {mask} --rsource
-A ALPHA -g ZULU
-A ZULU -d {far} -p udp -m udp --sport 5 -j DNAT --to-destination {bracketed}:90
""",
    "filter": """
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -d {far} -m conntrack --ctstate NEW -m hashlimit --hashlimit-above 5/sec --hashlimit-name canary -j DROP
-A OUTPUT -d {far} -p tcp -j LOG --log-prefix "canary: " --log-level 6
-A OUTPUT -d {far} -p tcp -j REJECT --reject-with tcp-reset
""",
    "security": """
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A OUTPUT -d {far} -m owner --gid-owner 1337 -j DROP
""",
}
WORDS = {
    "ipv4": {"far": "192.0.2.9/32", "mask": "255.255.255.255", "bracketed": "192.0.2.7"},
    "ipv6": {
        "far": "2001:db8::9/128",
        "mask": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "bracketed": "[2001:db8::7]",
    },
}


class Place(Protocol):
    """A namespace that commands can be run in."""

    def run(self, *command: str, text: str | None = None) -> str:
        """The command's standard output."""
        ...


def plant(namespace: Place, *families: Family) -> None:
    """Load the canaries of these families (or both), each with counters of its own."""
    for family in families or FAMILIES:
        rules = "".join(f"*{table}{rules}COMMIT\n" for table, rules in COMMON.items()).format(**WORDS[family])
        lines = enumerate(rules.splitlines(keepends=True), 11)
        counted = "".join(f"[{number}:{number * 100}] {line}" if line[0] == "-" else line for number, line in lines)
        namespace.run(RESTORE[family], "--counters", text=counted)


def canaries(namespace: Place, family: Family = IPV4) -> list[str]:
    """What other programs wrote, as the kernel saves it, with counters: rules, their chains, policies."""
    lines = namespace.run(SAVE[family], "--counters").splitlines()
    kept = [line for line in lines if line.startswith(("*", ":")) and not re.match(r":ISTIO_\w+(?<!2) ", line)]
    return kept + [line for line in lines if re.match(r"\[[1-9]", line)]
