"""Every check of the doctor's, in each of its outcomes."""

from __future__ import annotations

from typing import Any, cast

import pytest

from istio_init.cli.verbs.doctor import as_json, folded, show
from istio_init.formats.iptables_restore import parse as load
from istio_init.inspect.doctor.case import Check
from istio_init.inspect.doctor.checks import CHECKS, diagnose
from istio_init.inspect.socket_capture import NodeSupport
from istio_init.kernel.probe.facts import ForeignTable, InstalledRules, LockStatus, Resolver
from istio_init.kernel.probe.rehearsal import Trial
from istio_init.model.routing import Address, PolicyRule, Route
from istio_init.model.rules import Network, Ruleset
from istio_init.options.privileges import Privileges
from tests.inspect.cases_doctor import PROCESS, SYSCTLS, TRIALS, case

NET_ADMIN, NET_RAW = 1 << 12, 1 << 13
ALL = "-i * -b *"
TPROXY = f"{ALL} -m TPROXY"
BOTH = (
    Address(Network(b"\x0a\1\1\5", 24), "eth0"),
    Address(Network(bytes.fromhex("20010db8") + bytes(12), 64), "eth0"),
)
IPV6_SERVER = Network(bytes.fromhex("fd00") + bytes(13) + b"\x0a", 128)

UNREADABLE = InstalledRules("legacy", (), "can't")


def capable(**changes: int | tuple[tuple[int, int], ...] | None) -> dict[str, Any]:
    return {"process": PROCESS.replace(**changes)}


def sysctls(**values: int | None) -> dict[str, Any]:
    """The healthy ones with some changed, by the last parts of their names, __ for a slash; None takes one away."""
    changed: dict[str, int | None] = {**SYSCTLS}
    for name, value in values.items():
        path = next(path for path in SYSCTLS if path.endswith("/" + name.replace("__", "/")))
        changed[path] = value
    return {"sysctls": {path: value for path, value in changed.items() if value is not None}}


def trial(*fields: str | bool | None) -> dict[str, Any]:
    return {"trials": (*TRIALS, Trial(*cast("Any", fields)))}


def without_scratch(*fields: str | bool | None) -> dict[str, Any]:
    return {"scratch": "refused: no", "trials": (Trial(*cast("Any", fields)),)}


def no_nat(backend: str, family: str) -> dict[str, Any]:
    return without_scratch(backend, family, "table", "nat", False, "no")


def rules(text: str, backend: str = "legacy") -> dict[str, Any]:
    return {"installed": (InstalledRules(backend, (load(text, "ipv4"),)),)}


def of_plan(command: str, backend: str = "legacy") -> dict[str, Any]:
    return {"installed": (InstalledRules(backend, case(command).plan.rulesets),)}


def nat(*lines: str) -> str:
    chains = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]
    own = sorted({line.split()[1] for line in lines} - set(chains))
    heads = [*(f":{name} ACCEPT [0:0]" for name in chains), *(f":{name} - [0:0]" for name in own)]
    return "\n".join(["*nat", *heads, *lines, "COMMIT", ""])


STALE = (Route("ipv4", "lo", 133), PolicyRule("ipv4", 1337, 133))

