"""A long list of networks in columns is what the tuple of them is."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init import dump, plan
from istio_init.kernel.xtables.encode_rule import pack
from istio_init.kernel.xtables.pack_chain import pack_chain, spelled
from istio_init.model.network_list import Networks
from istio_init.model.rules import IPV4, Destination, Network
from istio_init.options.arguments import arguments
from tests.kit.options import options
from tests.kit.strategies import families

if TYPE_CHECKING:
    from istio_init.model.rules import Family


def columns(networks: tuple[Network, ...]) -> Networks:
    return Networks(b"".join(each.address for each in networks), [each.prefix for each in networks])


@st.composite
def some(draw: st.DrawFn, family: Family) -> tuple[Network, ...]:
    size = 4 if family == IPV4 else 16
    network = st.builds(Network, st.binary(min_size=size, max_size=size), st.integers(0, size * 8))
    return draw(st.lists(network, min_size=1, max_size=9).map(tuple))


@given(families.flatmap(some), families.flatmap(some), st.data())
def test_it_is_as_a_tuple_of_them(
    networks: tuple[Network, ...], others: tuple[Network, ...], data: st.DataObject
) -> None:
    long = columns(networks)
    assert (len(long), bool(long), tuple(long), repr(long)) == (len(networks), True, networks, repr(networks))
    assert long == networks
    assert networks == long
    assert long == columns(networks)
    assert hash(long) == hash(networks)
    for other in (others, columns(others)):
        assert (long == other) == (networks == others)
        assert (other != long) == (networks != others)
    at = data.draw(st.integers(-len(networks), len(networks) - 1) | st.slices(len(networks)))
    assert columns(networks)[at] == networks[at]
    assert long[at] == networks[at]
    assert all(network in long for network in networks)
    assert pickle.loads(pickle.dumps(long)) == networks
    with pytest.raises(IndexError):
        long[len(networks)]


@given(families.flatmap(some))
def test_one_more_stands_before_the_others(networks: tuple[Network, ...]) -> None:
    first = Network(bytes(len(networks[0].address)), 1)
    assert columns(networks).behind(first) == (first, *networks)


MANY = {
    "hosts": [f"10.1.{n}.{m}" for n in range(3) for m in range(50)],
    "networks": [f"10.{n}.0.0/{16 + n % 3}" for n in range(150)],
    "with all of them": [*[f"fd00:{n:x}::/32" for n in range(150)], "::/0"],
    "loopback": [*[f"fd00:{n:x}::/32" for n in range(150)], "::1"],
}


@pytest.mark.parametrize("flag", ["-x", "-i"])
@pytest.mark.parametrize("entries", MANY.values(), ids=MANY)
def test_a_plan_is_the_same_from_both(flag: str, entries: list[str]) -> None:
    field = {"-x": "istio_service_exclude_cidr", "-i": "istio_service_cidr"}[flag]
    long = options(["-u", "1337", "--enable-ipv6", "-k", "net0", flag, ",".join(entries)], {})
    assert long
    assert type(getattr(long, field)) is Networks
    spelled_out = long.replace(**{field: tuple(getattr(long, field))})
    assert long == spelled_out
    assert arguments(long) == arguments(spelled_out)
    assert plan(long) == plan(spelled_out)
    assert dump(plan(long)) == dump(plan(spelled_out))
    for ruleset in plan(long).rulesets:
        for table in ruleset.tables:
            for chain in table.chains:
                packed = list(spelled(pack_chain(chain, ruleset.family)))
                assert packed == [pack(rule, ruleset.family) for rule in chain.rules]
                # The kernel keeps a destination that is everything as none.
                matches = [match for rule in chain.rules for match in rule.matches]
                assert all(match.network.prefix for match in matches if isinstance(match, Destination))
