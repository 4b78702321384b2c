"""The verbs as transactions: what is done in which order, and how it is undone, on a namespace in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from istio_init import plan
from istio_init.errors import Interrupted, KernelError
from istio_init.errors_rare import Drifted
from istio_init.log import Log
from istio_init.model.routing import Address, PolicyRule, Route
from istio_init.model.rules import FAMILIES, IPV4, IPV6, Destination, Jump, Network, Rule, Table, Verdict
from istio_init.runner import cleanup, transaction
from tests.kit.memory import Lines, Memory, MemoryFirewall, empty
from tests.kit.options import options
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from istio_init.model.compare import TableChange
    from istio_init.model.rules import Family
    from istio_init.planning.changes import Changes
    from istio_init.planning.plan import Plan

QUIET = Log("none")
THEIRS = Rule((Destination(Network(bytes((192, 0, 2, 1)), 32)),), Verdict("ACCEPT"))
SOMEBODYS = (PolicyRule(IPV4, 7, 77), Route(IPV6, "lo", 77), Address(Network(bytes(15) + b"\1", 128), "lo"))
# From what to what: none for nothing. Each pair takes other turns among the tables and the routing.
RUNS = [
    (None, "article"),
    (None, "article-tproxy"),
    ("article-ipv6", "article-tproxy"),
    ("article-tproxy", "article-ipv6"),
    ("tproxy-mark-and-table", "article-tproxy"),
    ("dns-all", "kubevirt-list"),
    ("drop-invalid-tproxy", "dns-servers"),
    ("article-tproxy", None),
    ("cidrs", None),
]


def planned(name: str | None, *more: str) -> Plan:
    chosen = options([*argv(name or "nothing"), *more], {})
    assert chosen
    return plan(chosen)


def inhabited(before: str | None) -> Memory:
    """A namespace in which others have rules in every chain that is built in, and routing; and maybe a plan exists."""
    memory = Memory()
    for family in FAMILIES:
        for name in ("raw", "mangle", "nat", "filter"):
            table = empty(name)
            chains = tuple(chain.replace(rules=(THEIRS,)) for chain in table.chains)
            memory.tables[family, table.name] = table.replace(chains=chains)
    memory.routing = SOMEBODYS
    if before:
        memory.hold(planned(before))
    return memory


def run(memory: Memory, after: str | None, log: Log = QUIET) -> Changes:
    """Apply a case with --reconcile, or clean up."""
    if after is None:
        return cleanup.clean(planned(None), memory.firewall, memory.router, log)
    return transaction.apply(planned(after), memory.firewall, memory.router, log, reconcile=True)


@pytest.mark.parametrize(("before", "after"), RUNS)
def test_done_and_done_again(before: str | None, after: str | None) -> None:
    memory = inhabited(before)
    assert run(memory, after)
    assert memory.changes
    assert memory.held()[1] >= set(SOMEBODYS)
    if before is None or after is None:
        assert memory.held() == inhabited(after).held()
    memory.changes = []
    assert not run(memory, after)
    assert memory.changes == []


@pytest.mark.parametrize(("before", "after"), RUNS)
def test_refused_at_each_change_it_is_as_it_was(before: str | None, after: str | None) -> None:
    whole = inhabited(before)
    run(whole, after)
    for number in range(1, len(whole.changes) + 1):
        memory = inhabited(before)
        was = memory.held()
        memory.fail_at = number
        with pytest.raises(KernelError, match=f"refused: {whole.changes[number - 1]}$"):
            run(memory, after)
        assert memory.held() == was, whole.changes[number - 1]


@pytest.mark.parametrize(("before", "after"), RUNS)
def test_ended_when_all_is_done_it_is_as_it_was(before: str | None, after: str | None) -> None:
    """The last call may still end in everything being put back: so a signal is never between two states."""
    memory = inhabited(before)
    was = memory.held()

    def interrupt() -> None:
        raise Interrupted("ended by signal 15")

    desired, firewall, router = planned(after), memory.firewall, memory.router
    if after is None:
        with pytest.raises(Interrupted):
            cleanup.clean(desired, firewall, router, QUIET, on_commit=interrupt)
    else:
        with pytest.raises(Interrupted):
            transaction.apply(desired, firewall, router, QUIET, reconcile=True, on_commit=interrupt)
    assert memory.held() == was


def test_settled_is_called_once_when_all_is_done_and_not_where_nothing_is() -> None:
    memory = inhabited(None)
    desired = planned("article-tproxy")
    observed: list[bool] = []

    def on_commit() -> None:
        observed.append(set(desired.routing) <= set(memory.routing) and memory.ours())

    transaction.apply(desired, memory.firewall, memory.router, QUIET, on_commit=on_commit)
    assert observed == [True]
    transaction.apply(desired, memory.firewall, memory.router, QUIET, on_commit=on_commit)
    assert observed == [True]


def test_routing_is_there_before_the_rules_that_need_it_and_goes_after_them() -> None:
    memory = inhabited(None)
    run(memory, "article-tproxy")
    assert [change.split()[0] for change in memory.changes] == ["add"] * 5 + ["ipv6"] * 2 + ["ipv4"] * 2 + [
        "ipv6",
        "ipv4",
    ]
    memory.changes = []
    run(memory, None)
    assert [change.split()[0] for change in memory.changes][-5:] == ["drop"] * 5
    back = inhabited("article-ipv6")
    back.fail_at = 9
    with pytest.raises(KernelError):
        run(back, "article-tproxy")
    undone = back.changes[9:]
    assert [change.split()[0] for change in undone][-4:] == ["drop"] * 4
    assert not any(change.startswith("drop") for change in undone[:-4])


def test_drift_changes_nothing() -> None:
    memory = inhabited("article-ipv6")
    with pytest.raises(Drifted):
        transaction.apply(planned("article-tproxy"), memory.firewall, memory.router, QUIET)
    assert memory.changes == []


def test_only_the_families_of_the_plan_are_looked_at() -> None:
    memory = inhabited("article-tproxy")
    transaction.apply(planned("article-1.13"), memory.firewall, memory.router, QUIET, reconcile=True)
    assert not any("ipv6" in each for each in (*memory.changes, *memory.reads))


def test_routing_is_not_looked_at_where_it_cannot_matter() -> None:
    """Each look takes time that a pod waits for."""
    memory = inhabited(None)
    for _ in range(2):
        transaction.apply(planned("article"), memory.firewall, memory.router, QUIET)
    assert "read routing" not in memory.reads


class Deaf(MemoryFirewall):
    """A Firewall whose writes don't take."""

    def replace(self, family: Family, desired: Table) -> None:
        """Do nothing."""


