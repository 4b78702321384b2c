"""Every parser: what it takes, and that it refuses the rest with a reason."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.formats.addresses import network_text
from istio_init.model import parsers, parsers_rare
from istio_init.model.rules import Network, PortRange

Parser: TypeAlias = Callable[[str], Any]

ACCEPTED: list[tuple[Parser, str, object]] = [
    (parsers.port, "1", 1),
    (parsers.port, "65535", 65535),
    (parsers.typed_port, "15002", 15002),
    (parsers.typed_port, "0x3a9a", 15002),
    (parsers.typed_port, "0X3A9A", 15002),
    (parsers.typed_port, "0o35232", 15002),
    (parsers.typed_port, "035232", 15002),
    (parsers.typed_port, "0b11101010011010", 15002),
    (parsers.typed_port, "0x_3a9a", 15002),
    (parsers.ports, "", ()),
    (parsers.ports, "15090,15020", (PortRange(15090, 15090), PortRange(15020, 15020))),
    (parsers.ports, ",80,,443, ", (PortRange(80, 80), PortRange(443, 443))),
    (parsers.ports, "4000-4003,5000:5001", (PortRange(4000, 4003), PortRange(5000, 5001))),
    (parsers.all_or_ports, "*", "*"),
    (parsers.all_or_ports, "*,", "*"),
    (parsers.network, "10.1.2.3/8", Network(b"\x0a\0\0\0", 8)),
    (parsers.network, "10.1.2.3", Network(b"\x0a\x01\x02\x03", 32)),
    (parsers.network, "2001:db8::1/32", Network(bytes.fromhex("20010db8") + bytes(12), 32)),
    (parsers.network, "::1", Network(bytes(15) + b"\1", 128)),
    (parsers.network, "0.0.0.0/0", Network(bytes(4), 0)),
    (parsers.all_or_networks, "*", "*"),
    (parsers.loopback, "127.0.0.0/8", Network(b"\x7f\0\0\0", 8)),
    (parsers.interfaces, "eth0,veth+,a.b", ("eth0", "veth+", "a.b")),
    (parsers.owners, "0,4294967294", (0, 4294967294)),
    (parsers.mark, "0x539", 1337),
    (parsers.mark, "4294967295", 4294967295),
    (parsers.route_table, "133", 133),
    (parsers.duration, "1m30s", 90.0),
    (parsers.duration, "500ms", 0.5),
    (parsers.duration, "1.5h", 5400.0),
    (parsers.seconds, "0", 0.0),
    (parsers.seconds, "2.5", 2.5),
    (parsers.interception_mode, "", "REDIRECT"),
    (parsers.interception_mode, "TPROXY", "TPROXY"),
    (parsers.log_level, "default:debug,other:none", "debug"),
    (parsers.log_level, "warn", "warn"),
    (parsers.log_level, "other:debug", "info"),
    (parsers.boolean, "True", True),
    (parsers.boolean, "f", False),
]

REFUSED: list[tuple[Parser, str]] = [
    *((parsers.typed_port, text) for text in ("089", "+5", " 5", "0x", "", "0", "65536", "0x10000", "1e3", "9" * 30)),
    *(
        (parsers.port, text)
        for text in ("", "0", "65536", "-1", "1e3", "٣", "015001", " 80", "80 ", "0x50", "9" * 5000)
    ),
    *((parsers.ports, text) for text in ("*", "80,*", "80;90", "90-80", "0-80", "80-", "-80", "1-2-3", "80:", "http")),
    *((parsers.all_or_ports, text) for text in ("*,80", "80,*", "**")),
    *(
        (parsers.network, text)
        for text in ("", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/", "10.0.0.0/8/8", "::/129", "fe80::1%eth0", "256.0.0.1")
    ),
    *((parsers.network, text) for text in ("10.0.0.010", "1.2.3.4/08", "a\0b", "\udcff", "::g", "10.0.0.0/-1")),
    *((parsers.networks, text) for text in ("*", "10.0.0.0/8,*", "10.0.0.0/8,oops")),
    *((parsers.all_or_networks, text) for text in ("*,10.0.0.0/8",)),
    *(
        (parsers.loopback, text)
        for text in ("10.0.0.0/8", "126.0.0.0/7", "::1", "0.0.0.0/0", "", "127.0.0.1,127.0.0.2")
    ),
    *((parsers.addresses, text) for text in ("10.0.0.0/8", "resolver")),
    *(
        (parsers.interfaces, text)
        for text in (
            "a" * 16,
            "a/b",
            "a b",
            ".",
            "..",
            "eth0:1",
            "eth\x00",
            "e\nth",
            "ethé",
            "!",
            "+",
            "*",
            "eth0,*",
            'a"b',
        )
    ),
    *((parsers.owners, text) for text in ("4294967295", "4294967296", "-1", "*", "1.5")),
    *((parsers.all_or_owner_groups, text) for text in (",".join(map(str, range(65))),)),
    *((parsers.mark, text) for text in ("0", "0x0", "1338", "0x53a", "0x", "0x1g", "4294967296", "", "0x123456789")),
    *((parsers.route_table, text) for text in ("0", "253", "254", "255", "main", "4294967296")),
    *((parsers.duration, text) for text in ("", "5", "0s", "s", "1d", "-5s", "1..5s", ".s", "25h", "5 s", "1e3s")),
    *((parsers.seconds, text) for text in ("", ".", "-1", "1e3", "86401", "nan", "inf", "1.2.3")),
    *((parsers.interception_mode, text) for text in ("redirect", "NONE", "TPROXY ")),
    *((parsers.log_level, text) for text in ("loud", "default:", "default:loud")),
    *((parsers.boolean, text) for text in ("", "yes", "TrUe", "2")),
    (parsers.path, "a\0b"),
    (parsers.path, "x" * 5000),
]


@pytest.mark.parametrize(("parse", "text", "value"), ACCEPTED)
def test_accepts(parse: Parser, text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(("parse", "text"), REFUSED)
def test_refuses_with_a_reason(parse: Parser, text: str) -> None:
    with pytest.raises(ValueError, match=r"\w{3,}"):
        parse(text)


def test_an_error_in_a_list_names_the_entry() -> None:
    with pytest.raises(ValueError, match="'70000'"):
        parsers.ports("80,70000")


@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused_never_worse(text: str) -> None:
    for parse in {row[0] for row in ACCEPTED} | {row[0] for row in REFUSED}:
        try:
            parse(text)
        except ValueError:
            continue


@given(st.ip_addresses(), st.integers(0, 128))
def test_networks_are_what_ipaddress_makes_of_them(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, prefix: int
) -> None:
    prefix = min(prefix, address.max_prefixlen)
    expected = ipaddress.ip_network((address, prefix), strict=False)
    parsed = parsers.network(f"{address}/{prefix}")
    assert parsed == Network(expected.network_address.packed, expected.prefixlen)
    assert ipaddress.ip_network(network_text(parsed)) == expected


@given(st.lists(st.integers(1, 65535)))
def test_port_lists_round_trip(numbers: list[int]) -> None:
    assert parsers.ports(",".join(map(str, numbers))) == tuple(PortRange(number, number) for number in numbers)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("tcp:443:1000", "tcp:443:1000"),
        (" udp:*:5-7 ; tcp:1-2,80:0,4294967294;", "udp:*:5-7;tcp:1-2,80:0,4294967294"),
        ("", ""),
    ],
)
def test_ports_of_users_come_back(text: str, spelled: str) -> None:
    entries = parsers.ports_of_users(text)
    assert parsers_rare.ports_of_users_text(entries) == spelled
    assert parsers.ports_of_users(spelled) == entries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tcp:443", "not PROTOCOL:PORTS:UIDS"),
        ("sctp:443:1000", "not PROTOCOL:PORTS:UIDS"),
        ("tcp::1000", "at least one port"),
        ("tcp:443:", "at least one user"),
        ("tcp:443:9-5", "ends before it begins"),
        ("tcp:0:5", "not a port"),
        ("tcp:443:root", "numeric id"),
        ("tcp:1:1;tcp:443", "entry 'tcp:443'"),
    ],
)
def test_ports_of_users_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsers.ports_of_users(text)


BOUNDED: dict[str, tuple[Callable[[str], Any], Callable[[int], str], int]] = {
    "ports": (parsers.ports, str, parsers.MOST_ENTRIES),
    "all or ports": (parsers.all_or_ports, str, parsers.MOST_ENTRIES),
    "networks": (parsers.networks, lambda n: f"fd00::{n:x}", parsers.MOST_ENTRIES),
    "all or networks": (parsers.all_or_networks, lambda n: f"fd00::{n:x}", parsers.MOST_ENTRIES),
    "addresses": (parsers.addresses, lambda n: f"fd00::{n:x}", parsers.MOST_NAMES),
    "interfaces": (parsers.interfaces, lambda n: f"eth{n}", parsers.MOST_NAMES),
    "owners": (parsers.owners, str, parsers.MOST_NAMES),
    "owner groups": (parsers.all_or_owner_groups, str, parsers_rare.MOST_OWNER_GROUPS),
}


@pytest.mark.parametrize("kind", BOUNDED)
def test_every_list_has_a_bound_and_duplicates_count_once(kind: str) -> None:
    parse, entry, most = BOUNDED[kind]
    whole = [entry(number) for number in range(1, most + 1)]
    assert len(parse(",".join(whole))) == most
    assert parse(",".join([*whole, *whole])) == parse(",".join(whole))
    with pytest.raises(ValueError, match=rf"{most + 1} .*at most {most} are allowed"):
        parse(",".join([*whole, entry(most + 1)]))


def test_pairs_of_ports_and_users_have_a_bound() -> None:
    ports, users = ",".join(map(str, range(1, 201))), ",".join(map(str, range(1000, 1100)))
    assert len(parsers.ports_of_users(f"tcp:{ports}:{users}")) == 1
    for more in (f"tcp:{ports},201:{users}", f"tcp:{ports}:{users};udp:*:7", ";".join([f"tcp:{ports}:1-9"] * 101)):
        with pytest.raises(ValueError, match=r"2[0-9]{4} pairs of a port and a user, at most 20000 are allowed"):
            parsers.ports_of_users(more)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1", True), ("127.0.0.0/8", True), ("127.255.0.0/16", True), ("::1", True),
        ("127.0.0.0/7", False), ("0.0.0.0/0", False), ("10.0.0.127", False), ("::1/127", False), ("::2", False),
    ],
)  # fmt: skip
def test_a_network_is_loopback_if_all_of_it_is(text: str, loopback: bool) -> None:
    assert parsers.is_loopback(parsers.network(text)) is loopback
