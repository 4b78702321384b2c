"""Converts rules to and from python-iptables, by way of iptables-save's text.

libxtables parses each extension's options as formats/iptables_save.py writes them, and prints them for
formats/iptables_restore.py, so no struct of an extension is known here. Defects of python-iptables are worked around
where it is used; integration/kernel/test_python_iptables_defects.py fails when a release fixes it.
"""

from __future__ import annotations

import ctypes
import re
import socket
import sys

import iptc
from iptc.xtables import XTablesError, xt_align, xt_entry_match, xt_entry_target, xtables

from istio_init.errors import KernelError
from istio_init.errors_rare import SaveError
from istio_init.formats.addresses import network_text
from istio_init.formats.iptables_restore import parse as load
from istio_init.formats.iptables_save import rule_text
from istio_init.kernel.xtables.encode_match import HEAD
from istio_init.kernel.xtables.encode_rule import SIGNATURE, pack
from istio_init.kernel.xtables.ip_header import HEADER
from istio_init.model.rules import (
    IPV4,
    IPV6,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    OutInterface,
    Protocol,
    Rule,
    Source,
    SourcePorts,
    Verdict,
)
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from istio_init.model.rules import Family, Match, Target

_SIGNED = int.from_bytes(SIGNATURE, sys.byteorder)
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|([^ ]+)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_WITHOUT_VALUE = {"--save-mark", "--restore-mark"}
_VERDICTS = {"ACCEPT", "DROP", "RETURN", "QUEUE", ""}


# By itself python-iptables looks for the chain of a jump in all five tables, and so creates them: these
# look where `tables` says.
class _Rule4(iptc.Rule):  # type: ignore[misc] # python-iptables has no types
    tables: tuple[Any, ...] = ()


class _Rule6(iptc.Rule6):  # type: ignore[misc] # the same
    tables: tuple[Any, ...] = ()


_RULES: dict[Family, Any] = {IPV4: _Rule4, IPV6: _Rule6}
_GOTO = {IPV4: iptc.ip4tc.ipt_ip.IPT_F_GOTO, IPV6: iptc.ip6tc.ip6t_ip6.IP6T_F_GOTO}


def build(rule: Rule, family: Family, table: Any) -> bytes:
    """The rule's entry with our signature, for this table of python-iptables, which has the chain that it jumps to.

    KernelError where libxtables doesn't take it. What can't be said to it is packed by ourselves.
    """
    if any(map(_is_unspeakable, (*rule.matches, rule.target))):
        return pack(rule, family)
    iptc_rule = _RULES[family]()
    iptc_rule.tables = (table,)
    try:
        header = [match for match in rule.matches if _put(match, iptc_rule)]
        _put_extensions(rule, header, iptc_rule)
    except (XTablesError, ValueError, AttributeError) as error:
        raise KernelError(f"{family} {table.name}: python-iptables doesn't take {rule_text(rule)}: {error}") from error
    iptc_rule.entry.nfcache = _SIGNED
    return bytes(iptc_rule.rule)


def _is_unspeakable(part: Match | Target) -> bool:
    """Whether something is known by its bytes alone, or is what python-iptables takes for no value or a negation."""
    return isinstance(part, UnknownMatch | UnknownTarget) or part in (Comment(""), Comment("!"))


def _put(match: Match, iptc_rule: Any) -> bool:
    """Put a match into a rule's header, if that is its place."""
    match match:
        case Source():
            iptc_rule.src = "!" * match.negated + network_text(match.network)
        case Destination():
            iptc_rule.dst = "!" * match.negated + network_text(match.network)
        case InInterface():
            iptc_rule.in_interface = "!" * match.negated + match.name
            _mend_interface(iptc_rule.get_ip(), "iniface", match.name)
        case OutInterface():
            iptc_rule.out_interface = "!" * match.negated + match.name
            _mend_interface(iptc_rule.get_ip(), "outiface", match.name)
        case Protocol():
            iptc_rule.protocol = "!" * match.negated + str(match.number)
            if isinstance(iptc_rule, _Rule6):
                # Left out where it is negated: the kernel would not look at the protocol at all.
                iptc_rule.entry.ipv6.flags |= iptc_rule.entry.ipv6.IP6T_F_PROTO
        case _:
            return False
    return True


