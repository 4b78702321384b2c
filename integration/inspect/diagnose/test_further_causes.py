"""Further causes, as somebody would plant them who wants `diagnose` to miss them; it names each in plain words."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from integration.inspect.diagnose.planting import SIDECAR, USUAL, diagnose, names, running
from integration.kit.endpoints import User
from integration.kit.pod import APP, PROXY, Pod
from integration.kit.residents import resident
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    from collections.abc import Iterator

LEGACY = "iptables-legacy -w"
KUBE = f"{LEGACY} -t nat -N KUBE-SERVICES; {LEGACY} -t nat -I OUTPUT -j KUBE-SERVICES; "
DNAT = f"{LEGACY} -t nat -A KUBE-SERVICES -d 10.96.0.10 -p tcp -j DNAT --to 10.99.0.1"
TWICE = "iptables-legacy-save -t nat | grep -v '^:' | iptables-legacy-restore --noflush"
NFT_DROP = (
    "nft 'add table inet fw; add chain inet fw in { type filter hook input priority 0; }; "
    "add rule inet fw in tcp dport 15006 drop'"
)
BRIDGE = "ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up; "
# The flags, what is done to the pod that is captured then, and the words that name it.
PLANTED = {
    "two init containers": ("", TWICE, "the rules were made twice: two init containers", "ISTIO_IN_REDIRECT rule 2"),
    "kube-proxy in the pod": ("", KUBE + DNAT, "a rule of another program precedes Istio's", "KUBE-SERVICES rule 1"),
    "nft beside legacy": (
        "", "iptables-nft -t nat -A OUTPUT -p tcp --dport 443 -j REDIRECT --to-ports 9",
        "a rule of another program decides first, in nat (nft) OUTPUT", "--to-ports 9",
    ),
    "refused behind the capture": (
        "", f"{LEGACY} -A OUTPUT -p tcp --dport 15001 -j REJECT",
        "a rule of another program decides first, in filter OUTPUT", "=> dropped, because OUTPUT rule 1 of filter",
    ),
    "the sidecar's own call refused": (
        "", f"{LEGACY} -A OUTPUT -p tcp --dport 443 -j REJECT",
        "a rule of another program drops the sidecar's calls to the world, in filter OUTPUT", "captured calls fail",
    ),
    "dropped by nft": (
        "", NFT_DROP,
        "a rule of another program decides first, in nftables inet fw in INPUT", "--dport 15006 -j DROP",
    ),
    "route_localnet": (
        "", f"{LEGACY} -t nat -I PREROUTING -p tcp --dport 8080 -j DNAT --to 127.0.0.1:15006",
        "a rule of another program precedes Istio's in nat PREROUTING", "net.ipv4.conf.veth0.route_localnet is 0",
    ),
    "untracked": (
        "", f"{LEGACY} -t raw -A OUTPUT -p tcp -j CT --notrack",
        "a rule of another program keeps calls from connection tracking, in raw OUTPUT", "nat redirects tracked",
    ),
    "untracked inbound": (
        "", f"{LEGACY} -t raw -A PREROUTING -i veth0 -p tcp -j CT --notrack",
        "a rule of another program keeps calls from connection tracking, in raw PREROUTING", "in veth0",
    ),
    "empty -i": ("-i ''", "", "no destination is captured outbound: -i is empty", "all calls bypass the sidecar"),
    "ports alone": ("-i '' -q 80", "", "only port 80 is captured outbound", "-> 198.51.100.7:443"),
    "narrow": ("-i 10.96.0.0/12 -q 80", "", "only 10.96.0.0/12 and port 80 is captured", "includeOutboundIPRanges"),
    "empty -b": ("-b ''", "", "no inbound port is captured: -b is empty", "all inbound calls bypass the sidecar"),
    "root spared": ("-u 0,1337", "", "uid 0 (root) is among those of the proxy", "runs as root bypass the sidecar"),
    "mark of another": (
        "-m TPROXY", "ip rule add pref 9 fwmark 0x500/0xf00 lookup 200; ip route add default via 10.77.0.1 table 200",
        "another policy rule takes packets with TPROXY's mark 1337 first", "goes out by veth0, not to lo",
    ),
    "mark changed": (
        "-m TPROXY", f"{LEGACY} -t mangle -A OUTPUT -j MARK --set-mark 7",
        "a rule of another program changes TPROXY's mark, in mangle OUTPUT", "the mark 1337 becomes 7",
    ),
    "the sidecar's user without a route": (
        "", "ip rule add pref 5 uidrange 1337-1337 lookup 98; ip route add blackhole default table 98",
        "the kernel drops the sidecar's calls to the world", "uid 1337: the kernel has no route for it",
    ),
    "TPROXY's route": (
        "-m TPROXY", "ip route del local default dev lo table 133",
        "the policy route of TPROXY is missing", "ip -4 route add local default dev lo table 133",
    ),
    "IPv6 off": (
        "", "sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
        "IPv6 is disabled in the pod by sysctl", "net.ipv6.conf.all.disable_ipv6 = 1",
    ),
    "IPv6 off on lo": (
        "", "sysctl -qw net.ipv6.conf.lo.disable_ipv6=1",
        "net.ipv6.conf.lo.disable_ipv6 is 1", "captured calls by IPv6 do not arrive",
    ),
    "no route": (
        "", "ip route del default", "no IPv4 route leads out of the pod", "Network is unreachable",
    ),
    "interface down": ("", "ip link set veth0 down", "no IPv4 route leads out of the pod", "before any rule sees them"),
    "blackhole": (
        "", "ip route del default; ip route add blackhole default",
        "no IPv4 route leads out of the pod", "Invalid argument",
    ),
    "containers inside": (
        "", BRIDGE + "sysctl -qw net.ipv4.ip_forward=1",
        "the pod has a network of its own, docker0", "-k docker0 (istio.io/reroute-virtual-interfaces)",
    ),
    "no forwarding": (
        "-k k6t-eth0", "sysctl -qw net.ipv4.ip_forward=0",
        "forwarding is off: net.ipv4.ip_forward is 0", "the virtual machine's calls",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "deed", "cause", "further"), PLANTED.values(), ids=PLANTED)
def test_planted(pod: Pod, flags: str, deed: str, cause: str, further: str) -> None:
    pod.apply(f"{USUAL} {flags}")
    pod.namespace.run("sh", "-ec", deed or ":")
    with running(pod, flags=flags):
        names(diagnose(pod), cause, further)


def test_a_dormant_table() -> None:
    with Pod(IPV4, "nft") as pod:
        pod.apply(USUAL)
        pod.namespace.run("nft", "add table ip nat { flags dormant; }")
        with running(pod):
            names(diagnose(pod), "a table with Istio's rules is dormant", "ipv4 nat has the flag dormant")


# Where the sidecar listens, the flags, and the words.
LISTENERS = {
    "inbound on loopback": (
        "0.0.0.0:15001 127.0.0.1:15006", "--enable-ipv6=false",
        "the sidecar listens on 127.0.0.1:15006 only, and captured inbound calls come to 10.77.0.2:15006",
    ),
    "outbound on the pod's address": (
        "10.77.0.2:15001 0.0.0.0:15006", "--enable-ipv6=false",
        "the sidecar listens on 10.77.0.2:15001 only, and captured outbound calls come to 127.0.0.1:15001",
    ),
    "IPv4 only": (
        "0.0.0.0:15001 0.0.0.0:15006", "",
        "the sidecar listens on 0.0.0.0:15001 only, and captured outbound calls come to [::1]:15001",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tcp", "flags", "cause"), LISTENERS.values(), ids=LISTENERS)
def test_a_sidecar_that_listens_elsewhere(pod: Pod, tcp: str, flags: str, cause: str) -> None:
    pod.apply(f"{USUAL} {flags}")
    if "ipv6=false" in flags:
        pod.namespace.run("ip", "-6", "addr", "flush", "scope", "global")
    with running(pod, tcp=tcp):
        names(diagnose(pod), cause, "they are captured, and nobody takes them")


def test_an_app_at_the_sidecars_port(pod: Pod) -> None:
    pod.apply(USUAL)
    with running(pod, tcp="15001 15021"), resident(pod.namespace, "java", APP, tcp="15006") as process:
        names(
            diagnose(pod),
            f"another program than the sidecar listens on port 15006: java (process {process})",
            "inbound calls do not reach the sidecar",
        )
        assert diagnose(pod, "--to", "10.99.0.1:443").code == 0
        names(diagnose(pod, "--from", "10.99.0.1", "--to", ":8080"), "java")


def test_a_sidecar_for_redirect_where_the_rules_use_tproxy(pod: Pod) -> None:
    pod.apply(f"{USUAL} -m TPROXY")
    with running(pod, User(0, 1337)):
        names(
            diagnose(pod), "the sidecar's listener is not transparent: it is configured for REDIRECT", "IP_TRANSPARENT"
        )


def test_a_sidecar_that_is_stopped(pod: Pod) -> None:
    pod.apply(USUAL)
    with resident(pod.namespace, "envoy", PROXY, tcp=SIDECAR) as process:
        os.kill(process, signal.SIGSTOP)
        try:
            names(
                diagnose(pod), f"the sidecar is stopped by a signal or a debugger: envoy (process {process})", "-CONT"
            )
        finally:
            os.kill(process, signal.SIGCONT)


def test_a_sidecar_that_accepts_nobody(pod: Pod) -> None:
    pod.apply(USUAL)
    with resident(pod.namespace, "envoy", PROXY, tcp="15001 15006", accepts=False, backlog=1):
        calls = [pod.client(APP) for _ in range(2)]
        for each in calls:
            each.connect(("10.99.0.1", 443))
        names(
            diagnose(pod), "the sidecar accepts no connections: the queue of port 15001 is full", "2 connections wait"
        )
        for each in calls:
            each.close()


def test_an_app_on_loopback(pod: Pod) -> None:
    pod.apply(USUAL)
    with (
        resident(pod.namespace, "envoy", PROXY, tcp=SIDECAR),
        resident(pod.namespace, "web", APP, tcp="127.0.0.1:8080") as process,
    ):
        names(
            diagnose(pod),
            "the app listens on the loopback address only: 127.0.0.1:8080",
            f"web (process {process}) listens on 127.0.0.1:8080",
        )
        names(diagnose(pod, "--from", "10.99.0.1", "--to", ":8080"), "the app listens on 127.0.0.1:8080 only")
        names(diagnose(pod, "--from", "10.99.0.1", "--to", ":9"), "nobody listens on port 9 in the pod")


def test_a_namespace_that_the_pod_has_left(pod: Pod) -> None:
    pod.apply(USUAL)
    names(diagnose(pod), "no process and no socket is in this network namespace", "--container ID")


@pytest.fixture
def client(pod: Pod) -> Iterator[socket.socket]:
    """A client at the peer."""
    result = pod.client(User(0, 0), at=pod.peer)
    with result:
        yield result


@pytest.mark.parametrize("flags", ["", "-m TPROXY"])
def test_connections_that_the_app_accepted_before(pod: Pod, client: socket.socket, flags: str) -> None:
    with resident(pod.namespace, "app", APP, tcp="8080"):
        client.connect(("10.77.0.2", 8080))
        pod.apply(f"{USUAL} {flags}")
        user = User(0, 1337) if flags else PROXY
        with resident(pod.namespace, "envoy", user, tcp=SIDECAR, transparent=bool(flags)):
            names(
                diagnose(pod),
                "the rules were made after the app accepted connections: 1 open connection",
                "-> 10.77.0.2:8080, uid 1000: not redirected",
                "ss -K src 10.77.0.2 sport = :8080",
            )


@pytest.mark.parametrize("flags", ["", "-m TPROXY"])
def test_connections_that_the_sidecar_accepted(pod: Pod, client: socket.socket, flags: str) -> None:
    pod.apply(f"{USUAL} {flags}")
    with running(pod, flags=flags):
        client.connect(("10.77.0.2", 8080))
        answer = diagnose(pod)
        assert answer.code == 0, answer.output
