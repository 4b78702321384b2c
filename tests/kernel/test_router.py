"""The pure half of routing: commands, attributes, the detection of IPv6, and what an errno means."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.errors import KernelError
from istio_init.kernel.netlink.batch import BatchRefused
from istio_init.kernel.netlink.channel import ATTEMPTS, HEADER, RtnetlinkChannel, attribute, attributes
from istio_init.kernel.netlink.refusal import explain
from istio_init.kernel.netlink.router import has_ipv6
from istio_init.model.routing import Address, PolicyRule, Route, command
from istio_init.model.rules import Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.routing import RoutingEntry

SIX = Address(Network(bytes(15) + b"\x06", 128), "lo")


@pytest.mark.parametrize(
    ("entry", "added"),
    [
        (PolicyRule("ipv4", 1337, 133), "ip -4 rule add fwmark 1337 lookup 133"),
        (PolicyRule("ipv6", 0xFFFFFFFF, 4242), "ip -6 rule add fwmark 4294967295 lookup 4242"),
        (PolicyRule("ipv4", 0, 133), "ip -4 rule add fwmark 0/0xffffffff lookup 133"),
        (Route("ipv4", "lo", 133), "ip -4 route add local default dev lo table 133"),
        (Route("ipv6", "lo", 133), "ip -6 route add local default dev lo table 133"),
        (SIX, "ip -6 addr add ::6/128 dev lo"),
        (Address(Network(b"\x7f\x00\x00\x06", 32), "lo"), "ip -4 addr add 127.0.0.6/32 dev lo"),
    ],
)
def test_an_entry_as_a_command(entry: RoutingEntry, added: str) -> None:
    assert command(entry) == added
    assert command(entry, "del") == added.replace(" add ", " del ")


def on(*named: str) -> tuple[Address, ...]:
    """Addresses on interfaces, each written ADDRESS%DEVICE."""
    split = [each.split("%") for each in named]
    return tuple(
        Address(Network(ipaddress.ip_address(address).packed, 8 * len(ipaddress.ip_address(address).packed)), device)
        for address, device in split
    )


@pytest.mark.parametrize(
    ("addresses", "first", "any_is"),
    [
        (on(), False, False),
        (on("127.0.0.1%lo", "::1%lo"), False, False),
        (on("127.0.0.1%lo", "10.0.0.1%eth0", "::1%lo", "fe80::1%eth0"), False, False),
        (on("127.0.0.1%lo", "10.0.0.1%eth0", "::1%lo", "fd00::1%eth0"), False, True),
        (on("127.0.0.1%lo", "fd00::1%eth0", "10.0.0.1%eth1"), True, True),
        (on("127.8.8.8%lo", "169.254.1.1%eth0", "::1%lo", "2001:db8::1%eth0"), True, True),
        (on("169.253.0.1%eth0", "2001:db8::1%eth0"), False, True),
        (on("febf::1%eth0"), False, False),
        (on("fec0::1%eth0"), True, True),
        (on("127.0.0.1%lo", "::6%lo"), False, False),
        (on("::6%eth0"), True, True),
    ],
)
def test_ipv6_is_found_out_as_istio_does(addresses: tuple[Address, ...], first: bool, any_is: bool) -> None:
    assert has_ipv6(addresses, dual_stack=False) is first
    assert has_ipv6(addresses, dual_stack=True) is any_is


def test_our_own_address_does_not_change_what_the_next_run_finds() -> None:
    for addresses in (on("127.0.0.1%lo"), on("10.0.0.1%eth0"), on("fd00::1%eth0"), on("10.0.0.1%eth0", "fd00::1%eth0")):
        for dual_stack in (False, True):
            before = has_ipv6(addresses, dual_stack=dual_stack)
            assert has_ipv6((SIX, *addresses), dual_stack=dual_stack) is before
            assert has_ipv6((*addresses, SIX), dual_stack=dual_stack) is before


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=70)))
def test_attributes_come_back(values: dict[int, bytes]) -> None:
    data = b"".join(attribute(kind, value) for kind, value in values.items())
    assert len(data) % 4 == 0
    assert attributes(data) == values


@given(st.binary(max_size=100))
def test_any_bytes_are_some_attributes_or_none(data: bytes) -> None:
    assert sum(len(value) for value in attributes(data).values()) <= len(data)


@pytest.mark.parametrize(
    ("entry", "number", "text"),
    [
        # These the integration tests can't provoke: their kernel has it all.
        (SIX, errno.EOPNOTSUPP, "the kernel has no IPv6, or was started with ipv6.disable=1"),
        (Route("ipv6", "lo", 133), errno.EOPNOTSUPP, "the kernel has no IPv6"),
        (PolicyRule("ipv6", 1, 133), errno.EAFNOSUPPORT, "the kernel has no IPv6"),
        (PolicyRule("ipv4", 1, 133), errno.EAFNOSUPPORT, "CONFIG_IP_MULTIPLE_TABLES"),
        (Route("ipv4", "lo", 133), errno.ENOBUFS, "ip -4 route show table 133"),
        (PolicyRule("ipv4", 1, 133), errno.ENOBUFS, "ip -4 rule show"),
        (SIX, errno.ENOBUFS, "ip -6 addr show dev lo"),
    ],
)
def test_a_refusal_says_what_was_refused_and_what_to_do(entry: RoutingEntry, number: int, text: str) -> None:
    error = explain(entry, "add", OSError(number, "In the kernel's words"))
    assert str(error).startswith(f"{command(entry)}: In the kernel's words ({errno.errorcode[number]}); ")
    assert text in str(error)
    assert error.errno == number


# Where the kernel can't be brought to say a thing at will, the test says it in its place.
ERROR, DONE, THING = 2, 3, 24
MULTI, TORN, CAPPED, TLVS = 0x2, 0x10, 0x100, 0x200


class Kernel:
    """The other end of a RtnetlinkChannel: answers each request with what the test has it say."""

    def __init__(self) -> None:
        self.channel = RtnetlinkChannel()
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel._socket, self.channel._sequence = ours, 0

    def say(self, sequence: int, *messages: tuple[int, int, bytes]) -> None:
        """One datagram of messages: type, flags, data."""
        self._theirs.send(
            b"".join(
                HEADER.pack(HEADER.size + len(data), kind, flags, sequence, 0) + data + bytes(-len(data) % 4)
                for kind, flags, data in messages
            )
        )

    def close(self) -> None:
        """Give both ends back."""
        self.channel._socket.close()
        self._theirs.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    fresh = Kernel()
    yield fresh
    fresh.close()


def number(value: int) -> bytes:
    return struct.pack("=i", value)


def test_a_dump_is_all_its_datagrams_up_to_the_end(kernel: Kernel) -> None:
    kernel.say(1, (THING, MULTI, b"one"), (THING, MULTI, b"three"))
    kernel.say(0, (THING, MULTI, b"left over from before"))
    kernel.say(1, (THING, MULTI, b""))
    kernel.say(1, (DONE, MULTI, number(0)))
    assert kernel.channel.dump("things", 26, b"") == [b"one", b"three", b""]


def test_a_dump_that_changed_under_the_reader_is_read_again(kernel: Kernel) -> None:
    kernel.say(1, (THING, MULTI, b"one"))
    kernel.say(1, (THING, MULTI | TORN, b"two"), (DONE, MULTI | TORN, number(0)))
    kernel.say(2, (THING, MULTI, b"three"), (DONE, MULTI | TORN, number(0)))
    kernel.say(3, (THING, MULTI, b"four"), (DONE, MULTI, number(0)))
    assert kernel.channel.dump("things", 26, b"") == [b"four"]


def test_a_dump_that_never_holds_still_is_given_up(kernel: Kernel) -> None:
    for sequence in range(1, ATTEMPTS + 1):
        kernel.say(sequence, (DONE, MULTI | TORN, number(0)))
    with pytest.raises(KernelError, match="the things changed during each of 16 attempts"):
        kernel.channel.dump("things", 26, b"")


@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_a_dump_that_is_refused(kernel: Kernel, kind: int) -> None:
    kernel.say(1, (kind, 0, number(-errno.EPERM)))
    with pytest.raises(KernelError, match="the things can't be read: Operation not permitted"):
        kernel.channel.dump("things", 26, b"")


REQUEST = HEADER.pack(HEADER.size + 8, 24, 5, 1, 0)
WORDS = attribute(2, b"offs") + attribute(1, b"Said by the kernel.\0")


@pytest.mark.parametrize(
    ("flags", "data", "words"),
    [
        (0, REQUEST + bytes(8), "File exists"),
        (CAPPED, REQUEST, "File exists"),
        (CAPPED | TLVS, REQUEST + WORDS, "Said by the kernel"),
        (TLVS, REQUEST + bytes(8) + WORDS, "Said by the kernel"),
        (CAPPED | TLVS, REQUEST + attribute(2, b"offs"), "File exists"),
    ],
)
def test_a_refusal_in_the_kernels_own_words(kernel: Kernel, flags: int, data: bytes, words: str) -> None:
    kernel.say(1, (ERROR, flags, number(-errno.EEXIST) + data))
    with pytest.raises(OSError, match=words) as caught:
        kernel.channel.request(24, 0, bytes(8))
    assert (caught.value.strerror, caught.value.errno) == (words, errno.EEXIST)


@pytest.mark.parametrize(
    ("words", "text"), [("", "No such file or directory"), ("Said by the kernel", "Said by the kernel")]
)
def test_a_refused_batch_is_told_in_words(words: str, text: str) -> None:
    refused = BatchRefused(errno.ENOENT, (words, 36), 3)
    assert (refused.errno, refused.strerror, refused.at, refused.offset) == (errno.ENOENT, text, 3, 20)


def test_an_answer_to_something_else_is_no_answer(kernel: Kernel) -> None:
    kernel.say(0, (ERROR, 0, number(-errno.EEXIST) + REQUEST))
    kernel.say(1, (ERROR, 0, number(0) + REQUEST))
    kernel.channel.request(24, 0, b"")


def test_a_socket_that_breaks_is_said(kernel: Kernel) -> None:
    kernel.close()
    with pytest.raises(KernelError, match="a netlink socket can't be written to: Bad file descriptor"):
        kernel.channel.request(24, 0, b"")
