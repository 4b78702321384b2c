"""One pod's capture: its entry in the maps, and sk_lookup at its network namespace.

A pod is its network namespace's cookie, which the kernel never gives twice while it runs. Its sk_lookup is pinned
before its entry is written and unpinned after that is removed: its link tells when the namespace is gone.
"""

from __future__ import annotations

import errno
import posix as os  # the C half of os; the other half costs a start a millisecond
from _struct import pack, unpack

from istio_init.errors import KernelError
from istio_init.kernel.ebpf import layouts, pins, syscall
from istio_init.kernel.ebpf.installation import INBOUND, MAPS, NETNS_SK_LOOKUP
from istio_init.kernel.ebpf.layout import DNS_ALL, DNS_SERVERS, POD, first_key, member_key, members, pod_value
from istio_init.kernel.ebpf.refusal import netns_cookie, refusal
from istio_init.kernel.ebpf.trial import prove
from istio_init.kernel.host.netns import Namespace
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.kernel.ebpf.installation import Installation
    from istio_init.model.socket_capture import SocketCapture

_PRESENT = b"\1\0\0\0"

# enum count in capture.bpf.c
COUNTS = (
    *(
        "captured",
        "taken",
        "answered",
        "lost",
        "no_room",
        "listening",
        "no_slot",
        "inbound_given",
        "no_listener",
        "dns",
    ),
)


class PodState(Record):
    """What the kernel holds of a pod: struct pod (empty without an entry), its members' keys, the pin of sk_lookup."""

    value: bytes
    members: frozenset[bytes]
    inbound_attached: bool


def cookie_of(netns: str) -> int:
    """The cookie of the network namespace at a path; KernelError where it cannot be entered."""
    with Namespace(netns):
        return netns_cookie()


def is_captured(installation: Installation, cookie: int) -> bool:
    """Whether a pod has an entry."""
    with installation.lock():
        return installation.installed and bool(read(installation, cookie).value)


def add(installation: Installation, netns: str, capture: SocketCapture) -> int:
    """Capture the namespace at a path as `capture` says, in effect on return; returns its cookie.

    `capture` has ids as the initial user namespace counts them (user_ids.py). KernelError where the kernel refuses, or
    where the connection that proves capture was not captured; a pod that is new is not captured then.
    """
    cookie = cookie_of(netns)
    with installation.lock():
        installation.install(dns=capture.dns != "none")
        before = read(installation, cookie)
        try:
            if not before.inbound_attached:
                _attach_inbound(installation, netns, cookie)
            _write(installation, cookie, keys(cookie, capture), pod_value(capture))
            prove(netns, capture)
        except BaseException as error:
            if before.value:
                _write(installation, cookie, tuple(before.members), before.value)
            else:
                forget(installation, cookie)
            if isinstance(error, OSError):
                raise refusal(error) from error
            raise
        layouts.forget(installation.home, cookie)
    return cookie


def _attach_inbound(installation: Installation, netns: str, cookie: int) -> None:
    program = installation.load(INBOUND, cookie)
    namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        link = syscall.create_link(program, namespace, NETNS_SK_LOOKUP)
        try:
            syscall.pin(link, installation.path("pods", str(cookie)))
        finally:
            os.close(link)
    finally:
        os.close(namespace)
        os.close(program)


def _write(installation: Installation, cookie: int, members: tuple[bytes, ...], value: bytes) -> None:
    """Write the members, then the entry, from which on the pod is captured; then remove members of other options."""
    trie = installation.map("members")
    stale = set(_members(installation, cookie))
    for key in members:
        _update("members", trie, key, _PRESENT)
        stale.discard(key)
    _update("pods", installation.map("pods"), pack("<Q", cookie), value)
    for key in stale:
        syscall.delete(trie, key)


def _update(name: str, descriptor: int, key: bytes, value: bytes) -> None:
    """Set one element of a map; KernelError where it is full."""
    try:
        syscall.update(descriptor, key, value)
    except OSError as error:
        if error.errno not in {errno.E2BIG, errno.ENOSPC}:
            raise
        what = "pods" if name == "pods" else "their addresses, networks, ports and groups together"
        raise KernelError(
            f"--capture-backend ebpf: this node captures as many {what} as its map has room for ({MAPS[name][3]}); "
            "use --capture-backend iptables for further pods, or list fewer networks and ports",
            error.errno,
        ) from error


def keys(cookie: int, capture: SocketCapture) -> tuple[bytes, ...]:
    """The keys of all members that a capture has, the one by which they are found first."""
    return first_key(cookie), *(member_key(cookie, each) for each in members(capture))


