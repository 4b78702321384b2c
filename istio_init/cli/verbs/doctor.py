"""`istio-init doctor`: checks whether this machine and namespace support the plan."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli import terminal
from istio_init.cli.pod_owners import pod_privileges
from istio_init.cli.verbs import envoy_checks, envoy_flags, live_options
from istio_init.cli.verbs.output import choice, print_json
from istio_init.cli.verbs.packet_flags import account
from istio_init.cli.verbs.subject import Container, Pid, Where, placed
from istio_init.errors import printable
from istio_init.errors_rare import UsageError
from istio_init.inspect.doctor import collect
from istio_init.inspect.doctor.case import Check
from istio_init.inspect.doctor.checks import diagnose
from istio_init.log import Log
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.simulate.path import proxy

if TYPE_CHECKING:
    from istio_init.inspect.doctor.case import Case

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(  # noqa: PLR0913 (a command line's options)
    options: Options,
    *,
    runs_as: Annotated[
        str, typer.Option("--proxy-runs-as", metavar="UID[:GID]", help="The proxy's user and group.")
    ] = "",
    live: Annotated[
        bool, typer.Option("--live", help="Also check whether the rules in the kernel and the running Envoy fit.")
    ] = False,
    pid: Pid = None,
    container: Container = None,
    envoy: envoy_flags.Source = "",
    everything: Annotated[bool, typer.Option("--all", help="Print the checks that passed as well.")] = False,
    output: Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")] = "text",
) -> int:
    """Check that this machine and namespace support the plan; print what to do if not."""
    form = choice("--output", output, ("text", "json"))
    log = Log(options.log_output_level, as_json=options.log_as_json, targets=options.log_target)
    options = live_options.resolved(placed(options, Where(live, pid, container)), log)
    checks = diagnose(examine(options, runs_as))
    if live:
        checks = (*checks, *envoy_checks.checks(options, envoy, runs_as))
    elif envoy:
        raise UsageError("--envoy: only used with --live, which checks the running proxy; add --live")
    if form == "json":
        print_json("doctor", as_json(checks))
    else:
        show(folded(checks), everything=everything)
    return 1 if any(check.status == "fail" for check in checks) else 0


def examine(options: Options, runs_as: str = "") -> Case:
    """Collect what the checks need to know of the namespace that these options name.

    `runs_as` is --proxy-runs-as, empty for the proxy as Istio runs it. KernelError if the namespace can't be
    entered.
    """
    return collect.examine(options, _identity(options, runs_as)).replace(privileges=pod_privileges.get())


def _identity(options: Options, runs_as: str) -> tuple[int, int]:
    """The proxy's uid and gid."""
    envoy = proxy(options)
    if not runs_as:
        return envoy.uid, envoy.gid
    user, _, group = runs_as.partition(":")
    uid, gid = account("--proxy-runs-as", "user", user), account("--proxy-runs-as", "group", group or user)
    return (envoy.uid if uid is None else uid), (envoy.gid if gid is None else gid)


def as_json(checks: tuple[Check, ...]) -> dict[str, object]:
    """The JSON document of all checks."""
    fields = ("name", "status", "finding", "matters", "remedy")
    return {
        "ok": all(check.status != "fail" for check in checks),
        "checks": [{field: getattr(check, field) for field in fields} for check in checks],
    }


def folded(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """The checks for people: the passed checks of a group are combined."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        key = check.group if check.group and check.status == "ok" else f"\0{check.name}"
        groups.setdefault(key, []).append(check)
    return tuple(group[0] if key.startswith("\0") else _fold(key, group) for key, group in groups.items())


def _fold(group: str, checks: list[Check]) -> Check:
    kinds: dict[str, list[str]] = {}
    for check in checks:
        kind, _, name = check.name.removeprefix(f"{group}: ").partition(" ")
        kinds.setdefault(kind, []).append(name)
    return Check(group, "ok", "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items()))


def summary(checks: tuple[Check, ...]) -> str:
    """How many checks failed, warn, and passed."""
    counts: Counter[str] = Counter(check.status for check in checks)
    parts = [
        f"{counts[status]} {word}{'s' * (counts[status] != 1)}"
        for status, word in (("fail", "failure"), ("warn", "warning"))
        if counts[status]
    ]
    passed = f"{counts['ok']} check{'s' * (counts['ok'] != 1)} passed"
    verdict = "these options do not work here" if counts["fail"] else "these options work here"
    return f"{verdict}: {', '.join([*parts, passed])}"


def ordered(checks: tuple[Check, ...], *, everything: bool) -> list[Check]:
    """Failures, then warnings; what passed comes last, and only if everything is asked for."""
    order = ["fail", "warn", *(["ok"] if everything else [])]
    return sorted((check for check in checks if check.status in order), key=lambda check: order.index(check.status))


def show(checks: tuple[Check, ...], *, everything: bool) -> None:
    """The summary, then a table on a terminal, plain lines elsewhere."""
    more = "" if everything else " (--all shows them)"
    first, chosen = f"{summary(checks)}{more}", ordered(checks, everything=everything)
    if not terminal.is_rich():
        sys.stdout.write("".join((f"{first}\n", *map(_plain, chosen))))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("", "check", "finding, consequence, and what to do", show_lines=True)
    for check in chosen:
        text = Text(printable(check.finding))
        if check.status != "ok":
            text.append(f"\n{printable(check.matters)}", style="italic")
            text.append(f"\n{printable(check.remedy)}", style="bold")
        table.add_row(
            Text(check.status, style=STYLES[check.status]), Text(printable(check.name), overflow="fold"), text
        )
    parts = [Text(first, style=STYLES[chosen[0].status if chosen else "ok"]), *([table] if chosen else [])]
    terminal.show(lambda console: console.print(*parts, sep="\n"))


def _plain(check: Check) -> str:
    """One line; a check that did not pass adds its consequence and remedy."""
    lines = [f"{check.status:<5} {check.name}: {check.finding}"]
    if check.status != "ok":
        lines += [f"      {label}: {text}" for label, text in (("means", check.matters), ("do", check.remedy)) if text]
    return "".join(f"{printable(line)}\n" for line in lines)
