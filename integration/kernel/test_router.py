"""The Router against the real kernel; pyroute2 and ip(8) read back what it wrote, and packets show what it does."""

from __future__ import annotations

import errno
import json
import resource
import socket
import threading

import pytest
from pyroute2 import NetNS

from integration.kit.capabilities import become, without
from integration.kit.namespace import Namespace
from integration.kit.settling import settled
from istio_init.errors import KernelError
from istio_init.kernel.netlink.router import Rtnetlink, has_ipv6
from istio_init.model.routing import Address, PolicyRule, Route, command
from istio_init.model.rules import Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family

SIX = Address(Network(bytes(15) + b"\x06", 128), "lo")
LOOPBACK = (Address(Network(b"\x7f\x00\x00\x01", 8), "lo"), Address(Network(bytes(15) + b"\x01", 128), "lo"))
TPROXY: tuple[RoutingEntry, ...] = (
    SIX,
    Route("ipv4", "lo", 133),
    Route("ipv6", "lo", 133),
    PolicyRule("ipv4", 1337, 133),
    PolicyRule("ipv6", 1337, 133),
)
# Beyond eight bits for the table and beyond 31 for the mark.
WIDE: tuple[RoutingEntry, ...] = (
    Route("ipv4", "lo", 0xFFFFFFFF),
    Route("ipv6", "lo", 256),
    PolicyRule("ipv4", 0xFFFFFFFF, 0xFFFFFFFF),
    PolicyRule("ipv6", 0x80000000, 256),
    PolicyRule("ipv4", 0, 99),
)


def replace(namespace: Namespace, *desired: RoutingEntry) -> None:
    namespace.inside(lambda: Rtnetlink().replace(desired))


def remove(namespace: Namespace, *entries: RoutingEntry) -> None:
    namespace.inside(lambda: Rtnetlink().remove(entries))


def read(namespace: Namespace) -> set[RoutingEntry]:
    """What the Router reads, without what every namespace has."""
    return set(namespace.inside(lambda: Rtnetlink().read())) - set(LOOPBACK)


def refusal(namespace: Namespace, *desired: RoutingEntry) -> KernelError:
    with pytest.raises(KernelError) as caught:
        replace(namespace, *desired)
    assert "\n" not in str(caught.value)
    return caught.value


def listing(namespace: Namespace) -> list[Any]:
    """Everything that ip(8) shows of rules, routes and addresses, in detail."""
    shows = ("rule", "route show table all", "addr show dev lo")
    settled(namespace)
    listed: list[Any] = [
        json.loads(namespace.run("ip", "-j", "-d", flag, *show.split()) or "[]")
        for show in shows
        for flag in ("-4", "-6")
    ]
    for link in listed[5]:
        for info in link["addr_info"]:
            info.pop("nodad", None)
    return listed


@pytest.mark.parametrize("entries", [TPROXY, WIDE])
def test_what_is_written_is_what_ip_writes(namespace: Namespace, entries: tuple[RoutingEntry, ...]) -> None:
    replace(namespace, *entries)
    with Namespace() as reference:
        for entry in entries:
            reference.run(*command(entry).split())
        assert listing(namespace) == listing(reference)
        assert read(reference) == read(namespace) == set(entries)
        for entry in entries:
            reference.run(*command(entry, "del").split())
        assert read(reference) == set()


def test_pyroute2_reads_the_same(namespace: Namespace) -> None:
    replace(namespace, *TPROXY)
    with NetNS(namespace.name) as other:
        for family in (socket.AF_INET, socket.AF_INET6):
            (rule,) = [rule for rule in other.get_rules(family) if rule.get_attr("FRA_FWMARK")]
            assert (rule.get_attr("FRA_FWMARK"), rule.get_attr("FRA_FWMASK")) == (1337, 0xFFFFFFFF)
            assert rule.get_attr("FRA_TABLE") == 133
            (route,) = other.get_routes(family, table=133)
            assert (route["type"], route["dst_len"], route["proto"]) == (2, 0, 3)
            assert route["scope"] == (254 if family == socket.AF_INET else 0)
            assert route.get_attr("RTA_OIF") == 1
        addresses = {address.get_attr("IFA_ADDRESS"): address for address in other.get_addr(socket.AF_INET6)}
        assert addresses["::6"]["prefixlen"] == 128
        assert addresses["::6"].get_attr("IFA_FLAGS") == 0x82  # permanent and nodad; tentative would be 0x40


def test_what_stands_already_is_left_alone(namespace: Namespace) -> None:
    replace(namespace, *TPROXY)
    before = listing(namespace)
    replace(namespace, *TPROXY)
    replace(namespace, *TPROXY, *TPROXY)
    assert listing(namespace) == before