def _mend_interface(header: Any, field: str, name: str) -> None:
    """Write an interface as iptables does: a mask of 0xff a byte (IPv6's is 0x01), a + at the end kept."""
    encoded = name.encode(errors="surrogateescape")
    counting = len(encoded) - 1 if encoded.endswith(b"+") else len(encoded) + 1
    setattr(header, field, encoded)
    setattr(header, f"{field}_mask", b"\xff" * counting)


def _put_extensions(rule: Rule, header: list[Match], iptc_rule: Any) -> None:
    """Hand all other matches and the target to libxtables, option by option."""
    protocols = tuple(match for match in header if isinstance(match, Protocol))
    extensions = tuple(match for match in rule.matches if match not in header)
    for jump, name, options in _extensions(rule_text(Rule((*protocols, *extensions), rule.target))):
        extension = iptc_rule.create_target(name, goto=jump == "-g") if jump else iptc_rule.create_match(name)
        for option, value in options:
            extension.set_parameter(option, value)
        # Not the public final_check, which first has everything printed and parsed once more.
        extension._final_check()
    if rule.target == Verdict(""):
        iptc_rule.create_target("")


def _extensions(text: str) -> Iterator[tuple[str, str, list[tuple[str, list[str]]]]]:
    """The extensions of a rule's text: -j or -g for a target, its name, its options with their values.

    A value is a list that begins with ! where it is negated; in a string a leading ! would negate, too.
    """
    words = (_ESCAPED.sub(r"\1", quoted) if bare == "" else bare for quoted, bare in _WORD.findall(text))
    jump, name = "", ""
    options: list[tuple[str, list[str]]] = []
    bang: list[str] = []
    for word in words:
        if word in ("-m", "-j", "-g"):
            if name:
                yield jump, name, options
            jump, name, options = word.replace("-m", ""), next(words), []
        elif word == "!":
            bang = ["!"]
        else:
            value = "" if word in _WITHOUT_VALUE else next(words)
            if word != "-p":
                options.append((word.removeprefix("--"), [*bang, value]))
            bang = []
    if name:
        yield jump, name, options


class TableReader:
    """Reads the entries of one table of python-iptables as values."""

    def __init__(self, table: Any, family: Family) -> None:
        self._table, self._family = table, family
        self._xtables = xtables(_RULES[family]().nfproto)

    def rules(self, chain: str) -> Iterator[Rule]:
        """The rules of a chain; matches and targets that can't be parsed keep their bytes."""
        entry = self._table.first_rule(chain)
        while entry:
            yield self._rule(entry)
            entry = self._table.next_rule(entry)

    def _rule(self, entry: Any) -> Rule:
        iptc_rule = _RULES[self._family]()
        iptc_rule.tables, iptc_rule.entry = (self._table,), entry
        header = _header(iptc_rule, self._family)
        start = ctypes.addressof(entry)
        matches = list(header)
        at = ctypes.sizeof(entry)
        while at < entry.target_offset:
            size = int.from_bytes(ctypes.string_at(start + at, 2), sys.byteorder)
            matches += self._matches(iptc_rule, start + at, size, header)
            at += size
        target = self._target(iptc_rule, start + entry.target_offset, entry.next_offset - entry.target_offset)
        return Rule(tuple(matches), target, ours=entry.nfcache == _SIGNED)

    def _matches(self, iptc_rule: Any, address: int, size: int, header: tuple[Match, ...]) -> tuple[Match, ...]:
        """One xt_entry_match as a value, or as two for the ports of both sides."""
        name, revision, data = _parts(address, size)
        module = self._xtables.find_match(name)
        if module and _fits(module[0], revision, size):
            raw = ctypes.cast(address, ctypes.POINTER(xt_entry_match))[0]
            match = iptc.Match(iptc_rule, match=raw)
            protocols = tuple(match for match in header if isinstance(match, Protocol))
            rule = self._loaded(Rule(protocols, Verdict("")), f"-m {match.name}{_printed(match, iptc_rule)}")
            matches = rule.matches[len(protocols) :] if rule else ()
            if len(matches) == 1 or [type(one) for one in matches] == [SourcePorts, DestinationPorts]:
                return matches
        return (UnknownMatch(name, revision, data),)

    def _target(self, iptc_rule: Any, address: int, size: int) -> Target:
        name, revision, data = _parts(address, size)
        if not name:
            jump = self._table.get_target(iptc_rule.entry).decode(errors="surrogateescape")
            goto = iptc_rule.get_ip().flags & _GOTO[self._family]
            return Verdict(jump) if jump in _VERDICTS else Jump(jump, bool(goto))
        module = self._xtables.find_target(name)
        if module and _fits(module[0], revision, size):
            raw = ctypes.cast(address, ctypes.POINTER(xt_entry_target))[0]
            target = iptc.Target(iptc_rule, target=raw)
            if rule := self._loaded(Rule((), Verdict("")), f"-j {target.name}{_printed(target, iptc_rule)}"):
                return rule.target
        return UnknownTarget(name, revision, data)

    def _loaded(self, before: Rule, text: str) -> Rule | None:
        """The rule whose last options libxtables printed; None if iptables_restore.py can't parse them."""
        save = f"*filter\n:OUTPUT ACCEPT\n-A OUTPUT {rule_text(before)} {text}\nCOMMIT\n"
        try:
            [table] = load(save, self._family).tables
        except SaveError:
            return None
        [rule] = [rule for chain in table.chains for rule in chain.rules]
        return rule


