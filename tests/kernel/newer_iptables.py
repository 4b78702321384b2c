"""Rules of other programs, and those that iptables-nft 1.8.10 and later write otherwise than 1.8.9; with a record.

Beside this file is newer_iptables.txt: each rule as iptables-nft-save of that version prints it, with its expressions
as the kernel has them. `python -m integration.kit.newer_iptables` writes it.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, NamedTuple

from istio_init.model.rules import IPV4, IPV6

if TYPE_CHECKING:
    from istio_init.model.rules import Family

RECORDED = pathlib.Path(__file__).with_suffix(".txt")

# By family and table.
RULES: dict[Family, dict[str, str]] = {
    IPV4: {
        "filter": """\
-A INPUT -p tcp -m tcp --dport 80
-A INPUT -p tcp -m tcp --sport 80 ! --dport 90
-A INPUT -p udp -m udp --sport 80:90 ! --dport 90:100
-A INPUT -p tcp -m tcp --dport 0:100
-A INPUT -p tcp -m tcp --dport 100:65535
-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN
-A INPUT -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN
-A INPUT -p tcp -m tcp --tcp-option 7
-A INPUT -p icmp -m icmp --icmp-type 8
-A INPUT -p icmp -m icmp --icmp-type 3/4
-A INPUT -p icmp -m icmp ! --icmp-type 8
-A INPUT -p icmp -m icmp --icmp-type any
-A INPUT -p tcp -m multiport --dports 80,443
-A INPUT -p tcp -m multiport ! --sports 80,443:500
-A INPUT -p udp -m multiport --ports 80,443
-A INPUT -m mark --mark 0x1
-A INPUT -m mark ! --mark 0x1/0xff
-A INPUT -m connmark --mark 0x1
-A INPUT -m connmark --mark 0x1/0xff
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED
-A INPUT -m state --state NEW
-A OUTPUT -m owner --uid-owner 1337
-A OUTPUT -m owner ! --gid-owner 1337
-A OUTPUT -m owner --uid-owner 1000-2000
-A INPUT -m iprange --src-range 10.0.0.1-10.0.0.9
-A INPUT -m addrtype --dst-type LOCAL
-A INPUT -m comment --comment "hello world"
-A INPUT -m limit --limit 5/sec
-A INPUT -m limit --limit 5/min --limit-burst 10
-A INPUT -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name x
-A INPUT -m pkttype --pkt-type multicast
-A INPUT -m statistic --mode random --probability 0.5
-A INPUT -m length --length 100:200
-A INPUT -m ttl --ttl-lt 5
-A INPUT -m dscp --dscp 0x10
-A INPUT -m mac --mac-source 00:11:22:33:44:55
-A INPUT -p sctp -m sctp --dport 80
-A INPUT -p dccp -m dccp --dport 80
-A INPUT ! -p udp
-A INPUT -s 10.0.0.0/8 -d 10.1.2.3/32
-A INPUT ! -s 10.0.0.0/9
-A INPUT -s 10.0.0.0/255.0.255.0
-A INPUT -f
-A INPUT ! -f
-A INPUT -i eth0
-A INPUT -i eth+
-A INPUT -i +
-A INPUT ! -i lo
-A INPUT ! -i +
-A INPUT -j REJECT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A INPUT -p tcp -j REJECT --reject-with tcp-reset
-A INPUT -j LOG
-A INPUT -j LOG --log-prefix "hey " --log-level 7 --log-uid
-A INPUT -j NFLOG --nflog-group 5 --nflog-prefix "x"
-A INPUT -j MARK --set-xmark 0x5/0xff
-A INPUT -j NFQUEUE --queue-num 4
-A INPUT -p all -g FOO
-A INPUT -m u32 --u32 "0>>22&0x3C@0&0xFF=1"
-A INPUT -m cpu --cpu 0
-A INPUT -m devgroup --src-group 1
-A INPUT -m helper --helper ftp
-A INPUT -m connlimit --connlimit-above 3
-A INPUT -m time --timestart 01:00
-A INPUT -m string --string abc --algo bm
-A INPUT -m quota --quota 100
-A INPUT -m recent --set --name x
-A INPUT -m socket --transparent
-A INPUT -m physdev --physdev-in eth0
-A INPUT -p esp -m esp --espspi 5
-A INPUT -m tos --tos 0x10
-A INPUT -p tcp -m tcpmss --mss 100:200
-A INPUT -m bpf --bytecode "1,6 0 0 1"
-A INPUT -m cgroup --cgroup 1
-A INPUT -m realm --realm 1
-A INPUT -m policy --dir in --pol none
-A INPUT -p tcp -m tcp ! --dport 0:100
-A INPUT -p udp -m udp --sport 0:5 ! --dport 0:7
-A INPUT -p tcp -m tcp --dport 80 --tcp-flags SYN,RST SYN
-A INPUT -m limit --limit 10/hour
-A INPUT -j NFLOG --nflog-group 3 --nflog-size 20
-A INPUT -j NFLOG --nflog-group 3 --nflog-threshold 5 --nflog-prefix "x y"
""",
        "nat": """\
