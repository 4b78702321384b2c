"""Replaces a whole table in one call; for long lists, in tables without other programs' rules.

libiptc needs a call for each rule, allocates memory for each, and lays all of them out when it commits: too slow for
10,000 rules. Of a table that has Istio's rules only, nothing has to be kept but the policies and their counters, so its
entries are laid out here, byte for byte as libiptc does.

The structs are those of <linux/netfilter_ipv4/ip_tables.h>, which <linux/netfilter_ipv6/ip6_tables.h> has equally, and
of <linux/netfilter/x_tables.h>. Native byte order; sizes are those of 64-bit machines.
"""

from __future__ import annotations

from _struct import Struct  # struct.py only hands it on

import istio_init.kernel.host.error_numbers as errno
from istio_init.kernel.host.libc import Pointer, addressof
from istio_init.kernel.xtables.encode_match import HEAD, STANDARD_SIZE, extension
from istio_init.kernel.xtables.encode_rule import ERROR, ERROR_SIZE, HOOKS, INFO, OFFSETS, VERDICTS
from istio_init.kernel.xtables.ip_header import LAYOUTS
from istio_init.kernel.xtables.sockopt import COMMITTING, StepError
from istio_init.model.ownership import own_rules, recognised
from istio_init.model.rules import OWN_CHAINS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TypeAlias

    from istio_init.kernel.xtables.ip_header import EntryLayout
    from istio_init.kernel.xtables.packed_run import PackedRun
    from istio_init.kernel.xtables.sockopt import TableSocket
    from istio_init.model.rules import Family, Table

    # A chain's entries, as pack_chain returns them.
    Packed: TypeAlias = list[bytes | PackedRun]

# IPT_SO_SET_REPLACE and IPT_SO_SET_ADD_COUNTERS, which IP6T_SO_SET_REPLACE and IP6T_SO_SET_ADD_COUNTERS equal.
_REPLACE, _ADD_COUNTERS = 64, 65

# struct ipt_replace up to its entries: name, valid hooks, number and bytes of entries, offsets of the hooks and of the
# policies, number of the current entries, address for their counters.
_REPLACE_HEAD = Struct("=32s3I5I5IIQ")
_COUNTERS_HEAD = Struct("=32sI4x")  # struct xt_counters_info up to its counters: name, how many
_COUNTERS_SIZE = 16  # struct xt_counters
_STANDARD = Struct("=H30xi4x")  # struct xt_standard_target: bytes, no name, verdict

_CODES = {name.encode(): code for code, name in VERDICTS.items()}


class Unsuited(Exception):
    """The table can't be written in this way; libiptc can write it, or reject it."""


def write(socket: TableSocket, family: Family, desired: Table, packed: Mapping[str, Packed]) -> bool:
    """Replace a table's chains by the desired ones, whose entries are `packed` by name; its policies are kept.

    False where another program wrote to the table meanwhile. Unsuited, with nothing written, where other programs'
    rules or chains exist, or are jumped to. StepError with the kernel's number.
    """
    answers = socket.table(desired.name)
    current = recognised(socket.without_istio_chains(desired.name, answers), desired)
    layout = _Layout(family, _chains(current, desired), packed)
    content = layout.content(behind=_REPLACE_HEAD.size)
    return socket.is_still(desired.name, answers) and _replace(socket, layout, answers, content)


def _chains(current: Table, desired: Table) -> list[tuple[str, str | None]]:
    """The chains to write, in the kernel's order, with the current policies; Unsuited where there are others."""
    for chain in current.chains:
        if chain.name not in OWN_CHAINS and (chain.policy is None or len(own_rules(chain)) < len(chain.rules)):
            raise Unsuited
    built_in = [(chain.name, chain.policy) for chain in current.chains if chain.policy is not None]
    own = [chain.name for chain in desired.chains if chain.policy is None]
    if not OWN_CHAINS.issuperset(own):
        raise Unsuited
    return [*built_in, *((name, None) for name in own)]


