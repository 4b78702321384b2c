"""Planted faults, twice over: what the prover says of a fault is what real packets show.

A fault that is reported comes with a packet: sent through the rules with the fault, and through those without, it
is treated differently. A fault of which the prover says that it changes nothing changes nothing for any packet that is
sent. Over random options the promises hold.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from integration.kit.arena import INTERFACES, Arena
from integration.kit.backends import BACKENDS
from integration.kit.namespace import Namespace
from integration.kit.pod import applied, options_of
from integration.traffic.test_simulator import Simulation, command_lines, packets
from istio_init.cli.app import main
from istio_init.cli.verbs.subject import POD, Where, pod_addresses, subject
from istio_init.formats.iptables_save import dump_table
from istio_init.model.packet import Packet
from istio_init.model.rules import FAMILIES, IPV4, Ruleset, Table, ordered
from istio_init.planning.plan import build
from istio_init.runner import backends
from istio_init.simulate.path import travel
from istio_init.verify.proof import AS_PLANNED, differences_between, prove, with_interfaces
from tests.kit.mutations import mutations

if TYPE_CHECKING:
    from istio_init.model.packet import Facts
    from istio_init.options.table import Options
    from istio_init.simulate.path import Leg

# Of one fault, so many packets that show it.
MOST_LOOKED_AT = 200
# More where the most nodes are; what a fault does to a packet is the same in all.
EXAMPLES = {"legacy": 12, "nft": 8, "native": 8}


@pytest.fixture(scope="module", params=BACKENDS)
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    with Arena(request.param) as instance:
        yield instance


def fate(leg: Leg) -> tuple[object, ...]:
    """What became of a packet, as far as anyone can tell from outside."""
    now = leg.arrived
    return (leg.end, now.destination, now.destination_port, now.mark, now.connmark, now.zone, now.tproxy_port)


def can_be_sent(packet: Packet, facts: Facts) -> bool:
    """Whether the arena can send such a packet: a first one, by an interface that there is, as somebody."""
    if packet.ctstate != "NEW" or packet.source_port == 0 or packet.destination_port == 0:
        return False
    if packet.hook == "PREROUTING":
        return packet.in_interface in INTERFACES
    # By lo to an address of the pod's own, or by the first interface to elsewhere.
    lo = facts.is_local(packet.destination)
    return packet.uid is not None and packet.out_interface == ("lo" if lo else INTERFACES[0])


def load(arena: Arena, options: Options, rules: Ruleset) -> None:
    """Replace the family's tables by these: with iptables-restore, or, native nftables, by the program's own hand."""
    if arena.backend == "native":
        firewall = backends.firewall(options)
        for table in rules.tables:
            arena.pod.namespace.inside(partial(firewall.replace, rules.family, table))
        return
    tool = "iptables" if rules.family == IPV4 else "ip6tables"
    arena.pod.namespace.run(f"{tool}-{arena.backend}-restore", text="".join(map(dump_table, rules.tables)))


def emptied(rules: Ruleset) -> Ruleset:
    """The same tables with nothing in them."""
    return rules.replace(tables=tuple(Table(each.name, ordered(each.name, {})) for each in rules.tables))


def test_packets_show_what_the_prover_says(arena: Arena) -> None:
    counts = Counter[str]()

    @settings(
        max_examples=EXAMPLES[arena.backend],
        # What has to be seen below is seen with these very mutations.
        derandomize=True, deadline=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(line=command_lines(), seed=st.integers(0, 2**32), sent=st.lists(packets(), min_size=20, max_size=40))
    def look(line: str, seed: int, sent: list[Packet]) -> None:
        counts[show(arena, line, random.Random(seed), sent)] += 1

    look()
    assert counts["changes nothing"] >= 1
    assert counts["reported"] + counts["sent"] >= 2
    assert counts["sent"] >= 1


def show(arena: Arena, line: str, chance: random.Random, sent: list[Packet]) -> str:
    """Plant a fault; what the prover says of it, `sent` where a packet that shows it was."""
    options = arena.options(line)
    plan = build(options).rulesets
    family = chance.choice(FAMILIES)
    planned = next(each for each in plan if each.family == family)
    what, mutant = chance.choice(list(mutations(planned)))
    mutated = tuple(mutant if each is planned else each for each in plan)
    simulation = Simulation(arena, options)
    facts = arena.facts()

    def fared(rules: Ruleset, packet: Packet) -> tuple[object, ...]:
        return fate(travel(rules, packet, facts, simulation.envoy, ""))

    result = differences_between(planned, mutant, options, facts, simulation.envoy)
    differing = [packet for packet, _, _ in itertools.islice(result, MOST_LOOKED_AT)]
    try:
        load(arena, options, mutant)
        simulation.look_again(mutated)
        if not differing:
            for packet in (simulation.placed(each) for each in sent if each.family == family):
                if with_fault := simulation.first(packet):
                    assert fate(with_fault) == fared(planned, packet), f"{what}: {packet}"
            simulation.finish()
            return "changes nothing"
        packet = next((each for each in differing if can_be_sent(each, facts)), differing[0])
        without = fared(planned, packet)
        assert fared(mutant, packet) != without, f"{what}: {packet}"
        if not can_be_sent(packet, facts):
            return "reported"
        assert fate(simulation.check(packet)) != without, f"{what}: {packet}"
        load(arena, options, planned)
        arena.pod.namespace.completed("conntrack", "-F")
        simulation.look_again(plan)
        assert fate(simulation.check(packet)) == without, f"{what}: {packet}"
    finally:
        # What iptables-restore wrote bears no signature: the next plan must not find it.
        load(arena, options, emptied(planned))
    return "sent"


@settings(
    max_examples=80, deadline=None, phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck)
)
@given(line=command_lines())
def test_the_promises_hold_for_random_options(line: str) -> None:
    options = options_of(f"--enable-ipv6 {line}")
    about = subject(options, Where(), pod_addresses(""))
    facts = with_interfaces(about.facts, options, POD.values())
    faults = prove(options, about.rulesets, facts, about.envoy).faults
    if 0 in options.proxy_uid and options.istio_inbound_interception_mode == "TPROXY":
        # Envoy is root then, and root is what the rules take for the proxy: its way to the app is a loop.
        faults = tuple(fault for fault in faults if fault.packet.uid != 0)
    assert [fault for fault in faults if not fault.known_cause] == []


def test_the_command_proves_what_a_namespace_holds(namespace: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-u", "1337", "-i", "*", "-b", "*", "--enable-ipv6"]
    namespace.inside(lambda: applied(options_of("-i '*' -b '*' --enable-ipv6")))
    question = ["prove", *flags, "--live", "--netns", namespace.path, "--output", "json"]
    assert main(question, {}) == 0
    assert json.loads(capsys.readouterr().out)["claims"][-1] == AS_PLANNED
    namespace.run("iptables-legacy", "-t", "nat", "-I", "OUTPUT", "-p", "udp", "-j", "ACCEPT")
    assert main(question, {}) == 0
    capsys.readouterr()
    namespace.run("ip6tables-legacy", "-t", "nat", "-D", "ISTIO_OUTPUT", "1")
    assert main(question, {}) == 1
    broken = {fault["claim"] for fault in json.loads(capsys.readouterr().out)["faults"]}
    assert broken == {"Envoy reaches its own app", AS_PLANNED}
