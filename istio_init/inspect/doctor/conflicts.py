"""Existing rules that conflict with a plan: Istio rules of another run, and other programs' rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.errors_rare import Drifted
from istio_init.formats.iptables_save import rule_text
from istio_init.inspect.doctor.case import Check
from istio_init.model.extensions import Tproxy
from istio_init.model.ownership import edit, own_part, own_rules, recognised
from istio_init.model.routing import command
from istio_init.model.rules import IPV4, Jump, Redirect, Rule, Ruleset, Verdict
from istio_init.model.unknown import UnknownTarget
from istio_init.planning.changes import NamespaceState, decide
from istio_init.planning.removal import removal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.inspect.doctor.case import Case
    from istio_init.kernel.probe.facts import InstalledRules
    from istio_init.model.rules import Chain, Family, Table

HOOKS = ("PREROUTING", "OUTPUT")
TRANSLATING = {"DNAT", "NETMAP", "REDIRECT"}
MOST_SHOWN = 3
DOCKER_RESOLVER = "127.0.0.11"
LOOK = "run as root with NET_ADMIN and NET_RAW"
CLEAN = "istio-init clean removes Istio rules; --reconcile updates them"


def leftovers(case: Case) -> Iterator[Check]:
    """Istio rules and routing of earlier runs, in the backend's own tables and in others."""
    for installed in case.machine.installed:
        if installed.why:
            yield Check(
                f"existing rules, {installed.backend}", "warn", installed.why,
                "the rules there were not read", LOOK,
            )  # fmt: skip
        elif installed.backend != case.backend:
            yield from _elsewhere(case, installed)
    yield _own_tables(case)
    yield from _other_families(case)


def _own_tables(case: Case) -> Check:
    """How the backend's own tables and the routing compare with the plan."""
    installed = next((each for each in case.machine.installed if each.backend == case.backend), None)
    existing = {ruleset.family: ruleset for ruleset in (installed.rulesets if installed else ())}
    rulesets = tuple(existing.get(family, Ruleset(family, ())) for family in case.families)
    name, fixed = "leftovers", case.options.reconcile or case.options.cleanup_only
    try:
        changes = decide(case.plan, NamespaceState(rulesets, case.machine.routing))
    except Drifted as error:
        matters = "--reconcile updates them" if fixed else "an apply ends with this error and changes nothing"
        return Check(name, "warn" if fixed else "fail", str(error), matters, CLEAN)
    if changes.drop:
        entries = "; ".join(command(entry, "del") for entry in changes.drop)
        return Check(
            name,
            "warn",
            "routing of an earlier run remains",
            "packets with this mark are delivered in the pod",
            entries,
        )
    if changes and changes.why != "no Istio rules found":
        return Check(name, "warn", "an earlier run was interrupted", "an apply completes it")
    if any(own_part(table) for ruleset in rulesets for table in ruleset.tables):
        return Check(name, "ok", "the plan is in place")
    return _unseen(case, name) or Check(name, "ok", "no Istio rules found")


def _unseen(case: Case, name: str) -> Check | None:
    """A warning if some tables could not be read, and may have such rules."""
    unread = [installed.backend for installed in case.machine.installed if installed.why]
    if not unread:
        return None
    finding = f"none found, but the tables of {' and '.join(unread)} were not read"
    return Check(name, "warn", finding, "there may be some", LOOK)


def _elsewhere(case: Case, installed: InstalledRules) -> Iterator[Check]:
    if not removal(NamespaceState(installed.rulesets), case.plan):
        return
    fixed = case.options.reconcile or case.options.cleanup_only
    yield Check(
        f"leftovers, {installed.backend}",
        "warn" if fixed else "fail",
        f"Istio rules also exist in the {installed.backend} tables",
        "--reconcile moves them over" if fixed else "they would capture packets a second time",
        CLEAN,
    )


def _other_families(case: Case) -> Iterator[Check]:
    for installed in case.machine.installed:
        for ruleset in installed.rulesets:
            if ruleset.family not in case.families and any(map(own_part, ruleset.tables)):
                yield Check(
                    f"leftovers, {ruleset.family}", "warn", f"{ruleset.family} Istio rules exist in the "
                    f"{installed.backend} tables, and the plan has none", "that traffic is still captured",
                    "istio-init clean, then apply; or --enable-ipv6",
                )  # fmt: skip


