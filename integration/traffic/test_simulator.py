"""The simulator is right: random packets through random plans, and what the kernel did to each is what trace.py says.

For each backend's rules. Compared are all rules that the packet meets, and the chains' ends, in order, as the kernel
traces them; at each end (delivered, sent) the destination, port, mark, interface, conntrack zone and connection mark;
and, behind many packets, every counter. Hypothesis shrinks what differs; what it once found is below.
"""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import product
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from integration.kit.arena import Arena
from integration.kit.asking import ask
from integration.kit.backends import BACKENDS
from integration.kit.namespace import Namespace
from integration.kit.nflog import Logged
from integration.kit.pod import ADDRESSES, APP, PROXY, Pod, applied, options_of
from integration.kit.raw_packets import ACK, SYN, SYN_ACK, SYN_FIN
from integration.kit.witnesses import Counted
from istio_init.cli.app import main
from istio_init.model.packet import LOOPBACKS, Packet
from istio_init.model.rules import IPV4, IPV6, TCP, UDP
from istio_init.simulate.path import Leg, RoutingDecision, proxy, travel
from istio_init.simulate.path import routed as route

if TYPE_CHECKING:
    from istio_init.model.rules import Family, Ruleset
    from istio_init.options.table import Options

OTHER_PROTOCOL = 200
PORTS = (22, 53, 80, 443, 4000, 4003, 9080, 15001, 15006, 15008, 15053, 15090)
UIDS, GIDS = (0, 1000, 1337, 1338), (0, 1000, 1337, 1338, 888)
MARKS = (0, 0, 0, 1337, 1338, 0x111)
SERVERS = {IPV4: "10.99.0.53", IPV6: "fd99::53"}
FAR = {IPV4: ("10.99.0.1", "10.1.2.3", "203.0.113.9"), IPV6: ("fd99::1", "2001:db8::9", "2001:db8:1::1")}

lists = {
    "-i": ("*", "10.0.0.0/8", "10.1.0.0/16,2001:db8::/32", "127.0.0.0/8", "::1"),
    "-x": ("10.1.0.0/16", "10.99.0.53,fd99::/64", "0.0.0.0/0"),
    "-b": ("*", "*", "*", "80,4000-4003", "53"),
    "-d": ("15090,22", "4000:4003"),
    "-o": ("443", "53,4000-4003"),
    "-q": ("80", "443,53"),
    "-c": ("veth1", "veth+", "lo"),
    "-k": ("veth1", "veth0,veth1"),
    "-u": ("1337,1338", "0"),
    "-g": ("1337,1338", "888"),
    "-t": ("0x111",),
    "--istio-outbound-owner-groups": ("888", "888,1000", "''"),
    "--istio-outbound-owner-groups-exclude": ("888",),
    "--istio-outbound-ipv4-loopback-cidr": ("127.0.0.0/8",),
}  # fmt: skip
switches = ("--drop-invalid", "--compat-version 1.13")
dns = ("", "", "--redirect-dns --dns-servers 10.99.0.53,fd99::53", "--redirect-dns --dns-servers 10.99.0.53",
       "--redirect-dns --capture-all-dns")  # fmt: skip


@st.composite
def command_lines(draw: st.DrawFn) -> str:
    """Options of every kind that shapes the rules."""
    parts = [draw(st.sampled_from(dns)), draw(st.sampled_from(("", "-m TPROXY")))]
    for flag, choices in lists.items():
        common = flag in {"-i", "-b"}
        if draw(st.integers(0, 3)) < (3 if common else 1):
            parts.append(f"{flag} {draw(st.sampled_from(choices))}")
    parts += [switch for switch in switches if draw(st.integers(0, 4)) == 0]
    return " ".join(part for part in parts if part)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    """A packet that the pod sends, or that comes to it; its source port is the arena's to choose where it is 0."""
    family: Family = draw(st.sampled_from((IPV4, IPV6)))
    own = ADDRESSES[family]
    here = (own.pod, own.second_pod, own.loopback, own.passthrough)
    far = (*FAR[family], SERVERS[family])
    near = (own.peer, own.second_peer)
    protocol = draw(st.sampled_from((TCP, TCP, TCP, UDP, UDP, OTHER_PROTOCOL)))
    state = draw(st.sampled_from(("NEW", "NEW", "NEW", "INVALID"))) if protocol == TCP else "NEW"
    port = 0 if protocol == OTHER_PROTOCOL else draw(st.sampled_from(PORTS))
    source_port = 0 if draw(st.integers(0, 9)) else draw(st.sampled_from((53, 15053)))
    if draw(st.booleans()):
        source = draw(st.sampled_from((own.pod, own.pod, own.second_pod, own.loopback, own.passthrough, far[0])))
        destination = draw(st.sampled_from((*here, *far, *near)))
        return Packet(
            "OUTPUT", protocol, packed(source), packed(destination), source_port, port, uid=draw(st.sampled_from(UIDS)),
            gid=draw(st.sampled_from(GIDS)), mark=draw(st.sampled_from(MARKS)), ctstate=state,
        )  # fmt: skip
    source = draw(st.sampled_from((*far, own.peer, *far, own.peer, *here)))
    destination = draw(st.sampled_from((own.pod, own.pod, *here, far[1])))
    interface = draw(st.sampled_from(("veth0", "veth0", "veth1")))
    return Packet(
        "PREROUTING",
        protocol,
        packed(source),
        packed(destination),
        source_port,
        port,
        in_interface=interface,
        ctstate=state,
    )


