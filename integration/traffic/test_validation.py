"""Validation by real connections: where the rules capture, where they don't, and by whom it can be run."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from integration.kit.capabilities import become, without
from integration.kit.namespace import Namespace
from integration.kit.settling import settled
from istio_init import plan
from istio_init.errors_rare import ValidationFailed
from istio_init.formats.iptables_save import dump
from istio_init.kernel.probe.dial import Expected, ProbeResult, validate
from istio_init.model.parsers import ALL, network
from istio_init.model.routing import command
from istio_init.model.rules import PortRange
from istio_init.options.table import Options

OPTIONS = Options(
    istio_service_cidr=ALL, istio_inbound_ports=ALL, proxy_uid=(1337,), proxy_gid=(1337,), enable_ipv6=True
)
ELSEWHERE = (network("192.0.2.1"), network("2001:db8::1"))
EXPECTED = Expected(("ipv4", "ipv6"), 15001, 15006, 15002, (1337,), (1337,), ELSEWHERE)
ALL_PATHS = {("ipv4", "inbound"), ("ipv4", "outbound"), ("ipv6", "inbound"), ("ipv6", "outbound")}


@pytest.fixture
def pod(namespace: Namespace) -> Namespace:
    """A namespace with addresses and default routes that end in nothing."""
    for line in (
        "ip link add eth0 type veth peer name far",
        "ip link set far up",
        "ip link set eth0 up",
        "ip addr add 10.1.2.3/24 dev eth0",
        "ip route add default dev eth0",
        "ip -6 addr add fd00:1::3/64 dev eth0 nodad",
        "ip -6 route add default dev eth0",
        "ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev eth0",
        "ip -6 neigh add 2001:db8::1 lladdr 02:00:00:00:00:01 dev eth0",
    ):
        namespace.run(*line.split())
    return namespace


def apply(namespace: Namespace, options: Options = OPTIONS) -> None:
    """Put the plan in place with other programs."""
    desired = plan(options)
    for entry in desired.routing:
        namespace.run(*command(entry).split())
    settled(namespace)
    for ruleset in desired.rulesets:
        restore = "iptables-legacy-restore" if ruleset.family == "ipv4" else "ip6tables-legacy-restore"
        namespace.run(restore, text=dump(ruleset))


def proved(results: tuple[ProbeResult, ...]) -> set[tuple[str, str]]:
    return {(result.family, result.path) for result in results if result.proved}


def run(namespace: Namespace, expected: Expected = EXPECTED, timeout: float = 20) -> tuple[ProbeResult, ...]:
    """Validate as root with every capability, once."""
    return namespace.inside(lambda: validate(expected, timeout, retry=False))


def failure(namespace: Namespace, expected: Expected = EXPECTED, timeout: float = 20) -> str:
    with pytest.raises(ValidationFailed) as caught:
        run(namespace, expected, timeout)
    message = str(caught.value)
    assert "\n" not in message
    return message


def as_proxy(namespace: Namespace, expected: Expected = EXPECTED) -> tuple[ProbeResult, ...]:
    """Validate as Istio's validation container does: uid and gid 1337, no capability."""

    def work() -> tuple[ProbeResult, ...]:
        become(1337, 1337)
        return validate(expected, 20, retry=False)

    return namespace.forked(work)


def as_init_container(namespace: Namespace, expected: Expected = EXPECTED) -> tuple[ProbeResult, ...]:
    """Validate as Istio's init container does: root that can't be anybody else."""

    def work() -> tuple[ProbeResult, ...]:
        without("setuid", "setgid", "sys_admin")
        return validate(expected, 20, retry=False)

    return namespace.forked(work)


