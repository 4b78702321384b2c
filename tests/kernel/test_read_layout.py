"""What is read of a pod's entry in the maps is what was written there, for random options."""

from __future__ import annotations

from hypothesis import assume, given, settings

from integration.kit.command_lines import command_lines
from istio_init.kernel.ebpf import layout, read_layout
from istio_init.kernel.ebpf.pods import keys
from istio_init.model import parsers
from istio_init.model.socket_capture import SocketCapture
from istio_init.planning.captured_options import options_of
from istio_init.planning.socket_capture import refusals, socket_capture
from tests.kit.options import options

COOKIE = 0x1234_5678_9ABC_DEF0
ADDRESSES = parsers.addresses("10.1.2.3,10.1.2.4,fd00::3")
# What no run with this backend takes.
WITHOUT = {
    "istio_exclude_interfaces": (), "kube_virt_interfaces": (), "istio_inbound_exclude_cidr": (),
    "exclude_uids_for_ports": (), "rule_comments": False, "compat_version": "latest", "capture_backend": "ebpf",
    "network_namespace": "/n",
}  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(command_lines)
def test_an_entry_is_read_as_it_was_written(words: list[str]) -> None:
    result = options(words, {})
    assert result
    result = result.replace(**WITHOUT)
    assume(not list(refusals(result)))
    written = socket_capture(result, ADDRESSES)
    value = layout.pod_value(written)
    read = read_layout.capture(value, keys(COOKIE, written))
    assert (layout.pod_value(read), meaning(read)) == (value, meaning(written))
    again = socket_capture(options_of(read), ADDRESSES)
    assert (layout.pod_value(again), meaning(again)) == (value, meaning(written))


def meaning(capture: SocketCapture) -> list[frozenset[object]]:
    """The lists of a capture without their order, ports one by one: ranges that overlap are one when they are read."""
    ports = (capture.inbound_ports, capture.outbound_ports, capture.excluded_ports)
    others = (
        capture.addresses, capture.outbound_networks, capture.excluded_networks, capture.dns_servers,
        capture.groups or (), capture.excluded_groups,
    )  # fmt: skip
    expanded = (frozenset(number for each in listed for number in range(each.low, each.high + 1)) for listed in ports)
    return [*expanded, *map(frozenset, others)]
