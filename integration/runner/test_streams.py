"""Standard streams that are closed, full or of a narrow encoding: no success turns into a failure, and no traceback."""

from __future__ import annotations

import pathlib
import shlex
import subprocess
import sys

import pytest

from integration.kit.namespace import Namespace
from integration.kit.program import COMMAND, ROOT, VERBS, environment, saved
from istio_init.model.rules import IPV4

WORDS = "-u 1337 -i '*' -b '*' --no-enable-ipv6"
ASK = shlex.join(VERBS)
PLUGIN = shlex.join([sys.executable, "-m", "istio_init.cni"])
PRINTING = {
    "version": f"{shlex.join(COMMAND)} --version",
    "help": f"{shlex.join(COMMAND)} --help",
    "dry run": f"{shlex.join(COMMAND)} {WORDS} --dry-run",
    "help of the verbs": f"{ASK} --help",
    **{verb: f"{ASK} {verb} {WORDS}" for verb in ("check", "doctor", "draw", "manifest", "plan", "prove", "show")},
    "explain": f"{ASK} explain --outbound --to 1.2.3.4:80 {WORDS}",
    "help of the plugin": f"{PLUGIN} --help",
    "version of the plugin": f"{PLUGIN} --version",
    "answer of the plugin": f"CNI_COMMAND=VERSION {PLUGIN} < /dev/null",
}
CLOSED = (">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-")


def run(namespace: Namespace, line: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """A line of sh, run inside."""
    command = ["ip", "netns", "exec", namespace.name, "sh", "-c", line]
    return subprocess.run(command, env=environment(namespace, variables), cwd=ROOT, capture_output=True, check=False)


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("options", ["", "--native-nftables"])
def test_what_is_done_is_done_with_any_stream_closed(namespace: Namespace, options: str, closed: str) -> None:
    """And nothing is written to what is opened in the stream's place, the lock's file first of all."""
    line = f"{shlex.join(COMMAND)} {WORDS} {options} {closed}"
    assert run(namespace, line).returncode == 0
    assert run(namespace, line).returncode == 0
    assert run(namespace, f"{ASK} check {WORDS} {options}").returncode == 0
    assert pathlib.Path(namespace.lock).read_bytes() == b""
    assert run(namespace, f"{shlex.join(COMMAND)} --cleanup-only {closed}").returncode == 0
    assert "ISTIO" not in str(saved(namespace, IPV4)) + namespace.run("nft", "list", "ruleset", "inet").upper()


@pytest.mark.parametrize(
    ("where", "why"), [(">&-", b"Bad file descriptor"), (">/dev/full", b"No space left on device")]
)
@pytest.mark.parametrize("what", PRINTING)
def test_what_can_not_be_printed_is_one_line(namespace: Namespace, what: str, where: str, why: bytes) -> None:
    done = run(namespace, f"{PRINTING[what]} {where}")
    assert done.returncode == 1
    assert done.stderr.endswith(b"standard output: can't be written: " + why + b"\n")
    assert b"Traceback" not in done.stderr
    assert run(namespace, f"{PRINTING[what]} {where} 2>&-").returncode == 1


@pytest.mark.parametrize("what", PRINTING)
def test_a_reader_that_goes_is_no_traceback(namespace: Namespace, what: str) -> None:
    assert b"Traceback" not in run(namespace, f"{PRINTING[what]} | true").stderr


def test_a_picture_in_any_encoding(namespace: Namespace) -> None:
    for form in ("svg", "mermaid", "dot", "html"):
        done = run(namespace, f"{ASK} draw {WORDS} --format {form}", PYTHONIOENCODING="latin-1")
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout


def test_a_pod_from_a_closed_standard_input(namespace: Namespace) -> None:
    done = run(namespace, f"{ASK} manifest --from-pod - <&-")
    assert done.returncode in {1, 255}
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(("closed", "code"), [("2>&-", 0), (">&-", 1), ("<&-", 0)])
def test_the_plugin_answers_with_any_stream_closed(namespace: Namespace, closed: str, code: int) -> None:
    done = run(namespace, f"""printf '{{"cniVersion": "1.1.0"}}' | {{ CNI_COMMAND=VERSION {PLUGIN} {closed}; }}""")
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert (b"supportedVersions" in done.stdout) == (code == 0)
