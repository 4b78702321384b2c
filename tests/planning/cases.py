"""The case table: command lines, each with the text of its plan in golden/NAME.txt.

A new flag gets a row here. `python -m tests.planning.cases` writes the texts anew; read the diff before you commit it.
integration/kernel/test_cases.py applies every row for real and holds the kernel's own save against the same files.
"""

from __future__ import annotations

import pathlib
import shlex

from istio_init import dump, plan
from tests.kit.options import options

GOLDEN = pathlib.Path(__file__).parent / "golden"

# The command line of the article that the project began from.
ARTICLE = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x '' -b '*' -d 15090,15020"

CASES = {
    "article": ARTICLE,
    "article-1.13": f"{ARTICLE} --compat-version 1.13",
    "article-1.13-dns": f"{ARTICLE} --compat-version 1.13 --redirect-dns --dns-servers 10.0.0.10",
    "article-ipv6": f"{ARTICLE} --enable-ipv6",
    "article-tproxy": "-p 15001 -z 15006 -u 1337 -m TPROXY -i '*' -b '*' -d 15090,15020 --redirect-dns --enable-ipv6 "
    "--dns-servers 10.0.0.10,fd00::10",
    "nothing": "",
    "ports": "-p 1 -z 65535 -e 2 -b '*' -i '*'",
    "inbound-list": "-b 80,8080-8090 -d 22",
    "inbound-list-tproxy": "-b 80,8080-8090 -m TPROXY",
    "tproxy-without-inbound": "-m TPROXY",
    "tproxy-mark-and-table": "-m TPROXY -b '*' -t 0x111 -r 7 -u 5,6 -g 7,8 --enable-ipv6",
    "tproxy-interfaces": "-m TPROXY -b '*' -c eth1,net+ -d 9",
    "exclude-interfaces": "-c eth1,eth2 -b '*'",
    "exclude-outbound-ports": "-o 25,1000-2000 -i '*'",
    "include-outbound-ports": "-q 80,443:445 -x 10.0.0.0/8",
    "cidrs": "-i 10.0.0.0/8,192.168.1.77/24,2001:db8::/32 -x 10.1.0.0/16,10.2.3.4,2001:db8:1::/48 --enable-ipv6",
    "everything-by-prefix-zero": "-i 0.0.0.0/0,::/0 -x 0.0.0.0/0 --enable-ipv6",
    "loopback-captured": "-i 127.0.0.0/8",
    "loopback-captured-ipv6-only": "-i ::1 --redirect-dns --dns-servers 1.1.1.1",
    "loopback-range": "-i '*' -b '*' --istio-outbound-ipv4-loopback-cidr 127.0.0.0/8 -m TPROXY",
    "kubevirt-all": "-i '*' -b '*' -k net0,net1 -c eth9",
    "kubevirt-list": "-i 10.0.0.0/8,172.16.0.0/12,fd00::/8 -k net0,net1 --enable-ipv6",
    "owners": "-u 3,4 -g 1,2",
    "owner-groups-include": "-i '*' --istio-outbound-owner-groups 101,202",
    "owner-groups-include-none": "-i '*' --istio-outbound-owner-groups ''",
    "owner-groups-exclude": "-i '*' --istio-outbound-owner-groups-exclude 888,1000",
    "exclude-users-for-ports": "-i '*' --exclude-uids-for-ports 'tcp:443,8000-8100:1000,2000-2010;udp:*:1000' "
    "--redirect-dns --capture-all-dns",
    "inbound-exclude-sources": "-b '*' -d 22 --istio-inbound-exclude-cidr 10.9.0.0/16,192.168.1.7,fd00:9::/32 "
    "--enable-ipv6",
    "inbound-exclude-sources-tproxy": "-b 80 -m TPROXY "
    "--istio-inbound-exclude-cidr 10.9.0.0/16,0.0.0.0/0,fd00:9::/32,::/0",
    "dns-servers": "-i '*' --redirect-dns --dns-servers 10.0.0.10,fd00::10,10.0.0.11 --enable-ipv6",
    "dns-servers-one-family": "-i '*' --redirect-dns --dns-servers fd00::10 --enable-ipv6",
    "dns-all": "-i '*' --redirect-dns --capture-all-dns --enable-ipv6 -u 3,4",
    "dns-without-servers": "-i '*' --redirect-dns --dns-servers ''",
    "dns-all-not-asked": "-i '*' --capture-all-dns",
    "insert-jumps": "-i '*' -b '*' --insert-jumps",
    "rule-comments": "-i 10.0.0.0/8 -b '*' -o 25 -x 10.1.0.0/16 --rule-comments --redirect-dns --dns-servers 10.0.0.10",
    "rule-comments-tproxy": "-i '*' -b 80,443 -m TPROXY -c eth1 -k net0 --enable-ipv6 --drop-invalid --rule-comments",
    "drop-invalid": "--drop-invalid -b '*'",
    "drop-invalid-tproxy": "--drop-invalid -b '*' -m TPROXY -c eth1 --enable-ipv6",
}


def argv(name: str) -> list[str]:
    """A case's command line; the default identity is fixed, so that no machine's users matter."""
    return ["-u", "1337", *shlex.split(CASES[name])]


def text(name: str) -> str:
    """A case's plan as a dry run prints it, without looking at the machine."""
    chosen = options(argv(name), {})
    if chosen is None:
        raise AssertionError(f"the fast parser does not take case {name}")
    return dump(plan(chosen))


if __name__ == "__main__":
    for each in CASES:
        (GOLDEN / f"{each}.txt").write_text(text(each))
