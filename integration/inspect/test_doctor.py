"""The doctor in real namespaces: what it finds, and that it leaves everything as it was."""

from __future__ import annotations

import ctypes
import os
import pathlib
import shlex
import socket
import subprocess

import pytest

from integration.kit.backends import BACKENDS
from integration.kit.capabilities import become, without
from integration.kit.everything import state
from integration.kit.filters import FILTERS, refuse
from integration.kit.namespace import CLONE_NEWNET, Namespace
from integration.kit.program import ROOT, VERBS, environment, routing, succeed
from integration.kit.terminal import at_a_terminal, ended
from istio_init.cli.verbs.doctor import examine
from istio_init.inspect.doctor.checks import diagnose
from istio_init.kernel.host.lock import XtablesLock
from istio_init.kernel.probe import rehearsal
from istio_init.model.rules import FAMILIES
from tests.kit.options import options
from tests.kit.schemas import validated

PLAIN = ["-u", "1337", "-i", "*", "-b", "*"]
TPROXY = [*PLAIN, "-m", "TPROXY"]
FULL = [*TPROXY, "--enable-ipv6", "--redirect-dns", "--capture-all-dns", "--drop-invalid"]


def command(namespace: Namespace, *argv: str) -> subprocess.CompletedProcess[str]:
    """The command as it is run."""
    line = ["ip", "netns", "exec", namespace.name, *VERBS, "doctor", *argv]
    return subprocess.run(line, env=environment(namespace), capture_output=True, text=True, check=False, cwd=ROOT)


def look(*argv: str) -> dict[str, tuple[str, str, str]]:
    """Every check's status, finding and remedy by its name, looked at from here."""
    request = options([*argv], {})
    assert request is not None
    return {each.name: (each.status, each.finding, each.remedy) for each in diagnose(examine(request))}


def failing(checks: dict[str, tuple[str, str, str]]) -> set[str]:
    return {name for name, (status, *_) in checks.items() if status == "fail"}


