"""Native tables and capture by eBPF on kernels of Debian's archive, each booted once in a virtual machine."""

from __future__ import annotations

import pathlib
import tempfile
from typing import NamedTuple

import pytest

from integration.kernel.test_native import LISTS, NATIVE, by_table
from integration.kit.guest import Case
from integration.kit.machine import Machine, Outcome

# By release of Debian: the oldest kernel that its archive has, the oldest that captures by eBPF, and the newest.
OLDEST, NEWEST = "bullseye", "sid"
SUITES = (OLDEST, "bookworm", NEWEST)
NATIVE_SUITES = (OLDEST, NEWEST)

# A way out, so that a connection to an address that no host has is made, and captured. Without a link-local address,
# whose routes the kernel adds a second or two later.
WAY_OUT = (
    "ip link add out type dummy",
    "ip link set out addrgenmode none",
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


EBPF = ["--capture-backend", "ebpf", "--netns", "/proc/self/ns/net"]
EBPF_LINES = {
    "redirect": EVERYTHING,
    # With DNS capture every program there is.
    "tproxy": [*EVERYTHING, "-m", "TPROXY", "--redirect-dns", "--capture-all-dns"],
}


class EbpfSteps(NamedTuple):
    """What comes of the runs of a line that captures by eBPF, in their order."""

    captured: Outcome
    validated: Outcome
    checked: Outcome
    again: Outcome
    cleaned: Outcome
    checked_last: Outcome


def ebpf_case(line: list[str]) -> Case:
    """The runs of a line: the namespace is captured, which the program's own connections prove, and released."""
    apply = ["istio-iptables", *line, *EBPF]
    validate = [*apply, "--skip-rule-apply", "--run-validation", "--probe-timeout", "30s"]
    check = ["istio-init", "check", *line, *EBPF]
    return Case([apply, validate, check, apply, [*apply, "--cleanup-only"], check], [], [], WAY_OUT)


class Outcomes(NamedTuple):
    """What comes of all lines on one kernel."""

    release: str
    native: dict[str, Steps]
    ebpf: dict[str, EbpfSteps]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Outcomes:
    suite: str = request.param
    lines = LINES if suite in NATIVE_SUITES else {}
    cases = [*map(case, lines.values()), *map(ebpf_case, EBPF_LINES.values())]
    with tempfile.TemporaryDirectory(prefix="istio-init-", dir="/var/tmp") as directory:
        machine = Machine(pathlib.Path(directory), suite)
        done = machine.run(cases)
    native = {name: Steps(*each) for name, each in zip(lines, done, strict=False)}
    ebpf = {name: EbpfSteps(*each) for name, each in zip(EBPF_LINES, done[len(lines) :], strict=True)}
    return Outcomes(machine.release, native, ebpf)


@pytest.mark.timeout(2700)  # it downloads a kernel, and the processor is emulated
@pytest.mark.parametrize("outcomes", NATIVE_SUITES, indirect=True)
@pytest.mark.parametrize("name", LINES)
def test_native_tables_are_written_captured_by_and_removed(outcomes: Outcomes, name: str) -> None:
    steps = outcomes.native[name]
    for run in steps:
        assert run.code == 0, run.log
    assert "applied (no Istio rules found)" in steps.applied.log
    stateless = steps.dry.output.replace("counter packets 0 bytes 0", "counter")
    assert by_table(f"{steps.applied.after['nft']}\n") == by_table(stateless)
    assert "in place" in steps.again.log
    assert steps.again.after == steps.again.before
    assert "validation: " in steps.validated.log
    assert "1338" in steps.other.after["nft"]
    assert steps.cleaned.after == steps.dry.before


@pytest.mark.timeout(2700)
@pytest.mark.parametrize("outcomes", [each for each in SUITES if each != OLDEST], indirect=True)
@pytest.mark.parametrize("name", EBPF_LINES)
def test_a_namespace_is_captured_by_ebpf_and_released(outcomes: Outcomes, name: str) -> None:
    steps = outcomes.ebpf[name]
    for run in steps[:-1]:
        assert run.code == 0, run.output + run.log
    assert "captured by eBPF" in steps.captured.log
    assert steps.validated.log.count("validation: ") == 4
    assert steps.checked.output == "in place (ebpf)\n"
    assert (steps.captured.after["ipv4"], steps.captured.after["nft"]) == ("", "")
    assert (steps.checked_last.code, steps.checked_last.output.split(":")[0]) == (4, "absent (ebpf)")


@pytest.mark.timeout(2700)
@pytest.mark.parametrize("outcomes", [OLDEST], indirect=True)
def test_a_kernel_that_is_too_old_for_ebpf_is_left_as_it_is(outcomes: Outcomes) -> None:
    assert outcomes.release.startswith("5.10.")
    for steps in outcomes.ebpf.values():
        for run in (steps.captured, steps.again):
            assert run.code == 1
            assert f"Linux {outcomes.release} is too old" in run.log
            assert run.after == run.before