def shadows(case: Case) -> Iterator[Check]:
    """Other programs' rules that match packets before Istio's rules."""
    conflicts = [
        *(check for installed in case.machine.installed for check in _shadowing(case, installed)),
        *_foreign_tables(case),
    ]
    name = "other programs' rules"
    yield from conflicts or [_unseen(case, name) or Check(name, "ok", "none takes precedence over Istio's rules")]


def _shadowing(case: Case, installed: InstalledRules) -> Iterator[Check]:
    for ruleset in installed.rulesets:
        for table in ruleset.tables:
            planned = _planned_table(case, ruleset, table)
            for hook in HOOKS:
                chain = recognised(table, planned).chain(hook)
                planned_chain = planned.chain(hook) if planned else None
                if chain is None or planned_chain is None or not planned_chain.rules:
                    continue
                rules = _before(chain, planned_chain, same=installed.backend == case.backend)
                shadowing = [(number, rule) for number, rule in rules if _shadows(rule, table, installed, case)]
                if shadowing:
                    yield _shadow(installed.backend, ruleset.family, table, hook, shadowing)


def _planned_table(case: Case, ruleset: Ruleset, table: Table) -> Table | None:
    plan = case.plan.ruleset(ruleset.family)
    return plan.table(table.name) if plan else None


def _before(chain: Chain, planned: Chain, *, same: bool) -> list[tuple[int, Rule]]:
    """Other programs' rules before the position of Istio's, with their numbers; all of them in another backend."""
    own = set(own_rules(chain))
    others = [(number, rule) for number, rule in enumerate(chain.rules, 1) if number - 1 not in own]
    return others[: edit(chain, planned).at] if same else others


def _shadows(rule: Rule, table: Table, installed: InstalledRules, case: Case) -> bool:
    """Whether a rule keeps packets from Istio's rules: by translating them, or by a verdict in the same chain."""
    ends = installed.backend == case.backend and rule.target in {Verdict("ACCEPT"), Verdict("RETURN")}
    return ends or _translates(rule, table, set())


def _translates(rule: Rule, table: Table, visited: set[str]) -> bool:
    match rule.target:
        case Redirect() | Tproxy():
            return True
        case UnknownTarget(name=name):
            return name in TRANSLATING
        case Jump(chain=name) if name not in visited:
            visited.add(name)
            chain = table.chain(name)
            return chain is not None and any(_translates(each, table, visited) for each in chain.rules)
        case _:
            return False


def _shadow(backend: str, family: Family, table: Table, hook: str, rules: list[tuple[int, Rule]]) -> Check:
    texts = [f"{number}: -A {hook} {rule_text(rule)}" for number, rule in rules[:MOST_SHOWN]]
    more = [f"and {len(rules) - MOST_SHOWN} more"] if len(rules) > MOST_SHOWN else []
    names = {rule.target.chain for _, rule in rules if isinstance(rule.target, Jump)}
    tool = f"{'iptables' if family == IPV4 else 'ip6tables'}-{backend}"
    return Check(
        f"other programs' rules, {backend} {family} {table.name} {hook}",
        "warn",
        "; ".join([*texts, *more]),
        _meaning(names, docker=any(DOCKER_RESOLVER in text for text in texts)),
        f"{tool} -t {table.name} -S shows them; traffic to capture must not reach them before Istio's rules",
    )


def _meaning(names: set[str], *, docker: bool) -> str:
    if any(name.startswith("KUBE-") for name in names):
        return "kube-proxy's: this is a node's namespace, or a pod's with hostNetwork, which must not be captured"
    if docker or any(name.startswith("DOCKER") for name in names):
        return (
            "Docker's: queries to its resolver (127.0.0.11) bypass --redirect-dns, and published ports bypass capture"
        )
    return "packets that match them do not reach Istio's rules and are not captured"


def _foreign_tables(case: Case) -> Iterator[Check]:
    """Other programs' nftables tables with NAT rules; the priorities of hooks determine the order."""
    families = {"ip": {"ipv4"}, "ip6": {"ipv6"}, "inet": {"ipv4", "ipv6"}}
    matters = "only the first translation of a connection takes effect, and Istio's rules have priority -100"
    for table in case.machine.foreign_tables:
        if families[table.family] & set(case.families):
            which = f"nftables {table.family} {table.table}"
            finding = f"rules that change destinations: {table.translations}, in {', '.join(table.chains)}"
            node = (
                "; kube-proxy's rules mean a node's namespace, which must not be captured"
                if "kube" in table.table
                else ""
            )
            look = f"nft list table {table.family} {table.table} shows them; they must leave captured traffic alone"
            yield Check(f"other programs' rules, {which}", "warn", finding, matters + node, look)
