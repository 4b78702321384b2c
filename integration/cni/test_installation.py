"""The plugin on a node's disk: real networks, other writers, signals, and a kill at every write."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from integration.kit.endpoints import awaited
from integration.kit.program import VERBS
from istio_init.cni.node import install
from istio_init.cni.node.conflist import PLUGIN, types
from istio_init.cni.node.directories import SUFFIXES, Directories
from istio_init.errors import InitError
from tests.cni.networks import BROKEN, LISTS, SINGLE

ROOT = pathlib.Path(__file__).parents[2]
# As deploy/ has it run: root, without anything else that root may.
RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
PROGRAM = [*RIGHTS, *VERBS, "cni"]
FLANNEL = LISTS["10-flannel"]

ENTRY = {"type": PLUGIN}

# What changes a file system, and what makes that last.
WRITES = ("write", "fchmod", "fsync", "rename", "renameat2", "unlink")

# The verbs without their command line, in a process that starts in no time.
BARE = """
import sys
from istio_init.cni.node import install as installation
from istio_init.cni.node.directories import Directories
verb, networks, programs, source = sys.argv[1:]
places = Directories(networks, programs)
if verb == "install":
    installation.install(places, source, {"type": "istio-init-cni"})
else:
    installation.uninstall(places)
"""


class Host:
    """The two directories of a node, and a plugin's program to install."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.networks, self.programs = directory / "net.d", directory / "bin"
        self.networks.mkdir()
        self.programs.mkdir()
        self.source = directory / "plugin"
        self.source.write_text("#!/bin/sh\nexit 0\n")
        self.source.chmod(0o755)
        self.program = self.programs / PLUGIN

    def command(self, verb: str, *options: str) -> list[str]:
        """The command line of a verb."""
        places = [f"--cni-net-dir={self.networks}", f"--cni-bin-dir={self.programs}"]
        return [*PROGRAM, verb, *places, *([f"--plugin={self.source}"] if verb == "install" else []), *options]

    def bare(self, verb: str) -> list[str]:
        """The command that does what a verb does."""
        return [sys.executable, "-c", BARE, verb, *map(str, (self.networks, self.programs, self.source))]

    @property
    def places(self) -> Directories:
        """The directories as the program has them."""
        return Directories(str(self.networks), str(self.programs))

    def do(self, verb: str) -> tuple[str, ...]:
        """What a verb does, in this process."""
        if verb == "install":
            return install.install(self.places, str(self.source), ENTRY)
        return install.uninstall(self.places)

    def run(self, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        """The verb as a user runs it."""
        return subprocess.run(self.command(verb, *options), cwd=ROOT, capture_output=True, text=True, check=False)

    def succeed(self, verb: str, *options: str) -> str:
        """What a run that must succeed says."""
        done = self.run(verb, *options)
        assert done.returncode == 0, done.stderr
        return done.stderr + done.stdout

    def refuse(self, verb: str, *options: str, code: int = 1) -> str:
        """The one line of a run that must fail."""
        done = self.run(verb, *options)
        assert done.returncode == code, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    def network(self, name: str, text: str, mode: int = 0o600) -> pathlib.Path:
        """Write a network as its owner does."""
        path = self.networks / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def files(self) -> dict[str, str]:
        """Everything in both directories by path, with its content."""
        result = (path for place in (self.networks, self.programs) for path in place.rglob("*") if path.is_file())
        return {str(path.relative_to(self.directory)): path.read_bytes().decode("latin-1") for path in result}


@pytest.fixture
def host(tmp_path: pathlib.Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("name", LISTS)
def test_real_networks(host: Host, name: str) -> None:
    path = host.network(f"{name}.conflist", LISTS[name], 0o640)
    host.network("99-loopback.conf", '{"cniVersion": "0.3.1", "name": "lo", "type": "loopback"}')
    before = host.files()
    assert host.do("install") == (f"{host.program}: installed", f"{path}: {PLUGIN} added")
    assert types(path.read_text())[-1] == PLUGIN
    assert path.stat().st_mode & 0o7777 == 0o640
    assert host.program.stat().st_mode & 0o7777 == 0o755
    installed = host.files()
    assert host.do("install") == ()
    assert host.files() == installed
    assert install.status(host.places, ENTRY).whole
    host.do("uninstall")
    assert host.files() == before
    assert path.stat().st_mode & 0o7777 == 0o640
    assert not install.status(host.places, ENTRY).whole
    assert host.do("uninstall") == ()


def test_the_verbs(host: Host) -> None:
    path = host.network("10-flannel.conflist", FLANNEL)
    assert f"{path}: {PLUGIN} added" in host.succeed("install")
    assert "in place, nothing written" in host.succeed("install")
    assert host.succeed("status") == f"program  present: {host.program}\nentry    in place: {path}\n"
    assert f"{path}: {PLUGIN} taken out" in host.succeed("uninstall", "--keep-program")
    document = json.loads(host.run("status", "--output=json").stdout)
    assert document.pop("schema") == "cni-status.v1"
    assert document == {"whole": False, "program": "present", "network": str(path), "entry": "absent"}
    assert f"{host.program}: removed" in host.succeed("uninstall")
    assert "the plugin is not installed; nothing to remove" in host.succeed("uninstall")


def refused(host: Host) -> str:
    """The error of an installation that must fail, which is one line."""
    with pytest.raises(InitError) as raised:
        host.do("install")
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_single_plugins_configuration_becomes_a_list_and_comes_back(host: Host) -> None:
    path = host.network("10-gcp-ptp.conf", SINGLE, 0o644)
    before = host.files()
    host.do("install")
    result = host.networks / "10-gcp-ptp.conflist"
    assert types(result.read_text()) == ("ptp", PLUGIN)
    assert result.stat().st_mode & 0o7777 == 0o644
    assert not path.exists()
    assert host.do("install") == ()
    host.do("uninstall")
    assert host.files() == before


def test_it_does_not_write_over_another_network(host: Host) -> None:
    host.network("10-a.conf", SINGLE)
    host.network("10-a.conflist", FLANNEL)
    networks = {path: path.read_text() for path in host.networks.iterdir()}
    assert "another network" in refused(host)
    assert {path: path.read_text() for path in host.networks.iterdir()} == networks


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_network_that_cannot_be_understood_is_left_as_it_is(host: Host, number: int) -> None:
    text, why = list(BROKEN.items())[number]
    path = host.network("10-broken.conflist", text)
    host.network("20-flannel.conflist", FLANNEL)
    message = refused(host)
    assert str(path) in message
    assert why.split(":")[0] in message
    assert path.read_text() == text
    assert (host.networks / "20-flannel.conflist").read_text() == FLANNEL


def test_what_is_no_file_or_too_large(host: Host) -> None:
    path = host.networks / "10-a.conflist"
    os.mkfifo(path)
    assert "not a regular file" in refused(host)
    path.unlink()
    path.write_text(" " * (1 << 20) + FLANNEL)
    assert "bytes" in refused(host)
    path.unlink()
    path.mkdir()
    assert str(path) in refused(host)
    path.rmdir()
    assert "no network is configured here yet" in refused(host)
    path.write_bytes(b'{"name": "\xff"}')
    assert "utf-8" in refused(host)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--plugin=/nowhere"], "no such program"),
        (["--plugin-config=/nowhere"], "no such file"),
        (["--on-exit=keep"], "--watch"),
        (["--watch", "--on-exit=stay"], "unknown"),
        (["--watch", "--interval=5"], "not a duration"),
        (["--cni-net-dir=/nowhere"], "/nowhere"),
        (["--cni-bin-dir=/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_one_line(host: Host, arguments: list[str], why: str) -> None:
    host.network("10-flannel.conflist", FLANNEL)
    done = host.run("install", *arguments)
    assert done.returncode in {1, 255}
    assert len(done.stderr.splitlines()) == 1
    assert why in done.stderr
    assert (host.networks / "10-flannel.conflist").read_text() == FLANNEL


def test_the_entry_is_the_users(host: Host) -> None:
    path = host.network("10-flannel.conflist", FLANNEL)
    wish = host.directory / "plugin.json"
    wish.write_text('{"istio": {"istio-inbound-ports": "80"}}')
    host.succeed("install")
    assert "differs" in host.run("status", f"--plugin-config={wish}").stdout
    host.succeed("install", f"--plugin-config={wish}")
    entry = json.loads(path.read_text())["plugins"][-1]
    assert entry["istio"] == {"istio-inbound-ports": "80"}
    assert entry["type"] == PLUGIN
    assert "in place" in host.succeed("status", f"--plugin-config={wish}")


def traced(host: Host, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A verb under strace."""
    prefix = ("strace", "-f", "--seccomp-bpf", "-qq", *options)
    return subprocess.run([*prefix, *host.bare(verb)], cwd=ROOT, capture_output=True, text=True, check=False)


def calls(host: Host, verb: str, log: pathlib.Path) -> list[tuple[str, int]]:
    """Each call of WRITES by which a run touches the host's directories: its name, and the how manyth of that name."""
    done = traced(host, verb, "-y", "-o", str(log), "-e", f"trace={','.join(WRITES)}")
    assert done.returncode == 0, done.stderr
    observed: dict[str, int] = {}
    result = []
    for line in log.read_text().splitlines():
        match = re.match(r"\d+ +(\w+)\(", line)
        if match is None:
            continue
        name = match[1]
        observed[name] = observed.get(name, 0) + 1
        if str(host.networks) in line or str(host.programs) in line:
            result.append((name, observed[name]))
    return result


@pytest.mark.parametrize("verb", ["install", "uninstall"])
@pytest.mark.parametrize("name", ["10-flannel.conflist", "10-gcp-ptp.conf"])
def test_killed_at_each_write(tmp_path: pathlib.Path, verb: str, name: str) -> None:
    """A runtime then finds the old network or the new one, its plugins' programs are there, and a second run mends."""
    text = FLANNEL if name.endswith("list") else SINGLE

    def fresh(number: int) -> Host:
        (tmp_path / str(number)).mkdir()
        host = Host(tmp_path / str(number))
        host.network(name, text)
        if verb == "uninstall":
            host.do("install")
        return host

    whole = fresh(0)
    before = whole.files()
    points = calls(whole, verb, tmp_path / "calls")
    after = whole.files()
    lists = {content for files in (before, after) for path, content in files.items() if path.startswith("net.d")}
    assert {call for call, _ in points} >= {
        "fsync",
        "renameat2" if name.endswith("list") or verb == "install" else "unlink",
    }
    for number, (call, when) in enumerate(points, 1):
        host = fresh(number)
        done = traced(host, verb, "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={when}")
        assert done.returncode in {-9, 137}, f"{call} {when}: {done.returncode} {done.stderr}"
        there = {path.name: path.read_text() for path in host.networks.iterdir() if path.suffix in SUFFIXES}
        taken = there[min(there)]
        assert taken in lists, f"{call} {when}"
        assert PLUGIN not in taken or host.program.read_text() == host.source.read_text(), f"{call} {when}"
        host.do(verb)
        assert host.files() == after, f"{call} {when}"


@pytest.fixture
def watching(host: Host) -> Iterator[subprocess.Popen[str]]:
    """`install --watch`, which looks by itself only once an hour: what it notices, inotify has told it."""
    command = host.command("install", "--watch", "--interval=1h")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        yield run
        run.kill()


def entered(path: pathlib.Path) -> bool:
    """Whether our plugin is in a network."""
    try:
        return PLUGIN in types(path.read_text())
    except (ValueError, FileNotFoundError):
        return False


def test_other_writers(host: Host, watching: subprocess.Popen[str]) -> None:
    path = host.networks / "10-flannel.conflist"
    awaited(host.program.exists, "the program, before there is a network")
    with path.open("w") as file:  # as shell scripts do, piece by piece
        for piece in (FLANNEL[:100], FLANNEL[100:]):
            file.write(piece)
            file.flush()
    awaited(lambda: entered(path), "the entry in a new network")
    for _ in range(3):
        other = host.networks / "other.tmp"
        other.write_text(FLANNEL)
        other.rename(path)
        awaited(lambda: entered(path), "the entry in a network that was replaced")
    host.network("05-cilium.conflist", LISTS["05-cilium"])
    awaited(lambda: entered(host.networks / "05-cilium.conflist"), "the entry in a network that goes first")
    host.program.unlink()
    awaited(host.program.exists, "the program again")
    (host.networks / "00-broken.conflist").write_text("{")
    assert watching.stderr is not None
    message = next(line for line in watching.stderr if "00-broken" in line)
    assert "not installed, will retry" in message
    (host.networks / "00-broken.conflist").unlink()
    watching.send_signal(signal.SIGTERM)
    assert watching.wait() == 0
    assert host.files() == {"net.d/10-flannel.conflist": FLANNEL, "net.d/05-cilium.conflist": LISTS["05-cilium"]}


@pytest.mark.parametrize(("ending", "chained", "program"), [("unchain", False, True), ("keep", True, True)])
def test_what_a_signal_leaves(host: Host, ending: str, *, chained: bool, program: bool) -> None:
    path = host.network("10-flannel.conflist", FLANNEL)
    command = host.command("install", "--watch", f"--on-exit={ending}")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        awaited(lambda: entered(path), "the entry")
        run.send_signal(signal.SIGINT)
        assert run.wait() == 0
    assert (entered(path), host.program.exists()) == (chained, program)


def test_several_at_once_and_one_who_takes_away(host: Host) -> None:
    """Whichever comes last, the result is complete."""
    path = host.network("10-flannel.conflist", FLANNEL)
    verbs = ["install", "install", "uninstall", "install"]
    runs = [subprocess.Popen(host.command(verb), cwd=ROOT, stderr=subprocess.PIPE, text=True) for verb in verbs]
    output = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(verbs), output
    host.succeed("install")
    assert types(path.read_text()) == ("flannel", "portmap", PLUGIN)
    host.succeed("uninstall")
    assert host.files() == {"net.d/10-flannel.conflist": FLANNEL}


def test_uninstalling_beside_a_running_installer_is_refused(host: Host) -> None:
    """The installer would restore the entry between the two steps of an uninstall."""
    path = host.network("10-flannel.conflist", FLANNEL)
    with subprocess.Popen(host.command("install", "--watch"), cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        awaited(lambda: entered(path), "the entry")
        refused = subprocess.run(host.command("uninstall"), cwd=ROOT, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert "kept installed by a running `istio-init cni install --watch`" in refused.stderr
        assert entered(path)
        run.send_signal(signal.SIGTERM)
        assert run.wait() == 0
    assert host.files() == {"net.d/10-flannel.conflist": FLANNEL}


@pytest.mark.parametrize("moment", [0.05, 0.15, 0.3, 0.6])
def test_a_signal_while_it_starts_takes_away_what_one_before_it_left(host: Host, moment: float) -> None:
    """As process 1 of a container, to which a signal without a handler does nothing."""
    host.network("10-flannel.conflist", FLANNEL)
    host.succeed("install")
    command = ["unshare", "--pid", "--fork", "--kill-child", *host.command("install", "--watch")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        time.sleep(moment)
        [child] = pathlib.Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        awaited(lambda: handles_sigterm(int(child)), "a handler for SIGTERM")
        os.kill(int(child), signal.SIGTERM)
        run.wait(30)
    assert host.files() == {"net.d/10-flannel.conflist": FLANNEL}


def handles_sigterm(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM (proc(5), SigCgt)."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
