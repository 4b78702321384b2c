"""The kernel's x_tables entries: pack a Rule, unpack a whole table as the kernel hands it out.

An entry is an ipt_entry or ip6t_entry (<linux/netfilter_ipv4/ip_tables.h>, <linux/netfilter_ipv6/ip6_tables.h>):
a header of addresses, interfaces and protocol; `nfcache`; the offsets of the target and of the next entry;
`comefrom` and the counters; then the matches, then the target. Native byte order.

The kernel keeps `nfcache` and does nothing with it. We sign our entries there.

Here an entry always has the form that `pack` gives it and that libiptc takes: counters and `comefrom` zero, a
verdict or a jump by its name rather than by a number or an offset. So rules that are equal are equal bytes.
"""

from __future__ import annotations

import _struct as struct  # struct.py only hands it on

from istio_init.errors import KernelError
from istio_init.kernel.extensions import HEAD, pack_match, pack_target, standard
from istio_init.kernel.header import HEADER, LAYOUTS, PUTS, put_goto, whole_of
from istio_init.kernel.ports import pack_ports
from istio_init.netfilter import (
    BUILTIN_CHAINS,
    OWN_CHAINS,
    Chain,
    DestinationPorts,
    Jump,
    Protocol,
    Rule,
    SourcePorts,
    Table,
    ordered,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from istio_init.kernel.entry_reader import EntryReader
    from istio_init.kernel.header import Layout
    from istio_init.kernel.packed_run import PackedRun
    from istio_init.netfilter import Family, TableName

# In the entry's nfcache, in this order in memory.
SIGNATURE = b"ISTI"

OFFSETS = struct.Struct("=HH")  # of target and next entry
_VERDICT = struct.Struct("=i")
VERDICTS = {-1: "DROP", -2: "ACCEPT", -4: "QUEUE", -5: "RETURN"}
_NAME_AT = 2  # in a match or target

# struct ipt_getinfo, which ip6t_getinfo equals: name, valid hooks, hooks' first and last entries, entries, bytes.
INFO = struct.Struct("=32sI5I5III")
# By the numbers of <linux/netfilter.h>, NF_INET_*.
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")

# A chain of a user's begins with an entry whose target bears this name and, as its data, the chain's.
ERROR = b"ERROR\0"
ERROR_SIZE = 64


def pack(rule: Rule, family: Family) -> bytes:
    """The rule's entry with our signature, as libiptc takes it. KernelError where no entry can say what the rule does.

    SourcePorts with DestinationPorts right behind become one match of -m tcp or -m udp, as iptables makes it.
    """
    try:
        return _pack(rule, LAYOUTS[family])
    except (ValueError, OverflowError, struct.error) as error:  # type: ignore[attr-defined]
        raise KernelError(f"{rule!r}: no rule of the kernel for {family} can hold this: {error}") from error


def _pack(rule: Rule, layout: Layout) -> bytes:
    fields = list(layout.blank)
    whole_header = body = b""
    transport = 0
    source: SourcePorts | None = None
    for match in rule.matches:
        # Kinds are compared as they are and frequent ones come first: with some dozen rules, a match statement shows.
        if source and type(match) is not DestinationPorts:
            body += pack_ports(transport, source, None)
            source = None
        if put := PUTS.get(type(match)):
            put(match, fields, layout)
            if type(match) is Protocol:
                transport = 0 if match.negated else match.number
        elif type(match) is DestinationPorts:
            body += pack_ports(transport, source, match)
            source = None
        elif type(match) is SourcePorts:
            source = match
        elif header := whole_of(match):
            whole_header = header
        else:
            body += pack_match(match)  # type: ignore[arg-type] # of what PUTS has, nothing is left
    if source:
        body += pack_ports(transport, source, None)
    if isinstance(rule.target, Jump) and rule.target.goto and not whole_header:
        put_goto(fields, layout)
    if whole_header:
        header = whole_header
        if len(header) != layout.struct.size or tuple(fields) != layout.blank:
            raise ValueError(f"a {HEADER!r} stands for all of the header, in {layout.struct.size} bytes")
    else:
        header = layout.struct.pack(*fields)
    target = pack_target(rule.target, layout.family)
    target_offset = layout.size + len(body)
    offsets = OFFSETS.pack(target_offset, target_offset + len(target))
    return header + SIGNATURE + offsets + layout.uncounted + body + target


def unpack_table(
    name: TableName,
    family: Family,
    answers: tuple[bytes, bytes | bytearray],
    expected: Mapping[str, tuple[Chain, list[bytes | PackedRun]]] | None = None,
    *,
    own: bool = True,
) -> Table:
    """A table from the kernel's `answers` to IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, this without its head.

    `expected` has chains of rules that are ours by name, with their entries (runs.pack_chain). A user's chain that
    is just that is the chain given; of another, entries that are among them are the very rules. What is expected
    need not be unpacked. With `own` off, chains of ours are there without their rules.
    """
    info, entries = answers
    blob = _Blob(family, entries, expected or {})
    chains = {}
    for chain, rules, policy in blob.chains(info, frozenset() if own else OWN_CHAINS):
        if isinstance(rules, Chain):
            chains[chain] = rules
        else:
            chains[chain] = Chain(chain, tuple(rules), policy if chain in BUILTIN_CHAINS[name] else None)
    return Table(name, ordered(name, chains))


class _Blob:
    """All entries of a table as the kernel hands them out."""

    def __init__(
        self, family: Family, entries: bytes | bytearray, expected: Mapping[str, tuple[Chain, list[bytes | PackedRun]]]
    ) -> None:
        self._layout = LAYOUTS[family]
        self._entries = entries
        self._expected = expected
        self._reader: EntryReader | None = None
        # Standard targets as `pack` makes them, by the kernel's verdicts: numbers, or offsets of chains' first entries.
        self._standards = {verdict: standard(name) for verdict, name in VERDICTS.items()}

    def chains(self, info: bytes, left_out: frozenset[str]) -> Iterator[tuple[str, list[Rule] | Chain, str]]:
        """Every chain's name, all that is in it, and the verdict behind that: the policy or, in a user's chain, RETURN.

        Nothing is in those that are left out.
        """
        _, valid, *numbers = INFO.unpack(info)
        starts = {numbers[hook]: name for hook, name in enumerate(HOOKS) if valid & 1 << hook}
        entries, offsets_at = self._entries, self._layout.counters_at - OFFSETS.size
        name, start, last = "", 0, None
        rules: list[Rule] | Chain = []
        known: dict[bytes, Rule] = {}
        while start < len(entries):
            target, end = OFFSETS.unpack_from(entries, start + offsets_at)
            target, end = start + target, start + end
            is_head = entries.startswith(ERROR, target + _NAME_AT)
            if is_head or start in starts:
                if name:
                    yield name, rules, "" if last is None else self._verdict(last)
                name, rules, last = self._error_name(target) if is_head else starts[start], [], None
                if is_head and name not in left_out and (stands := self._standing(name, end)):
                    rules, end = stands
                else:
                    known = self._known(name)
            if isinstance(rules, list) and not (is_head or name in left_out):
                if last is not None:
                    rules.append(self._rule(last, known))
                last = start
            start = end

    def _verdict(self, start: int) -> str:
        """What the entry at an offset says whatever the packet; empty where that is no verdict."""
        target, _ = self._offsets(start)
        (verdict,) = _VERDICT.unpack_from(self._entries, start + target + HEAD.size)
        return VERDICTS.get(verdict, "")

    def _known(self, name: str) -> dict[bytes, Rule]:
        """The rules that are expected in a chain, by their entries; long runs are not worth a dictionary."""
        if name not in self._expected:
            return {}
        chain, packed = self._expected[name]
        entries = [entry for entry in packed if isinstance(entry, bytes)]
        return dict(zip(entries, chain.rules, strict=True)) if len(entries) == len(packed) else {}

    def _standing(self, name: str, start: int) -> tuple[Chain, int] | None:
        """A chain that is just as it is expected, and where the return behind its rules ends; or None.

        `start` is where its rules begin.
        """
        if name not in self._expected:
            return None
        chain, packed = self._expected[name]
        for part in packed:
            if not (self._is(start, part) if isinstance(part, bytes) else self._run_stands(start, part)):
                return None
            start += len(part)
        # Nothing but the return may follow before the next chain's head.
        _, size = self._offsets(start)
        target, _ = self._offsets(start + size)
        is_last = self._entries.startswith(ERROR, start + size + target + _NAME_AT)
        return (chain, start + size) if is_last else None

    def _offsets(self, start: int) -> tuple[int, int]:
        """Of the entry at an offset, its target's and its end's, counted from its start."""
        target, end = OFFSETS.unpack_from(self._entries, start + self._layout.counters_at - OFFSETS.size)
        return target, end

    def _run_stands(self, start: int, run: PackedRun) -> bool:
        """Whether the entries from an offset on are a run's: the first unit is, and the others are spelled like it."""
        if len(self._entries) < start + len(run):
            return False
        at = 0
        for size in run.sizes:
            if not self._is(start + at, run.unit[at : at + size]):
                return False
            at += size
        return run.stands(memoryview(self._entries)[start : start + len(run)])

    def _is(self, start: int, packed: bytes) -> bool:
        """Whether the entry at an offset is, as `pack` makes it, this one; see _normal, which takes longer."""
        entries, layout = self._entries, self._layout
        if not entries.startswith(packed[: layout.counters_at], start):
            return False
        # What is equal says where target and end are.
        target, end = OFFSETS.unpack_from(packed, layout.counters_at - OFFSETS.size)
        if entries[start + target + _NAME_AT]:
            return entries.startswith(packed[layout.size :], start + layout.size)
        if not entries.startswith(packed[layout.size : target], start + layout.size):
            return False
        return self._standard(start + target, start + end) == packed[target:]

    def _normal(self, start: int) -> tuple[bytes, bool]:
        """The entry at an offset as `pack` makes it, and whether its target is a verdict or a jump."""
        entries, layout = self._entries, self._layout
        target, end = self._offsets(start)
        target, end = start + target, start + end
        packed = None if entries[target + _NAME_AT] else self._standard(target, end)
        element = entries[target:end] if packed is None else packed
        parts = entries[start : start + layout.counters_at], layout.uncounted, entries[start + layout.size : target]
        return b"".join([*parts, element]), packed is not None

    def _rule(self, start: int, known: dict[bytes, Rule]) -> Rule:
        """The rule of the entry at an offset."""
        entry, is_standard = self._normal(start)
        rule = known.get(entry)
        if rule is None:
            if self._reader is None:
                from istio_init.kernel.entry_reader import EntryReader

                self._reader = EntryReader(self._layout.family)
            rule = self._reader.rule(entry, is_standard=is_standard)
        return rule

    def _standard(self, target: int, end: int) -> bytes | None:
        """A standard target as `pack` makes it; None where it jumps to where no chain begins."""
        (verdict,) = _VERDICT.unpack_from(self._entries, target + HEAD.size)
        packed = self._standards.get(verdict)
        if packed is None:
            if verdict == end:
                return standard("")  # falls through to the next rule
            if self._entries.startswith(ERROR, verdict - ERROR_SIZE + _NAME_AT):
                packed = self._standards[verdict] = standard(self._error_name(verdict - ERROR_SIZE))
        return packed

    def _error_name(self, target: int) -> str:
        """The name of the chain whose head has this target."""
        field = self._entries[target + HEAD.size : target + ERROR_SIZE]
        return field.partition(b"\0")[0].decode(errors="surrogateescape")