def packed(address: str) -> bytes:
    return inet_pton(AF_INET6 if ":" in address else AF_INET, address)


class Simulation:
    """Sends packets through one plan and holds what happens against what the simulator says.

    What each rule has counted in the end is asked by `finish`.
    """

    def __init__(self, arena: Arena, options: Options) -> None:
        self._arena, self._options, self.envoy = arena, options, proxy(options)
        self._begin(arena.apply(options))
        self._facts = arena.facts()
        self._ports = iter(range(20000, 60000))
        self._used: set[tuple[object, ...]] = set()
        self.count = 0

    def look_again(self, expecting: tuple[Ruleset, ...]) -> None:
        """See what rules exist now that somebody else wrote these."""
        self._begin(self._arena.look_again(self._options, expecting))

    def _begin(self, rules: dict[Family, Ruleset]) -> None:
        self._rules = rules
        self._before, self._counted = self._arena.witness.counters(), Counter[Counted]()

    def finish(self) -> None:
        """Hold the rules' counters against what the simulator says of all packets that were sent."""
        assert self._arena.witness.counters() - self._before == self._counted

    def converse(self, packet: Packet) -> None:
        """Send a packet, the answer to it, and one more, where such a conversation is possible."""
        packet = self.placed(packet)
        leg = self.first(packet)
        if leg is None:
            return
        if leg.end in {"dropped", "undecided", "forwarded"} or packet.ctstate != "NEW" or leg.arrived.zone:
            return
        if packet.protocol == OTHER_PROTOCOL or {53, 15053} & {packet.source_port, packet.destination_port}:
            return
        if leg.end == "wire" and packet.source == LOOPBACKS[IPV6]:
            return  # nobody can answer that over a wire
        recorded = {"ctstate": "ESTABLISHED", "connmark": leg.arrived.connmark, "redirected": leg.arrived.redirected}
        called = (packet.destination, packet.destination_port) if leg.arrived.redirected else None
        answered = self.check(_answer(leg).replace(**recorded, reply=True, called=called), SYN_ACK)
        if answered.end != "dropped":
            recorded["connmark"] = answered.arrived.connmark
            self.check(packet.replace(**recorded), ACK)

    def first(self, packet: Packet) -> Leg | None:
        """Send the first packet of a connection; None where one between these ends was sent before."""
        # One connection is looked at once, whichever side began it; without a port of its own, one between two hosts.
        own = packet.source_port not in {0, 53, 15053}
        ports = (packet.source_port, packet.destination_port) if own else (0, 0)
        ends = frozenset(zip((packet.source, packet.destination), ports, strict=True))
        if (packet.protocol, ends) in self._used:
            return None
        self._used.add((packet.protocol, ends))
        return self.check(packet, SYN_FIN if packet.ctstate == "INVALID" else SYN)

    def placed(self, packet: Packet) -> Packet:
        """The packet with a source port of its own, and, if the pod sends it, with the interface that it leaves by."""
        if not packet.source_port and packet.protocol != OTHER_PROTOCOL:
            packet = packet.replace(source_port=next(self._ports))
        return self._leaving(packet) if packet.hook == "OUTPUT" else packet

    def _leaving(self, packet: Packet) -> Packet:
        placed = route(packet, self._facts).packet
        own = ADDRESSES[packet.family]
        second = packed(own.second_peer)
        if placed.out_interface == "veth0" and packet.destination == second:
            return placed.replace(out_interface="veth1")
        return placed

    def check(self, packet: Packet, flags: int = SYN) -> Leg:
        """Send one packet, and hold what happens against what the simulator says; returns that."""
        if packet.hook == "OUTPUT" and not packet.out_interface:
            packet = self._leaving(packet)
        leg = travel(self._rules[packet.family], packet, self._facts, self.envoy, "")
        witness = self._arena.witness
        hook_trace, ends = witness.expected(leg.traces, packet.family), list(_ends(leg))
        result, logged = self._arena.send(packet, flags, hook_trace, len(ends))
        assert (result, [_comparable(each, packet) for each in logged]) == (
            hook_trace,
            [_comparable(each, packet) for each in ends],
        ), spelled(packet)
        self._counted.update(witness.counting(hook_trace, packet.family))
        self.count += 1
        return leg


