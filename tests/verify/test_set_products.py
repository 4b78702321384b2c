"""IP sets in a proof: the same answer as one packet's, for any set; in classes whose number does not grow with it."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.formats.ip_sets import ip_sets
from istio_init.model.ip_sets import SetMember
from istio_init.model.rules import Network, PortRange
from istio_init.verify.header_space import DESTINATION, SOURCE_PORT, Boundaries, Space
from istio_init.verify.set_cubes import SetCubes
from istio_init.verify.set_products import MOST_MEMBERS, MOST_REGIONS, MOST_TOGETHER, product, within_bounds

KINDS = (
    "hash:ip", "hash:net", "hash:ip,port", "hash:net,port", "hash:ip,port,net", "hash:ip,port,ip", "hash:net,net",
    "hash:net,iface", "hash:ip,mark", "bitmap:port", "bitmap:ip,mac", "hash:mac",
)  # fmt: skip
PORTS = ("53", "80", "80-90", "443")
FIELDS = {
    "ip": st.sampled_from(("10.1.1.5", "10.2.0.1-10.2.0.9", "192.0.2.1")),
    "net": st.sampled_from(("0.0.0.0/1", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.5", "192.0.2.0/24")),
    "iface": st.sampled_from(("eth0", "eth1", "physdev:eth0")),
    "mark": st.sampled_from(("0x1", "0x5")),
    "mac": st.just("00:00:5e:00:53:01"),
}
# Where the members end, and inside and outside of them.
NETWORKS = tuple(
    Network(ip_address(each).packed, 32)
    for each in ("9.9.9.9", "10.1.1.4", "10.1.1.5", "10.1.2.1", "10.2.0.9", "10.2.0.10", "10.77.0.1", "192.0.2.1")
)
RANGES = tuple(PortRange(each, each) for each in (52, 53, 80, 85, 90, 91, 443))


@st.composite
def saved_sets(draw: st.DrawFn) -> str:
    """What `ipset save` prints of some sets, and of a list of them."""
    lines = []
    for number in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(KINDS))
        lines.append(f"create s{number} {kind} family inet")
        fields = kind.partition(":")[2].split(",")
        for _ in range(draw(st.integers(0, 6))):
            words = [draw(_port(kind) if field == "port" else FIELDS[field]) for field in fields]
            nomatch = " nomatch" if "net" in fields and draw(st.booleans()) else ""
            lines.append(f"add s{number} {','.join(words)}{nomatch}")
    listed = [f"add all {line.split()[1]}" for line in lines if line.startswith("create")]
    return "\n".join([*lines, "create all list:set", *listed, ""])


def _port(kind: str) -> st.SearchStrategy[str]:
    protocols = ("",) if kind == "bitmap:port" else ("tcp:", "udp:", "icmp:", "sctp:")
    return st.builds(str.__add__, st.sampled_from(protocols), st.sampled_from(PORTS))


@given(saved_sets(), st.data())
def test_a_proof_has_of_any_set_what_one_packets_path_has(text: str, data: st.DataObject) -> None:
    sets = ip_sets(text)
    assert within_bounds(sets) == sets
    space = Space("ipv4", (), Boundaries(NETWORKS, RANGES, ("eth0", "eth1"), marks=(5, 6), ip_sets=sets))
    name = data.draw(st.sampled_from([each.name for each in sets]))
    sides = tuple(data.draw(st.lists(st.sampled_from(("src", "dst")), min_size=1, max_size=3)))
    match = SetMember(name, sides, sets, data.draw(st.booleans()))
    inside, unclear = SetCubes(space).of(match)
    chosen = random.Random(data.draw(st.integers(0, 1000)))
    for _ in range(100):
        cube = tuple(1 << chosen.randrange(len(values)) for values in space.values)
        packet = space.packet(cube, "OUTPUT")
        answers = [held for cubes, held in ((inside, True), (unclear, None)) for each in cubes if _contains(each, cube)]
        assert answers in ([], [True], [None])  # disjoint
        assert (answers or [False])[0] is match.holds(packet)


def _contains(cube: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(one & two for one, two in zip(cube, other, strict=True))


def sets_of(kind: str, *members: str) -> Any:  # noqa: ANN401 (a tuple of IpSet)
    return ip_sets(f"create s {kind} family inet\n" + "".join(f"add s {each}\n" for each in members))


def address(number: int) -> str:
    return str(ip_address(0x0A000000 + number * 3))


@pytest.mark.parametrize("count", [10, 5000])
def test_the_number_of_members_does_not_count_but_how_they_differ(count: int) -> None:
    for sets in (
        sets_of("hash:ip", *map(address, range(count))),
        sets_of("hash:ip,port", *(f"{address(n)},tcp:{port}" for n in range(count) for port in (80, 443))),
    ):
        space = Space("ipv4", (), Boundaries(ip_sets=sets))
        assert len(space.values[DESTINATION]) == 2
        assert len(space.values[SOURCE_PORT]) <= 3


def test_beyond_its_bounds_a_set_is_left_out() -> None:
    def pairs(count: int) -> Any:  # noqa: ANN401 (a tuple of IpSet)
        return sets_of("hash:ip,port", *(f"{address(n)},tcp:{n + 1}" for n in range(count)))

    assert product(pairs(MOST_REGIONS - 1)[0])
    assert within_bounds(pairs(MOST_REGIONS + 1)) == ()
    assert within_bounds(sets_of("hash:ip", *map(address, range(MOST_MEMBERS + 1)))) == ()


def test_of_sets_that_divide_each_other_too_often_the_smaller_ones_remain() -> None:
    chosen = random.Random(7)
    text = ""
    for number in range(14):
        members = {chosen.randrange(8192) for _ in range(4000 + number)}
        text += f"create s{number} hash:ip family inet\n" + "".join(f"add s{number} {address(n)}\n" for n in members)
    sets = ip_sets(text)
    kept = within_bounds(sets)
    assert kept
    assert len(kept) < len(sets)
    assert max(len(each.members) for each in kept) <= min(len(each.members) for each in sets if each not in kept)
    assert len(Space("ipv4", (), Boundaries(ip_sets=kept)).values[DESTINATION]) <= MOST_TOGETHER
