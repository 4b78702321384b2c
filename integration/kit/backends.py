"""The backends, for tests that hold on each: which flags choose it, and what shows its rules."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

from integration.kit import program
from integration.kit.namespace import Namespace
from istio_init.formats.iptables_restore import parse as load
from istio_init.kernel.nft.native import Nftables
from istio_init.model.inet import NAMES, chain_name
from istio_init.model.rules import FAMILIES, IPV4, IPV6, OWN_CHAINS

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.model.rules import Family, Rule, TableName

# By name, for pytest.mark.parametrize("backend", BACKENDS).
BACKENDS: dict[str, list[str]] = {
    "legacy": ["--force-iptables-binary", "legacy"],
    "nft": ["--force-iptables-binary", "nft"],
    "native": ["--native-nftables"],
}

_SAVE = {
    "legacy": {IPV4: "iptables-legacy-save", IPV6: "ip6tables-legacy-save"},
    "nft": {IPV4: "iptables-nft-save", IPV6: "ip6tables-nft-save"},
}


def as_older_nft(text: str) -> str:
    """A listing as nft 1.0.6 prints it.

    Newer ones print the priority -100 by its name in the output hook as well, 1.1.7 how many elements are in a
    set that has a size; and nothing else otherwise.
    """
    text = re.sub(r"(\n\t\tsize (\d+))\t# count \2(?=\n)", r"\1", text)
    return text.replace("type nat hook output priority dstnat;", "type nat hook output priority -100;")


def rules(namespace: Namespace, backend: str) -> dict[str, str]:
    """What the backend's own tool says of every table that holds a rule or a chain of a user's, by family and table."""
    if backend == "native":
        text = as_older_nft(namespace.run("nft", "list", "ruleset", "inet"))
        return {f"inet {part.split()[0]}": part for part in text.split("table inet ")[1:]}
    result = {}
    for family in FAMILIES:
        for name, text in program.tables(namespace.run(_SAVE[backend][family])).items():
            if "-A" in text or " - [" in text:
                result[f"{family} {name}"] = text
    return result


class IptablesTables:
    """One family's tables in a namespace, edited and looked at with iptables, legacy or nft."""

    def __init__(self, namespace: Namespace, family: Family, backend: str) -> None:
        self._namespace = namespace
        self._tool = ("iptables" if family == IPV4 else "ip6tables") + f"-{backend}"

    def delete(self, table: TableName, rule: str) -> None:
        """Take one rule (`CHAIN -s ...`, as iptables-save prints it) out; it must be there."""
        self._namespace.run(self._tool, "-w", "-t", table, "-D", *shlex.split(rule))

    def insert(self, table: TableName, rule: str) -> None:
        """Put a rule before all others of its chain."""
        self._namespace.run(self._tool, "-w", "-t", table, "-I", *shlex.split(rule))

    def flush(self, table: TableName) -> None:
        """Take all rules out of a table."""
        self._namespace.run(self._tool, "-w", "-t", table, "-F")

    def counted(self, table: TableName, chain: str) -> list[int]:
        """How many packets each rule of a chain has matched."""
        listing = self._namespace.run(self._tool, "-w", "-t", table, "-nvxL", chain)
        return [int(line.split()[0]) for line in listing.splitlines()[2:]]


class NativeTables:
    """The same for native nftables: its rules are identified by those of iptables that they stand for."""

    def __init__(self, namespace: Namespace, family: Family) -> None:
        self._namespace, self._family = namespace, family

    def delete(self, table: TableName, rule: str) -> None:
        """See IptablesTables."""

        def without(rules: tuple[Rule, ...], each: Rule) -> tuple[Rule, ...]:
            at = rules.index(each)
            return (*rules[:at], *rules[at + 1 :])

        self._edit(table, rule, without)

    def insert(self, table: TableName, rule: str) -> None:
        """See IptablesTables."""
        self._edit(table, rule, lambda rules, each: (each, *rules))

    def _edit(self, table: TableName, text: str, change: Callable[[tuple[Rule, ...], Rule], tuple[Rule, ...]]) -> None:
        name, rule = self._read(table, text)

        def work() -> None:
            firewall = Nftables()
            result = firewall.read(self._family).table(table)
            assert result is not None
            chains = tuple(
                each.replace(rules=change(each.rules, rule)) if each.name == name else each for each in result.chains
            )
            firewall.replace(self._family, result.replace(chains=chains))

        self._namespace.inside(work)

    def _read(self, table: TableName, text: str) -> tuple[str, Rule]:
        """A chain's name and the rule, from words that iptables understands."""
        chains = "".join(f":{chain} - [0:0]\n" for chain in sorted(OWN_CHAINS))
        with Namespace() as scratch:
            scratch.run(program.RESTORE[self._family], text=f"*{table}\n{chains}-A {text}\nCOMMIT\n")
            [result] = load(scratch.run(program.SAVE[self._family], "-t", table), self._family).tables
        [(name, rule)] = [(chain.name, rule) for chain in result.chains for rule in chain.rules]
        return name, rule

    def flush(self, table: TableName) -> None:
        """See IptablesTables; both families' rules are in one table."""
        self._namespace.run("nft", "flush", "table", "inet", NAMES[table])

    def counted(self, table: TableName, chain: str) -> list[int]:
        """See IptablesTables; of rules that are one with a set, the sum."""
        listing = self._namespace.run("nft", "-j", "list", "chain", "inet", NAMES[table], chain_name(chain))
        rules = [item["rule"]["expr"] for item in json.loads(listing)["nftables"] if "rule" in item]
        return [each["counter"]["packets"] for rule in rules for each in rule if "counter" in each]


def tables_of(namespace: Namespace, family: Family, backend: str) -> IptablesTables | NativeTables:
    """A family's tables in a namespace."""
    if backend == "native":
        return NativeTables(namespace, family)
    return IptablesTables(namespace, family, backend)
