"""What `show` says without a kernel: columns of every rule, states, the words of its command line."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from rich.console import Console

from istio_init.cli.verbs.show import interval, spelled_out
from istio_init.cli.verbs.show_render import cells, least_width, tables
from istio_init.errors_rare import OptionError
from istio_init.formats.iptables_list import columns, inet_columns
from istio_init.formats.nft.layout import layout
from istio_init.inspect.snapshot import Snapshot, captured
from istio_init.inspect.table_view import table_rows
from istio_init.model.counters import Connection, Count, CountedTable
from istio_init.model.differences import unpaired
from istio_init.model.inet import sets
from istio_init.model.rules import BUILTIN_CHAINS, IPV4, TCP, Rule, Ruleset, Table
from istio_init.options.table import Options
from istio_init.planning.plan import build
from istio_init.simulate.purposes import purposes
from tests.kit.options import options
from tests.kit.strategies import rulesets
from tests.planning.cases import CASES, argv


@given(rulesets(IPV4))
def test_every_rule_has_its_columns(ruleset: Ruleset) -> None:
    """None is empty, and each match that has no column of its own leaves a word in the last one."""
    for table in ruleset.tables:
        for chain in table.chains:
            for rule in chain.rules:
                report = columns(rule)
                assert all(
                    (report.protocol, report.in_interface, report.out_interface, report.source, report.destination)
                )
                if rule.matches and rule.replace(matches=()) != rule:
                    assert columns(rule) != columns(rule.replace(matches=())) or _asks_nothing(rule)


def _asks_nothing(rule: Rule) -> bool:
    from istio_init.formats.iptables_save import rule_text

    return rule_text(rule) == rule_text(rule.replace(matches=()))


@pytest.mark.parametrize("name", CASES)
def test_every_native_rule_has_its_columns(name: str) -> None:
    chosen = options(argv(name), {})
    assert chosen is not None
    plan = build(chosen)
    for table in BUILTIN_CHAINS:
        laid_out = layout(plan.rulesets, table)
        named = sets(laid_out)
        for chain in laid_out.chains:
            report = [inet_columns(rule, named) for rule in chain.rules]
            assert len({(each, rule.family) for each, rule in zip(report, chain.rules, strict=True)}) == len(
                set(chain.rules)
            )


def counted(table: Table) -> CountedTable:
    return CountedTable(
        IPV4,
        table,
        {chain.name: tuple(Count(n, n * 60) for n in range(len(chain.rules))) for chain in table.chains},
        {},
    )


def test_a_rule_at_another_place() -> None:
    chosen = Options(istio_service_cidr="*", istio_inbound_ports="*", proxy_uid=(1337,))
    [desired] = [table for ruleset in build(chosen).rulesets for table in ruleset.tables if ruleset.family == IPV4]
    output = desired.chain("ISTIO_OUTPUT")
    assert output is not None
    swapped = output.replace(rules=(output.rules[1], output.rules[0], *output.rules[2:]))
    assert not list(unpaired(swapped.rules, output.rules))
    actual = desired.replace(chains=tuple(swapped if each is output else each for each in desired.chains))
    rows = table_rows(counted(actual), desired, purposes(chosen, IPV4))
    [chain] = [chain for chain in rows.chains if chain.name == "ISTIO_OUTPUT"]
    assert [row.state for row in chain.rows] == ["misplaced"] * 2 + ["in place"] * (len(output.rules) - 2)
    assert [row.count for row in chain.rows] == [Count(n, n * 60) for n in range(len(output.rules))]
    assert all(row.purposes for row in chain.rows)


def test_a_chain_that_is_gone() -> None:
    chosen = Options(istio_service_cidr="*", proxy_uid=(1337,))
    [desired] = [table for ruleset in build(chosen).rulesets for table in ruleset.tables if ruleset.family == IPV4]
    actual = desired.replace(chains=tuple(each for each in desired.chains if each.name != "ISTIO_REDIRECT"))
    rows = table_rows(counted(actual), desired, purposes(chosen, IPV4))
    [chain] = [chain for chain in rows.chains if chain.name == "ISTIO_REDIRECT"]
    assert (chain.rows, chain.missing) == ((), ("-p tcp -j REDIRECT --to-ports 15001",))


@pytest.mark.parametrize("name", ["article-ipv6", "article-tproxy", "cidrs", "owners"])
def test_a_table_of_the_least_width_has_it_all(name: str) -> None:
    """No column is left out, and no cell cut: only the last one is folded."""
    chosen = options(argv(name), {})
    assert chosen is not None
    shown = tuple(
        ("legacy", table_rows(counted(table), table, purposes(chosen, ruleset.family)))
        for ruleset in build(chosen).rulesets
        for table in ruleset.tables
    )
    snapshot = Snapshot("in place", "legacy", "asked for", (), shown, (), None, None)
    for brief in (False, True):
        with Console(width=least_width(snapshot), file=io.StringIO()) as console, console.capture() as capture:
            console.print(tables(snapshot, brief=brief))
        text = capture.get()
        assert "…" not in text
        report = {tuple(map(str.strip, line.split("│")[1:-2])) for line in text.splitlines() if line.startswith("│")}
        assert report >= {cells(row)[:-1] for _, table in shown for chain in table.chains for row in chain.rows}


def test_captured_connections() -> None:
    """Those that NAT sent to a port of the proxy's; a client's own connection to such a port is none."""
    connections = [
        Connection(TCP, 15001, redirected=True, mark=0),
        Connection(TCP, 15006, redirected=True, mark=0),
        Connection(TCP, 15006, redirected=False, mark=0),
        Connection(TCP, 80, redirected=True, mark=0),
        Connection(TCP, 80, redirected=False, mark=1337),
    ]
    assert captured(connections, Options()) == {"outbound": 1, "inbound": 1, "dns": 0}
    assert captured(connections, Options(istio_inbound_interception_mode="TPROXY"))["marked"] == 1


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["show", "--watch"], ["show", "--watch", "2"]),
        (["show", "--watch", "5", "-b", "80"], ["show", "--watch", "5", "-b", "80"]),
        (["show", "--watch", "-b", "80"], ["show", "--watch", "2", "-b", "80"]),
        (["show", "--watch=0.5"], ["show", "--watch=0.5"]),
        (["explain", "--watch"], ["explain", "--watch"]),
        ([], []),
    ],
)
def test_a_watch_that_says_no_seconds(arguments: list[str], meant: list[str]) -> None:
    assert spelled_out(arguments) == meant


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf", "1e9", "x", ""])
def test_no_interval(wrong: str) -> None:
    with pytest.raises(OptionError, match=r"--watch: .*: not a number of seconds"):
        interval(wrong)
    assert interval("0.1") == 0.1
