"""Cleanup without flags removes what Istio's releases made, in both kinds of iptables, and nothing else."""

from __future__ import annotations

import re

import pytest
from pyroute2.ipset import IPSet

from integration.kit.asking import ask
from integration.kit.namespace import Namespace
from integration.kit.program import completed, routing, succeed
from istio_init.model.rules import FAMILIES, IPV4
from tests.planning.releases import KUMA, NATIVE, RELEASES, SUSPECTS, Release

TOOLS = ("legacy", "nft")
# Other programs' rules, before and behind Istio's; some are near to Istio's shapes.
FOREIGN = {
    "nat": """
:OTHER - [0:0]
-A PREROUTING -i eth9 -p tcp -j RETURN
-A PREROUTING -i eth9 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080
-A OUTPUT -p udp -m udp --dport 5353 -j REDIRECT --to-ports 15053
-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 1337 -j OTHER
-A OTHER -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053
""",
    "mangle": """
-A PREROUTING -p tcp -m mark --mark 0x7 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A OUTPUT -o lo -p tcp -m mark --mark 0x7 -j RETURN
""",
    "filter": """
-A INPUT -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 9 -j DROP
""",
    "raw": """
-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 7 -j CT --notrack
""",
}


def tool(family: str, backend: str, what: str) -> str:
    return f"{'iptables' if family == IPV4 else 'ip6tables'}-{backend}{what}"


def load(namespace: Namespace, backend: str, release: Release) -> None:
    for family in FAMILIES:
        if text := release.text(family):
            if family != IPV4:
                text = (
                    text.replace("0.0.0.0", "::")
                    .replace("127.0.0.1/32", "::1/128")
                    .replace("10.96.0.10/32", "fd00::a/128")
                )
            namespace.run(tool(family, backend, "-restore"), "--noflush", text=text)
    for entry in release.routing:
        namespace.run("ip", *entry.split())


def plant(namespace: Namespace, backend: str) -> None:
    text = "".join(f"*{table}{rules}COMMIT\n" for table, rules in FOREIGN.items())
    for family in FAMILIES:
        namespace.run(tool(family, backend, "-restore"), "--noflush", text=text)


def saved(namespace: Namespace, backend: str) -> list[str]:
    """Everything that is in either family's tables: chains and rules; base chains and empty tables do not count."""
    lines = [
        f"{family} {table} {line}"
        for family in FAMILIES
        for table, body in re.findall(
            r"^\*(\w+)\n(.*?)^COMMIT", namespace.run(tool(family, backend, "-save")), re.MULTILINE | re.DOTALL
        )
        for line in body.splitlines()
    ]
    return [re.sub(r"\[\d+:\d+\]", "", line) for line in lines if " ACCEPT [" not in line]


@pytest.mark.parametrize("backend", TOOLS)
@pytest.mark.parametrize("name", RELEASES)
def test_a_release_goes_without_flags(namespace: Namespace, name: str, backend: str) -> None:
    routes = routing(namespace)
    load(namespace, backend, RELEASES[name])
    assert saved(namespace, backend)
    log = succeed(namespace, "--cleanup-only")
    assert saved(namespace, backend) == []
    assert routing(namespace) == routes
    assert "not removed: " not in log
    assert "nothing to clean up" in succeed(namespace, "--cleanup-only")


@pytest.mark.parametrize("backend", TOOLS)
@pytest.mark.parametrize("name", RELEASES)
def test_other_programs_rules_stay(namespace: Namespace, name: str, backend: str) -> None:
    plant(namespace, backend)
    before = saved(namespace, backend)
    load(namespace, backend, RELEASES[name])
    log = succeed(namespace, "--cleanup-only")
    assert saved(namespace, backend) == before
    assert "not removed: " not in log


@pytest.mark.parametrize("backend", TOOLS)
@pytest.mark.parametrize("name", SUSPECTS)
def test_what_only_looks_like_istios_is_named_with_its_command(namespace: Namespace, name: str, backend: str) -> None:
    family, table, rule = SUSPECTS[name]
    namespace.run(tool(family, backend, ""), "-t", table, "-A", *rule.split())
    before = saved(namespace, backend)
    log = succeed(namespace, "--cleanup-only")
    assert saved(namespace, backend) == before
    [line] = [line for line in log.splitlines() if "not removed: " in line]
    command = line.rpartition("to remove it: ")[2]
    namespace.run(*command.split())
    assert saved(namespace, backend) == []


