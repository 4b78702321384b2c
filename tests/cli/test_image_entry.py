"""The image's entry: what a pod's command line means, and where the reason of a failure goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from istio_init import log
from istio_init.cli.image_entry import command

ARGUMENTS = ["-p", "15001", "-b", "*"]


@pytest.mark.parametrize(
    ("argv", "program"),
    [
        (["/usr/local/bin/istio-iptables"], "istio-iptables"),
        (["/usr/local/bin/istio-clean-iptables"], "istio-clean-iptables"),
        (["istio-init"], "istio-init"),
        # Istio's arguments, after the image's entry point and after Istio's own.
        (["/usr/local/bin/istio-iptables", "istio-iptables"], "istio-iptables"),
        (["/usr/local/bin/istio-iptables", "istio-clean-iptables"], "istio-clean-iptables"),
        (["/usr/local/bin/pilot-agent", "istio-iptables"], "istio-iptables"),
        (["pilot-agent", "istio-clean-iptables"], "istio-clean-iptables"),
        (["istio-iptables", "pilot-agent", "istio-iptables"], "istio-iptables"),
        (["istio-iptables", "pilot-agent", "istio-clean-iptables"], "istio-clean-iptables"),
        (["istio-iptables", "istio-init"], "istio-init"),
        (["pilot-agent"], "pilot-agent"),
    ],
)
def test_which_program_a_command_line_means(argv: list[str], program: str) -> None:
    assert command(argv) == (program, [])
    assert command(argv + ARGUMENTS) == (program, ARGUMENTS)


def test_a_programs_name_behind_the_first_argument_is_an_argument() -> None:
    assert command(["istio-iptables", "-u", "istio-iptables"]) == ("istio-iptables", ["-u", "istio-iptables"])
    assert command(["pilot-agent", "proxy", "istio-iptables"]) == ("pilot-agent", ["proxy", "istio-iptables"])


def enter(*argv: str) -> subprocess.CompletedProcess[str]:
    """The entry point, called by the name that is the first argument."""
    code = "import sys; sys.argv[:] = sys.argv[1:]; from istio_init.cli.image_entry import main; main()"
    command = [sys.executable, "-c", code, *argv]
    return subprocess.run(command, env={"PATH": os.defpath}, capture_output=True, text=True, check=False)


def test_the_programs_themselves_are_reached() -> None:
    options = ("-b", "*", "--no-enable-ipv6", "--dry-run")
    applied = enter("pilot-agent", "istio-iptables", *options)
    assert (applied.returncode, applied.stderr) == (0, "")
    assert applied.stdout.startswith("*nat\n")
    cleaned = enter("istio-iptables", "istio-clean-iptables", *options)
    assert (cleaned.returncode, cleaned.stdout, cleaned.stderr) == (0, "", "")
    assert "apply" in enter("istio-iptables", "istio-init", "--help").stdout


def test_it_is_no_proxy() -> None:
    request = enter("/usr/local/bin/pilot-agent", "proxy", "sidecar")
    assert request.returncode == 255
    assert request.stderr == (
        "pilot-agent: 'proxy': this image has only istio-iptables, istio-clean-iptables, istio-init; "
        "it is not a proxy\n"
    )


@pytest.fixture
def reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A termination log as Kubernetes makes it: an empty file."""
    path = tmp_path / "termination-log"
    path.write_text("")
    monkeypatch.setattr(log, "termination_log", str(path))
    return path


def test_an_error_is_left_whatever_the_log_level(reason: Path) -> None:
    log.Log("none").error("first, and longer")
    log.Log("none").error("the reason")
    assert reason.read_text() == "the reason"


def test_a_reason_is_cut_to_what_kubernetes_takes(reason: Path) -> None:
    log.write_termination_message("x" * 5000)
    assert reason.read_text() == "x" * 4096


def test_nothing_is_left_where_no_file_stands(reason: Path) -> None:
    reason.unlink()
    log.write_termination_message("the reason")
    assert not reason.exists()


def test_a_link_is_not_followed(reason: Path) -> None:
    target = reason.with_name("elsewhere")
    target.write_text("untouched")
    reason.unlink()
    reason.symlink_to(target)
    log.write_termination_message("the reason")
    assert target.read_text() == "untouched"


def test_a_pipe_nobody_reads_does_not_hold_the_run_up(reason: Path) -> None:
    reason.unlink()
    os.mkfifo(reason)
    log.write_termination_message("the reason")
    assert reason.is_fifo()
