"""The options that a namespace's rules were made from, where a command line gives none.

They come from the CNI plugin's record of the sandbox, or else from the rules themselves (planning/infer.py).
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from istio_init.cli.given_options import SHAPING, given_options
from istio_init.cni.plugin import sandbox_state
from istio_init.errors import InitError
from istio_init.kernel.host.netns import inode
from istio_init.model.rules import FAMILIES
from istio_init.options.arguments import arguments
from istio_init.options.table import OPTIONS, Options
from istio_init.planning.infer import infer
from istio_init.record import Record
from istio_init.runner import access, backends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel import Firewall
    from istio_init.log import Log
    from istio_init.model.rules import Ruleset
    from istio_init.planning.infer import Inference

# How an option's backend is asked for.
_BY_BACKEND: dict[str, dict[str, object]] = {
    "legacy": {"force_iptables_binary": "legacy"},
    "nft": {"force_iptables_binary": "nft"},
    "native": {"native_nftables": True},
}
# What a command line that makes rules need not say.
_WITHOUT_EFFECT = "--log_output_level="


class TableReading(Record):
    """Istio's rules in one backend's tables, and the options that they speak of."""

    backend: str
    inference: Inference
    rulesets: tuple[Ruleset, ...] = ()


class Origin(Record):
    """Options, and where they come from in words."""

    options: Options
    source: str


def resolved(options: Options, log: Log, rulesets: tuple[Ruleset, ...] | None = None) -> Options:
    """The options as given; where none were given that shape the rules, those that the namespace's rules come from.

    The log says from where they are. `rulesets` are those of a dump, in the place of the namespace's. Where the
    namespace can't be read the options stay as they are: the verb itself says why.
    """
    if given_options.get():
        return options
    try:
        origin = _of_dump(options, rulesets) if rulesets is not None else _of_namespace(options)
    except InitError:
        return options
    if origin is None:
        return options
    log.info(f"options: {origin.source}: {command_line(origin.options)}")
    return origin.options


def _of_dump(options: Options, rulesets: tuple[Ruleset, ...]) -> Origin | None:
    inference = read_dump(rulesets)
    return None if inference is None else Origin(with_run(inference.options, options), _inferred(inference, "the dump"))


def _of_namespace(options: Options) -> Origin | None:
    """The plugin's record of the namespace, or what its rules speak of; None where there is neither."""
    with access.namespace(options):
        if (state := recorded(inode())) and state.options is not None:
            source = f"the CNI plugin's record of {state.namespace}/{state.pod}"
            return Origin(with_run(state.options, options), source)
        reading = next(readings(options), None)
        if reading is None:
            return None
        return Origin(
            with_run(in_backend(reading, options), options),
            _inferred(reading.inference, f"the {reading.backend} tables"),
        )


def _inferred(inference: Inference, where: str) -> str:
    left = len(inference.differences) + len(inference.missing)
    return f"inferred from {where}" + (f" (differences: {left})" if left else "")


def recorded(netns: int) -> sandbox_state.SandboxState | None:
    """The CNI plugin's record of the sandbox with this network namespace (its inode), if there is one.

    The path in it must still lead there: the kernel gives the inode of a namespace that is gone to a new one.
    """
    try:
        containers = sandbox_state.containers()
    except sandbox_state.SandboxStateError:
        return None
    for container in containers:
        try:
            state = sandbox_state.read(container)
            if state is not None and state.inode == netns == access.namespace_number(state.netns):
                return state
        except InitError:
            continue
    return None


def readings(options: Options) -> Iterator[TableReading]:
    """What the tables of each backend in the calling thread's namespace speak of, the one that a run uses first."""
    tables = backends.tables()
    chosen, _ = backends.choose(options, tables)
    is_named = options.native_nftables or options.force_iptables_binary
    existing = sorted(backends.existing(options, tables), key=lambda each: each[0] != chosen)
    routing = access.router().read()
    for name, firewall in existing:
        if is_named and name != chosen:
            continue
        rulesets = _rules(firewall)
        inference = infer(rulesets, routing, native=name == "native")
        if inference is not None:
            yield TableReading(name, inference, rulesets)


def _rules(firewall: Firewall) -> tuple[Ruleset, ...]:
    return tuple(firewall.read(family) for family in FAMILIES)


def read_dump(rulesets: tuple[Ruleset, ...]) -> Inference | None:
    """What the rules of a dump speak of, as iptables keeps them, or as the sets of nftables do."""
    inferences = [each for native in (False, True) if (each := infer(rulesets, native=native)) is not None]
    return min(inferences, key=lambda each: len(each.differences), default=None)


def in_backend(reading: TableReading, options: Options) -> Options:
    """The options that were read, for the backend in whose tables the rules are."""
    inferred = reading.inference.options
    chosen, _ = backends.choose(options.replace(enable_ipv6=inferred.enable_ipv6))
    return inferred if chosen == reading.backend else inferred.replace(**_BY_BACKEND[reading.backend])


def with_run(shaped: Options, options: Options) -> Options:
    """The options that shape rules, with the others as they were given."""
    shaping = {each.field for each in SHAPING} | {"native_nftables", "force_iptables_binary"}
    kept = {each.field: getattr(options, each.field) for each in OPTIONS if each.field not in shaping}
    backend = {
        field: value for field in ("native_nftables", "force_iptables_binary") if (value := getattr(options, field))
    }
    return shaped.replace(**kept, **backend)


def command_line(options: Options) -> str:
    """The command that makes the rules of these options, as a shell takes it."""
    return shlex.join(words(options))


def words(options: Options) -> tuple[str, ...]:
    """The same as words."""
    plain = options.replace(network_namespace="", log_output_level="info", log_as_json=False, log_target=())
    return ("istio-iptables", *(each for each in arguments(plain) if not each.startswith(_WITHOUT_EFFECT)))
