"""Random valid options, in fresh namespaces: what is printed, what is applied and what is read back are one."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration.kit.canaries import canaries, plant
from integration.kit.command_lines import command_lines
from integration.kit.fresh import command, inode, inside_new, unshare
from integration.kit.program import RESTORE, SAVE, tables
from istio_init.formats.iptables_restore import parse as load
from istio_init.formats.iptables_save import dump as dump_ruleset
from istio_init.kernel.xtables.sockopt import TableSocket
from istio_init.kernel.xtables.table_names import existing_tables
from istio_init.log import Log
from istio_init.model.rules import FAMILIES
from istio_init.options.table import Options
from istio_init.planning.plan import Plan, build
from istio_init.planning.preview import dump
from istio_init.runner import access, backends, cleanup, transaction
from tests.kit.options import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.model.rules import Family
    from istio_init.planning.changes import Changes

# What takes how long on which machine is nobody's business here.
MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
FEWER = settings(MANY, max_examples=40)


def planned(arguments: Sequence[str]) -> Plan:
    chosen = options(arguments, {})
    assert chosen is not None
    return build(chosen)


class Here:
    """The calling thread's namespace, as the helpers that plant and count canaries know one."""

    def run(self, *argv: str, text: str | None = None) -> str:
        """The standard output of a command."""
        return command(*argv, text=text)


def apply(plan: Plan, *, reconcile: bool = False) -> Changes:
    firewall, router = backends.firewall(Options()), access.router()
    return transaction.apply(plan, firewall, router, Log("none"), reconcile=reconcile)


def clean(plan: Plan) -> Changes:
    return cleanup.clean(plan, backends.firewall(Options()), access.router(), Log("none"))


def saved() -> dict[Family, dict[str, str]]:
    return {family: tables(command(SAVE[family])) for family in FAMILIES}


def blobs() -> dict[tuple[Family, str], object]:
    """Every table as the kernel hands it out, byte for byte."""
    result: dict[tuple[Family, str], object] = {}
    for family in FAMILIES:
        with TableSocket(family) as socket:
            result.update({(family, name): socket.table(name) for name in existing_tables(family) or ()})
    return result


@MANY
@given(command_lines)
def test_printed_applied_restored_and_read_are_one(arguments: list[str]) -> None:
    plan = planned(arguments)
    printed = {family: tables(dump(plan, (family,))) for family in FAMILIES}

    def applied() -> None:
        assert apply(plan)
        assert saved() == printed
        for ruleset in plan.rulesets:
            assert load(dump_ruleset(ruleset), ruleset.family) == ruleset
            assert backends.firewall(Options()).read(ruleset.family) == ruleset
        before = blobs()
        assert not apply(plan)
        assert blobs() == before
        unshare()
        for family in FAMILIES:
            command(RESTORE[family], "--wait", text=dump(plan, (family,)))
        assert saved() == printed
        assert {key[0] for key in blobs()} == {ruleset.family for ruleset in plan.rulesets}

    inside_new(applied)


@FEWER
@given(command_lines, command_lines, st.booleans())
def test_others_rules_outlive_everything(first: list[str], second: list[str], flags: bool) -> None:
    """Applied, brought to another plan, cleaned up: what others had is as it was at each step."""
    one, other = planned(first), planned(second)

    def work() -> None:
        here = Here()
        plant(here)
        before, tables_before = {family: canaries(here, family) for family in FAMILIES}, saved()
        routes = command("ip", "rule"), command("ip", "-6", "rule"), command("ip", "route", "show", "table", "all")
        apply(one)
        assert {family: canaries(here, family) for family in FAMILIES} == before
        apply(other, reconcile=True)
        assert not apply(other)
        assert {family: canaries(here, family) for family in FAMILIES} == before
        clean(other if flags else planned([]))
        assert not clean(other)
        assert {family: canaries(here, family) for family in FAMILIES} == before
        assert saved() == tables_before
        assert routes == (
            command("ip", "rule"), command("ip", "-6", "rule"), command("ip", "route", "show", "table", "all")
        )  # fmt: skip

    inside_new(work)


def test_a_namespace_of_its_own_is_one() -> None:
    """The helper that these properties rely on."""
    before = inode()
    first = inside_new(inode)
    assert first != before
    assert inode() == before
    assert inside_new(lambda: subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout)