@pytest.mark.parametrize("argv", [[], PLAIN, TPROXY, FULL])
def test_an_empty_namespace_is_well_and_stays_empty(namespace: Namespace, argv: list[str]) -> None:
    before = state(namespace)
    done = command(namespace, *argv, "--output", "json")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    answer = validated(done.stdout, "doctor")
    assert answer["ok"]
    assert not [check for check in answer["checks"] if check["status"] != "ok"]
    assert state(namespace) == before
    assert before[0] == before[1] == before[2] == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_stands_stays(namespace: Namespace, backend: str) -> None:
    """Istio rules and other programs' rules, with their counters, in any backend."""
    for tool in ("iptables-legacy", "ip6tables-legacy", "iptables-nft"):
        namespace.run(tool, "-t", "filter", "-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
    succeed(namespace, *FULL, *BACKENDS[backend])
    namespace.inside(a_packet)
    before = state(namespace)
    done = command(namespace, *FULL, *BACKENDS[backend], "--output", "json")
    assert state(namespace) == before
    checks = {check["name"]: check for check in validated(done.stdout, "doctor")["checks"]}
    assert checks["leftovers"]["finding"] == "the plan is in place"
    assert done.returncode == 0


def a_packet() -> None:
    """One that is counted."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"", ("127.0.0.1", 9))


def test_every_table_match_and_target_in_each_backend_and_family(namespace: Namespace) -> None:
    checks = namespace.inside(lambda: look(*FULL))
    for backend in BACKENDS:
        for family in FAMILIES:
            for name in ("table raw", "table mangle", "table nat", "match owner", "target TPROXY", "target CT"):
                assert checks[f"{backend} {family}: {name}"][:2] == ("ok", "works")
    assert checks["routing ipv6: entry ip -6 rule add fwmark 1337 lookup 133"][:2] == ("ok", "works")


def test_text_for_pipes(namespace: Namespace) -> None:
    done = command(namespace, *PLAIN)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    (summary,) = done.stdout.splitlines()
    assert summary.startswith("these options work here: ")
    every = command(namespace, *PLAIN, "--all").stdout.splitlines()
    assert len(every) > 10
    assert all(line.startswith("ok    ") for line in every[1:])


def test_a_table_for_people(namespace: Namespace) -> None:
    """On a terminal."""
    namespace.run("ip", "link", "set", "lo", "down")
    with at_a_terminal(namespace, *VERBS, "doctor", *PLAIN) as child:
        code, shown = ended(child)
    assert code == 1
    assert "what to do" in shown
    assert "ip link set lo up" in shown
    assert "\x1b[1;31mfail" in shown


@pytest.mark.parametrize(
    ("missing", "fails"),
    [
        (["net_admin"], {"capability NET_ADMIN"}),
        (["net_raw"], {"capability NET_RAW"}),
        (["net_admin", "net_raw"], {"capability NET_ADMIN", "capability NET_RAW"}),
    ],
)
def test_missing_capabilities(namespace: Namespace, missing: list[str], fails: set[str]) -> None:
    """What the kernel could do is still found out, in a namespace of the child's own."""

    def bare() -> dict[str, tuple[str, str, str]]:
        without(*missing)
        return look(*PLAIN)

    checks = namespace.forked(bare)
    assert failing(checks) == fails
    assert checks["legacy ipv4: table nat"][1] == "works"


def test_where_no_namespace_may_be_made(namespace: Namespace) -> None:
    """Checks without side effects run all the same; the rest is unknown."""

    def confined() -> tuple[dict[str, tuple[str, str, str]], bytes]:
        own_namespaces()
        for limit in ("max_user_namespaces", "max_net_namespaces"):
            pathlib.Path(f"/proc/sys/user/{limit}").write_text("0")
        return look(*PLAIN), pathlib.Path("/proc/thread-self/net/ip_tables_names").read_bytes()

    checks, tables = namespace.forked(confined)
    assert checks["rehearsal"][0] == "warn"
    assert "ENOSPC" in checks["rehearsal"][1]
    assert checks["legacy ipv4: table nat"][0] == "warn"
    assert checks["legacy ipv4: match owner"][:2] == ("ok", "works")
    assert failing(checks) == {"owners"}
    assert tables == b""


def test_in_a_user_namespace_that_owns_the_network_namespace(namespace: Namespace) -> None:
    def rootless() -> dict[str, tuple[str, str, str]]:
        own_namespaces()
        return look(*TPROXY)

    checks = namespace.forked(rootless)
    assert checks["user namespace"][:2] == ("ok", "a separate one, and the network namespace belongs to it")
    assert checks["rehearsal"][0] == "ok"
    assert failing(checks) == {"owners"}
    assert checks["owners"][1] == "not mapped in the user namespace: uid 1337, gid 1337"


def test_a_network_namespace_of_another_user_namespace(namespace: Namespace) -> None:
    def foreign() -> dict[str, tuple[str, str, str]]:
        unshare(rehearsal.CLONE_NEWUSER)
        return look(*PLAIN)

    checks = namespace.forked(foreign)
    assert checks["user namespace"][:2] == ("fail", "a separate one; the network namespace belongs to another")


def test_a_seccomp_filter_that_refuses(namespace: Namespace) -> None:
    """What is filtered here is filtered in the rehearsal, too."""

    def filtered() -> dict[str, tuple[str, str, str]]:
        refuse(*FILTERS["getsockopt"])
        return look(*PLAIN)

    checks = namespace.forked(filtered)
    assert {"legacy ipv4: table nat", "legacy ipv4: match owner"} <= failing(checks)
    assert checks["seccomp"][0] == "warn"
    assert checks["nft ipv4: table nat"][0] == "ok"


def own_namespaces() -> None:
    """Become root, who is alone, of a new user namespace, in a network namespace of it with lo up."""
    unshare(rehearsal.CLONE_NEWUSER | CLONE_NEWNET)
    for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
        pathlib.Path(f"/proc/self/{name}").write_text(text)
    assert rehearsal.loopback_up(change=True)


def unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")


def test_ipv6_off_on_lo(namespace: Namespace) -> None:
    namespace.run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1")
    assert failing(namespace.inside(lambda: look(*PLAIN, "--enable-ipv6"))) == {"IPv6"}
    assert not failing(namespace.inside(lambda: look(*PLAIN)))


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("net.ipv4.conf.all.src_valid_mark", "src_valid_mark"),
        ("net.ipv4.conf.lo.src_valid_mark", "src_valid_mark"),
        ("net.ipv4.tcp_fwmark_accept", "tcp_fwmark_accept"),
    ],
)
def test_sysctls_that_break_tproxy(namespace: Namespace, setting: str, name: str) -> None:
    namespace.run("sysctl", "-qw", f"{setting}=1")
    checks = namespace.inside(lambda: look(*TPROXY))
    assert failing(checks) == {name}
    assert not failing(namespace.inside(lambda: look(*PLAIN)))
    remedy = checks[name][2].partition(";")[0]
    namespace.run(*remedy.split())
    assert not failing(namespace.inside(lambda: look(*TPROXY)))