def _parts(address: int, size: int) -> tuple[str, int, bytes]:
    """Name, revision and data of a match or target in memory."""
    _, name, revision = HEAD.unpack(ctypes.string_at(address, HEAD.size))
    data = ctypes.string_at(address + HEAD.size, size - HEAD.size)
    return name.partition(b"\0")[0].decode(errors="surrogateescape"), revision, data


def _fits(module: Any, revision: int, size: int) -> bool:
    """Whether libxtables has the extension in this revision; python-iptables does not check that."""
    return bool(module.revision == revision and xt_align(module.size + HEAD.size) == size)


def _printed(extension: Any, iptc_rule: Any) -> str:
    """An extension's options as libxtables prints them, with a blank before them."""
    saved = extension._get_saved_buf(iptc_rule.get_ip())
    return saved.decode(errors="surrogateescape") if saved else ""


def _header(iptc_rule: Any, family: Family) -> tuple[Match, ...]:
    """The matches of a rule's header; one UnknownMatch with the whole header if other matches can't express it."""
    header = iptc_rule.get_ip()
    whole = bytes(header)
    try:
        matches = tuple(_header_matches(iptc_rule, family))
        again = _RULES[family]()
        for match in matches:
            _put(match, again)
        again.get_ip().flags |= header.flags & _GOTO[family]
        if bytes(again.get_ip()) == whole:
            return matches
    except (ValueError, iptc.IPTCError):
        pass  # a name that is none, say: it is told as the bytes that it is
    return (
        UnknownMatch(
            HEADER, 0, ctypes.string_at(ctypes.addressof(iptc_rule.entry), type(iptc_rule.entry).nfcache.offset)
        ),
    )


def _header_matches(iptc_rule: Any, family: Family) -> Iterator[Match]:
    """The matches that a header expresses, in the order of iptables-save."""
    for side, text in ((Source, iptc_rule.src), (Destination, iptc_rule.dst)):
        network = _network(text.removeprefix("!"), family)
        if network.prefix or text.startswith("!"):
            yield side(network, text.startswith("!"))
    for kind, text in ((InInterface, iptc_rule.in_interface), (OutInterface, iptc_rule.out_interface)):
        if text is not None:
            yield kind(text.removeprefix("!"), text.startswith("!"))
    if number := iptc_rule.get_ip().proto:
        yield Protocol(number, iptc_rule.protocol.startswith("!"))


def _network(text: str, family: Family) -> Network:
    """An address with a prefix, or, as python-iptables has it in IPv4, with a mask."""
    address, _, mask = text.partition("/")
    if family == IPV6:
        return Network(socket.inet_pton(socket.AF_INET6, address), int(mask))
    bits = int.from_bytes(socket.inet_pton(socket.AF_INET, mask), "big").bit_count()
    return Network(socket.inet_pton(socket.AF_INET, address), bits)