# Command line, what ails the machine, and the check that tells: its name, its status, a word of what was found, a
# word of the remedy.
OUTCOMES: list[tuple[str, dict[str, Any], str, str, str, str]] = [
    ("", {}, "capability NET_ADMIN", "ok", "held", ""),
    ("", capable(effective=0, bounding=0), "capability NET_ADMIN", "fail", "missing", "{add: [NET_ADMIN]}"),
    ("", capable(uid=1337, effective=0), "capability NET_ADMIN", "fail", "uid 1337", "runAsUser: 0"),
    ("", capable(effective=NET_ADMIN, bounding=0), "capability NET_RAW", "fail", "missing", "{add: [NET_RAW]}"),
    ("", {"backend": "nft", **capable(effective=NET_ADMIN)}, "capability NET_RAW", "warn", "missing", "NET_RAW"),
    ("--network-namespace /x", {}, "capability SYS_ADMIN", "ok", "held", ""),
    ("--network-namespace /x", capable(effective=NET_ADMIN), "capability SYS_ADMIN", "fail", "missing", "SYS_ADMIN"),
    ("--run-validation", {}, "capability SETUID", "ok", "held", ""),
    ("--run-validation", capable(effective=NET_ADMIN), "capability SETUID", "warn", "missing", "SETUID"),
    ("", {}, "seccomp", "ok", "no filter", ""),
    ("", capable(seccomp=2), "seccomp", "ok", "allows everything", ""),
    ("", {**capable(seccomp=2), "scratch": "refused"}, "seccomp", "warn", "refused", "Unconfined"),
    ("", {}, "user namespace", "ok", "the initial one", ""),
    ("", capable(first_user_namespace=False), "user namespace", "ok", "a separate one", ""),
    ("", capable(owner=False), "user namespace", "fail", "belongs to another", "hostUsers: true"),
    ("", capable(owner=None), "user namespace", "warn", "is unknown", ""),
    ("", {}, "owners", "ok", "all ids", ""),
    ("", capable(uids=((0, 99), (1337, 1337))), "owners", "ok", "all ids", ""),
    ("", capable(gids=((0, 1336),)), "owners", "fail", "gid 1337", "hostUsers: true"),
    ("--istio-outbound-owner-groups 7", capable(gids=((1337, 1337),)), "owners", "fail", "gid 7", "subgid"),
    ("", {}, "backend", "ok", "legacy (so it is)", ""),
    ("", {"backend": ""}, "backend", "fail", "so it is", "--native-nftables"),
    ("", {}, "rehearsal", "ok", "temporary", ""),
    ("", {"scratch": "refused: no"}, "rehearsal", "warn", "refused: no", "user.max_user_namespaces"),
    ("", {}, "legacy ipv4: table nat", "ok", "works", ""),
    ("", trial("legacy", "ipv4", "match", "owner", False, "no"), "legacy ipv4: match owner", "fail", "no", "xt_owner"),
    ("", trial("legacy", "ipv4", "match", "tcp", False, "no"), "legacy ipv4: match tcp", "fail", "no", "xt_tcpudp"),
    ("", trial("legacy", "ipv6", "match", "owner", False, "no"), "legacy ipv6: match owner", "warn", "no", "xt_owner"),
    ("", trial("nft", "ipv4", "match", "owner", False, "no"), "nft ipv4: match owner", "warn", "no", "nft_compat"),
    ("", trial("native", "ipv4", "target", "CT", False, "no"), "native ipv4: target CT", "warn", "no", "nft_ct"),
    ("", trial("legacy", "ipv4", "target", "TPROXY", False, "no"), "legacy ipv4: target TPROXY", "warn", "no", ""),
    (TPROXY, trial("legacy", "ipv4", "target", "TPROXY", False, "n"), "legacy ipv4: target TPROXY", "fail", "", "xt_"),
    ("", without_scratch("legacy", "ipv4", "table", "nat", None), "legacy ipv4: table nat", "warn", "create it", ""),
    ("", no_nat("legacy", "ipv4"), "legacy ipv4: table nat", "fail", "no", "iptable_nat"),
    ("--enable-ipv6", no_nat("legacy", "ipv6"), "legacy ipv6: table nat", "fail", "no", "ip6table_nat"),
    ("", no_nat("nft", "ipv4"), "nft ipv4: table nat", "warn", "no", "nft_chain_nat"),
    (TPROXY, trial("routing", "ipv4", "entry", "ip -4 rule add fwmark 1337 lookup 133", False, "n"),
     "routing ipv4: entry ip -4 rule add fwmark 1337 lookup 133", "fail", "n", "CONFIG_IP_MULTIPLE_TABLES"),
    ("", trial("routing", "ipv6", "entry", "ip -6 rule add fwmark 1337 lookup 133", False, "n"),
     "routing ipv6: entry ip -6 rule add fwmark 1337 lookup 133", "warn", "n", "and IPv6"),
    ("", {}, "interface lo", "ok", "up", ""),
    ("", {"loopback_up": False}, "interface lo", "fail", "down", "ip link set lo up"),
    ("", {}, "IPv6", "ok", "not in use", ""),
    ("--no-enable-ipv6", {}, "IPv6", "ok", "--no-enable-ipv6", ""),
    ("", {"addresses": BOTH}, "IPv6", "warn", "in use, and not captured", "--dual-stack"),
    ("--no-enable-ipv6", {"addresses": BOTH}, "IPv6", "ok", "--no-enable-ipv6", ""),
    ("", {"addresses": BOTH[:1]}, "IPv6", "ok", "not in use", ""),
    ("", sysctls(lo__disable_ipv6=None), "IPv6", "ok", "the kernel does not support it", ""),
    ("--enable-ipv6", {}, "IPv6", "ok", "::6", ""),
    ("--enable-ipv6", sysctls(lo__disable_ipv6=1), "IPv6", "fail", "off", "net.ipv6.conf.lo.disable_ipv6=0"),
    ("--enable-ipv6", sysctls(lo__disable_ipv6=None), "IPv6", "fail", "not support", "--no-enable-ipv6"),
    ("", sysctls(ip_forward=0), "ip_forward", "ok", "not needed", ""),
    ("-k net0", {}, "net.ipv4.ip_forward", "ok", "1", ""),
    ("-k net0", sysctls(ip_forward=0), "net.ipv4.ip_forward", "warn", "0", "sysctl -w net.ipv4.ip_forward=1"),
    ("-k net0 --enable-ipv6", sysctls(forwarding=0), "net.ipv6.conf.all.forwarding", "warn", "0", "=1"),
    (TPROXY, {}, "src_valid_mark", "ok", "harmless", ""),
    (TPROXY, sysctls(eth0__src_valid_mark=1), "src_valid_mark", "fail", "on eth0", "accept_local=1"),
    (TPROXY, sysctls(all__src_valid_mark=1), "src_valid_mark", "fail", "on eth0", "accept_local=1"),
    (TPROXY, sysctls(all__src_valid_mark=1, eth0__accept_local=1), "src_valid_mark", "ok", "harmless", ""),
    (ALL, sysctls(all__src_valid_mark=1), "src_valid_mark", "ok", "not used", ""),
    (TPROXY, {}, "tcp_fwmark_accept", "ok", "0", ""),
    (TPROXY, sysctls(tcp_fwmark_accept=1), "tcp_fwmark_accept", "fail", "1", "net.ipv4.tcp_fwmark_accept=0"),
    (ALL, sysctls(tcp_fwmark_accept=1), "tcp_fwmark_accept", "ok", "not used", ""),
    ("", {"resolver": Resolver(why="no")}, "resolv.conf", "ok", "not needed", ""),
    ("--redirect-dns --capture-all-dns", {"resolver": Resolver()}, "resolv.conf", "ok", "not needed", ""),
    ("--redirect-dns --dns-servers 10.0.0.1", {"resolver": Resolver()}, "resolv.conf", "ok", "not needed", ""),
    ("--redirect-dns", {}, "resolv.conf", "ok", "10.0.0.10", ""),
    ("--redirect-dns", {"resolver": Resolver(why="no")}, "resolv.conf", "fail", "no", "--dns-servers"),
    ("--redirect-dns", {"resolver": Resolver()}, "resolv.conf", "warn", "no server", "--capture-all-dns"),
    ("--redirect-dns --dns-servers ''", {}, "resolv.conf", "warn", "no server", "--dns-servers"),
    ("--redirect-dns", {"resolver": Resolver((IPV6_SERVER,))}, "resolv.conf", "warn", "family", "--enable-ipv6"),
    ("--redirect-dns", {"resolver": Resolver((Network(b"\1\1\1\1", 32),), ("line 1",))}, "resolv.conf", "warn",
     "line 1", "--dns-servers"),
    ("", {}, "proxy user", "ok", "no user istio-proxy", ""),
    ("", {"proxy_user": 1337}, "proxy user", "ok", "is uid 1337", ""),
    ("", {"proxy_user": 101}, "proxy user", "warn", "is uid 101", "--proxy-uid 101"),
    ("", {}, "proxy identity", "ok", "uid 1337, gid 1337", ""),
    (TPROXY, {}, "proxy identity", "ok", "uid 0, gid 1337", ""),
    (ALL, {"runs_as": (1000, 1337)}, "proxy identity", "ok", "uid 1000", ""),
    (ALL, {"runs_as": (0, 0)}, "proxy identity", "fail", "is not in", "runAsGroup: 1337"),
    (TPROXY, {"runs_as": (0, 0)}, "proxy identity", "fail", "is not in", "runAsGroup: 1337"),
    (TPROXY, {"runs_as": (1337, 1337)}, "proxy identity", "fail", "-u has 1337", "runAsUser: 0"),
    (f"{TPROXY} -u 0 -g 1337", {}, "proxy identity", "fail", "-u has 0", "-u 1337"),
    (f"{ALL} -u 0 -g 1337", {}, "proxy identity", "warn", "-u 0", "1337"),
    (f"{ALL} -g 0", {}, "proxy identity", "warn", "-g 0", "1337"),
    ("", {}, "lock", "ok", "is free", ""),
    ("", {"lock": LockStatus("/x", available=True, held="pid 7 (x)")}, "lock", "warn", "pid 7 (x)", "wait"),
    ("", {"lock": LockStatus("/x", available=False)}, "lock", "ok", "namespace itself", ""),
    ("", {}, "leftovers", "ok", "no Istio rules", ""),
    (ALL, of_plan(ALL), "leftovers", "ok", "in place", ""),
    (TPROXY, of_plan(ALL), "leftovers", "fail", "Istio rules that differ", "--reconcile"),
    (f"{TPROXY} --reconcile", of_plan(ALL), "leftovers", "warn", "Istio rules that differ", "--reconcile"),
    (ALL, {"routing": STALE}, "leftovers", "warn", "earlier run", "ip -4 rule del fwmark 1337 lookup 133"),
    (f"{TPROXY} --drop-invalid", {"routing": STALE, "installed": (
        InstalledRules("legacy", (Ruleset("ipv4", (case(f"{TPROXY} --drop-invalid").plan.rulesets[0].tables[0],)),)),
    )}, "leftovers", "warn", "interrupted", ""),
    (ALL, of_plan(ALL, "nft"), "leftovers, nft", "fail", "in the nft tables", "clean"),
    (f"{ALL} --reconcile", of_plan(ALL, "nft"), "leftovers, nft", "warn", "in the nft tables", "clean"),
    (ALL, of_plan(f"{ALL} --enable-ipv6"), "leftovers, ipv6", "warn", "the plan has none", "--enable-ipv6"),
    (ALL, {"installed": (UNREADABLE,)}, "existing rules, legacy", "warn", "can't", "root"),
    (ALL, {"installed": (UNREADABLE,)}, "leftovers", "warn", "legacy were not read", "root"),
    (ALL, {"installed": (UNREADABLE,)}, "other programs' rules", "warn", "were not read", "root"),
    (ALL, {}, "other programs' rules", "ok", "none", ""),
    (ALL, rules(nat("-A OUTPUT -p udp -j ACCEPT")), "other programs' rules, legacy ipv4 nat OUTPUT", "warn",
     "1: -A OUTPUT -p udp -j ACCEPT", "iptables-legacy -t nat -S"),
    (ALL, rules(nat("-A PREROUTING -p tcp -j REDIRECT --to-ports 9"), "nft"),
     "other programs' rules, nft ipv4 nat PREROUTING", "warn", "--to-ports 9", "iptables-nft -t nat -S"),
    (ALL, rules(nat("-A OUTPUT -j DOCKER_OUTPUT", "-A DOCKER_OUTPUT -p tcp -j REDIRECT --to-ports 9")),
     "other programs' rules, legacy ipv4 nat OUTPUT", "warn", "-j DOCKER_OUTPUT", "-t nat"),
    (ALL, {"foreign_tables": (ForeignTable("ip", "kube-proxy", ("nat-output (hook output, priority -100)",), 3),)},
     "other programs' rules, nftables ip kube-proxy", "warn", "destinations: 3", "nft list table ip kube-proxy"),
]  # fmt: skip