def _answer(leg: Leg) -> Packet:
    """The packet that answers one that arrived: from where it went to, to where it came from."""
    first, arrived = leg.packet, leg.arrived
    ends = (arrived.destination, first.source, arrived.destination_port, first.source_port)
    if leg.end == "wire":
        return Packet("PREROUTING", first.protocol, *ends, in_interface=arrived.out_interface)
    return Packet("OUTPUT", first.protocol, *ends, uid=1000, gid=1000)


def _ends(leg: Leg) -> Iterator[Logged]:
    for each in leg.passed:
        if not isinstance(each, RoutingDecision) and each.hook in {"INPUT", "POSTROUTING"} and each.outcome == "ACCEPT":
            packet = each.packet
            interface = packet.in_interface if each.hook == "INPUT" else packet.out_interface
            recorded = "" if packet.ctstate == "INVALID" else f"{packet.zone}/{packet.connmark}"
            yield Logged(each.hook, packet.destination, packet.destination_port, packet.mark, interface, recorded)


def _comparable(end: Logged, packet: Packet) -> Logged:
    """What there is to compare: no port of a protocol without."""
    return end._replace(port=0) if packet.protocol == OTHER_PROTOCOL else end


def spelled(packet: Packet) -> str:
    """A packet as a test of its own would make it."""
    family = AF_INET if packet.family == IPV4 else AF_INET6
    return f"{packet} ({inet_ntop(family, packet.source)} -> {inet_ntop(family, packet.destination)})"


@pytest.fixture(scope="module", params=BACKENDS)
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    with Arena(request.param) as instance:
        yield instance


# Longer than in CI: SIMULATOR_EXAMPLES=2000 pytest integration/traffic/test_simulator.py --hypothesis-seed=7
EXAMPLES = int(os.environ.get("SIMULATOR_EXAMPLES", "30"))
# Of the packets of one example.
FEWEST, MOST = 30, 60


