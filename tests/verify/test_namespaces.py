"""Proofs for any namespace: without lo, without addresses, with many interfaces, with addresses on lo alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st

from istio_init.model.packet import Facts
from istio_init.model.rules import LOOPBACK_INTERFACE
from istio_init.simulate.path import follow
from istio_init.verify.header_space import Space
from istio_init.verify.proof import STARTS, prove
from istio_init.verify.reachability import Reachability
from istio_init.verify.sources import boundaries
from tests.kit.packets import Sidecar, interface_address
from tests.verify.test_proof import described, walked

if TYPE_CHECKING:
    from random import Random

    from istio_init.model.routing import Address

ADDRESSES = (
    *(("lo", "127.0.0.1", 8), ("lo", "::1", 128), ("lo", "10.9.9.9", 32), ("lo", "fd00::99", 128)),
    *(("eth0", "10.0.0.5", 24), ("eth0", "10.0.0.6", 24), ("eth0", "fd00::5", 64), ("eth0", "fe80::2", 64)),
    *(("net1", "10.1.0.5", 16), ("net1", "fe80::1", 64), ("dummy0", "192.168.1.1", 32), ("net2", "10.2.0.5", 24)),
)
OPTIONS = (
    "-i '*' -b '*'",
    "-i '*' -b '*' -m TPROXY",
    "-i 10.0.0.0/8 -b 80 -c net1 -k net2",
    "-i '*' -b '*' --redirect-dns --dns-servers 10.0.0.10,fd00::10",
)


def addresses() -> st.SearchStrategy[tuple[Address, ...]]:
    """Any addresses in any order, or none."""
    chosen = st.lists(st.sampled_from(ADDRESSES), unique=True)
    return chosen.map(lambda some: tuple(interface_address(text, prefix, device) for device, text, prefix in some))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(OPTIONS), addresses(), st.sampled_from(("eth0", "net1", "none")))
@example(OPTIONS[0], (), "eth0")
@example(OPTIONS[0], (interface_address("127.0.0.1", 8, LOOPBACK_INTERFACE),), "eth0")
def test_istios_rules_are_proved_in_any_namespace(words: str, own: tuple[Address, ...], uplink: str) -> None:
    sidecar = Sidecar(words)
    facts = Facts(own, sidecar.plan.policy_rules, sidecar.plan.routes, uplink)
    proof = prove(sidecar.options, sidecar.plan.rulesets, facts, sidecar.envoy, sidecar.plan.rulesets)
    assert [fault for fault in proof.faults if not fault.known_cause] == []


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(OPTIONS), addresses(), st.randoms(use_true_random=False))
def test_every_set_is_treated_as_the_simulator_treats_its_packets(
    words: str, own: tuple[Address, ...], chance: Random
) -> None:
    sidecar = Sidecar(words)
    facts = Facts(own, sidecar.plan.policy_rules, sidecar.plan.routes)
    ruleset = chance.choice(sidecar.plan.rulesets)
    space = Space(ruleset.family, (ruleset,), boundaries(sidecar.options, facts, sidecar.envoy))
    walk = Reachability(space, ruleset, facts)
    sidecar.facts = facts
    for hook, begin in STARTS.items():
        for packet_set in walk.travel(hook, begin(space, facts)):
            packet = space.packet(packet_set.cube, hook)
            assert described(space, packet_set, packet) == walked(sidecar, ruleset, packet)
            assert follow(ruleset, packet, facts, sidecar.envoy).legs
