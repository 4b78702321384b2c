"""What the legacy tables refuse is said in words: which table, which rule, what is missing, what to do."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

import pytest

from integration.kit import raw_entries
from integration.kit.capabilities import become_with, without
from integration.kit.program import NAMES, ROOT
from istio_init.errors import KernelError
from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.kernel.xtables.libiptc import functions
from istio_init.model.extensions import Mark
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    Chain,
    Jump,
    PortRange,
    Redirect,
    Rule,
    Ruleset,
    Table,
    Verdict,
    ordered,
)
from istio_init.model.unknown import UnknownMatch, UnknownTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.kit.namespace import Namespace
    from istio_init.model.rules import Family, TableName, Target

RETURN = Verdict("RETURN")

# A program that writes one table.
WRITE = """
from integration.kernel.test_refusals import table_of
from istio_init.kernel.xtables.firewall import Libiptc
Libiptc().replace("ipv4", table_of("nat"))
"""


def table_of(name: TableName, *rules: Rule) -> Table:
    jump = Rule((), Jump("ISTIO_OUTPUT"))
    chains = {"OUTPUT": Chain("OUTPUT", (jump,), "ACCEPT"), "ISTIO_OUTPUT": Chain("ISTIO_OUTPUT", rules)}
    return Table(name, ordered(name, chains))


def refused(namespace: Namespace, family: Family, table: Table) -> KernelError:
    with pytest.raises(KernelError) as refusal:
        namespace.inside(lambda: Libiptc().replace(family, table))
    assert "\n" not in str(refusal.value)
    return refusal.value


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("missing", [("net_admin",), ("net_raw",), ("net_admin", "net_raw")])
def test_the_missing_capability_is_named(namespace: Namespace, family: Family, missing: tuple[str, ...]) -> None:
    namespace.inside(lambda: Libiptc().replace(family, table_of("nat")))

    firewall = Libiptc()
    verbs: list[Callable[[], object]] = [
        lambda: firewall.read(family),
        lambda: firewall.replace(family, table_of("nat", Rule((), RETURN))),
        lambda: firewall.remove(family, "nat"),
    ]

    def attempt() -> list[str]:
        without(*missing)
        texts = []
        for verb in verbs:
            with pytest.raises(KernelError) as refusal:
                verb()
            assert refusal.value.errno == errno.EPERM
            texts.append(str(refusal.value))
        return texts

    for text in namespace.forked(attempt):
        assert text.startswith(f"{family}")
        assert f": {' and '.join(name.upper() for name in missing)} missing: " in text
    assert len(raw_entries.signed(namespace, family, "nat")) == 1


def test_capabilities_of_another_user_namespace_do_not_count(namespace: Namespace) -> None:
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", WRITE]
    done = namespace.completed("env", f"PYTHONPATH={ROOT}", *command)
    assert "NET_ADMIN and NET_RAW are there, but not for the user namespace" in done.stderr
    assert namespace.run("cat", NAMES[IPV4]) == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_any_user_with_the_two_capabilities_can(namespace: Namespace, family: Family) -> None:
    """The list of tables is for root alone; without it the tables that are asked for are taken to exist."""
    table = table_of("nat", *marked())
    expecting = Ruleset(family, (table,))

    def work() -> tuple[Ruleset, Ruleset]:
        become_with(1337, 1337, "net_admin", "net_raw")
        firewall = Libiptc()
        before = firewall.read(family, expecting)
        firewall.replace(family, table)
        return before, firewall.read(family, expecting)

    before, after = namespace.forked(work)
    assert before != expecting
    assert after == expecting
    assert namespace.run("cat", NAMES[family]).split() == ["nat"]
    assert len(raw_entries.signed(namespace, family, "nat")) == 1 + len(marked())


def marked() -> tuple[Rule, ...]:
    return (Rule((Mark(1),), RETURN), Rule((Mark(2),), RETURN))


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_extensions_are_named_with_a_rule_that_uses_them(namespace: Namespace, family: Family) -> None:
    """Those of the rules that the kernel knows are not."""
    desired = table_of(
        "nat",
        Rule((Mark(1),), RETURN),
        Rule((Mark(2), UnknownMatch("nosuch", 3, bytes(8))), RETURN),
        Rule((Mark(3), UnknownMatch("nosuch", 3, bytes(8))), RETURN),
        Rule((), UnknownTarget("NOSUCH", 0, bytes(16))),
        Rule((UnknownMatch("owner", 9, bytes(8)),), RETURN),
    )
    error = refused(namespace, family, desired)
    assert error.errno == errno.ENOENT
    text = str(error)
    assert text.startswith(f"{family} nat: can't commit the table: No such file or directory: ")
    assert "no match nosuch (revision 3), which -A ISTIO_OUTPUT -m mark --mark 0x2 -m nosuch" in text
    assert "no target NOSUCH (revision 0), which -A ISTIO_OUTPUT -j NOSUCH" in text
    assert "load the module xt_NOSUCH" in text
    assert "match owner (revision 9)" in text
    assert "match mark" not in text
    assert raw_entries.signed(namespace, family, "nat") == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_that_the_kernel_does_not_have(namespace: Namespace, family: Family) -> None:
    table = Table("nosuch", (Chain("ISTIO_OUTPUT", ()),))  # type: ignore[arg-type]
    error = refused(namespace, family, table)
    assert error.errno == errno.ENOENT
    module = "iptable_nosuch" if family == IPV4 else "ip6table_nosuch"
    assert f"load the module {module}; " in str(error)
    assert "CONFIG_NETFILTER_XTABLES_LEGACY" in str(error)


@pytest.mark.parametrize("target", [Redirect(PortRange(1, 1)), UnknownTarget("MARK", 2, bytes(16))])
def test_what_the_kernel_finds_invalid(namespace: Namespace, target: Target) -> None:
    """A target of another table; data of a wrong size. Only the kernel's log knows which."""
    error = refused(namespace, IPV4, table_of("mangle", Rule((), target)))
    assert error.errno == errno.EINVAL
    assert "ipv4 mangle: can't commit the table: Invalid argument: " in str(error)
    assert "dmesg" in str(error)
    assert raw_entries.signed(namespace, IPV4, "mangle") == []


