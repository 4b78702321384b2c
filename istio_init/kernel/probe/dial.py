"""Validation: makes real connections and checks that they are captured.

Two paths of each family are dialled, with listeners of this program where the proxy will be. The first is Istio's:

    inbound:  127.0.0.6:15002 (::6), as the proxy's user -> ISTIO_OUTPUT -> ISTIO_IN_REDIRECT -> 15006
    outbound: a remote address, as another user          -> ISTIO_OUTPUT -> ISTIO_REDIRECT    -> 15001

REDIRECT sends what this host itself dials to 127.0.0.1 and ::1. A connection counts where it says our
token, was dialled to the address that SO_ORIGINAL_DST tells, and takes an answer back. A path that can't
be dialled here (as whom, by which route?) is neither proved nor failed; one of each family must be proved.
"""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the type in C is all that is needed
import errno
import posix as os  # the C half of os; the other half costs a start a millisecond
import select
import time

from istio_init.errors_rare import ValidationFailed
from istio_init.formats.addresses import address_text, endpoint_text
from istio_init.kernel.host.identity import connect_as, socket_as
from istio_init.kernel.probe.listeners import LOOPBACK, NUMBERS, Listeners, hang_up, readiness
from istio_init.model import routing
from istio_init.model.rules import LOOPBACK_INTERFACE, Network
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.model.rules import Family

    PathName: TypeAlias = Literal["inbound", "outbound"]

PASSTHROUGH = {"ipv4": b"\x7f\x00\x00\x06", "ipv6": bytes(15) + b"\x06"}
TITLES = {"ipv4": "IPv4", "ipv6": "IPv6"}

# The longest and shortest duration of one attempt, in seconds. After an unanswered one a new socket is used: a
# connection's translation is decided at its first packet, so a connection older than the rules is never captured.
ATTEMPT = 1.0
LEAST = 0.05
# Between two rounds of attempts, in seconds.
PAUSE = 0.05

# Ids of a user other than the proxy: nobody's, or the id below it.
OTHER_IDS = range(65534, 65000, -1)

# The errors of connect(2) if no route leads to the destination.
NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EINVAL, errno.EACCES)


class Expected(Record):
    """What the existing rules are expected to do.

    The families in use, the three ports, the proxy's uids and gids. `outbound` are destinations off this
    host that are captured at the probe port (a network stands for its first host); they are tried in
    order until one has a route, and the path is left alone where there are none. Traffic is captured of
    `groups` alone, if there are any, and never of `groups_excluded`. With `by_ebpf`, who calls connect(2) counts, not
    who made the socket.
    """

    families: tuple[Family, ...]
    proxy_port: int
    inbound_port: int
    probe_port: int
    proxy_uids: tuple[int, ...]
    proxy_gids: tuple[int, ...]
    outbound: tuple[Network, ...] = ()
    groups: tuple[int, ...] = ()
    groups_excluded: tuple[int, ...] = ()
    by_ebpf: bool = False


class ProbeResult(Record):
    """The result for one path: proved, or not provable here. `text` is the message."""

    family: Family
    path: PathName
    proved: bool
    text: str


class ProbePath(Record):
    """A path to the proxy: who dials which addresses and port, and the port at which connections must arrive.

    The socket is the user's; with `by_ebpf`, the call is as well.
    """

    family: Family
    name: PathName
    uid: int
    gid: int
    destinations: tuple[bytes, ...]
    port: int
    listener: int
    by_ebpf: bool = False

    def result(self, text: str, *, proved: bool = False) -> ProbeResult:
        """The result with this message."""
        return ProbeResult(self.family, self.name, proved, f"{TITLES[self.family]} {self.name}: {text}")


class NotCaptured(Exception):
    """The connection did not arrive as expected; the text says what happened."""