def look(command: str, ailment: dict[str, Any]) -> dict[str, Check]:
    return {check.name: check for check in diagnose(case(command, **ailment))}


@pytest.mark.parametrize(("command", "ailment", "name", "status", "finding", "remedy"), OUTCOMES)
def test_outcome(command: str, ailment: dict[str, Any], name: str, status: str, finding: str, remedy: str) -> None:
    check = look(command, ailment)[name]
    assert check.status == status, check
    assert finding in check.finding
    assert remedy in check.remedy


@pytest.mark.parametrize("command", ["", ALL, TPROXY, f"{TPROXY} --enable-ipv6 --redirect-dns --drop-invalid -k net0"])
def test_a_healthy_machine_has_nothing_to_mend(command: str) -> None:
    checks = diagnose(case(command))
    assert {check.status for check in checks} == {"ok"}
    assert not any(check.remedy for check in checks)


@pytest.mark.parametrize(("command", "ailment", "name", "status"), [row[:4] for row in OUTCOMES])
def test_an_ailment_shows_in_its_own_check_alone(command: str, ailment: dict[str, Any], name: str, status: str) -> None:
    """So that a remedy mends what is wrong; seccomp and the rehearsal speak of each other."""
    failing = {each for each, check in look(command, ailment).items() if check.status == "fail"}
    related = {"capability NET_ADMIN", "capability NET_RAW", name} if "capability" in name else {name}
    assert failing <= related
    assert (name in failing) == (status == "fail")