def test_what_is_missing_is_added(namespace: Namespace) -> None:
    for missing in TPROXY:
        replace(namespace, *(entry for entry in TPROXY if entry != missing))
        assert read(namespace) == set(TPROXY) - {missing}
        replace(namespace, *TPROXY)
        assert read(namespace) == set(TPROXY)
        remove(namespace, *TPROXY)


def test_removing_leaves_nothing_and_may_be_done_twice(namespace: Namespace) -> None:
    before = listing(namespace)
    remove(namespace, *TPROXY)
    replace(namespace, *TPROXY)
    remove(namespace, *TPROXY)
    assert listing(namespace) == before
    remove(namespace, *TPROXY, *TPROXY)
    assert listing(namespace) == before


def test_removing_takes_every_double(namespace: Namespace) -> None:
    namespace.run("ip", "rule", "add", "fwmark", "1337", "lookup", "133", "priority", "50")
    namespace.run("ip", "rule", "add", "fwmark", "1337", "lookup", "133", "priority", "60")
    remove(namespace, PolicyRule("ipv4", 1337, 133))
    assert "0x539" not in namespace.run("ip", "rule")


# Each is like an Istio entry in something, and none is one: they neither satisfy a plan nor go with it.
FOREIGN = (
    "ip -4 rule add from 10.0.0.0/8 fwmark 1337 lookup 133 priority 10",
    "ip -4 rule add not fwmark 1337 lookup 133 priority 11",
    "ip -4 rule add iif lo fwmark 1337 lookup 133 priority 12",
    "ip -4 rule add fwmark 1337/0xffff lookup 133 priority 13",
    "ip -4 rule add fwmark 1337 lookup 134 priority 14",
    "ip -4 rule add fwmark 1338 lookup 133 priority 15",
    "ip -4 rule add fwmark 1337 uidrange 0-5 lookup 133 priority 16",
    "ip -4 rule add fwmark 1337 ipproto tcp lookup 133 priority 17",
    "ip -4 rule add fwmark 1337 lookup 133 suppress_prefixlength 0 priority 18",
    "ip -4 rule add fwmark 1337 blackhole priority 19",
    "ip -4 rule add tos 0x10 fwmark 1337 lookup 133 priority 20",
    "ip -6 rule add from fd00::/8 fwmark 1337 lookup 133 priority 10",
    "ip -6 rule add dport 80 fwmark 1337 lookup 133 priority 11",
    "ip -4 route add local 10.0.0.0/8 dev lo table 133",
    "ip -4 route add local default dev lo table 133 tos 0x10",
    "ip -4 route add unreachable default table 133 metric 77",
    "ip -4 route add default dev lo table 134",
    "ip -6 route add local fd00::/8 dev lo table 133",
    "ip -6 route add unreachable default table 133 metric 4278198272",
    "ip -6 route add unreachable default table 133 metric 77",
    "ip -6 addr add ::7/128 dev lo",
)


def test_what_is_only_like_ours_is_left_alone(namespace: Namespace) -> None:
    for line in FOREIGN:
        namespace.run(*line.split())
    before = listing(namespace)
    assert not read(namespace) & set(TPROXY)
    replace(namespace, *TPROXY)
    assert set(TPROXY) <= read(namespace)
    remove(namespace, *TPROXY)
    assert listing(namespace) == before
    remove(namespace, *TPROXY)
    assert listing(namespace) == before


def test_the_kernels_own_default_local_routes_are_not_read(namespace: Namespace) -> None:
    namespace.run("ip", "route", "add", "local", "default", "dev", "lo", "table", "local")
    namespace.run("ip", "route", "add", "local", "default", "dev", "lo", "table", "main")
    assert read(namespace) == set()


def test_a_route_of_another_device(namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "other", "type", "veth", "peer", "name", "far")
    namespace.run("ip", "link", "set", "far", "up")
    namespace.run("ip", "link", "set", "other", "up")
    routes = (Route("ipv4", "other", 133), Route("ipv6", "other", 133))
    replace(namespace, *routes)
    assert read(namespace) == set(routes)
    assert "dev other" in namespace.run("ip", "route", "show", "table", "133")
    remove(namespace, *TPROXY)
    assert read(namespace) == set(routes)
    remove(namespace, *routes)
    assert read(namespace) == set()


def test_routes_of_several_devices_at_once(namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "other", "type", "veth", "peer", "name", "far")
    for device in ("other", "far"):
        namespace.run("ip", "link", "set", device, "up")
    routes = (
        Route("ipv4", "other", 133),
        Route("ipv4", "lo", 134),
        Route("ipv6", "far", 133),
        Route("ipv6", "lo", 134),
    )
    replace(namespace, *routes)
    assert read(namespace) == set(routes)
    assert "dev far" in namespace.run("ip", "-6", "route", "show", "table", "133")
    remove(namespace, *routes)
    assert read(namespace) == set()