def validate(expected: Expected, timeout: float, *, retry: bool = True) -> tuple[ProbeResult, ...]:
    """Dial every path until it is captured, for at most `timeout` seconds in all; returns the result of each.

    With `retry`, what was not captured is dialled again until the time is over: the CNI plugin may be about
    to make the rules. Without, each is dialled once. ValidationFailed where a path is not captured, where
    no path of a family can be proved, or where the proxy's ports can't be listened on.
    """
    deadline = time.monotonic() + timeout
    paths = _paths(expected)
    results: dict[ProbePath, ProbeResult] = {}
    failures: dict[ProbePath, str] = {}
    with Listeners(expected.families, (expected.proxy_port, expected.inbound_port)) as listeners:
        while True:
            waiting = [path for path in paths if path not in results]
            for number, path in enumerate(waiting):
                # Each path gets its share of the time: a slow one must not make the others fail.
                share = (deadline - time.monotonic()) / (len(waiting) - number)
                try:
                    results[path] = _dial(path, listeners, time.monotonic() + max(LEAST, min(share, ATTEMPT)))
                except NotCaptured as failure:
                    failures[path] = str(failure)
            if len(results) == len(paths) or not retry or time.monotonic() + PAUSE >= deadline:
                break
            time.sleep(PAUSE)
    if failed := [path.result(failures[path]).text for path in paths if path not in results]:
        raise ValidationFailed(f"not captured: {'; '.join(failed)}; {_advice(expected)}")
    for family in expected.families:
        _require_one(family, expected, [result for result in results.values() if result.family == family])
    return tuple(results[path] for path in paths)


def _advice(expected: Expected) -> str:
    if expected.by_ebpf:
        return "see what is missing: istio-init check --capture-backend ebpf with the same options"
    saves = {"ipv4": "iptables-save -t nat", "ipv6": "ip6tables-save -t nat"}
    return f"see which rules exist: {' and '.join(saves[family] for family in expected.families)}"


def _require_one(family: Family, expected: Expected, results: list[ProbeResult]) -> None:
    if not any(result.proved for result in results):
        reasons = "; ".join(result.text for result in results)
        raise ValidationFailed(
            f"nothing can be proved of {TITLES[family]} here: {reasons}; "
            f"validate as the proxy's user (runAsUser: {expected.proxy_uids[0]})"
        )


def _paths(expected: Expected) -> tuple[ProbePath, ...]:
    """Both paths of each family."""
    paths = []
    for family in expected.families:
        # With several proxy uids, the rules of the first one apply to the others' connections before their own.
        proxy = (expected.proxy_uids[0], os.getegid())
        passthrough = (PASSTHROUGH[family],)
        paths.append(_path(expected, family, "inbound", proxy, passthrough))
        hosts = tuple(_host(network) for network in expected.outbound if network.family == family)
        paths.append(_path(expected, family, "outbound", _captured_user(expected), hosts))
    return tuple(paths)


def _path(
    expected: Expected, family: Family, name: PathName, user: tuple[int, int], hosts: tuple[bytes, ...]
) -> ProbePath:
    listener = expected.inbound_port if name == "inbound" else expected.proxy_port
    return ProbePath(family, name, *user, hosts, expected.probe_port, listener, expected.by_ebpf)


def _captured_user(expected: Expected) -> tuple[int, int]:
    """A uid and a gid whose connections are captured: this process's, if possible."""
    uids = (os.geteuid(), *OTHER_IDS)
    gids = (os.getegid(), *(expected.groups or OTHER_IDS))
    uid = next(uid for uid in uids if uid not in expected.proxy_uids)
    spared = {*expected.proxy_gids, *expected.groups_excluded}
    captured = [gid for gid in gids if gid not in spared and (not expected.groups or gid in expected.groups)]
    return uid, captured[0] if captured else gids[0]


def _host(network: Network) -> bytes:
    """The address itself, or the first one of a network that a host can have."""
    if network.prefix >= 8 * len(network.address) - 1:
        return network.address
    return (int.from_bytes(network.address) + 1).to_bytes(len(network.address))