@pytest.mark.parametrize(
    ("privileges", "backend", "name", "status", "finding"),
    [
        (Privileges("i", {}, None), "legacy", "the pod's i", "ok", "allows"),
        (Privileges("i", {"NET_RAW": "why"}, 0), "legacy", "the pod's i: capability NET_RAW", "fail", "why"),
        (Privileges("i", {"NET_RAW": "why"}, 0), "native", "the pod's i: capability NET_RAW", "warn", "why"),
        (Privileges("i", {"NET_ADMIN": "why"}, 0), "native", "the pod's i: capability NET_ADMIN", "fail", "why"),
        (Privileges("i", {}, 1337), "legacy", "the pod's i: user", "fail", "uid 1337"),
        (Privileges("i", {}, None, root_refused=True), "legacy", "the pod's i: user", "fail", "runAsNonRoot"),
    ],
)
def test_what_the_pod_allows(privileges: Privileges, backend: str, name: str, status: str, finding: str) -> None:
    checks = [
        check for check in diagnose(case(backend=backend).replace(privileges=privileges)) if "pod's" in check.name
    ]
    assert [(check.name, check.status) for check in checks] == [(name, status)]
    assert finding in checks[0].finding


def test_a_kernel_without_ipv6_is_one_check() -> None:
    refused = tuple(Trial("legacy", "ipv6", "match", name, works=False, why="no") for name in ("tcp", "owner", "udp"))
    for request in ("", "--enable-ipv6"):
        checks = diagnose(case(request, **sysctls(lo__disable_ipv6=None), trials=(*TRIALS, *refused)))
        assert [check.name for check in checks if "ipv6" in check.name.lower()] == ["IPv6"]


