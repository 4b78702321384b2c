"""Tests what this kernel supports by applying it in a temporary network namespace of its own.

Querying a legacy table creates it, so only creating one shows whether the kernel supports it. A forked child makes a
new network namespace, in a new user namespace if it may, has each backend write the rules there, and exits; its
namespaces end with it. If a sandbox forbids that, only trials without side effects run here, and the others stay
unknown.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
from typing import TYPE_CHECKING

from istio_init.errors import InitError, KernelError
from istio_init.kernel.host.libc import function, get_errno, library
from istio_init.kernel.host.netns import CLONE_NEWNET
from istio_init.kernel.netlink.nfnetlink import NfnetlinkChannel
from istio_init.kernel.netlink.router import Rtnetlink
from istio_init.kernel.nft import compat_modules
from istio_init.kernel.nft.compat import IptablesNft
from istio_init.kernel.nft.native import Nftables
from istio_init.kernel.xtables import refusal
from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.kernel.xtables.required_modules import extensions
from istio_init.kernel.xtables.sockopt import StepError, TableSocket
from istio_init.kernel.xtables.table_names import existing_tables
from istio_init.model.routing import command
from istio_init.model.rules import LOOPBACK_INTERFACE, Chain, Jump, Owner, Rule, Ruleset, Table, Verdict, ordered
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from istio_init.kernel import Firewall
    from istio_init.kernel.nft.compat_modules import Extension, Kind
    from istio_init.model.routing import PolicyRule, Route
    from istio_init.model.rules import Family


CLONE_NEWUSER = 0x10000000  # <linux/sched.h>
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # <linux/sockios.h>, <linux/if.h>
_INTERFACE = struct.Struct("=16sh22x")  # struct ifreq, as far as flags go


class Trial(Record):
    """The result for one thing that a backend needs: a table, match or target, or a routing entry.

    `works` is None where it could not be asked. `why` is what was said against it.
    """

    backend: str
    family: Family
    kind: str
    name: str
    works: bool | None
    why: str = ""


class TrialScope(Record):
    """Where trials run: in a temporary namespace (`scratch`), or here, where some are left out."""

    scratch: bool
    may_ask: bool = True


def rehearse(
    rulesets: tuple[Ruleset, ...], routing: tuple[PolicyRule | Route, ...], *, may_ask: bool
) -> tuple[tuple[Trial, ...], str]:
    """All trials, and why no temporary namespace could be created; empty if it was.

    `may_ask` says whether we have NET_ADMIN here, without which the kernel tells nothing of its extensions.
    """
    harmless = tuple(map(_rootly, rulesets))

    def work() -> list[list[Any]]:
        return [_fields(trial) for trial in _trials(harmless, routing, TrialScope(scratch=True))]

    why, answers = _in_scratch(work, may_ask=may_ask)
    if not why:
        return tuple(Trial(*fields) for fields in answers), ""
    return tuple(_trials(rulesets, routing, TrialScope(False, may_ask))), why


def _fields(trial: Trial) -> list[Any]:
    return [trial.backend, trial.family, trial.kind, trial.name, trial.works, trial.why]


def loopback_up(*, change: bool = False) -> bool:
    """Whether the loopback interface is up; with `change` it is brought up first. False if that is unknown."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            if change:
                fcntl.ioctl(any_socket, SIOCSIFFLAGS, _INTERFACE.pack(LOOPBACK_INTERFACE.encode(), IFF_UP))
            answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, _INTERFACE.pack(LOOPBACK_INTERFACE.encode(), 0))
    except OSError:
        return False
    return bool(_INTERFACE.unpack(answer)[1] & IFF_UP)


