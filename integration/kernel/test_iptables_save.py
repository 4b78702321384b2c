"""The text view against the programs that it speaks for: iptables-legacy-save and iptables-legacy-restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings

from integration.kit.program import with_protocol_names
from istio_init.formats.iptables_restore import parse as load
from istio_init.formats.iptables_save import dump_table
from istio_init.model.extensions import CtZone
from istio_init.model.rules import BUILTIN_CHAINS, FAMILIES, Chain, Redirect, Ruleset, Table, ordered
from tests.formats.test_iptables_save import SPELLINGS
from tests.kit.strategies import rulesets

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace
    from istio_init.model.rules import Family, Rule, TableName

PROGRAMS = {"ipv4": "iptables-legacy", "ipv6": "ip6tables-legacy"}


def whole(ruleset: Ruleset) -> str:
    """Text that leaves nothing in any table of what was there before."""
    return "".join(dump_table(ruleset.table(name) or Table(name, ordered(name, {}))) for name in BUILTIN_CHAINS)


def saved(namespace: Namespace, family: Family, table: TableName) -> str:
    """The lines from *table to COMMIT as the kernel's own save prints them."""
    lines = namespace.run(f"{PROGRAMS[family]}-save", "-t", table).split("\n")
    return with_protocol_names("\n".join(line for line in lines if not line.startswith("#")))


def home(rule: Rule) -> TableName:
    """A table that takes the rule's target."""
    return "nat" if isinstance(rule.target, Redirect) else "raw" if isinstance(rule.target, CtZone) else "mangle"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["raw", "mangle", "nat"])
def test_spellings_are_the_programs(namespace: Namespace, family: Family, name: TableName) -> None:
    """Every row of the table in tests/formats/test_iptables_save.py, in a chain that no packet comes to."""
    rows = [(rule, text) for row_family, rule, text in SPELLINGS if row_family == family and home(rule) == name]
    lines = [f"*{name}", ":ROWS - [0:0]", ":ISTIO_OUTPUT - [0:0]", *(f"-A ROWS {text}" for _, text in rows), "COMMIT\n"]
    namespace.run(f"{PROGRAMS[family]}-restore", text="\n".join(lines))
    kernels = saved(namespace, family, name)
    assert [line for line in kernels.split("\n") if line.startswith("-A")] == [
        f"-A ROWS {text}".rstrip() for _, text in rows
    ]
    chains = {"ROWS": Chain("ROWS", tuple(rule for rule, _ in rows)), "ISTIO_OUTPUT": Chain("ISTIO_OUTPUT", ())}
    assert load(kernels, family) == Ruleset(family, (Table(name, ordered(name, chains)),))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_restore_loads_save_prints(namespace: Namespace, family: Family) -> None:
    """Random rulesets: our text, loaded by iptables-restore, is what iptables-save prints, byte for byte."""

    @settings(max_examples=40, deadline=None)
    @given(rulesets(family))
    def check(ruleset: Ruleset) -> None:
        namespace.run(f"{PROGRAMS[family]}-restore", text=whole(ruleset))
        for table in ruleset.tables:
            assert saved(namespace, family, table.name) == dump_table(table)

    check()