def test_lo_down(namespace: Namespace) -> None:
    namespace.run("ip", "link", "set", "lo", "down")
    checks = namespace.inside(lambda: look(*PLAIN))
    assert failing(checks) == {"interface lo"}
    namespace.run(*checks["interface lo"][2].split())
    assert not failing(namespace.inside(lambda: look(*PLAIN)))


@pytest.mark.parametrize("tool", ["legacy", "nft"])
def test_a_destination_of_others_before_ours(namespace: Namespace, tool: str) -> None:
    rule = ["OUTPUT", "-d", "127.0.0.11", "-p", "udp", "--dport", "53", "-j", "DNAT", "--to-destination", "127.0.0.1:9"]
    namespace.run(f"iptables-{tool}", "-t", "nat", "-A", *rule)
    before = state(namespace)
    checks = namespace.inside(lambda: look(*PLAIN))
    status, finding, remedy = checks[f"other programs' rules, {tool} ipv4 nat OUTPUT"]
    assert status == "warn"
    assert "-d 127.0.0.11/32" in finding
    namespace.run(*remedy.partition(" shows")[0].split())
    assert state(namespace)[2:] == before[2:]


def test_a_table_of_others_in_nftables(namespace: Namespace) -> None:
    text = """table ip kube-proxy {
        chain nat-output { type nat hook output priority -100; ip daddr 10.96.0.1 tcp dport 443 dnat to 10.0.0.1:6443; }
        chain filter { type filter hook output priority 0; accept; }
    }"""
    namespace.run("nft", "-f", "-", text=text)
    before = state(namespace)
    name = "other programs' rules, nftables ip kube-proxy"
    status, finding, remedy = namespace.inside(lambda: look(*PLAIN))[name]
    assert (status, finding) == (
        "warn",
        "rules that change destinations: 1, in nat-output (hook output, priority -100)",
    )
    namespace.run(*remedy.partition(" shows")[0].split())
    namespace.run("nft", "flush", "chain", "ip", "kube-proxy", "nat-output")
    assert name not in namespace.inside(lambda: look(*PLAIN))
    assert state(namespace) != before


@pytest.mark.parametrize("backend", BACKENDS)
def test_leftovers_of_another_plan(namespace: Namespace, backend: str) -> None:
    flags = BACKENDS[backend]
    succeed(namespace, *TPROXY, *flags)
    assert failing(namespace.inside(lambda: look(*PLAIN, *flags))) == {"leftovers"}
    assert not failing(namespace.inside(lambda: look(*PLAIN, *flags, "--reconcile")))
    succeed(namespace, "--cleanup-only")
    assert not failing(namespace.inside(lambda: look(*PLAIN, *flags)))