def _in_scratch(work: Callable[[], list[list[Any]]], *, may_ask: bool) -> tuple[str, list[list[Any]]]:
    """Call `work` in a new namespace, in a child process. Returns why there was none, and the results, as JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            why = _leave(may_ask=may_ask)
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                json.dump((why, [] if why else work()), pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        report = pipe.read()
    os.waitpid(child, 0)
    if not report:
        return "the child that was to try things out ended early", []
    why, answers = json.loads(report)
    return why, answers


def _leave(*, may_ask: bool) -> str:
    """Enter a new network namespace with lo up; returns why that failed, empty if it did not.

    In a new user namespace the process has every capability, so that one takes precedence.
    """
    unshare = function(library(None), "unshare")
    uid, gid = os.geteuid(), os.getegid()
    try:
        if unshare(CLONE_NEWNET | CLONE_NEWUSER):
            number = get_errno()
            if not may_ask or unshare(CLONE_NEWNET):
                raise OSError(number, os.strerror(number))  # noqa: TRY301 (one way out)
        else:
            _become_root(uid, gid)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        return f"a network namespace to try things out in is refused: {error.strerror} ({name})"
    loopback_up(change=True)
    return ""


def _become_root(uid: int, gid: int) -> None:
    """Become root in a new user namespace: only root may read some files of /proc/net."""
    for name, line in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
            file.write(line)


def _rootly(ruleset: Ruleset) -> Ruleset:
    """The rules with root as every owner: the kernel rejects ids that the user namespace does not map."""
    tables = []
    for table in ruleset.tables:
        chains = tuple(chain.replace(rules=tuple(map(_rootly_rule, chain.rules))) for chain in table.chains)
        tables.append(table.replace(chains=chains))
    return ruleset.replace(tables=tuple(tables))


def _rootly_rule(rule: Rule) -> Rule:
    matches = (match.replace(low=0, high=0) if isinstance(match, Owner) else match for match in rule.matches)
    return rule.replace(matches=tuple(matches))


def _trials(
    rulesets: tuple[Ruleset, ...], routing: tuple[PolicyRule | Route, ...], place: TrialScope
) -> Iterator[Trial]:
    for ruleset in rulesets:
        required = _extensions(ruleset)
        yield from _legacy(ruleset, required, place)
        yield from _nft(ruleset, required, place)
        yield from _native(ruleset, required, place)
    for entry in routing:
        if place.scratch:
            yield _tried("routing", entry.family, "entry", command(entry), _adding(entry))
        else:
            yield Trial("routing", entry.family, "entry", command(entry), None)


def _adding(entry: PolicyRule | Route) -> Callable[[], None]:
    return lambda: Rtnetlink().replace((entry,))


def _tried(backend: str, family: Family, kind: str, name: str, attempt: Callable[[], None]) -> Trial:
    try:
        attempt()
    except InitError as error:
        return Trial(backend, family, kind, name, False, str(error))
    return Trial(backend, family, kind, name, True)


def _extensions(ruleset: Ruleset) -> dict[Extension, Table]:
    """Each extension of the rules, with a table of one rule that needs it and few others."""
    smallest: dict[Extension, tuple[Table, Chain, Rule]] = {}
    rules = [(table, chain, rule) for table in ruleset.tables for chain in table.chains for rule in chain.rules]
    for table, chain, rule in rules:
        for extension in extensions(rule, ruleset.family):
            if extension not in smallest or len(rule.matches) < len(smallest[extension][2].matches):
                smallest[extension] = table, chain, rule
    return {extension: _alone(*where) for extension, where in smallest.items()}


def _alone(table: Table, chain: Chain, rule: Rule) -> Table:
    if isinstance(rule.target, Jump):
        rule = rule.replace(target=Verdict("RETURN"))
    return Table(table.name, ordered(table.name, {chain.name: chain.replace(rules=(rule,))}))


def _tables(
    backend: str, ruleset: Ruleset, firewall: Firewall, there: tuple[str, ...], place: TrialScope
) -> Iterator[Trial]:
    """A trial for each table: written in a temporary namespace; elsewhere only its existence is checked."""
    for table in ruleset.tables:
        if place.scratch:
            yield _tried(backend, ruleset.family, "table", table.name, _writing(firewall, ruleset.family, table))
        else:
            yield Trial(backend, ruleset.family, "table", table.name, table.name in there or None)


def _writing(firewall: Firewall, family: Family, table: Table) -> Callable[[], None]:
    return lambda: firewall.replace(family, table)


def _legacy(ruleset: Ruleset, required: dict[Extension, Table], place: TrialScope) -> Iterator[Trial]:
    family = ruleset.family
    yield from _tables("legacy", ruleset, Libiptc(), existing_tables(family) or (), place)
    try:
        with TableSocket(family) as raw:
            for kind, name, revision in required:
                works = raw.knows(kind, name, revision) if place.may_ask else None
                yield Trial("legacy", family, kind, name, works, "" if works is not False else _unknown(kind, name))
    except StepError as error:
        why = str(refusal.explain(error, family, "", None))
        works = False if error.errno == errno.EAFNOSUPPORT else None
        yield from (Trial("legacy", family, kind, name, works, why) for kind, name, _ in required)


def _unknown(kind: Kind, name: str) -> str:
    return f"the kernel has no {kind} {name}: load the module {refusal.module(name)}"


def _nft(ruleset: Ruleset, required: dict[Extension, Table], place: TrialScope) -> Iterator[Trial]:
    family = ruleset.family
    yield from _tables("nft", ruleset, IptablesNft(), (), place)
    foreign = [extension for extension in required if compat_modules.uses_module(extension)]
    try:
        with NfnetlinkChannel() as channel:
            for extension in foreign:
                yield _query_compat(channel, family, extension)
    except KernelError as error:
        yield from (Trial("nft", family, kind, name, None, str(error)) for kind, name, _ in foreign)


def _query_compat(channel: NfnetlinkChannel, family: Family, extension: Extension) -> Trial:
    kind, name, _ = extension
    works = compat_modules.knows(channel, family, extension)
    if works is None:
        return Trial("nft", family, kind, name, None, "asking needs NET_ADMIN")
    why = "" if works else f"{_unknown(kind, name)}, and nft_compat, through which iptables-nft uses it"
    return Trial("nft", family, kind, name, works, why)


def _native(ruleset: Ruleset, required: dict[Extension, Table], place: TrialScope) -> Iterator[Trial]:
    """The kernel does not tell which expressions it supports: a rule is written for each match and target."""
    family, firewall = ruleset.family, Nftables()
    yield from _tables("native", ruleset, firewall, (), place)
    for (kind, name, _), table in required.items():
        if place.scratch:
            yield _tried("native", family, kind, name, _writing(firewall, family, table))
        else:
            yield Trial("native", family, kind, name, None)
