"""Native tables on the oldest and the newest kernel of Debian's archive, each booted once in a virtual machine."""

from __future__ import annotations

import pathlib
import tempfile
from typing import NamedTuple

import pytest

from integration.kernel.test_native import LISTS, NATIVE, by_table
from integration.kit.guest import Case
from integration.kit.machine import Machine, Outcome

# By release of Debian: the oldest kernel that its archive has, and the newest.
SUITES = ("bullseye", "sid")

# A way out, so that a connection to an address that no host has is made, and captured.
WAY_OUT = (
    "ip link add out type dummy",
    "ip link set out up",
    "ip address add 10.0.0.5/24 dev out",
    "ip address add fd00::5/64 dev out nodad",
    "ip route add default dev out",
    "ip -6 route add default dev out",
)

EVERYTHING = ["-u", "1337", "-i", "*", "-b", "*", "--enable-ipv6"]
LINES = {
    "redirect": [*EVERYTHING, "--rule-comments"],
    "tproxy": [*EVERYTHING, "-m", "TPROXY", "--redirect-dns", "--capture-all-dns", "--drop-invalid"],
    "networks": ["-u", "1337", *LISTS["networks"]],
    "addresses": ["-u", "1337", *LISTS["addresses"]],
}


class Steps(NamedTuple):
    """What comes of the runs of a line, in their order."""

    dry: Outcome
    applied: Outcome
    again: Outcome
    checked: Outcome
    validated: Outcome
    other: Outcome
    cleaned: Outcome


def case(line: list[str]) -> Case:
    """The runs of a line: in place after it has been applied, captured, reconciled, removed."""
    apply = ["istio-iptables", *line, NATIVE]
    other = ["istio-iptables", "-u", "1338", "-i", "*", "-x", "10.0.0.0/8", "--enable-ipv6", NATIVE, "--reconcile"]
    validate = [*apply, "--skip-rule-apply", "--run-validation", "--probe-timeout", "30s"]
    check = ["istio-init", "check", *line, NATIVE]
    runs = [[*apply, "--dry-run"], apply, apply, check, validate, other, ["istio-iptables", NATIVE, "--cleanup-only"]]
    return Case(runs, [], [], WAY_OUT)


@pytest.fixture(scope="module", params=SUITES)
def outcomes(request: pytest.FixtureRequest) -> dict[str, Steps]:
    with tempfile.TemporaryDirectory(prefix="istio-init-", dir="/var/tmp") as directory:
        done = Machine(pathlib.Path(directory), request.param).run([case(line) for line in LINES.values()])
    return {name: Steps(*each) for name, each in zip(LINES, done, strict=True)}


@pytest.mark.timeout(1500)  # it downloads a kernel, and the processor is emulated
@pytest.mark.parametrize("name", LINES)
def test_native_tables_are_written_captured_by_and_removed(outcomes: dict[str, Steps], name: str) -> None:
    steps = outcomes[name]
    for run in steps:
        assert run.code == 0, run.log
    assert "applied (no Istio rules found)" in steps.applied.log
    assert by_table(f"{steps.applied.after['nft']}\n") == by_table(steps.dry.output)
    assert "in place" in steps.again.log
    assert steps.again.after == steps.again.before
    assert "validation: " in steps.validated.log
    assert "1338" in steps.other.after["nft"]
    assert steps.cleaned.after == steps.dry.before