def test_something_else_in_its_place_is_an_error(namespace: Namespace) -> None:
    namespace.run("ip", "-4", "route", "add", "blackhole", "default", "table", "133")
    namespace.run("ip", "-6", "addr", "add", "::6/64", "dev", "lo")
    error = refusal(namespace, Route("ipv4", "lo", 133))
    assert str(error) == (
        "ip -4 route add local default dev lo table 133: File exists (EEXIST); "
        "see what is in its way: ip -4 route show table 133"
    )
    assert "ip -6 addr add ::6/128 dev lo: " in str(refusal(namespace, SIX))


def test_lo_that_is_down_is_said_and_left_down(namespace: Namespace) -> None:
    namespace.run("ip", "link", "set", "lo", "down")
    error = refusal(namespace, Route("ipv6", "lo", 133))
    assert str(error) == (
        "ip -6 route add local default dev lo table 133: Nexthop device is not up (ENETDOWN); "
        "lo is down; bring it up: ip link set lo up"
    )
    assert error.errno == errno.ENETDOWN
    assert "state DOWN" in namespace.run("ip", "link", "show", "dev", "lo")


def test_what_is_written_while_lo_is_down_serves_once_it_is_up(namespace: Namespace) -> None:
    namespace.run("ip", "link", "set", "lo", "down")
    replace(namespace, SIX, Route("ipv4", "lo", 133))
    namespace.run("ip", "link", "set", "lo", "up")
    assert {SIX, Route("ipv4", "lo", 133)} <= read(namespace)
    settled(namespace)
    namespace.inside(dial_six)