-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80
-A POSTROUTING -j SNAT --to-source 10.0.0.1
-A POSTROUTING -j MASQUERADE
-A POSTROUTING -p tcp -j MASQUERADE --to-ports 100-200
-A POSTROUTING -j MASQUERADE --random-fully
-A PREROUTING -p tcp -j REDIRECT --to-ports 15001
-A PREROUTING -p tcp -j REDIRECT
-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.1-10.0.0.9:80-90
-A PREROUTING -j NETMAP --to 10.0.0.0/24
""",
        "mangle": """\
-A PREROUTING -j CONNMARK --save-mark
-A PREROUTING -j CONNMARK --restore-mark
-A PREROUTING -p tcp -j TPROXY --on-port 15001 --tproxy-mark 0x539/0xffffffff
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A PREROUTING -j TTL --ttl-set 5
-A PREROUTING -j DSCP --set-dscp 0x10
-A PREROUTING -j TEE --gateway 10.0.0.1
""",
        "raw": """\
-A PREROUTING -j CT --zone 1
-A PREROUTING -j NOTRACK
-A PREROUTING -j TRACE
""",
    },
    IPV6: {
        "filter": """\
-A INPUT -p tcp -m tcp ! --dport 0:100
-A INPUT -p tcp -m tcp ! --dport 100:65535
-A INPUT -p tcp -m tcp --dport 0:65535
-A INPUT -p tcp -m tcp ! --dport 0:65535
-A INPUT -p tcp -m tcp --dport 0
-A INPUT -p udp -m udp --sport 0:5 ! --dport 0:7
-A INPUT -p icmpv6 -m icmp6 --icmpv6-type 128
-A INPUT -s fd00::/9 -d ::1/128
-A INPUT -p tcp -m tcp --tcp-flags ALL NONE
-A INPUT -p tcp -m tcp --dport 80 --tcp-flags SYN,RST SYN --tcp-option 5
-A INPUT -p tcp -m tcp --dport 80 --tcp-flags SYN,RST SYN
-A INPUT -m limit --limit 10/hour
-A INPUT -m limit --limit 1/day --limit-burst 1
-A INPUT -m limit --limit 500/sec
-A INPUT -m limit --limit 7/min
-A INPUT -j NFLOG --nflog-group 3 --nflog-size 20
-A INPUT -j NFLOG --nflog-group 3 --nflog-threshold 5 --nflog-prefix "x y"
-A INPUT -j NFLOG
""",
        "nat": """\
-A PREROUTING -p tcp -j REDIRECT --to-ports 15001
""",
    },
}


class Recorded(NamedTuple):
    """A rule of a table, and its expressions (NFTA_RULE_EXPRESSIONS)."""

    family: Family
    table: str
    saved: str
    expressions: bytes

    def line(self) -> str:
        """The rule as a line of the file."""
        return f"{self.family} {self.table} {self.saved}\t{self.expressions.hex()}\n"


def recorded() -> list[Recorded]:
    """All rules of the file."""
    return [_read(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]


def _read(line: str) -> Recorded:
    words, _, data = line.partition("\t")
    family, table, saved = words.split(" ", 2)
    return Recorded(IPV4 if family == IPV4 else IPV6, table, saved, bytes.fromhex(data))