def read(installation: Installation, cookie: int) -> PodState:
    """What the kernel holds of a pod. The caller holds the lock."""
    value = syscall.lookup(installation.map("pods"), pack("<Q", cookie), POD.size)
    attached = pins.exists(installation.path("pods", str(cookie)))
    return PodState(value or b"", frozenset(_members(installation, cookie)), attached)


def _members(installation: Installation, cookie: int) -> list[bytes]:
    """The keys of a pod's members, the first one first: a trie is walked in their order."""
    trie, first = installation.map("members"), first_key(cookie)
    if syscall.lookup(trie, first, len(_PRESENT)) is None:
        return []
    members = [first]
    for key in syscall.keys_after(trie, first):
        if key[4:12] != first[4:12]:
            break
        members.append(key)
    return members


def remove(installation: Installation, cookie: int) -> bool:
    """Stop capturing a pod; returns whether it was captured. A pod that is not known is no error."""
    with installation.lock():
        elsewhere = layouts.forget(installation.home, cookie)
        if not installation.installed:
            return elsewhere
        captured = read(installation, cookie) != PodState(b"", frozenset(), inbound_attached=False)
        forget(installation, cookie)
        _detach_dns_if_unused(installation)
    return captured or elsewhere


def forget(installation: Installation, cookie: int) -> None:
    """Remove a pod's entry, then its members, then sk_lookup. The caller holds the lock."""
    syscall.delete(installation.map("pods"), pack("<Q", cookie))
    # The one by which the others are found goes last, so that whatever ends this, the next call finds the rest.
    for key in reversed(_members(installation, cookie)):
        syscall.delete(installation.map("members"), key)
    pins.unlink(installation.path("pods", str(cookie)))


def _detach_dns_if_unused(installation: Installation) -> None:
    """Detach the programs for UDP where no pod has DNS capture: every datagram of the node passes them."""
    if installation.has_dns and not wants_dns(installation):
        installation.detach_dns()


def wants_dns(installation: Installation) -> bool:
    """Whether any pod has DNS capture. The caller holds the lock."""
    return any(_captures_dns(installation, each) for each in cookies(installation))


def _captures_dns(installation: Installation, cookie: int) -> bool:
    value = syscall.lookup(installation.map("pods"), pack("<Q", cookie), POD.size)
    return value is not None and bool(POD.unpack(value)[0] & (DNS_ALL | DNS_SERVERS))


def cookies(installation: Installation) -> tuple[int, ...]:
    """The cookies of all pods that are captured. The caller holds the lock."""
    return layouts.cookies(installation.home)


def collect(installation: Installation) -> tuple[int, ...]:
    """Remove what is left of namespaces that are gone; returns their cookies."""
    with installation.lock():
        gone = list(layouts.collect(installation.home))
        if not installation.installed:
            return tuple(gone)
        for cookie in cookies(installation):
            if layouts.has_ended(installation.path("pods", str(cookie))):
                forget(installation, cookie)
                gone.append(cookie)
        if gone:
            _detach_dns_if_unused(installation)
    return tuple(gone)


def counts(installation: Installation) -> dict[str, int]:
    """How often each thing happened on this node since installation, by the names in COUNTS."""
    with open("/sys/devices/system/cpu/possible", "rb") as file:
        processors = int(file.read().split(b"-")[-1]) + 1
    counters = {}
    for number, name in enumerate(COUNTS):
        value = syscall.lookup(installation.map("counts"), pack("<I", number), 8 * processors)
        counters[name] = sum(unpack(f"<{processors}Q", value)) if value else 0
    return counters


def describe(capture: SocketCapture, cookie: int, state: PodState) -> tuple[str, ...]:
    """How what the kernel holds of a pod differs from a capture; empty where it does not."""
    differences = []
    if not state.inbound_attached:
        differences.append(
            "sk_lookup is not attached to the pod's network namespace: inbound connections are not captured"
        )
    if not state.value:
        differences.append("the pod is not in the map of captured pods: its connections are not captured")
    elif state.value != pod_value(capture):
        differences.append("the pod's options differ from the requested ones")
    expected = set(keys(cookie, capture))
    if missing := len(expected - state.members):
        differences.append(f"{missing} ports, networks, groups or addresses of the request are missing")
    if unexpected := len(state.members - expected):
        differences.append(f"{unexpected} ports, networks, groups or addresses are not of the request")
    return tuple(differences) if state.value else tuple(differences[:2])