@pytest.mark.parametrize("name", ["article", "article-tproxy"])
def test_what_did_not_take_is_an_error(name: str) -> None:
    memory = inhabited(None)
    was = memory.held()
    with pytest.raises(KernelError, match=r"^the kernel's rules differ from what was written: ipv4 "):
        transaction.apply(planned(name), Deaf(memory), memory.router, QUIET)
    assert memory.held() == was


def test_what_can_not_be_put_back_is_said_and_the_rest_is_put_back() -> None:
    memory = inhabited("article-ipv6")
    rules, routes = memory.held()
    log = Lines()

    class Stubborn(MemoryFirewall):
        def replace(self, family: Family, desired: Table) -> None:
            """Write IPv4's nat once, say that it was refused, and refuse it from then on."""
            if (family, desired.name) != (IPV4, "nat"):
                super().replace(family, desired)
            elif "ipv4 nat" not in memory.changes:
                super().replace(family, desired)
                raise OSError("its answer was lost")
            else:
                raise OSError("not even in words")

    with pytest.raises(OSError, match="its answer was lost") as caught:
        transaction.apply(planned("article-tproxy"), Stubborn(memory), memory.router, log, reconcile=True)
    [note] = caught.value.__notes__
    assert note.startswith("the namespace has neither the previous state nor the plan: run again with --reconcile")
    assert [line for line in log.lines if line.startswith("error")] == [
        "error: the previous state could not be restored completely: ipv4 nat: not even in words"
    ]
    left, routes_left = memory.held()
    assert routes_left == routes
    assert {key for key in left if left[key] != rules.get(key)} == {(IPV4, "nat")}


