"""Capture by eBPF against real netfilter: two pods that are alike, one with Istio's rules and one without any.

Every connection ends at the same listener, with the same addresses seen by everybody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from integration.kit.compared_pod import ENVOY, USERS, Outcome, Side, calls, calls_for_callers, calls_in, questions
from integration.kit.ebpf_node import EbpfNode
from integration.kit.endpoints import ROOT, User
from integration.kit.pod import Pod, options_of
from istio_init.log import Log
from istio_init.model.parsers import ALL, is_loopback
from istio_init.model.rules import FAMILIES, IPV4
from istio_init.planning.capture import uses_tproxy
from istio_init.runner import socket_capture

if TYPE_CHECKING:
    from integration.kit.callers import Call
    from istio_init.model.rules import Network
    from istio_init.options.table import Options


ports = st.lists(
    st.sampled_from(["53", "80", "443", "8080", "9000", "15008", "15090", "8000-9000"]), min_size=1, max_size=3
)
nets = st.lists(
    st.sampled_from(
        [
            *("10.77.0.0/24", "10.78.0.2", "203.0.113.0/24", "10.99.0.1/32", "127.0.0.0/8", "0.0.0.0/0", "10.0.0.0/8"),
            *("fd77::/64", "fd99::1", "2001:db8::/32", "::1", "::/0"),
        ]
    ),
    min_size=1,
    max_size=3,
)
ids = st.lists(st.sampled_from(["1337", "1000", "1001", "0"]), min_size=1, max_size=3)
groups = st.lists(st.sampled_from(["1000", "1002", "1337"]), min_size=1, max_size=2)
servers = st.lists(st.sampled_from(["10.77.0.1", "203.0.113.9", "fd77::1"]), min_size=1, max_size=2)


def maybe(flag: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """The flag with a value, or nothing."""
    return st.just([]) | values.map(lambda value: [flag, value])


def joined(values: st.SearchStrategy[list[str]]) -> st.SearchStrategy[str]:
    """A comma list."""
    return values.map(",".join)


configurations = st.tuples(
    st.sampled_from([[], ["-m", "TPROXY"]]),
    st.sampled_from([["-b", "*"], ["-b", "*"], ["-b", "8080,15090"], []]),
    st.sampled_from([["-i", "*"], ["-i", "*"], []]) | maybe("-i", joined(nets)),
    maybe("-d", joined(ports)),
    maybe("-x", joined(nets)),
    maybe("-q", joined(ports)),
    maybe("-o", joined(ports)),
    maybe("-u", joined(ids)),
    maybe("-g", joined(ids)),
    maybe("--istio-outbound-owner-groups", joined(groups)),
    maybe("--istio-outbound-owner-groups-exclude", joined(groups)),
    maybe("--istio-outbound-ipv4-loopback-cidr", st.just("127.0.0.0/8")),
    st.sampled_from([[], [], ["--redirect-dns", "--capture-all-dns"]])
    | servers.map(lambda each: ["--redirect-dns", "--dns-servers", ",".join(each)]),
    st.sampled_from([["--enable-ipv6"], ["--enable-ipv6"], ["--no-enable-ipv6"]]),
).map(lambda parts: " ".join(f"'{word}'" for part in parts for word in part))


class Difference(NamedTuple):
    """A connection that ends otherwise with rules than by eBPF."""

    user: User
    call: Call
    with_rules: Outcome
    by_ebpf: Outcome


# What fails is printed whole; to shrink it would take minutes.
@settings(max_examples=12, phases=(Phase.explicit, Phase.generate))
@given(configuration=configurations)
def test_every_connection_ends_as_with_rules(node: EbpfNode, configuration: str) -> None:
    assert list(differences(node, configuration)) == []


def differences(node: EbpfNode, configuration: str) -> Iterator[Difference]:
    """Make every connection, with rules and by eBPF."""
    with contextlib.ExitStack() as stack:
        ruled, captured = (Side(stack.enter_context(Pod(IPV4))) for _ in range(2))
        ruled.pod.apply(configuration)
        chosen = options_of(configuration).replace(
            capture_backend="ebpf", network_namespace=captured.pod.namespace.path
        )
        socket_capture.add(chosen, node.installation, Log("none"))
        agent = User(chosen.proxy_uid[0], (chosen.proxy_gid or chosen.proxy_uid)[0])
        for side in (ruled, captured):
            side.start(stack, agent, transparent=uses_tproxy(chosen))
        for user, call in every_call(for_callers=reaches_app(chosen)):
            with_rules, by_ebpf = ruled.outcome(user, call), captured.outcome(user, call)
            if with_rules != by_ebpf:
                yield Difference(user, call, with_rules, by_ebpf)


def reaches_app(options: Options) -> bool:
    """Whether the proxy can call the app in a caller's name. Rules that redirect it to itself lose its connections."""
    redirected = ENVOY.uid in options.proxy_uid or any(map(is_loopback, networks(options)))
    return uses_tproxy(options) and bool(options.istio_inbound_ports) and not redirected


def networks(options: Options) -> tuple[Network, ...]:
    return () if options.istio_service_cidr == ALL else options.istio_service_cidr


def every_call(*, for_callers: bool) -> Iterator[tuple[User, Call]]:
    """Who makes which call; those of root come from outside."""
    for family in FAMILIES:
        for user in USERS:
            yield from ((user, call) for call in (*calls(family), *questions(family)))
        if for_callers:
            yield from ((ENVOY, call) for call in calls_for_callers(family))
        yield from ((ROOT, call) for call in calls_in(family))