def test_chains_in_a_loop(namespace: Namespace) -> None:
    error = refused(namespace, IPV4, table_of("nat", Rule((), Jump("ISTIO_OUTPUT"))))
    assert error.errno == errno.ELOOP
    assert "loop" in str(error)


def test_a_jump_to_nowhere(namespace: Namespace) -> None:
    """Libiptc takes what is no chain for an extension."""
    error = refused(namespace, IPV4, table_of("nat", Rule((), Jump("NOWHERE"))))
    assert error.errno == errno.ENOENT
    assert "there is no chain NOWHERE, which -A ISTIO_OUTPUT -j NOWHERE jumps to" in str(error)


def test_an_edit_that_libiptc_refuses(namespace: Namespace) -> None:
    """A name too long for a chain; a jump to a built-in one."""
    long = Table("nat", (Chain("x" * 32, ()),))
    assert f"ipv4 nat: can't create chain {'x' * 32}: Invalid argument: " in str(refused(namespace, IPV4, long))
    jump = table_of("nat", Rule((), Jump("PREROUTING")))
    assert "can't append a rule to ISTIO_OUTPUT: Invalid argument: " in str(refused(namespace, IPV4, jump))
    assert raw_entries.signed(namespace, IPV4, "nat") == []


def test_a_library_that_is_not_there(namespace: Namespace) -> None:
    """Hidden from a process in a mount namespace of its own."""
    functions(IPV4)
    with open("/proc/self/maps", encoding="ascii") as maps:
        [path] = {line.split()[-1] for line in maps if "libip4tc" in line}
    command = f"mount --bind /dev/null {path} && exec {sys.executable} -c '{WRITE}'"
    done = namespace.completed("env", f"PYTHONPATH={ROOT}", "unshare", "--mount", "sh", "-c", command)
    assert done.returncode == 1
    assert "KernelError: libip4tc.so.2 can't be opened" in done.stderr
    assert "libip4tc2" in done.stderr
