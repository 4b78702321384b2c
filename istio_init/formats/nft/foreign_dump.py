"""Other programs' tables in what `nft list ruleset` prints; kernel/nft/foreign_tables.py reads those in the kernel."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from istio_init.formats.nft.dump_reader import blocks, named_sets, rules_of, without_handles
from istio_init.model.foreign import HookedTable
from istio_init.model.inet import NAMES
from istio_init.model.rules import BUILTIN_CHAINS, Chain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.rules import Family, Hook, Rule

HOOKS: dict[str, Hook] = {
    "prerouting": "PREROUTING", "input": "INPUT", "forward": "FORWARD", "output": "OUTPUT",
    "postrouting": "POSTROUTING",
}  # fmt: skip
# What nft calls priorities.
PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_BASE = re.compile(r"type (\w+) hook (\w+) priority (?:(\w+)(?: ([+-]) (\d+))?|(-\d+));(?: policy (\w+);)?$")


def foreign_tables(text: str, family: Family) -> Iterator[HookedTable]:
    """The base chains of other programs' tables that see packets of a family, with the chains that they may jump to."""
    own = "ip" if family == "ipv4" else "ip6"
    for kind, table, body in blocks(without_handles(text), "table"):
        own_table = table in NAMES.values() if kind == "inet" else table in BUILTIN_CHAINS
        if kind in {own, "inet"} and not own_table and not re.search(r"^\s*flags dormant", body, re.MULTILINE):
            yield from _hooked(kind, table, body, family)


def _hooked(kind: str, table: str, body: str, family: Family) -> Iterator[HookedTable]:
    sets = named_sets(body)
    plain: list[Chain] = []
    base: list[tuple[str, Chain, re.Match[str]]] = []
    for _, name, inner in blocks(body, "chain"):
        lines = [line.strip() for line in inner.splitlines() if line.strip() and not line.strip().startswith("#")]
        hooked = _BASE.match(lines[0]) if lines else None
        rules: list[Rule] = [rule for line in lines[1 if hooked else 0 :] for rule in rules_of(line, family, sets)]
        if hooked is None:
            plain.append(Chain(name, tuple(rules)))
        elif hooked[2] in HOOKS:
            policy = (hooked[7] or "accept").upper()
            base.append((name, Chain(HOOKS[hooked[2]], tuple(rules), policy), hooked))
    for name, chain, hooked in base:
        title = f"nftables {kind} {table} {name}"
        hook: Hook = HOOKS[hooked[2]]
        yield HookedTable(title, (chain, *plain), hook, _priority(hooked), hooked[1])  # type: ignore[arg-type]


def _priority(hooked: re.Match[str]) -> int:
    """A priority, as a number or a word with an offset."""
    word, sign, offset, number = hooked[3], hooked[4], hooked[5], hooked[6]
    if number:
        return int(number)
    start = int(word) if word.isdecimal() else PRIORITIES.get(word, 0)
    return start + int(f"{sign}{offset}") if sign else start