class AtOnce(MemoryFirewall):
    """A Firewall that writes all tables in one transaction, or none."""

    def __init__(self, memory: Memory, *, refuse: bool = False) -> None:
        super().__init__(memory)
        self.refuse = refuse
        self.writes: list[int] = []

    def write(self, changes: tuple[TableChange, ...]) -> None:
        """All of them, or a refusal."""
        self.writes.append(len(changes))
        if self.refuse:
            raise KernelError("none of it")
        for change in changes:
            if change.desired:
                super().replace(change.family, change.desired)
            else:
                super().remove(change.family, change.name, change.unsigned)


def test_one_transaction_where_the_firewall_has_such() -> None:
    memory = inhabited("article-ipv6")
    firewall = AtOnce(memory)
    transaction.apply(planned("article-tproxy"), firewall, memory.router, QUIET, reconcile=True)
    assert firewall.writes == [6]


def test_a_transaction_that_was_refused_leaves_no_table_to_be_put_back() -> None:
    memory = inhabited("article-ipv6")
    was = memory.held()
    with pytest.raises(KernelError, match="none of it"):
        transaction.apply(planned("article-tproxy"), AtOnce(memory, refuse=True), memory.router, QUIET, reconcile=True)
    assert memory.held() == was
    assert {change.split()[0] for change in memory.changes} == {"add", "drop"}


@pytest.mark.parametrize("name", CASES)
def test_every_plan_comes_and_goes(name: str) -> None:
    memory = inhabited(None)
    was = memory.held()
    assert run(memory, name)
    assert memory.ours()
    assert run(memory, None)
    assert memory.held() == was
    assert not run(memory, None)


def test_every_step_is_logged() -> None:
    memory, log = inhabited(None), Lines()
    run(memory, "article-tproxy", log)
    assert log.lines == [
        "debug: writing: no Istio rules found",
        "info: routing: ip -6 addr add ::6/128 dev lo",
        "info: routing: ip -4 route add local default dev lo table 133",
        "info: routing: ip -6 route add local default dev lo table 133",
        "info: routing: ip -4 rule add fwmark 1337 lookup 133",
        "info: routing: ip -6 rule add fwmark 1337 lookup 133",
        "info: ipv6 raw: writing 8 rules",
        "info: ipv6 mangle: writing 16 rules",
        "info: ipv4 raw: writing 8 rules",
        "info: ipv4 mangle: writing 16 rules",
        "info: ipv6 nat: writing 16 rules",
        "info: ipv4 nat: writing 16 rules",
    ]


def test_a_summary_says_what_stands_where() -> None:
    memory = inhabited(None)
    desired = planned("article-ipv6")
    changes = run(memory, "article-ipv6")
    message = transaction.summary(changes, desired.rulesets)
    assert message == "applied (no Istio rules found): rules ipv4 nat 17, ipv6 nat 17"
    assert transaction.summary(run(memory, "article-ipv6"), desired.rulesets) == "in place, nothing written"


def test_a_jump_of_others_to_a_chain_of_ours_is_not_put_back_into_nothing() -> None:
    """What was in the way of a chain's removal was ours by where it jumps; a failure later on puts it back."""
    memory = inhabited("article")
    table = memory.tables[IPV4, "nat"]
    jump = Rule((), Jump("ISTIO_REDIRECT"))
    chains = tuple(
        chain.replace(rules=(*chain.rules, jump)) if chain.name == "INPUT" else chain for chain in table.chains
    )
    memory.tables[IPV4, "nat"] = table.replace(chains=chains)
    memory.hold(planned("article-ipv6"))
    was = memory.held()
    memory.fail_at = 2
    with pytest.raises(KernelError):
        run(memory, None)
    assert memory.held() == was