def _dial(path: ProbePath, listeners: Listeners, until: float) -> ProbeResult:
    """One attempt at the first destination that has a route. NotCaptured if the connection arrives elsewhere."""
    if not path.destinations:
        return path.result("no destination off this host is known to be captured")
    for destination in path.destinations:
        client = socket_as(path.uid, path.gid, NUMBERS[path.family])
        if client is None:
            return path.result(
                f"we may not dial as uid {path.uid} and gid {path.gid}: that needs the capabilities SETUID and SETGID"
            )
        try:
            if _connect(path, client, destination, until):
                _exchange(path, client, destination, listeners, until)
                dialled, arrived = (
                    endpoint_text(destination, path.port),
                    endpoint_text(LOOPBACK[path.family], path.listener),
                )
                return path.result(f"{dialled}, dialled as uid {path.uid}, arrived at {arrived}", proved=True)
        except OSError as error:
            raise NotCaptured(f"{_dialled(path, destination)}: {error.strerror}") from error
        finally:
            hang_up(client)
    spellings = ", ".join(address_text(destination) for destination in path.destinations)
    return path.result(f"no route leads to {spellings}")


def _connect(path: ProbePath, client: socket.socket, destination: bytes, until: float) -> bool:
    """Connect; False if there is no route. NotCaptured or OSError if the connection fails."""
    if path.name == "inbound":
        _require_address(path.family, destination)
        # The kernel would choose ::6 as the source for ::6, and the first rule of ISTIO_OUTPUT does not capture that.
        client.bind((address_text(LOOPBACK[path.family]), 0))
    address = address_text(destination), path.port
    calls_itself = not path.by_ebpf or (path.uid, path.gid) == (os.getuid(), os.getgid())
    number = client.connect_ex(address) if calls_itself else connect_as(path.uid, path.gid, client, address)
    if path.name == "outbound" and number in NO_ROUTE:
        return False
    if number == errno.EINPROGRESS:
        if not readiness(client, select.POLLOUT, until):
            raise NotCaptured(f"{_dialled(path, destination)}: no answer")
        number = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number == errno.ECONNREFUSED:
        raise NotCaptured(f"{_dialled(path, destination)}: connection refused, no rule redirects it")
    if number:
        raise OSError(number, os.strerror(number))
    return True


def _require_address(family: Family, address: bytes) -> None:
    """NotCaptured where this host does not have the address: a connection to it would leave by the default route."""
    there = socket.socket(NUMBERS[family], socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        there.bind((address_text(address), 0))
    except OSError as error:
        missing = routing.command(routing.Address(Network(address, 8 * len(address)), LOOPBACK_INTERFACE))
        raise NotCaptured(f"this host has no address {address_text(address)}: {missing}") from error
    finally:
        there.close()


def _exchange(path: ProbePath, client: socket.socket, destination: bytes, listeners: Listeners, until: float) -> None:
    """Exchange tokens. NotCaptured if the connection is at another listener, or has another original destination."""
    token, answer = os.urandom(16), os.urandom(16)
    client.send(token)
    arrival = listeners.arrival(token, until)
    if arrival is None:
        raise NotCaptured(f"{_dialled(path, destination)}: something else took the connection, no rule redirects it")
    try:
        if arrival.port != path.listener:
            raise NotCaptured(f"{_dialled(path, destination)}: it arrived at port {arrival.port}")
        if arrival.original != (destination, path.port):
            original = endpoint_text(*arrival.original) if arrival.original else "unknown to conntrack"
            raise NotCaptured(f"{_dialled(path, destination)}: it arrived, but its original destination is {original}")
        arrival.connection.send(answer)
        if not readiness(client, select.POLLIN, until) or client.recv(len(answer)) != answer:
            raise NotCaptured(f"{_dialled(path, destination)}: it arrived, but nothing came back")
    finally:
        hang_up(arrival.connection)


def _dialled(path: ProbePath, destination: bytes) -> str:
    """What was dialled and expected."""
    there = endpoint_text(LOOPBACK[path.family], path.listener)
    return f"{endpoint_text(destination, path.port)}, dialled as uid {path.uid}, should arrive at {there}"