def test_leftovers_in_another_backend(namespace: Namespace) -> None:
    succeed(namespace, *PLAIN, *BACKENDS["native"])
    assert failing(namespace.inside(lambda: look(*PLAIN, *BACKENDS["legacy"]))) == {"leftovers, native"}


def test_routing_of_a_run_whose_rules_are_gone(namespace: Namespace) -> None:
    succeed(namespace, *TPROXY)
    for table in ("mangle", "nat"):
        namespace.run("iptables-legacy", "-t", table, "-F")
        namespace.run("iptables-legacy", "-t", table, "-X")
    status, finding, remedy = namespace.inside(lambda: look(*PLAIN))["leftovers"]
    assert (status, finding) == ("warn", "routing of an earlier run remains")
    for line in remedy.split("; "):
        namespace.run(*line.split())
    assert "1337" not in routing(namespace)


def test_a_lock_that_is_held(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", namespace.lock)
    assert namespace.inside(lambda: look(*PLAIN))["lock"][1] == f"{namespace.lock} is free"
    assert not os.path.exists(namespace.lock)
    name = pathlib.Path("/proc/self/comm").read_text().strip()
    with XtablesLock(0, namespace.lock):
        status, finding, _ = namespace.inside(lambda: look(*PLAIN))["lock"]
        assert (status, finding) == ("warn", f"{namespace.lock} is held by pid {os.getpid()} ({name})")
    assert namespace.inside(lambda: look(*PLAIN))["lock"][0] == "ok"


def test_a_namespace_of_another(namespace: Namespace) -> None:
    """With --network-namespace, from outside, all facts are the other's."""
    namespace.run("sysctl", "-qw", "net.ipv4.tcp_fwmark_accept=1")
    assert failing(look(*TPROXY, "--network-namespace", namespace.path)) == {"tcp_fwmark_accept"}


def test_a_proxy_that_cannot_work(namespace: Namespace) -> None:
    done = command(namespace, *TPROXY, "--proxy-runs-as", "1337:1337")
    assert done.returncode == 1
    assert "fail  proxy identity: uid 1337, gid 1337, and -u has 1337" in done.stdout
    assert command(namespace, *TPROXY, "--proxy-runs-as", "0:1337").returncode == 0


def test_nobody(namespace: Namespace) -> None:
    """Another user without any capability: what can't be known is not taken for well."""

    def nobody() -> dict[str, tuple[str, str, str]]:
        become(65534, 65534)
        return look(*PLAIN)

    # That user may not be able to read Python's library: what is imported late has to be there.
    namespace.inside(lambda: look(*PLAIN))
    checks = namespace.forked(nobody)
    assert {"capability NET_ADMIN", "capability NET_RAW"} <= failing(checks)
    assert checks["existing rules, legacy"][0] == "warn"
    assert namespace.run("cat", "/proc/net/ip_tables_names") == ""


def test_the_docs_show_what_the_command_prints(namespace: Namespace) -> None:
    namespace.run("sysctl", "-qw", "net.ipv4.conf.all.src_valid_mark=1")
    rule = ["-d", "127.0.0.11", "-p", "udp", "--dport", "53", "-j", "DNAT", "--to-destination", "127.0.0.11:40000"]
    namespace.run("iptables-legacy", "-t", "nat", "-A", "OUTPUT", *rule)
    page = (ROOT / "docs" / "doctor.md").read_text()
    shown = page.partition("$ istio-init doctor ")[2].partition("```")[0]
    line, _, text = shown.partition("\n")
    printed = command(namespace, *shlex.split(line)).stdout.splitlines()
    assert len(printed) > 5
    # Where the lock is, is this test's own.
    assert [each for each in printed if " lock: " not in each] == [
        each for each in text.splitlines() if " lock: " not in each
    ]
