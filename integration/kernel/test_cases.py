"""Every row of the case table in the real kernel: what exists after a run is the golden text, and so is a dry run's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from integration.kit.namespace import Namespace
from integration.kit.program import RESTORE, completed, existing, routing, saved, standing, succeed, tables
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from tests.planning.cases import CASES, GOLDEN, argv

if TYPE_CHECKING:
    from istio_init.model.rules import Family

SECOND_FAMILY = "# IPv6: for ip6tables-restore\n"


def golden(name: str) -> dict[Family, str]:
    """A case's text by family."""
    first, _, second = (GOLDEN / f"{name}.txt").read_text().partition(SECOND_FAMILY)
    return {IPV4: first, IPV6: second}


@pytest.mark.parametrize("name", CASES)
def test_case(namespace: Namespace, name: str) -> None:
    """Applied, saved, compared; restored from the dry run in another namespace, and compared again."""
    desired = golden(name)
    succeed(namespace, *argv(name))
    for family in FAMILIES:
        assert saved(namespace, family) == tables(desired[family])
        assert existing(namespace, family) == set(tables(desired[family]))
    with Namespace() as other:
        for family in FAMILIES:
            dry = completed(other, *argv(name), "--dry-run", "--ip-family", family)
            assert (dry.returncode, dry.stdout) == (0, desired[family])
            other.run(RESTORE[family], text=dry.stdout)
            for line in dry.stdout.splitlines():
                if line.startswith("#"):
                    other.run(*line[1:].split())
        assert standing(other) == standing(namespace)


@pytest.mark.parametrize("name", CASES)
def test_in_place_whichever_program_wrote_it(namespace: Namespace, name: str) -> None:
    """What iptables-restore has loaded from our text is the plan; and cleaning up with the same flags ends empty."""
    empty = routing(namespace)
    for family, text in golden(name).items():
        namespace.run(RESTORE[family], text=text)
        for line in text.splitlines():
            if line.startswith("#"):
                namespace.run(*line[1:].split())
    before = standing(namespace)
    assert "in place, nothing written" in succeed(namespace, *argv(name))
    assert standing(namespace) == before
    succeed(namespace, *argv(name), "--cleanup-only")
    for family in FAMILIES:
        for text in saved(namespace, family).values():
            assert "ISTIO" not in text
            assert "-A" not in text
    assert routing(namespace) == empty
