"""A newer nft as a second witness: it lists native tables as this machine's does, and loads a dry run as the plan."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from integration.kernel.test_native import LINES, NATIVE, by_table, ruleset
from integration.kit.namespace import Namespace
from integration.kit.newer_nft import NewerNft, unpacked
from integration.kit.nft_dump import as_older_nft, inet_objects
from integration.kit.owned_table import DROP, owned_table
from integration.kit.program import completed, succeed
from istio_init.formats.dump_reader import read_dump
from istio_init.formats.nft.foreign_dump import foreign_tables
from istio_init.kernel.netlink.nfnetlink import NFPROTO_INET
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    import pathlib


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> NewerNft:
    base: pathlib.Path = tmp_path_factory.getbasetemp()
    # Workers of one run share the directory above theirs.
    return unpacked(base.parent if "popen-" in base.name else base)


def test_it_is_newer(newer: NewerNft) -> None:
    assert newer.version() >= (1, 1)


@pytest.mark.parametrize("name", LINES)
def test_both_list_what_a_dry_run_prints(namespace: Namespace, newer: NewerNft, name: str) -> None:
    dry = by_table(completed(namespace, *LINES[name], NATIVE, "--dry-run").stdout)
    succeed(namespace, *LINES[name], NATIVE)
    assert by_table(ruleset(namespace)) == dry
    assert by_table(newer.run(namespace, "list", "ruleset")) == dry


@pytest.mark.parametrize("name", LINES)
def test_what_it_loads_from_a_dry_run_is_the_plan(namespace: Namespace, newer: NewerNft, name: str) -> None:
    """To the kernel as well, byte for byte but for what newer versions note and how they compare with a range.

    Not listed by nft 1.0.6, which crashes on the user data that newer ones give sets with a name.
    """
    dry = completed(namespace, *LINES[name], NATIVE, "--dry-run").stdout
    newer.run(namespace, "-f", "-", text=dry)
    loaded = namespace.inside(inet_objects)
    assert by_table(newer.run(namespace, "list", "ruleset")) == by_table(dry)
    for line in dry.splitlines():
        if line.startswith("#"):
            namespace.run(*line[1:].split())
    assert "in place, nothing written" in succeed(namespace, *LINES[name], NATIVE)
    with Namespace() as fresh:
        succeed(fresh, *LINES[name], NATIVE)
        written = fresh.inside(inet_objects)
    assert list(map(as_older_nft, loaded)) == written


@pytest.mark.parametrize("name", LINES)
def test_what_it_lists_is_read_from_a_save(namespace: Namespace, newer: NewerNft, name: str) -> None:
    """It prints as rules what this machine's nft prints as rules."""
    succeed(namespace, *LINES[name], NATIVE)
    assert read_dump(newer.run(namespace, "-a", "list", "ruleset")) == read_dump(ruleset(namespace))


def test_a_table_with_an_owner_is_read_from_a_save(namespace: Namespace, newer: NewerNft) -> None:
    """Nft prints the owner's name behind the table's, as of firewalld's tables."""
    succeed(namespace, "-i", "*", "-u", "1337", NATIVE)
    rules = read_dump(ruleset(namespace))
    with owned_table(namespace, NFPROTO_INET, "firewalld", policy=DROP):
        listed = newer.run(namespace, "list", "ruleset")
    assert re.search(r"^table inet firewalld \{ # progname \S+\n\tflags owner\n", listed, re.MULTILINE)
    assert read_dump(listed) == rules
    [output] = foreign_tables(listed, IPV4)
    assert (output.name, output.chains[0].policy) == ("nftables inet firewalld output", "DROP")
