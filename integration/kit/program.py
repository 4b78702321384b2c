"""The program itself, run as a user runs it, and what the kernel's own tools say afterwards."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from istio_init.formats.addresses import PROTOCOLS
from istio_init.model.rules import FAMILIES, IPV4, IPV6

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace
    from istio_init.model.rules import Family

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "istio_init"]
# The command istio-init, before its verb.
VERBS = [sys.executable, "-c", "from istio_init.cli.console import istio_init; istio_init()"]
SAVE = {IPV4: "iptables-legacy-save", IPV6: "ip6tables-legacy-save"}
RESTORE = {IPV4: "iptables-legacy-restore", IPV6: "ip6tables-legacy-restore"}
IPTABLES = {IPV4: "iptables-legacy", IPV6: "ip6tables-legacy"}
NAMES = {IPV4: "/proc/net/ip_tables_names", IPV6: "/proc/net/ip6_tables_names"}


def environment(namespace: Namespace, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a run: that of the namespace's commands, no variable that the program reads, `extra`."""
    ours = ("ISTIO_", "ENVOY_", "INVALID_DROP", "DUAL_STACK")
    kept = {name: value for name, value in namespace.environment.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


def start(
    namespace: Namespace, *argv: str, env: Mapping[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """A run of istio-iptables in the namespace, begun; `prefix` is a command to run it by, such as strace."""
    command = ["ip", "netns", "exec", namespace.name, *prefix, *COMMAND, *argv]
    return subprocess.Popen(
        command, env=environment(namespace, env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def completed(
    namespace: Namespace, *argv: str, env: Mapping[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """A whole run, whatever its exit code is."""
    run = start(namespace, *argv, env=env, prefix=prefix)
    output, errors = run.communicate()
    return subprocess.CompletedProcess(run.args, run.returncode, output, errors)


def succeed(namespace: Namespace, *argv: str, env: Mapping[str, str] | None = None) -> str:
    """What a run that must succeed logs."""
    done = completed(namespace, *argv, env=env)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    return done.stderr


def refuse(namespace: Namespace, *argv: str, code: int = 1, env: Mapping[str, str] | None = None) -> str:
    """The last line that a run logs which must fail with this exit code."""
    done = completed(namespace, *argv, env=env)
    assert done.returncode == code, f"exit {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def tables(text: str) -> dict[str, str]:
    """Save text by table, each from `*name` to `COMMIT`."""
    return dict(_tables(text))


def with_protocol_names(text: str) -> str:
    """Save text as iptables 1.8.9 prints it: newer ones print the numbers of protocols that they have no match for."""
    return re.sub(r"(?<= -p )\d+", lambda number: PROTOCOLS.get(int(number[0]), number[0]), text)


def _tables(text: str) -> Iterator[tuple[str, str]]:
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("*"):
            lines = []
        lines.append(line)
        if line == "COMMIT":
            yield lines[0][1:], "\n".join(lines)


def saved(namespace: Namespace, family: Family) -> dict[str, str]:
    """What the kernel's own save says of each table that exists."""
    return tables(namespace.run(SAVE[family]))


def all_saved(namespace: Namespace) -> dict[Family, dict[str, str]]:
    """The same for both families."""
    return {family: saved(namespace, family) for family in FAMILIES}


def existing(namespace: Namespace, family: Family) -> set[str]:
    """The tables that the namespace has."""
    return set(namespace.run("cat", NAMES[family]).split())


def routing(namespace: Namespace) -> str:
    """Policy rules, routes of all tables and lo's addresses, as ip(8) prints them.

    Left out are rules' numbers, which depend on what was there before, how an address became usable, and link-local
    addresses, whose routes the kernel adds a moment after a link is up.
    """
    looks = ("-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all", "-o addr show dev lo")
    text = "".join(namespace.run("ip", *look.split()) for look in looks)
    return re.sub(r"^\d+:\t| nodad| tentative|^(?:local |anycast )?fe80::.*\n", "", text, flags=re.MULTILINE)


def standing(namespace: Namespace) -> tuple[dict[Family, dict[str, str]], str]:
    """All that a run may change, as the kernel's tools show it."""
    return all_saved(namespace), routing(namespace)


def bytecode_compiled() -> None:
    """Compile the package, so that what a run opens does not depend on what ran before."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", os.fspath(ROOT / "istio_init")], check=True)
