"""Anything at all, put to every parser of what others write: it is taken, or refused in one line that can be shown.

fuzz.py lets coverage guide what is tried; test_fuzz.py does without.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from istio_init import plan
from istio_init.cni.node import cri
from istio_init.cni.node.cri_pb2 import PodSandboxStatusResponse
from istio_init.cni.plugin import protocol
from istio_init.cni.plugin.settings import settings
from istio_init.errors import InitError, KernelError
from istio_init.errors_rare import SaveError, UsageError
from istio_init.formats import yaml_json
from istio_init.formats.iptables_restore import parse as load
from istio_init.formats.iptables_save import dump as dump_ruleset
from istio_init.formats.nft.layout import layout
from istio_init.inject.containers import InitSpec
from istio_init.inject.injector import inject, remove
from istio_init.kernel.host.grpc import GrpcError
from istio_init.kernel.nft.native_decode import read_table
from istio_init.kernel.nft.native_dump import TableDump, holds
from istio_init.kernel.nft.native_encode import TableEncoder
from istio_init.model.inet import InetTable
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from istio_init.options.table import OPTIONS
from istio_init.planning.preview import dump, dump_nftables
from tests.kit.nft_messages import dumped
from tests.kit.options import options
from tests.planning.cases import argv

VARIABLES = frozenset(variable for each in OPTIONS for variable in each.variables)


def shown_well(error: InitError) -> None:
    """An error is one line that a terminal can be given."""
    line = str(error)
    assert line
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 1000


def command_line(data: bytes) -> None:
    """A command line and an environment, NUL between their words: whatever is taken makes a plan that has a text."""
    words = data.decode("utf-8", "surrogateescape").split("\0")
    pairs = (word.partition("=") for word in words)
    environ = {name: value for name, equals, value in pairs if equals and name in VARIABLES}
    arguments = [word for word in words if word.partition("=")[0] not in environ]
    chosen = options(arguments, environ)
    if chosen is not None:
        desired = plan(chosen)
        assert plan(chosen) == desired
        for family in FAMILIES:
            ruleset = desired.ruleset(family)
            if ruleset is not None:
                assert load(dump_ruleset(ruleset), family) == ruleset
        assert dump(desired).isascii()
        dump_nftables(desired)


def save(data: bytes) -> None:
    """iptables-save text, its family chosen by the first byte: what is read is stable, what is not says why."""
    family = IPV6 if data[:1] > b"m" else IPV4
    try:
        ruleset = load(data[1:].decode("utf-8", "surrogateescape"), family)
    except SaveError as error:
        shown_well(error)
    else:
        again = load(dump_ruleset(ruleset), family)
        assert load(dump_ruleset(again), family) == again


def cni(data: bytes) -> None:
    """CNI_ARGS and a network configuration, NUL between them, as a runtime hands them to the plugin."""
    arguments, _, configuration = data.partition(b"\0")
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "a1",
        "CNI_NETNS": "/nowhere/at/all",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": arguments.decode("utf-8", "surrogateescape"),
    }
    try:
        settings(protocol.read(environ, configuration).members)
    except InitError as error:
        shown_well(error)
        json.loads(protocol.error_text(error, protocol.NEWEST))


def document(data: bytes) -> None:
    """YAML as Kubernetes writes it, for --from-pod."""
    try:
        yaml_json.load(data.decode("utf-8", "surrogateescape"))
    except ValueError:
        pass  # the document's reader says which it is


def injection(data: bytes) -> None:
    """A manifest that the init container is to go into: what goes in comes out again, to the same bytes."""
    text = data.decode("utf-8", "replace")
    try:
        done = inject(text, InitSpec({}))
    except UsageError as error:
        shown_well(error)
        return
    except ValueError as error:
        shown_well(UsageError(str(error)))
        return
    if "istio-" not in text:
        assert remove(done.text).text == text


def runtime(data: bytes) -> None:
    """A container runtime's answer to the request for a sandbox's status."""
    try:
        result = cri.status(cri.Sandbox("a1"), cri.parsed(PodSandboxStatusResponse, cri.STATUS, data))
    except GrpcError as error:
        shown_well(error)
        return
    assert isinstance(result.netns, str)
    assert result.pid >= 0


@cache
def nftables_dump() -> tuple[InetTable, TableDump]:
    """A table that an nftables target is tried in, as the kernel dumps it."""
    chosen = options(argv("article-tproxy"), {})
    assert chosen is not None
    table = layout(plan(chosen).rulesets, "mangle")
    return table, dumped(table)


def nftables(data: bytes) -> None:
    """A message of nftables, its kind chosen by the first byte, among those of a table: it is read, or refused."""
    table, dump = nftables_dump()
    field = ("chains", "rules", "sets", "elements")[data[0] % 4 if data else 0]
    if field == "elements":
        changed = dump.replace(elements=dict.fromkeys(dump.elements, (data[1:],)))
    else:
        changed = dump.replace(**{field: (data[1:], *getattr(dump, field))})
    try:
        read_table(table.name, changed)
    except KernelError as error:
        shown_well(error)
    assert not holds(changed, TableEncoder().encode(table))


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (command_line, save, cni, document, injection, nftables, runtime)
}