@pytest.mark.parametrize("backend", TOOLS)
def test_rules_of_this_program_make_no_other_rule_istios(namespace: Namespace, backend: str) -> None:
    """Beside signed rules, a bare one is another program's."""
    text = RELEASES["1.11-excluded"].ipv4["nat"].splitlines()[:2]
    for rule in text:
        namespace.run(tool(IPV4, backend, ""), "-t", "nat", *rule.split())
    before = saved(namespace, backend)
    succeed(namespace, "--force-iptables-binary", backend, "-u", "1337", "-i", "*", "-b", "*")
    assert succeed(namespace, "--cleanup-only").count("not removed: ") == 2
    assert saved(namespace, backend) == before


@pytest.mark.parametrize("backend", TOOLS)
def test_interfaces_that_another_program_excludes_stay(namespace: Namespace, backend: str) -> None:
    """A rule of another program between them and Istio's jump: Istio appends its own one after the other."""
    text = "*nat\n-A PREROUTING -i eth9 -j RETURN\n-A OUTPUT -o eth9 -j RETURN\n" + "".join(
        f"-A {chain} -p tcp -m tcp --dport 9 -j ACCEPT\n" for chain in ("PREROUTING", "OUTPUT")
    )
    namespace.run(tool(IPV4, backend, "-restore"), "--noflush", text=f"{text}COMMIT\n")
    before = saved(namespace, backend)
    load(namespace, backend, RELEASES["1.11-excluded"])
    assert succeed(namespace, "--cleanup-only").count("not removed: ") == 2
    assert saved(namespace, backend) == before


@pytest.mark.parametrize("backend", TOOLS)
@pytest.mark.parametrize("chain", ["KUMA_MESH_OUTBOUND", "PROXY_INIT_OUTPUT"])
def test_another_meshs_rules_of_the_same_shapes_stay(namespace: Namespace, chain: str, backend: str) -> None:
    load(namespace, backend, KUMA)
    namespace.run(tool(IPV4, backend, ""), "-t", "nat", "-N", chain)
    before = saved(namespace, backend)
    log = succeed(namespace, "--cleanup-only")
    assert saved(namespace, backend) == before
    assert "not removed: " in log


@pytest.mark.parametrize("backend", TOOLS)
@pytest.mark.parametrize("name", ["1.8-dns", "1.13-tproxy", "1.5"])
def test_a_failing_cleanup_restores_them_in_their_order(namespace: Namespace, name: str, backend: str) -> None:
    plant(namespace, backend)
    load(namespace, backend, RELEASES[name])
    whole = saved(namespace, backend)
    # The last thing that a cleanup does is to look again: another program's edit at that moment would be its error.
    code = (
        "import istio_init.runner.cleanup as c, istio_init.errors as e\n"
        "real = c.rules_of; seen = []\n"
        "def rules_of(firewall):\n"
        "    if firewall in seen: raise e.KernelError('no')\n"
        "    seen.append(firewall)\n"
        "    return real(firewall)\n"
        "c.rules_of = rules_of\n"
        "from istio_init.cli.start import istio_iptables; istio_iptables()\n"
    )
    done = namespace.completed("python3", "-c", code, "--cleanup-only", "--force-iptables-binary", backend)
    assert done.returncode == 1, done.stderr
    assert "as before" in done.stderr or "as it was" in done.stderr
    assert saved(namespace, backend) == whole


def test_what_is_known_by_its_name_is_named(namespace: Namespace) -> None:
    def make() -> None:
        with IPSet() as sets:
            for name in ("istio-inpod-probes-v4", "other"):
                sets.create(name, stype="hash:ip")

    namespace.inside(make)
    namespace.run("nft", "add", "table", "inet", "istio-ambient-nat")
    log = succeed(namespace, "--cleanup-only")
    commands = [line.rpartition("to remove it: ")[2] for line in log.splitlines() if "left as it is" in line]
    assert commands == ["nft delete table inet istio-ambient-nat", "ipset destroy istio-inpod-probes-v4"]


def test_native_tables_go_whatever_is_in_them(namespace: Namespace) -> None:
    namespace.run("nft", "-f", "-", text=NATIVE)
    succeed(namespace, "--cleanup-only")
    assert namespace.run("nft", "list", "tables") == "table inet other\n"


def test_the_forecast_of_a_cleanup_has_them(namespace: Namespace) -> None:
    load(namespace, "legacy", RELEASES["1.8-dns-without-chains"])
    answer = ask(namespace, "plan", "--cleanup-only")
    assert "-j DNAT --to-destination 127.0.0.1:15053" in answer.output


def test_the_same_in_a_dry_run_changes_nothing(namespace: Namespace) -> None:
    load(namespace, "legacy", RELEASES["1.8-dns"])
    before = saved(namespace, "legacy")
    assert completed(namespace, "--cleanup-only", "--dry-run").returncode == 0
    assert saved(namespace, "legacy") == before