@pytest.mark.parametrize("entry", [SIX, Route("ipv6", "lo", 133)])
def test_ipv6_switched_off_names_the_sysctl(namespace: Namespace, entry: RoutingEntry) -> None:
    namespace.run("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
    error = refusal(namespace, entry)
    assert str(error).startswith(f"{command(entry)}: ")
    assert "(EACCES); IPv6 is off: set net.ipv6.conf.lo.disable_ipv6=0" in str(error)


def test_ipv4_does_not_care_that_ipv6_is_off(namespace: Namespace) -> None:
    namespace.run("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
    ours = (Route("ipv4", "lo", 133), PolicyRule("ipv4", 1337, 133))
    replace(namespace, *ours)
    assert set(ours) <= read(namespace)


def test_an_interface_that_is_not_there(namespace: Namespace) -> None:
    error = refusal(namespace, Route("ipv4", "absent", 133))
    assert str(error).startswith("ip -4 route add local default dev absent table 133: No such device (ENODEV); ")


@pytest.mark.parametrize("entry", TPROXY)
def test_without_net_admin_the_capability_is_named(namespace: Namespace, entry: RoutingEntry) -> None:
    def work() -> str:
        without("net_admin")
        return str(refusal_here(entry))

    outcome = namespace.forked(work)
    assert outcome.startswith(f"{command(entry)}: ")
    assert "(EPERM); this needs the capability NET_ADMIN" in outcome


def refusal_here(*desired: RoutingEntry) -> KernelError:
    with pytest.raises(KernelError) as caught:
        Rtnetlink().replace(desired)
    return caught.value


def test_a_socket_that_cannot_be_had_is_an_error(namespace: Namespace) -> None:
    def work() -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        return str(refusal_here(SIX))

    message = "a netlink socket can't be opened: Too many open files: raise the limit of open files (ulimit -n)"
    assert namespace.forked(work) == message


def test_an_error_ends_the_run_and_what_came_before_it_stands(namespace: Namespace) -> None:
    refusal(namespace, PolicyRule("ipv4", 1, 1), Route("ipv4", "absent", 133), PolicyRule("ipv4", 2, 2))
    assert read(namespace) == {PolicyRule("ipv4", 1, 1)}


def test_reading_needs_no_capability(namespace: Namespace) -> None:
    replace(namespace, *TPROXY)

    def work() -> bool:
        become(1337, 1337)
        Rtnetlink().replace(TPROXY)  # all of it exists: nothing to write
        return set(TPROXY) <= set(Rtnetlink().read())

    assert namespace.forked(work)


def test_somebody_else_may_be_faster(namespace: Namespace) -> None:
    # Policy rules are left to the lock: the kernel takes a second one, at the next priority, as one more.
    unique = tuple(entry for entry in TPROXY if not isinstance(entry, PolicyRule))
    failures: list[BaseException] = []
    together = threading.Barrier(8, action=lambda: namespace.inside(lambda: Rtnetlink().remove(unique)))

    def work() -> None:
        try:
            namespace.enter()
            for _ in range(50):
                together.wait()
                Rtnetlink().replace(unique)
        except BaseException as error:  # noqa: BLE001 (carried to the test's own thread)
            failures.append(error)
            together.abort()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert read(namespace) == set(unique)


def test_dumps_longer_than_a_datagram(namespace: Namespace) -> None:
    many = tuple(PolicyRule("ipv4", mark, 1000 + mark) for mark in range(1, 1500))
    replace(namespace, *many)
    assert read(namespace) == set(many)
    with NetNS(namespace.name) as other:
        assert len(other.get_rules(socket.AF_INET)) == len(many) + 3


def test_addresses_come_as_the_kernel_dumps_them(namespace: Namespace) -> None:
    for line in (
        "ip link add one type veth peer name two",
        "ip link set one up",
        "ip -6 addr add fd00::1/64 dev one nodad",
        "ip addr add 10.1.2.3/24 dev one",
        "ip addr add 10.9.9.1 peer 10.9.9.2/32 dev two",
        "ip -6 addr add ::6/128 dev lo",
    ):
        namespace.run(*line.split())
    outcome = namespace.inside(lambda: Rtnetlink().addresses())
    shown = json.loads(namespace.run("ip", "-j", "addr"))
    for family, flag in ((4, "inet"), (16, "inet6")):
        ours = [(a.device, render(a), a.network.prefix) for a in outcome if len(a.network.address) == family]
        # Of a peer's, ip shows the prefix of the other end, as the kernel keeps it.
        theirs = [
            (link["ifname"], info["local"], info["prefixlen"])
            for link in shown
            for info in link["addr_info"]
            if info["family"] == flag
        ]
        assert sorted(ours) == sorted(theirs)
    families = [address.network.family for address in outcome]
    assert families == sorted(families)  # ipv4 first
    assert has_ipv6(outcome, dual_stack=True)
    assert not has_ipv6(outcome, dual_stack=False)
    namespace.run("ip", "-4", "addr", "flush", "dev", "one")
    namespace.run("ip", "-4", "addr", "flush", "dev", "two")
    assert has_ipv6(namespace.inside(lambda: Rtnetlink().addresses()), dual_stack=False)


def render(address: Address) -> str:
    family = socket.AF_INET if address.network.family == "ipv4" else socket.AF_INET6
    return socket.inet_ntop(family, address.network.address)


@pytest.mark.parametrize(
    ("family", "number", "here", "elsewhere"),
    [("ipv4", socket.AF_INET, "127.0.0.1", "192.0.2.1"), ("ipv6", socket.AF_INET6, "::1", "2001:db8::1")],
)
def test_a_marked_packet_is_delivered_here_whatever_its_destination(
    namespace: Namespace, family: Family, number: int, here: str, elsewhere: str
) -> None:
    def arrives(mark: int) -> bool:
        """Whether a datagram for elsewhere, with this mark, comes to a socket here."""
        with socket.socket(number, socket.SOCK_DGRAM) as receiver, socket.socket(number, socket.SOCK_DGRAM) as sender:
            receiver.bind(("", 0))
            receiver.settimeout(5)
            sender.bind((here, 0))
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            try:
                sender.sendto(b"datagram", (elsewhere, receiver.getsockname()[1]))
            except OSError as error:
                if error.errno == errno.ENETUNREACH:
                    return False
                raise
            data, source = receiver.recvfrom(100)
            return (data, source[0]) == (b"datagram", here)

    assert not namespace.inside(lambda: arrives(1337))
    replace(namespace, Route(family, "lo", 133), PolicyRule(family, 1337, 133))
    assert namespace.inside(lambda: arrives(1337))
    assert not namespace.inside(lambda: arrives(0))
    assert not namespace.inside(lambda: arrives(1338))
    remove(namespace, PolicyRule(family, 1337, 133))
    assert not namespace.inside(lambda: arrives(1337))


def test_six_can_be_bound_to_at_once(namespace: Namespace) -> None:
    def work() -> None:
        for _ in range(300):
            Rtnetlink().replace((SIX,))
            with socket.create_server(("::6", 0), family=socket.AF_INET6):
                pass
            Rtnetlink().remove((SIX,))

    namespace.inside(work)


def dial_six() -> None:
    """A connection from ::6 to ::6; OSError where that is no address here."""
    with socket.create_server(("::6", 0), family=socket.AF_INET6) as server:
        address = server.getsockname()
        with socket.create_connection(address[:2], timeout=5, source_address=("::6", 0)):
            connection, (source, *_) = server.accept()
            connection.close()
            assert source == "::6"


def test_six_can_be_bound_to_and_dialled(namespace: Namespace) -> None:
    with pytest.raises(OSError, match="Cannot assign requested address"):
        namespace.inside(dial_six)
    replace(namespace, SIX)
    settled(namespace)
    namespace.inside(dial_six)
    remove(namespace, SIX)
    with pytest.raises(OSError, match="Cannot assign requested address"):
        namespace.inside(dial_six)