def test_what_is_behind_ours_is_no_shadow() -> None:
    behind = nat("-A PREROUTING -p tcp -j ISTIO_INBOUND", "-A PREROUTING -p tcp -j REDIRECT --to-ports 9",
                 "-A ISTIO_INBOUND -p tcp -j RETURN")  # fmt: skip
    before = nat("-A PREROUTING -p tcp -j REDIRECT --to-ports 9", "-A PREROUTING -p tcp -j ISTIO_INBOUND",
                 "-A ISTIO_INBOUND -p tcp -j RETURN")  # fmt: skip
    name = "other programs' rules, legacy ipv4 nat PREROUTING"
    assert name not in look(ALL, rules(behind))
    assert look(ALL, rules(before))[name].status == "warn"


def test_a_verdict_in_another_backend_ends_nothing_of_ours() -> None:
    assert "other programs' rules" in look(ALL, rules(nat("-A OUTPUT -p udp -j ACCEPT"), "nft"))


def test_chains_of_others_that_loop_are_walked_once() -> None:
    loop = nat("-A OUTPUT -j A", "-A A -j B", "-A B -j A")
    assert "other programs' rules" in look(ALL, rules(loop))


def test_kube_proxys_rules_are_known() -> None:
    text = nat("-A OUTPUT -j KUBE-SERVICES", "-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -j REDIRECT --to-ports 9")
    assert "hostNetwork" in look(ALL, rules(text))["other programs' rules, legacy ipv4 nat OUTPUT"].matters


