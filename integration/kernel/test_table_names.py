"""Which legacy tables a namespace has, as a process sees it that may enter namespaces and read no one else's files."""

from __future__ import annotations

import pytest

from integration.kit import capabilities
from integration.kit.namespace import Foreign, Namespace
from istio_init.kernel.xtables.table_names import existing_tables
from istio_init.model.rules import IPV4, IPV6

# As the chart's agent has them for repair: NET_ADMIN, NET_RAW, SYS_ADMIN.
OF_THE_AGENT = tuple(capabilities.NUMBERS[name] for name in ("net_admin", "net_raw", "sys_admin"))


def tables_for(namespace: Namespace, *held: int) -> tuple[object, object]:
    def work() -> tuple[object, object]:
        capabilities.only(*held)
        return existing_tables(IPV4), existing_tables(IPV6)

    return namespace.forked(work)


@pytest.mark.parametrize("tables", [(), ("nat",), ("mangle", "nat")])
def test_those_of_a_user_namespace_of_its_own(tables: tuple[str, ...]) -> None:
    with Foreign() as foreign:
        for table in tables:
            foreign.run("iptables-legacy", "-t", table, "-L")
        assert tables_for(foreign, *OF_THE_AGENT) == (tables, ())


def test_another_user_does_not_know_them() -> None:
    def work() -> tuple[object, object]:
        capabilities.become(1000, 1000)
        return existing_tables(IPV4), existing_tables(IPV6)

    with Foreign() as foreign:
        assert foreign.forked(work) == (None, None)
