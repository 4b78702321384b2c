"""What holds on every backend: random options, faults, signals and kills at every write."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings

from integration.kernel.test_native import OTHERS, by_table
from integration.kit.backends import BACKENDS, rules
from integration.kit.command_lines import command_lines
from integration.kit.fresh import command, inside_new
from integration.kit.namespace import Namespace
from integration.kit.program import routing, succeed, tables
from integration.kit.settling import settled
from integration.kit.tracing import Traced, traced
from istio_init.log import Log
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from istio_init.planning.plan import build
from istio_init.planning.preview import dump, dump_nftables
from istio_init.runner import access, backends, cleanup, transaction
from tests.kit.options import options
from tests.planning.cases import argv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.planning.plan import Plan

# What takes how long on which machine is nobody's business here.
MANY = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
REDIRECT, TPROXY = argv("article-ipv6"), argv("article-tproxy")
SAVE = {IPV4: "iptables-nft-save", IPV6: "ip6tables-nft-save"}
# The backends that legacy's own tests (test_properties.py, test_rollback.py, test_faults.py) don't speak of.
NEWER = {name: flags for name, flags in BACKENDS.items() if name != "legacy"}


def listed(backend: str) -> dict[str, str]:
    """What the backend's own tool says of the calling thread's namespace."""
    if backend == "native":
        return by_table(command("nft", "list", "ruleset"))
    return {f"{family} {name}": text for family in FAMILIES for name, text in tables(command(SAVE[family])).items()}


def printed(plan: Plan, backend: str) -> dict[str, str]:
    """What a dry run says that it would say."""
    if backend == "native":
        return by_table(dump_nftables(plan))
    return {f"{family} {name}": text for family in FAMILIES for name, text in tables(dump(plan, (family,))).items()}


def unspeakable(interface: str) -> bool:
    """Whether nft has no spelling for this name."""
    return interface.endswith(("\\+", "\\*"))


@pytest.mark.parametrize(("backend", "flags"), NEWER.items())
def test_printed_applied_and_read_are_one(backend: str, flags: list[str]) -> None:
    @MANY
    @given(command_lines)
    def holds(arguments: list[str]) -> None:
        chosen = options([*arguments, *flags], {})
        assert chosen is not None
        interfaces = (*chosen.istio_exclude_interfaces, *chosen.kube_virt_interfaces)
        # tests/formats/test_nft.py holds that this is said.
        assume(backend != "native" or not any(map(unspeakable, interfaces)))
        plan = build(chosen)

        def work() -> None:
            firewall, router, log = backends.firewall(chosen), access.router(), Log("none")
            assert transaction.apply(plan, firewall, router, log)
            assert listed(backend) == printed(plan, backend)
            assert [firewall.read(desired.family, desired) for desired in plan.rulesets] == [*plan.rulesets]
            assert not transaction.apply(plan, backends.firewall(chosen), router, log)
            assert cleanup.clean(plan.replace(rulesets=()), firewall, router, log)
            assert not listed(backend)

        inside_new(work)

    holds()


# The state before, and what is run.
SCENARIOS: dict[str, tuple[list[str] | None, list[str]]] = {
    "from nothing": (None, TPROXY),
    "to TPROXY": (REDIRECT, [*TPROXY, "--reconcile"]),
    "to nothing": (TPROXY, ["--cleanup-only"]),
}
CALLS = "sendto,sendmsg"


def prepared(namespace: Namespace, backend: str, scenario: str) -> object:
    """Bring the namespace to its first state; what exists then."""
    namespace.run("nft", "-f", "-", text=OTHERS)
    if before := SCENARIOS[scenario][0]:
        succeed(namespace, *before, *BACKENDS[backend])
    return picture(namespace)


def picture(namespace: Namespace) -> object:
    """All that a run may change, on whichever backend."""
    settled(namespace)
    return by_table(namespace.run("nft", "list", "ruleset")), rules(namespace, "legacy"), routing(namespace)


def whole_run(backend: str, scenario: str) -> tuple[Traced, object]:
    """What a run in which nothing fails does, and what it leaves."""
    with Namespace() as namespace:
        prepared(namespace, backend, scenario)
        run = traced(namespace, CALLS, *SCENARIOS[scenario][1], *BACKENDS[backend])
        assert run.code == 0, run.log
        return run, picture(namespace)


def each_write(run: Traced) -> Iterator[tuple[str, int]]:
    """Every system call of the run that writes, by name and number among all of the name."""
    counts: Counter[str] = Counter()
    for call in run.calls:
        name = call.split()[1].partition("(")[0]
        counts[name] += 1
        if any(word in call for word in ("NFNL_MSG_BATCH_BEGIN", "RTM_NEW", "RTM_DEL")):
            yield name, counts[name]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("backend", NEWER)
def test_a_refusal(backend: str, scenario: str) -> None:
    """The kernel refuses one write: the run tries again and does everything, or has done nothing and says so."""
    whole, done = whole_run(backend, scenario)
    for name, number in each_write(whole):
        with Namespace() as namespace:
            before = prepared(namespace, backend, scenario)
            fault = f"{name}:error=ENOMEM:when={number}"
            run = traced(namespace, CALLS, *SCENARIOS[scenario][1], *BACKENDS[backend], inject=fault)
            assert "Traceback" not in run.log
            assert "not everything could be put back" not in run.log
            assert picture(namespace) == (before if run.code else done), f"{fault}: {run.log}"
            if run.code:
                assert "Cannot allocate memory" in run.log.splitlines()[-1]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("backend", NEWER)
def test_a_signal(backend: str, scenario: str) -> None:
    """At any write: everything is done, or it says so and nothing is."""
    whole, done = whole_run(backend, scenario)
    codes = set()
    for name, number in each_write(whole):
        with Namespace() as namespace:
            before = prepared(namespace, backend, scenario)
            fault = f"{name}:signal=SIGTERM:when={number}"
            run = traced(namespace, CALLS, *SCENARIOS[scenario][1], *BACKENDS[backend], inject=fault)
            assert "Traceback" not in run.log
            assert picture(namespace) == (before if run.code else done), f"{fault}: {run.log}"
            codes.add(run.code)
    assert 1 in codes


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("backend", NEWER)
def test_killed(backend: str, scenario: str) -> None:
    """Run again, the same command line ends where it would have ended."""
    whole, done = whole_run(backend, scenario)
    for name, number in each_write(whole):
        with Namespace() as namespace:
            prepared(namespace, backend, scenario)
            words = [*SCENARIOS[scenario][1], *BACKENDS[backend]]
            run = traced(namespace, CALLS, *words, inject=f"{name}:signal=SIGKILL:when={number}")
            assert run.code == -9
            succeed(namespace, *words)
            assert picture(namespace) == done