@pytest.mark.parametrize(
    "lines",
    [
        ("-A OUTPUT -d 127.0.0.11/32 -p udp -j REDIRECT --to-ports 9",),
        ("-A OUTPUT -j DOCKER", "-A DOCKER -p tcp -j REDIRECT --to-ports 9"),
    ],
)
def test_dockers_rules_are_known(lines: tuple[str, ...]) -> None:
    assert "Docker's" in look(ALL, rules(nat(*lines)))["other programs' rules, legacy ipv4 nat OUTPUT"].matters


def test_every_look_says_something() -> None:
    cases = (
        case(TPROXY).replace(privileges=Privileges("i", {}, None)),
        case("--capture-backend ebpf --dry-run").replace(node=NodeSupport("", ())),
    )
    assert all(any(list(look(each)) for each in cases) for look in CHECKS)


def test_capture_by_ebpf_says_what_is_in_its_way() -> None:
    request = case("--capture-backend ebpf --dry-run")
    able = {check.name: check for check in diagnose(request.replace(node=NodeSupport("", ("cgroup/connect4",))))}
    assert able["capture by eBPF"].status == "ok"
    assert "cgroup/connect4" in able["capture by eBPF: neighbours"].finding
    unable = {check.name: check for check in diagnose(request.replace(node=NodeSupport("Linux 5.10 is too old", ())))}
    assert (unable["capture by eBPF"].status, unable["capture by eBPF"].finding) == ("fail", "Linux 5.10 is too old")


def test_whatever_is_wrong_says_what_it_means() -> None:
    wrong = [
        check
        for command, ailment, *_ in OUTCOMES
        for check in diagnose(case(command, **ailment))
        if check.status != "ok"
    ]
    assert len(wrong) > len(OUTCOMES) // 2
    assert not [check for check in wrong if not (check.finding and check.matters)]


def test_people_see_what_is_well_in_one_line() -> None:
    checks = diagnose(case(**trial("legacy", "ipv4", "match", "owner", False, "no")))
    shown = {check.name: check for check in folded(checks)}
    assert shown["legacy ipv4"].finding == "table raw, mangle, nat"
    assert shown["legacy ipv4: match owner"].status == "fail"
    assert len(shown) < len(checks)


def printed(capsys: pytest.CaptureFixture[str], *, everything: bool = False, **ailment: Any) -> list[str]:  # noqa: ANN401
    """What people see, elsewhere than on a terminal, without what the rows say further."""
    show(folded(diagnose(case(**ailment))), everything=everything)
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]


def test_the_summary_comes_first_then_failures_then_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    ill: dict[str, Any] = {"loopback_up": False, "lock": LockStatus("/run/xtables.lock", available=True, held="pid 7")}
    lines = printed(capsys, **ill)
    assert lines[0].startswith("these options do not work here: 1 failure, 1 warning, ")
    assert lines[0].endswith(" checks passed (--all shows them)")
    assert [line.split(":")[0].split()[:2] for line in lines[1:]] == [["fail", "interface"], ["warn", "lock"]]
    every = printed(capsys, everything=True, **ill)
    assert every[1:3] == lines[1:]
    assert {line.split()[0] for line in every[3:]} == {"ok"}
    well = printed(capsys)
    assert len(well) == 1
    assert well[0].startswith("these options work here: ")


def test_programs_see_everything() -> None:
    well, ill = diagnose(case()), diagnose(case(loopback_up=False))
    assert as_json(well)["ok"] is True
    assert as_json(ill)["ok"] is False
    assert as_json(ill)["checks"][0] == {  # type: ignore[index]
        "name": "capability NET_ADMIN", "status": "ok", "finding": "held",
        "matters": "needed for every change of rules and routing", "remedy": "",
    }  # fmt: skip