class _Layout:
    """The offsets and sizes, in bytes, of all that a table's entries consist of."""

    def __init__(self, family: Family, chains: Sequence[tuple[str, str | None]], packed: Mapping[str, Packed]) -> None:
        """Chains with their policies, None for user-defined ones."""
        self.entry, self._chains, self._packed = LAYOUTS[family], chains, packed
        # By chain, the offset of its first rule; the offset and the number of the entry that ends it.
        self.starts: dict[str, int] = {}
        self.ends: dict[str, tuple[int, int]] = {}
        at = number = 0
        for name, policy in chains:
            if policy is None:
                at, number = at + self.entry.size + ERROR_SIZE, number + 1
            self.starts[name] = at
            for part in packed.get(name, ()):
                at, number = at + len(part), number + (1 if isinstance(part, bytes) else part.count * len(part.sizes))
            self.ends[name] = at, number
            at, number = at + self.entry.size + STANDARD_SIZE, number + 1
        self.size, self.count = at + self.entry.size + ERROR_SIZE, number + 1
        self._jumps = {name.encode(): None if policy else self.starts[name] for name, policy in chains}

    def content(self, behind: int) -> bytearray:
        """All entries, after so many zero bytes."""
        content, at = bytearray(behind + self.size), behind
        for part in self._parts():
            content[at : at + len(part)] = part
            at += len(part)
        return content

    def _parts(self) -> Iterator[bytes | bytearray]:
        """The entries one by one, those of runs in blocks."""
        for name, policy in self._chains:
            if policy is None:
                yield self._plain(extension("ERROR", 0, name.encode().ljust(ERROR_SIZE - HEAD.size, b"\0")))
            at = self.starts[name]
            for part in self._packed.get(name, ()):
                at += len(part)
                if isinstance(part, bytes):
                    yield self._resolved(part, at)
                else:
                    yield from part.blocks(self._unit(part))
            yield self._plain(_standard(_CODES[(policy or "RETURN").encode()]))
        yield self._plain(extension("ERROR", 0, ERROR.ljust(ERROR_SIZE - HEAD.size, b"\0")))

    def _plain(self, target: bytes) -> bytes:
        """An entry that every packet matches."""
        entry = self.entry
        offsets = OFFSETS.pack(entry.size, entry.size + len(target))
        return bytes(entry.struct.size + 4) + offsets + entry.uncounted + target

    def _unit(self, run: PackedRun) -> bytes:
        unit, start = b"", 0
        for size in run.sizes:
            unit += self._resolved(run.unit[start : start + size], None)
            start += size
        return unit

    def _resolved(self, entry: bytes, end: int | None) -> bytes:
        """An entry of `pack` with its verdict or jump in the kernel's form: a number, or a chain's offset.

        A rule without a target continues at `end`, its own; None where that differs by repetition.
        """
        target, _ = OFFSETS.unpack_from(entry, self.entry.counters_at - OFFSETS.size)
        _, field, _ = HEAD.unpack_from(entry, target)
        name = field.partition(b"\0")[0]
        code = self._jumps.get(name, _CODES.get(name)) if name else end
        if code is None:
            if not name or name in self._jumps:
                raise Unsuited
            return entry  # an extension's
        if len(entry) != target + STANDARD_SIZE:
            raise Unsuited
        return entry[:target] + _standard(code)


def _standard(code: int) -> bytes:
    return _STANDARD.pack(STANDARD_SIZE, code)


def _replace(
    socket: TableSocket, layout: _Layout, answers: tuple[bytes, bytes | bytearray], content: bytearray
) -> bool:
    """Replace the kernel's table, as in `answers`, by `content`, which begins with room for the head.

    False where the number of the kernel's entries has changed.
    """
    name, valid, *_, count, _ = INFO.unpack(answers[0])
    before = bytearray(_COUNTERS_SIZE * count)
    held = Pointer.from_buffer(before)
    hooks = [layout.starts.get(hook, 0) for hook in HOOKS]
    policies = [layout.ends.get(hook, (0, 0))[0] for hook in HOOKS]
    head = name, valid, layout.count, layout.size, *hooks, *policies, count, addressof(held)
    _REPLACE_HEAD.pack_into(content, 0, *head)
    after = bytearray(_COUNTERS_SIZE * layout.count)
    try:
        socket.give(_REPLACE, content)
        for hook, number in _policies(layout.entry, *answers):
            new = layout.ends[hook][1] * _COUNTERS_SIZE
            after[new : new + _COUNTERS_SIZE] = before[number * _COUNTERS_SIZE : (number + 1) * _COUNTERS_SIZE]
        if any(after):
            socket.give(_ADD_COUNTERS, _COUNTERS_HEAD.pack(name, layout.count) + after)
    except OSError as error:
        # Another program added or deleted entries, before the replacement (EAGAIN) or after it (EINVAL).
        if error.errno == errno.EAGAIN or (error.errno == errno.EINVAL and any(after)):
            return False
        raise StepError(COMMITTING, error.errno or 0) from error
    return True


def _policies(entry: EntryLayout, info: bytes, entries: bytes | bytearray) -> Iterator[tuple[str, int]]:
    """Each built-in chain of the answers, with the number of entries before its policy's."""
    _, valid, *numbers = INFO.unpack(info)
    ends = {numbers[len(HOOKS) + hook]: name for hook, name in enumerate(HOOKS) if valid & 1 << hook}
    at = number = 0
    while ends:
        if at in ends:
            yield ends.pop(at), number
        at += OFFSETS.unpack_from(entries, at + entry.counters_at - OFFSETS.size)[1]
        number += 1
