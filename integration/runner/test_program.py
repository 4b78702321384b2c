"""The program from outside: which namespace, which variables, which exit codes, and what is in its way."""

from __future__ import annotations

import os
import subprocess

import pytest

from integration.kit import program
from integration.kit.namespace import Namespace
from integration.kit.program import completed, environment, existing, refuse, saved, standing, succeed
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from tests.planning.cases import argv

TPROXY, REDIRECT = argv("article-tproxy"), argv("article-ipv6")


def elsewhere(namespace: Namespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run in the tests' own namespace, where nothing of it must land."""
    command = [*program.COMMAND, *arguments]
    return subprocess.run(command, env=environment(namespace), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("by", ["name", "process"])
def test_another_namespace(namespace: Namespace, by: str) -> None:
    """Rules and routing land there, and the caller's own namespace is as it was."""
    with Namespace() as target, target.start("sleep", "infinity") as process:
        try:
            path = target.path if by == "name" else f"/proc/{inside(process, target)}/ns/net"
            before = standing(namespace)
            succeed(namespace, *TPROXY, "--network-namespace", path)
            assert standing(namespace) == before
            with Namespace() as other:
                succeed(other, *TPROXY)
                assert standing(other) == standing(target)
            assert "in place" in succeed(namespace, *TPROXY, "--network-namespace", path)
            succeed(namespace, "--cleanup-only", "--network-namespace", path)
            assert all("-A" not in text for family in FAMILIES for text in saved(target, family).values())
            assert standing(namespace) == before
        finally:
            process.kill()


def inside(process: subprocess.Popen[str], target: Namespace) -> int:
    """The process, once it is in the namespace."""
    inode = os.stat(target.path).st_ino
    while os.stat(f"/proc/{process.pid}/ns/net").st_ino != inode:
        pass
    return process.pid


def test_addresses_are_looked_for_in_the_other_namespace(namespace: Namespace) -> None:
    """Whether IPv6 is in use is a question to the namespace that is written to."""
    with Namespace() as target:
        target.run("ip", "addr", "add", "2001:db8::1/64", "dev", "lo")
        succeed(namespace, *argv("article"), "--network-namespace", target.path)
        assert existing(target, IPV6) == {"nat"}
    with Namespace() as target:
        namespace.run("ip", "addr", "add", "2001:db8::1/64", "dev", "lo")
        succeed(namespace, *argv("article"), "--network-namespace", target.path)
        assert existing(target, IPV6) == set()


@pytest.mark.parametrize(
    ("addresses", "arguments", "actual"),
    [
        (["192.0.2.1/24"], [], False),
        (["2001:db8::1/64"], [], True),
        (["192.0.2.1/24", "2001:db8::1/64"], [], False),
        (["192.0.2.1/24", "2001:db8::1/64"], ["--dual-stack"], True),
        (["fe80::1/64"], ["--dual-stack"], False),
        (["2001:db8::1/64"], ["--no-enable-ipv6"], False),
    ],
)
def test_ipv6_is_found_out(namespace: Namespace, addresses: list[str], arguments: list[str], actual: bool) -> None:
    for address in addresses:
        namespace.run("ip", "addr", "add", address, "dev", "lo")
    succeed(namespace, *argv("article"), *arguments)
    assert (existing(namespace, IPV6) == {"nat"}) == actual


def test_a_namespace_that_there_is_not(namespace: Namespace) -> None:
    before = standing(namespace)
    message = refuse(namespace, *TPROXY, "--network-namespace", "/var/run/netns/istio-init-none-such")
    assert "/var/run/netns/istio-init-none-such" in message
    assert standing(namespace) == before


# A command line as variables, each as Istio's injection sets it.
VARIABLES = {
    "INBOUND_CAPTURE_PORT": "15106",
    "ISTIO_INBOUND_PORTS": "*",
    "ISTIO_SERVICE_CIDR": "*",
    "ISTIO_LOCAL_EXCLUDE_PORTS": "15090,15020",
    "PROXY_UID": "1337",
    "ISTIO_META_DNS_CAPTURE": "true",
    "DNS_SERVERS": "10.0.0.10",
    "INVALID_DROP": "true",
    "ENABLE_IPV6": "true",
    "ENVOY_PORT": "tcp://10.0.0.1:80",
    "NO_SUCH_OPTION": "whatever",
}


def test_the_environment_counts_as_arguments_do(namespace: Namespace) -> None:
    arguments = (
        "-z 15106 -b * -i * -d 15090,15020 -u 1337 --redirect-dns --dns-servers 10.0.0.10 --drop-invalid --enable-ipv6"
    )
    succeed(namespace, env=VARIABLES)
    with Namespace() as other:
        succeed(other, *arguments.split())
        assert standing(namespace) == standing(other)


def test_an_argument_goes_before_a_variable(namespace: Namespace) -> None:
    succeed(namespace, "-z", "15006", "--no-redirect-dns", env=VARIABLES)
    assert "--to-ports 15006" in saved(namespace, IPV4)["nat"]
    assert "raw" not in existing(namespace, IPV4)


@pytest.mark.parametrize(
    ("code", "arguments", "variables", "text"),
    [
        (1, ["-b", "99999"], {}, "--istio-inbound-ports (-b)"),
        (1, [], {"ISTIO_INBOUND_PORTS": "http"}, "ISTIO_INBOUND_PORTS: 'http'"),
        (255, ["--no-such-flag"], {}, "--no-such-flag"),
        (1, ["-x", "-b"], {}, "--istio-service-exclude-cidr (-x)"),
    ],
)
def test_a_wrong_value_ends_with_1_and_what_cannot_be_parsed_with_255(
    namespace: Namespace, code: int, arguments: list[str], variables: dict[str, str], text: str
) -> None:
    assert text in refuse(namespace, *arguments, env=variables, code=code)
    assert existing(namespace, IPV4) == set()


@pytest.mark.parametrize(("dropped", "named"), [("net_admin", "NET_ADMIN"), ("net_raw", "NET_RAW")])
@pytest.mark.parametrize("command", [REDIRECT, TPROXY, argv("article"), ["--cleanup-only"]])
def test_a_capability_that_is_missing_is_named(
    namespace: Namespace, command: list[str], dropped: str, named: str
) -> None:
    succeed(namespace, *REDIRECT)
    if command != ["--cleanup-only"]:
        succeed(namespace, "--cleanup-only")
    before = standing(namespace)
    run = completed(namespace, *command, prefix=("setpriv", f"--bounding-set=-{dropped}", f"--inh-caps=-{dropped}"))
    assert run.returncode == 1, run.stderr
    last = run.stderr.splitlines()[-1]
    assert named in last
    assert {"NET_ADMIN": "NET_RAW missing", "NET_RAW": "NET_ADMIN missing"}[named] not in last
    assert "Traceback" not in run.stderr
    assert standing(namespace) == before


def test_two_capabilities_are_enough(namespace: Namespace) -> None:
    """As Istio's init container has it: another user, with these two and no other."""
    caps = "-all,+net_admin,+net_raw"
    prefix = ("setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}")
    env = {"XTABLES_LOCKFILE": "/nowhere/lock"}
    run = completed(namespace, *TPROXY, prefix=prefix, env=env)
    assert run.returncode == 0, run.stderr
    with Namespace() as other:
        succeed(other, *TPROXY)
        assert standing(other) == standing(namespace)


def test_another_user_namespace(namespace: Namespace) -> None:
    """Root of a user namespace that does not own the network: every capability, and no right."""
    run = completed(namespace, *REDIRECT, prefix=("unshare", "--user", "--map-root-user"))
    assert run.returncode == 1
    assert "user namespace" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert existing(namespace, IPV4) == set()


def test_loopback_that_is_down(namespace: Namespace) -> None:
    """TPROXY in IPv6 needs a route by lo; without it nothing is applied, and the error says what to do."""
    namespace.run("ip", "link", "set", "lo", "down")
    before = standing(namespace)
    message = refuse(namespace, *TPROXY)
    assert "ip -6 route add local default dev lo table 133" in message
    assert "ip link set lo up" in message
    assert standing(namespace) == before


@pytest.mark.parametrize("command", [REDIRECT, TPROXY])
def test_ipv6_that_is_switched_off(namespace: Namespace, command: list[str]) -> None:
    """Asked for, and not to be had on lo: an error with nothing applied, in IPv4 either. Not asked for: no harm."""
    namespace.run("sysctl", "-w", "net.ipv6.conf.lo.disable_ipv6=1")
    before = standing(namespace)
    message = refuse(namespace, *command)
    assert "::6/128" in message
    assert "disable_ipv6" in message
    assert standing(namespace) == before
    assert existing(namespace, IPV4) == set()
    succeed(namespace, *argv("article"))
    assert existing(namespace, IPV4) == {"nat"}


def test_the_last_line_says_what_was_done_and_how_long_it_took(namespace: Namespace) -> None:
    log = succeed(namespace, *TPROXY).splitlines()
    assert "rules ipv4 raw 8, ipv4 mangle 16, ipv4 nat 16, ipv6 raw 8, ipv6 mangle 16, ipv6 nat 16 in " in log[-1]
    assert log[-1].endswith(" ms")


@pytest.mark.parametrize("level", ["none", "error"])
def test_silence_where_it_is_asked_for(namespace: Namespace, level: str) -> None:
    assert succeed(namespace, *TPROXY, "--log_output_level", level) == ""


def test_nothing_but_the_plan_on_standard_output(namespace: Namespace) -> None:
    assert completed(namespace, *TPROXY).stdout == ""


def test_a_dry_run_says_which_families_it_prints(namespace: Namespace) -> None:
    """Where that depends on the addresses of this machine, and where it is none; standard output is as ever."""
    flags = [each for each in argv("article") if each != "--no-enable-ipv6"]
    none = completed(namespace, *flags, "--dry-run", "--ip-family", "ipv6")
    assert (none.returncode, none.stdout) == (0, "")
    assert "--ip-family ipv6: nothing is printed: the namespace has no IPv6 address" in none.stderr
    assert completed(namespace, *flags, "--dry-run").stderr == ""
    namespace.run("ip", "address", "add", "2001:db8::5/64", "dev", "lo")
    actual = completed(namespace, *flags, "--dry-run")
    assert actual.stdout == completed(namespace, *flags, "--dry-run", "--enable-ipv6").stdout
    assert "IPv6 rules are printed" in actual.stderr
    assert completed(namespace, *flags, "--dry-run", "--enable-ipv6").stderr == ""
    one = completed(namespace, *flags, "--dry-run", "--ip-family", "ipv4")
    assert one.stderr == ""
    namespace.run(program.RESTORE[IPV4], text=one.stdout)


def test_rules_left_as_they_are(namespace: Namespace) -> None:
    before = standing(namespace)
    succeed(namespace, *TPROXY, "--skip-rule-apply")
    assert standing(namespace) == before
    previewed = completed(namespace, *TPROXY, "--skip-rule-apply", "--dry-run")
    assert (previewed.returncode, previewed.stdout) == (0, "")


def test_outside_of_any_namespace_of_ours_nothing_happens_in_a_dry_run(namespace: Namespace) -> None:
    """No kernel, no root: a dry run as nobody, with no capability but to read a checkout in root's home."""
    reading = ("--inh-caps", "-all,+dac_read_search", "--ambient-caps", "+dac_read_search")
    nobody = ("setpriv", "--reuid", "65534", "--clear-groups", *reading)
    run = completed(namespace, *TPROXY, "--dry-run", prefix=nobody)
    assert run.returncode == 0, run.stderr
    assert "*nat" in run.stdout
    assert existing(namespace, IPV4) == set()
