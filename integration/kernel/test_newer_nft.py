"""A newer nft as a second witness: it lists native tables as this machine's does, and loads a dry run as the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from integration.kernel.test_native import LINES, NATIVE, by_table, ruleset
from integration.kit.namespace import Namespace
from integration.kit.newer_nft import NewerNft, unpacked
from integration.kit.program import completed, succeed

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
    """Not listed by nft 1.0.6, which crashes on the user data that newer ones give sets with a name."""
    dry = completed(namespace, *LINES[name], NATIVE, "--dry-run").stdout
    newer.run(namespace, "-f", "-", text=dry)
    assert by_table(newer.run(namespace, "list", "ruleset")) == by_table(dry)
    for line in dry.splitlines():
        if line.startswith("#"):
            namespace.run(*line[1:].split())
    assert "in place, nothing written" in succeed(namespace, *LINES[name], NATIVE)