VARIANTS = {
    "redirect": OPTIONS,
    "tproxy": OPTIONS.replace(istio_inbound_interception_mode="TPROXY"),
    "tproxy, invalid dropped": OPTIONS.replace(istio_inbound_interception_mode="TPROXY", drop_invalid=True),
    "dns": OPTIONS.replace(redirect_dns=True, capture_all_dns=True),
    "ports": OPTIONS.replace(
        istio_inbound_ports=(PortRange(80, 80),), istio_local_outbound_ports_exclude=(PortRange(9999, 9999),)
    ),
    "two users": OPTIONS.replace(proxy_uid=(1337, 1400), proxy_gid=(1337, 1400)),
    "1.13": OPTIONS.replace(compat_version="1.13"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_root_proves_every_path(pod: Namespace, name: str) -> None:
    options = VARIANTS[name]
    apply(pod, options)
    expected = EXPECTED.replace(proxy_uids=options.proxy_uid, proxy_gids=options.proxy_gid)
    assert proved(run(pod, expected)) == ALL_PATHS


@pytest.mark.parametrize("name", VARIANTS)
def test_the_proxys_user_proves_inbound_without_any_capability(pod: Namespace, name: str) -> None:
    options = VARIANTS[name]
    apply(pod, options)
    barred = "we may not dial as uid 65534 and gid 65534: that needs the capabilities SETUID and SETGID"
    results = as_proxy(pod, EXPECTED.replace(proxy_uids=options.proxy_uid, proxy_gids=options.proxy_gid))
    assert [(result.proved, result.text) for result in results] == [
        (True, "IPv4 inbound: 127.0.0.6:15002, dialled as uid 1337, arrived at 127.0.0.1:15006"),
        (False, f"IPv4 outbound: {barred}"),
        (True, "IPv6 inbound: [::6]:15002, dialled as uid 1337, arrived at [::1]:15006"),
        (False, f"IPv6 outbound: {barred}"),
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_init_container_proves_outbound(pod: Namespace, name: str) -> None:
    options = VARIANTS[name]
    apply(pod, options)
    results = as_init_container(pod, EXPECTED.replace(proxy_uids=options.proxy_uid, proxy_gids=options.proxy_gid))
    assert [(result.proved, result.text) for result in results] == [
        (False, "IPv4 inbound: we may not dial as uid 1337 and gid 0: that needs the capabilities SETUID and SETGID"),
        (True, "IPv4 outbound: 192.0.2.1:15002, dialled as uid 0, arrived at 127.0.0.1:15001"),
        (False, "IPv6 inbound: we may not dial as uid 1337 and gid 0: that needs the capabilities SETUID and SETGID"),
        (True, "IPv6 outbound: [2001:db8::1]:15002, dialled as uid 0, arrived at [::1]:15001"),
    ]


def test_nothing_else_is_left_to_prove_is_a_failure(namespace: Namespace) -> None:
    apply(namespace)
    with pytest.raises(ValidationFailed) as caught:
        as_init_container(namespace)
    assert str(caught.value) == (
        "nothing can be proved of IPv4 here: IPv4 inbound: we may not dial as uid 1337 and gid 0: that needs the "
        "capabilities SETUID and SETGID; IPv4 outbound: no route leads to 192.0.2.1; "
        "validate as the proxy's user (runAsUser: 1337)"
    )


def test_without_a_route_the_outbound_path_is_not_called_a_success(namespace: Namespace) -> None:
    apply(namespace)
    results = run(namespace)
    assert proved(results) == {("ipv4", "inbound"), ("ipv6", "inbound")}
    assert results[1].text == "IPv4 outbound: no route leads to 192.0.2.1"


def test_no_rules_at_all(pod: Namespace) -> None:
    pod.run("ip", "-6", "addr", "add", "::6/128", "dev", "lo")
    settled(pod)
    message = failure(pod)
    refused = "connection refused, no rule redirects it"
    assert f"IPv4 inbound: 127.0.0.6:15002, dialled as uid 1337, should arrive at 127.0.0.1:15006: {refused}" in message
    assert f"IPv6 inbound: [::6]:15002, dialled as uid 1337, should arrive at [::1]:15006: {refused}" in message
    assert "IPv4 outbound: 192.0.2.1:15002, dialled as uid 0, should arrive at 127.0.0.1:15001: no answer" in message
    assert "IPv6 outbound: [2001:db8::1]:15002, dialled as uid 0, should arrive at [::1]:15001: no answer" in message
    assert message.endswith("see which rules exist: iptables-save -t nat and ip6tables-save -t nat")


def test_the_family_that_fails_is_named_and_no_other(pod: Namespace) -> None:
    apply(pod)
    pod.run("ip6tables-legacy", "-t", "nat", "-F", "ISTIO_IN_REDIRECT")
    message = failure(pod)
    assert "IPv6 inbound: [::6]:15002" in message
    assert "IPv4" not in message
    assert "outbound" not in message


def test_the_path_that_fails_is_named_and_no_other(pod: Namespace) -> None:
    apply(pod)
    pod.run("iptables-legacy", "-t", "nat", "-F", "ISTIO_REDIRECT")
    message = failure(pod)
    assert "IPv4 outbound: 192.0.2.1:15002" in message
    assert "inbound" not in message


def test_a_family_that_is_not_in_use_is_not_looked_at(pod: Namespace) -> None:
    apply(pod, OPTIONS.replace(enable_ipv6=False))
    assert proved(run(pod, EXPECTED.replace(families=("ipv4",)))) == {("ipv4", "inbound"), ("ipv4", "outbound")}


@pytest.mark.parametrize("path", ["inbound", "outbound"])
def test_rules_that_come_late_are_waited_for(pod: Namespace, path: str) -> None:
    # The inbound attempt is refused at once; of the outbound one nobody hears, and its socket stays uncaptured.
    results: list[tuple[ProbeResult, ...]] = []
    expected = EXPECTED if path == "outbound" else EXPECTED.replace(outbound=())
    thread = threading.Thread(target=lambda: results.append(pod.inside(lambda: validate(expected, 30))))
    thread.start()
    sent = ("src", "10.1.2.3") if path == "outbound" else ("sport", "=", ":15006")
    state = "-tan" if path == "outbound" else "-tlnH"
    while not pod.run("ss", state, *sent).count("15002" if path == "outbound" else "15006"):
        assert thread.is_alive()
    apply(pod)
    thread.join()
    assert {path for _, path in proved(results[0])} >= {path}


def test_a_missing_passthrough_address_is_said(pod: Namespace) -> None:
    apply(pod)
    pod.run("ip", "-6", "addr", "del", "::6/128", "dev", "lo")
    message = failure(pod)
    assert "IPv6 inbound: this host has no address ::6: ip -6 addr add ::6/128 dev lo; " in message
    assert "IPv4" not in message


@contextmanager
def listening(namespace: Namespace, family: int, address: str, port: int) -> Iterator[socket.socket]:
    with namespace.inside(lambda: socket.create_server((address, port), family=family)) as server:
        yield server


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("port", [15001, 15006])
def test_a_running_proxy_is_told_apart(pod: Namespace, address: str, port: int) -> None:
    apply(pod)
    with listening(pod, socket.AF_INET, address, port):
        message = failure(pod)
    assert message == (
        f"validation can't listen on 127.0.0.1:{port}: Address already in use (EADDRINUSE); "
        "the proxy already runs, or something else has its port: validate before it starts, or stop it"
    )


def test_something_else_at_the_dialled_address(namespace: Namespace) -> None:
    namespace.run("ip", "-6", "addr", "add", "::6/128", "dev", "lo")
    settled(namespace)
    with listening(namespace, socket.AF_INET, "127.0.0.6", 15002), listening(namespace, socket.AF_INET6, "::6", 15002):
        message = failure(namespace, timeout=0.5)
    assert message.count("something else took the connection, no rule redirects it") == 2


def test_the_wrong_listener(pod: Namespace) -> None:
    apply(pod)
    message = failure(pod, EXPECTED.replace(proxy_port=15006, inbound_port=15001))
    assert "127.0.0.6:15002, dialled as uid 1337, should arrive at 127.0.0.1:15001: it arrived at port 15006" in message


def test_one_port_for_both(pod: Namespace) -> None:
    apply(pod, OPTIONS.replace(envoy_port=15006))
    assert proved(run(pod, EXPECTED.replace(proxy_port=15006))) == ALL_PATHS


def relay(server: socket.socket, connect: Callable[[], socket.socket]) -> None:
    """Hand on what the first connection says, until it is hung up on."""
    connection, _ = server.accept()
    with connection, connect() as onward, suppress(ConnectionResetError):
        onward.sendall(connection.recv(100))
        onward.recv(1)


def test_a_relay_is_no_redirection(namespace: Namespace) -> None:
    def onward() -> socket.socket:
        return namespace.inside(lambda: socket.create_connection(("127.0.0.1", 15006)))

    with listening(namespace, socket.AF_INET, "127.0.0.6", 15002) as server:
        thread = threading.Thread(target=relay, args=(server, onward))
        thread.start()
        message = failure(namespace, EXPECTED.replace(families=("ipv4",), outbound=()))
        thread.join()
    assert "should arrive at 127.0.0.1:15006: it arrived, but its original destination is " in message


def test_dropped_packets_are_no_answer(namespace: Namespace) -> None:
    apply(namespace)
    namespace.run("iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "15006", "-j", "DROP")
    message = failure(namespace, timeout=0.3)
    assert "127.0.0.6:15002, dialled as uid 1337, should arrive at 127.0.0.1:15006: no answer" in message
    assert "IPv6" not in message


def test_a_destination_that_is_captured_out_of_a_list(pod: Namespace) -> None:
    apply(pod, OPTIONS.replace(istio_service_cidr=(network("10.9.0.0/16"), network("fd09::/16"))))
    results = run(pod, EXPECTED.replace(outbound=(network("10.9.0.0/16"), network("fd09::/16"))))
    assert proved(results) == ALL_PATHS
    assert results[1].text == "IPv4 outbound: 10.9.0.1:15002, dialled as uid 0, arrived at 127.0.0.1:15001"
    assert "IPv4 outbound: 192.0.2.1:15002" in failure(pod)


def test_the_first_destination_with_a_route_is_dialled(pod: Namespace) -> None:
    apply(pod)
    pod.run("ip", "route", "add", "unreachable", "192.0.2.0/24")
    pod.run("ip", "route", "add", "prohibit", "198.51.100.0/24")
    pod.run("ip", "route", "add", "blackhole", "203.0.113.0/24")
    nets = ("192.0.2.1", "198.51.100.1", "203.0.113.0/24", "10.77.0.0/16")
    results = run(pod, EXPECTED.replace(families=("ipv4",), outbound=tuple(network(net) for net in nets)))
    assert results[1].text == "IPv4 outbound: 10.77.0.1:15002, dialled as uid 0, arrived at 127.0.0.1:15001"


def test_nothing_outbound_is_captured(pod: Namespace) -> None:
    apply(pod, OPTIONS.replace(istio_service_cidr=()))
    results = run(pod, EXPECTED.replace(outbound=()))
    assert proved(results) == {("ipv4", "inbound"), ("ipv6", "inbound")}
    assert results[1].text == "IPv4 outbound: no destination off this host is known to be captured"


@pytest.mark.parametrize(
    ("groups", "excluded"), [((2000, 3000), ()), ((0, 2000), ()), ((), (0, 65534))], ids=["others", "ours", "not ours"]
)
def test_owner_groups(pod: Namespace, groups: tuple[int, ...], excluded: tuple[int, ...]) -> None:
    apply(
        pod,
        OPTIONS.replace(istio_outbound_owner_groups=groups or ALL, istio_outbound_owner_groups_exclude=excluded),
    )
    assert proved(run(pod, EXPECTED.replace(groups=groups, groups_excluded=excluded))) == ALL_PATHS


def test_root_as_the_proxy(pod: Namespace) -> None:
    apply(pod, OPTIONS.replace(proxy_uid=(0,), proxy_gid=(0,)))
    assert proved(run(pod, EXPECTED.replace(proxy_uids=(0,), proxy_gids=(0,)))) == ALL_PATHS


def test_a_port_below_1024_as_the_proxys_user(namespace: Namespace) -> None:
    with pytest.raises(ValidationFailed, match=r"127\.0\.0\.1:80: Permission denied .* NET_BIND_SERVICE$"):
        as_proxy(namespace, EXPECTED.replace(proxy_port=80))


def test_lo_that_is_down_is_said(namespace: Namespace) -> None:
    message = "validation can't listen on 127.0.0.1:15001: Cannot assign requested address (EADDRNOTAVAIL); lo is down"
    namespace.run("ip", "addr", "flush", "dev", "lo")
    namespace.run("ip", "link", "set", "lo", "down")
    assert failure(namespace).startswith(message)


def test_ipv6_that_is_off_is_said(namespace: Namespace) -> None:
    namespace.run("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
    message = failure(namespace, EXPECTED.replace(families=("ipv6",)))
    assert message.startswith("validation can't listen on [::1]:15001: ")
    assert "net.ipv6.conf.lo.disable_ipv6=0" in message


def test_strangers_do_not_disturb(pod: Namespace) -> None:
    apply(pod)
    over = threading.Event()

    def disturb() -> None:
        pod.enter()
        while not over.is_set():
            for message in (b"GET / HTTP/1.1\r\n\r\n", b""):
                try:
                    with socket.create_connection(("198.51.100.1", 80), timeout=1) as stranger:
                        stranger.sendall(message)
                except OSError:
                    pass  # nobody listens between two validations, and then they are hung up on

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(20):
            # A port that a stranger has just let go can cost a dial its first packet: another is made, as for a user.
            assert proved(pod.inside(lambda: validate(EXPECTED, 20))) == ALL_PATHS
    finally:
        over.set()
        thread.join()


def test_nothing_is_left_behind(pod: Namespace) -> None:
    apply(pod)

    def work() -> tuple[bool, list[str], list[str], str, str]:
        before, status = os.listdir("/proc/thread-self/fd"), ids()
        done = proved(validate(EXPECTED, 20)) == ALL_PATHS
        return done, before, os.listdir("/proc/thread-self/fd"), status, ids()

    done, before, after, status, status_after = pod.inside(work)
    assert done
    assert (after, status_after) == (before, status)
    # No listener, and no connection in TIME_WAIT that would keep the proxy from its ports.
    assert pod.run("ss", "-tanH") == ""


def ids() -> str:
    """The calling thread's ids and capabilities."""
    with open("/proc/thread-self/status", encoding="ascii") as status:
        return "".join(line for line in status if line.startswith(("Uid:", "Gid:", "CapEff:")))


def test_a_failure_leaves_nothing_behind_either(pod: Namespace) -> None:
    failure(pod, timeout=0.2)
    with listening(pod, socket.AF_INET, "127.0.0.1", 15001), listening(pod, socket.AF_INET6, "::1", 15006):
        pass
    with listening(pod, socket.AF_INET, "127.0.0.1", 15006):
        failure(pod)  # after 15001 was listened on
    assert ":15001" not in pod.run("ss", "-tlnH")


def test_it_works_in_a_bare_interpreter(namespace: Namespace) -> None:
    apply(namespace)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from istio_init.kernel.probe.dial import Expected, validate\n"
        "for result in validate(Expected(('ipv4', 'ipv6'), 15001, 15006, 15002, (1337,), (1337,)), 20.0):\n"
        "    print(result.proved)\n"
        "print(*sys.modules)"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = ["ip", "netns", "exec", namespace.name, "/usr/bin/python3", "-I", "-S", "-c", code, root]
    *results, modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert results == ["True", "False", "True", "False"]
    assert not {"re", "typing", "enum", "dataclasses", "socket", "selectors", "subprocess"} & set(modules.split())