def test_the_kernel_does_what_the_simulator_says(arena: Arena) -> None:
    sent = 0

    @settings(
        max_examples=EXAMPLES, deadline=None, phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(line=command_lines(), some=st.lists(packets(), min_size=FEWEST, max_size=MOST))
    def look(line: str, some: list[Packet]) -> None:
        nonlocal sent
        simulation = Simulation(arena, arena.options(line))
        for packet in some:
            simulation.converse(packet)
        simulation.finish()
        sent += simulation.count

    look()
    assert sent > EXAMPLES * FEWEST


def give_a_route(namespace: Namespace) -> None:
    """A way out by eth0 in both families: without one the kernel drops what is asked about."""
    namespace.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far")
    for name in ("far", "eth0"):
        namespace.run("ip", "link", "set", name, "up")
    for address, gateway in (("192.0.2.10/24", "192.0.2.1"), ("2001:db8::a/64", "2001:db8::1")):
        namespace.run("ip", "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        namespace.run("ip", "route", "add", "default", "via", gateway, "dev", "eth0")


def test_the_command_asks_the_kernel(namespace: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    namespace.run(
        "iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-m", "bpf", "--bytecode", "1,6 0 0 0", "-j", "ACCEPT"
    )
    give_a_route(namespace)
    chosen = options_of("-i '*' -b '*' --enable-ipv6")
    namespace.inside(lambda: applied(chosen))
    question = ["explain", "--outbound", "--to", "10.1.2.3:443", "--live", "--output", "json"]
    process = namespace.start("sleep", "60")
    try:
        while os.stat(f"/proc/{process.pid}/ns/net").st_ino != os.stat(namespace.path).st_ino:
            pass  # ip(8) becomes the command once it is inside
        for where in (["--netns", namespace.path], ["--pid", str(process.pid)]):
            assert main([*question, *where], {}) == 0
            legs = json.loads(capsys.readouterr().out)["legs"]
            assert [leg["end"] for leg in legs] == ["undecided"]
            assert '-m bpf --bytecode "1,6 0 0 0" is not known to this program' in legs[0]["fate"]
    finally:
        process.kill()
        process.communicate()
    namespace.run("iptables-legacy", "-t", "nat", "-D", "OUTPUT", "1")
    assert main([*question, "--netns", namespace.path], {}) == 0
    assert [leg["end"] for leg in json.loads(capsys.readouterr().out)["legs"]] == ["outbound", "wire"]


# Addresses that the kernel reads, or answers for, in a manner of its own; the last is a second one of veth0's network.
OF_ITS_OWN = {
    IPV4: ("127.0.0.6", "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.77.0.2", "10.78.0.2", "10.77.0.3"),
    IPV6: ("::6", "::1", "::", "fd77::2", "fd78::2", "fd77::3"),
}


@pytest.mark.parametrize("family", OF_ITS_OWN)
def test_a_connection_has_the_ends_that_the_command_tells(family: Family) -> None:
    """The kernel chooses the source where nobody does, and what the unspecified address means."""
    with Pod(family) as pod:
        second = OF_ITS_OWN[family][-1]
        bits, *nodad = ("64", "nodad") if family == IPV6 else ("24",)
        pod.namespace.run("ip", "address", "add", f"{second}/{bits}", "dev", "veth0", *nodad)
        pod.apply("-i '*' -b '*'")
        for name, port in (("outbound", 15001), ("inbound", 15006), ("application", 8080)):
            pod.listen(name, port)
        for to, source, user in product(OF_ITS_OWN[family], ("", pod.addresses.pod), (PROXY, APP)):
            arrival = pod.dial(user, (to, 8080), (source, 0) if source else None)
            assert arrival.source
            assert arrival.answered
            question = f"--to {f'[{to}]' if family == IPV6 else to}:8080 --uid {user.uid}"
            question += f" --from {source}" if source else ""
            request = f"explain --outbound {question} -u 1337 --live --output json"
            [leg, *_] = ask(pod.namespace, *request.split()).document["legs"]
            report = (leg["packet"]["source"], leg["packet"]["destination"], leg["end"])
            assert report == (arrival.source[0], arrival.answered[0], arrival.at), question


LISTS = "-i '*' -b '*' -d 15020,15021,15090 -x 10.0.0.0/8,11.0.0.0/8"
QUESTIONS = ("explain --inbound --from 192.0.2.9 --to :15021", "explain --outbound --to 11.1.2.3:443")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_command_tells_the_same_of_each_backend(namespace: Namespace, backend: str) -> None:
    """Native nftables has the lists as sets; each of their members is told as the rule that it stands for."""
    give_a_route(namespace)
    flags = shlex.split(f"-u 1337 --enable-ipv6 {LISTS}")
    namespace.inside(lambda: applied(options_of(f"{shlex.join(BACKENDS[backend])} --enable-ipv6 {LISTS}")))
    for question in QUESTIONS:
        request = [*question.split(), *flags, "--output", "json"]
        live = ask(namespace, *request, *BACKENDS[backend], "--live")
        assert live.document == ask(namespace, *request).document
        decided = [
            step for hook in live.document["legs"][0]["way"] for step in hook.get("steps", ()) if step.get("matched")
        ]
        assert [step["purpose"] is None for step in decided] == [False] * 2
    proof = ["prove", *flags, *BACKENDS[backend], "--live", "--output", "json"]
    assert ask(namespace, *proof).document["faults"] == []
    delete(namespace, backend)
    broken = ask(namespace, *proof)
    assert broken.code == 1
    fates = [fault["explain"]["legs"][0]["packet"]["destination_port"] for fault in broken.document["faults"]]
    assert set(fates) == {15021}


def delete(namespace: Namespace, backend: str) -> None:
    """Take the exception for port 15021 out of what stands for IPv4."""
    if backend != "native":
        rule = "ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN"
        namespace.run(f"iptables-{backend}", "-w", "-t", "nat", "-D", *rule.split())
        return
    [rule] = [
        item["rule"]
        for item in json.loads(namespace.run("nft", "-j", "list", "chain", "inet", "istio-proxy-nat", "istio-inbound"))[
            "nftables"
        ]
        if "rule" in item and "15090" in json.dumps(item)
    ]
    namespace.run("nft", "replace", "rule", "inet", "istio-proxy-nat", "istio-inbound", "handle", f"{rule['handle']}",
                  "tcp", "dport", "{", "15008,", "15020,", "15090", "}", "counter", "return")  # fmt: skip
