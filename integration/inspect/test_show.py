"""`show` in real namespaces: its counters and columns are those of the kernel's own tools, and it changes nothing."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from integration.kit.asking import ask
from integration.kit.backends import BACKENDS
from integration.kit.endpoints import awaited
from integration.kit.everything import state
from integration.kit.namespace import Namespace
from integration.kit.pod import APP, PODS, PROXY, Pod, applied, options_of
from integration.kit.program import IPTABLES, ROOT, VERBS, environment
from integration.kit.settling import settled
from integration.kit.terminal import at_a_terminal, ended
from istio_init.model.inet import NAMES, chain_name
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from istio_init.model.rules import Family

ALL = "-u 1337 -i '*' -b '*' -d 15090 --enable-ipv6"
TPROXY = f"{ALL} -m TPROXY -x 10.0.0.0/8 --redirect-dns --dns-servers 10.99.0.1,fd99::1"
# A connection's last packets may be late: so often is looked until none came between two looks.
MOST_LOOKS = 100


def look(namespace: Namespace, backend: str, arguments: str) -> Any:  # noqa: ANN401 (JSON)
    """What `show` tells, and that it changed nothing."""
    before = state(namespace)
    answer = show_document(namespace, backend, arguments)
    assert state(namespace) == before
    return answer


def show_document(namespace: Namespace, backend: str, arguments: str) -> Any:  # noqa: ANN401 (JSON)
    """What `show` tells."""
    answer = ask(namespace, "show", *shlex.split(arguments), *BACKENDS[backend], "--output", "json")
    assert (answer.code, answer.errors) == (0, "")
    return answer.document


def chains(report: Any, backend: str, family: str) -> dict[tuple[str, str], Any]:  # noqa: ANN401 (JSON)
    """The chains of one family's tables, by table and name."""
    family = "inet" if backend == "native" else family
    return {
        (table["table"], chain["chain"]): chain
        for table in report["tables"]
        if (table["backend"], table["family"]) == (backend, family)
        for chain in table["chains"]
    }


def counted(namespace: Namespace, backend: str, family: Family) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """What each rule has counted, as the backend's own tool says."""
    result: dict[tuple[str, str], list[tuple[int, int]]] = {}
    if backend == "native":
        for item in json.loads(namespace.run("nft", "-j", "list", "ruleset", "inet"))["nftables"]:
            if rule := item.get("rule"):
                [counter] = [each["counter"] for each in rule["expr"] if "counter" in each]
                met = counter["packets"], counter["bytes"]
                result.setdefault((rule["table"], rule["chain"]), []).append(met)
        return result
    tool = "iptables" if family == IPV4 else "ip6tables"
    table = ""
    for line in namespace.run(f"{tool}-{backend}-save", "-c").splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif rule := re.match(r"\[(\d+):(\d+)\] -A (\S+)", line):
            result.setdefault((table, rule[3]), []).append((int(rule[1]), int(rule[2])))
    return result


@pytest.fixture(params=PODS, ids="-".join)
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    """A pod whose sidecar and app listen, and a peer with a server."""
    with Pod(*request.param) as fresh:
        for name, port in (("outbound", 15001), ("inbound", 15006), ("app", 8080)):
            fresh.listen(name, port, transparent=name == "inbound")
        fresh.listen_at_peer("peer", 80)
        yield fresh


@pytest.mark.parametrize("arguments", [ALL, TPROXY], ids=["redirect", "tproxy"])
def test_counters(pod: Pod, arguments: str) -> None:
    """Of real connections, in and out, captured and not: every rule's packets and bytes."""
    pod.apply(arguments)
    settled(pod.namespace)
    addresses = pod.addresses
    assert pod.dial(APP, (addresses.inner if arguments == ALL else addresses.outer, 80)).at == "outbound"
    assert pod.dial(PROXY, (addresses.peer, 80)).at == "peer"
    assert pod.dial_in((addresses.pod, 8080)).at == "inbound"
    report: Any = {}
    shown: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def agrees() -> bool:
        report.update(show_document(pod.namespace, pod.backend, arguments))
        for place, chain in chains(report, pod.backend, pod.family).items():
            if chain["rules"]:
                shown[place] = [(rule["packets"], rule["bytes"]) for rule in chain["rules"]]
        return shown == counted(pod.namespace, pod.backend, pod.family)

    assert any(agrees() for _ in range(MOST_LOOKS))
    assert report["state"] == "in place"
    assert {rule["state"] for chain in chains(report, pod.backend, pod.family).values() for rule in chain["rules"]} == {
        "in place"
    }
    place = (NAMES["nat"], chain_name("ISTIO_REDIRECT")) if pod.backend == "native" else ("nat", "ISTIO_REDIRECT")
    assert sum(packets for packets, _ in shown[place]) == 1


@pytest.mark.parametrize("pod", [(IPV4, "legacy"), (IPV6, "legacy")], indirect=True, ids="-".join)
def test_policies_and_tracked_connections(pod: Pod) -> None:
    pod.apply(ALL)
    settled(pod.namespace)
    pod.dial(APP, (pod.addresses.inner, 80))
    pod.dial_in((pod.addresses.pod, 8080))
    pod.dial_in((pod.addresses.pod, 8080))
    answer = show_document(pod.namespace, "legacy", ALL)
    conntrack = answer["conntrack"]
    assert conntrack["captured"] == {"outbound": 1, "inbound": 2, "dns": 0}
    assert conntrack["entries"] == int(pod.namespace.run("conntrack", "-C"))
    assert conntrack["limit"] == int(pod.namespace.run("sysctl", "-n", "net.netfilter.nf_conntrack_max"))
    listing = pod.namespace.run(IPTABLES[pod.family], "-w", "-t", "nat", "-nvxL", "INPUT").splitlines()[0]
    chain = chains(answer, "legacy", pod.family)["nat", "INPUT"]
    assert chain["packets"] == 2
    assert f"(policy ACCEPT {chain['packets']} packets, {chain['bytes']} bytes)" in listing


def columns(namespace: Namespace, family: Family, table: str, chain: str) -> list[list[str]]:
    """`iptables -L`'s rows for a chain, in our words; blanks made one, and the column opt left out."""
    words = {"*": "any", "0.0.0.0/0": "anywhere", "::/0": "anywhere"}
    # iptables 1.8.9 prints numbers, and those around it names.
    protocols = {"0": "all", "6": "tcp", "17": "udp", "58": "ipv6-icmp"}
    rows = []
    for line in namespace.run(IPTABLES[family], "-w", "-t", table, "-nvxL", chain).splitlines()[2:]:
        _, _, target, protocol, *rest = line.split()
        inner, outer, source, destination, *extra = rest[1:] if rest[0] == "--" else rest
        cells = (words.get(each, each) for each in (inner, outer, source, destination))
        rows.append([target, protocols.get(protocol, protocol), *cells, " ".join(extra)])
    return rows


@pytest.mark.parametrize(
    "name", ["article-ipv6", "article-tproxy", "cidrs", "owners", "include-outbound-ports", "drop-invalid-tproxy"]
)
def test_columns(namespace: Namespace, name: str) -> None:
    """Word for word those of iptables, for every rule of the case, in both families."""
    assert name in CASES
    namespace.inside(lambda: applied(options_of(shlex.join([*BACKENDS["legacy"], *argv(name)]))))
    settled(namespace)
    output = look(namespace, "legacy", shlex.join(argv(name)))
    fields = ("target", "protocol", "in_interface", "out_interface", "source", "destination", "extra")
    observed = 0
    for family in FAMILIES:
        for (table, chain), shown in chains(output, "legacy", family).items():
            rows = [[rule[field] for field in fields] for rule in shown["rules"]]
            assert rows == columns(namespace, family, table, chain)
            observed += len(rows)
    assert observed > 10


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_drift_and_rules_of_others(namespace: Namespace, backend: str) -> None:
    words = shlex.join([*BACKENDS[backend], *shlex.split(ALL)])
    namespace.inside(lambda: applied(options_of(words)))
    settled(namespace)
    tool = (f"iptables-{backend}", "-w", "-t", "nat")
    namespace.run(*tool, "-D", "ISTIO_OUTPUT", "-d", "127.0.0.1/32", "-j", "RETURN")
    namespace.run(*tool, "-A", "ISTIO_INBOUND", "-p", "udp", "-j", "RETURN")
    namespace.run(*tool, "-I", "OUTPUT", "-p", "icmp", "-j", "ACCEPT")
    namespace.run("ip", "rule", "add", "fwmark", "7", "lookup", "9")
    output = look(namespace, backend, ALL)
    assert output["state"] == "drifted"
    actual = chains(output, backend, IPV4)
    assert actual["nat", "ISTIO_OUTPUT"]["missing"] == ["-d 127.0.0.1/32 -j RETURN"]
    assert [rule["state"] for rule in actual["nat", "OUTPUT"]["rules"]] == ["foreign", "in place"]
    last = actual["nat", "ISTIO_INBOUND"]["rules"][-1]
    assert (last["state"], last["rule"], last["purposes"]) == ("unexpected", "-p udp -j RETURN", [])
    assert actual["nat", "OUTPUT"]["rules"][1]["purposes"][0]["concern"] == "outbound_entry"
    assert output["routing"] == [
        {"state": "in place", "entry": "ip -6 addr add ::6/128 dev lo"},
        {"state": "foreign", "entry": "ip -4 rule add fwmark 7 lookup 9"},
    ]
    namespace.run(*tool, "-D", "ISTIO_INBOUND", "-p", "udp", "-j", "RETURN")
    text = ask(namespace, "show", *shlex.split(ALL), *BACKENDS[backend]).output
    assert "missing: -d 127.0.0.1/32 -j RETURN" in text
    assert "foreign: not an Istio rule, left alone" in text


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_family_that_is_left_alone(namespace: Namespace, backend: str, mode: str) -> None:
    """What exists of IPv6 is no drift where IPv6 is not asked for: `check` says so, and so do the rules."""
    both = f"-u 1337 -i '*' -b '*' -m {mode}"
    one = f"{both} --no-enable-ipv6 --reconcile"
    namespace.inside(lambda: applied(options_of(shlex.join([*BACKENDS[backend], *shlex.split(both), "--enable-ipv6"]))))
    settled(namespace)
    output = look(namespace, backend, one)
    assert (output["state"], output["findings"]) == ("in place", [])
    actual = [(table["family"], chain) for table in output["tables"] for chain in table["chains"]]
    assert [chain["missing"] for _, chain in actual if chain["missing"]] == []
    observed = {(family, rule["state"]) for family, chain in actual for rule in chain["rules"]}
    if backend == "native":
        assert observed == {("inet", "in place"), ("inet", "other family")}
    else:
        assert observed == {(IPV4, "in place"), (IPV6, "other family")}
    entries = {(each["entry"].split()[1], each["state"]) for each in output["routing"]}
    assert entries == ({("-4", "in place"), ("-6", "other family")} if mode == "TPROXY" else set())
    text = ask(namespace, "show", *shlex.split(one), *BACKENDS[backend]).output
    assert "other family: an Istio rule of a family that these options do not manage" in text
    assert "UNEXPECTED" not in text
    assert ask(namespace, "check", *shlex.split(one), *BACKENDS[backend]).code == 0


def states(report: Any) -> list[tuple[str, str]]:  # noqa: ANN401 (JSON)
    """Each rule's table, and how it compares with the plan."""
    return [
        (table["table"], rule["state"])
        for table in report["tables"]
        for chain in table["chains"]
        for rule in chain["rules"]
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_drift_beside_a_family_that_is_left_alone(namespace: Namespace, backend: str) -> None:
    """Of the family that is asked for, drift is told as ever; tables that the other one alone has are its own."""
    both = shlex.join([*BACKENDS[backend], *shlex.split("-u 1337 -i '*' -b '*' -m TPROXY --enable-ipv6")])
    one = "-u 1337 -i '*' -b '*' -d 15090 --no-enable-ipv6 --reconcile"
    namespace.inside(lambda: applied(options_of(both)))
    settled(namespace)
    output = look(namespace, backend, one)
    assert output["state"] == "drifted"
    rules = states(output)
    mangle = NAMES["mangle"] if backend == "native" else "mangle"
    assert {state for table, state in rules if table == mangle} == {"unexpected", "other family"}
    missing = [line for table in output["tables"] for chain in table["chains"] for line in chain["missing"]]
    assert any("15090" in line for line in missing)
    assert not any("ipv6" in line for line in missing)
    namespace.inside(lambda: applied(options_of(shlex.join([*BACKENDS[backend], *shlex.split(one)]))))
    settled(namespace)
    output = look(namespace, backend, one)
    assert output["state"] == "in place"
    rules = states(output)
    assert {state for table, state in rules if table == mangle} == {"other family"}
    assert {state for _, state in rules} == {"in place", "other family"}


def test_native_drift(namespace: Namespace) -> None:
    namespace.inside(lambda: applied(options_of(f"--native-nftables {ALL}")))
    settled(namespace)
    namespace.run("nft", "insert rule inet istio-proxy-nat istio-inbound tcp flags syn counter log")
    output = look(namespace, "native", ALL)
    chain = chains(output, "native", "")["istio-proxy-nat", "istio-inbound"]
    assert [rule["state"] for rule in chain["rules"]] == ["unexpected", "in place", "in place"]
    texts = [purpose["text"] for purpose in chain["rules"][1]["purposes"]]
    assert texts == [
        "Envoy listens on the port of HBONE tunnels itself; it is not captured",
        "an excluded inbound port is not captured",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_there(namespace: Namespace, backend: str) -> None:
    output = look(namespace, backend, ALL)
    assert (output["state"], output["tables"]) == ("absent", [])
    assert output["routing"] == [{"state": "missing", "entry": "ip -6 addr add ::6/128 dev lo"}]


def started(namespace: Namespace, *command: str) -> subprocess.Popen[bytes]:
    line = ["ip", "netns", "exec", namespace.name, *command]
    return subprocess.Popen(
        line, env=environment(namespace), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )


def test_watching_shows_what_changes(namespace: Namespace) -> None:
    """Piped: one JSON document a line; it sees an apply that happens meanwhile, and ends by Ctrl-C with 0."""
    words = shlex.split(ALL)
    run = started(namespace, *VERBS, "show", *words, "--watch", "0.1", "--output", "json")
    try:
        assert run.stdout is not None
        assert json.loads(run.stdout.readline())["state"] == "absent"
        namespace.inside(lambda: applied(options_of(ALL)))
        lines = iter(run.stdout.readline, b"")
        assert any(json.loads(line)["state"] == "in place" for line in lines)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate()
        assert (run.returncode, errors) == (0, b"")
    finally:
        run.kill()
        run.communicate()


def test_watching_so_many_times(namespace: Namespace) -> None:
    answer = ask(namespace, "show", *shlex.split(ALL), "--watch", "0.1", "--count", "3")
    assert answer.code == 0
    assert [line for line in answer.output.splitlines() if line.startswith("absent")] == [
        answer.output.splitlines()[0]
    ] * 3


def test_a_table_on_a_terminal(namespace: Namespace) -> None:
    """With colours; Ctrl-C, typed, ends the watching with 0 there, too."""
    namespace.inside(lambda: applied(options_of(ALL)))
    settled(namespace)
    verb = [*VERBS, "show", *shlex.split(ALL)]
    with at_a_terminal(namespace, *verb) as child:
        code, shown = ended(child)
    assert code == 0
    assert "extra, and purpose" in shown
    assert "in every plan" in shown
    assert "\x1b[32min place" in shown
    with at_a_terminal(namespace, *verb, "--watch", "0.1") as child:
        child.expect_exact("ISTIO_OUTPUT")
        child.sendintr()
        code, _ = ended(child)
    assert code == 0


def test_a_terminal_that_is_too_narrow_for_a_table(namespace: Namespace) -> None:
    """Nothing of what a pipe gets is lost there; with --watch no column is, and each look fits its width."""
    namespace.inside(lambda: applied(options_of(ALL)))
    settled(namespace)
    namespace.run("iptables-legacy", "-w", "-t", "nat", "-A", "ISTIO_INBOUND", "-p", "udp", "-j", "RETURN")
    namespace.run("iptables-legacy", "-w", "-t", "nat", "-I", "OUTPUT", "-d", "203.0.113.9", "-j", "ACCEPT")
    settled(namespace)
    verb = [*VERBS, "show", *shlex.split(ALL)]
    for request in ([], ["--output", "table"]):
        with at_a_terminal(namespace, *verb, *request, columns=80) as child:
            code, shown = ended(child)
        assert code == 0
        assert shown.splitlines() == ask(namespace, "show", *shlex.split(ALL)).output.splitlines()
        for word in ("in every plan", "owner UID match 1337", "UNEXPECTED: an Istio", "foreign: not an Istio"):
            assert word in shown
    with at_a_terminal(namespace, *verb, "--watch", "0.1", "--count", "1", columns=80) as child:
        code, shown = ended(child)
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= 80
    assert "owner UID match 1337" in " ".join(" ".join(lines).split())


def test_a_table_where_nobody_watches(namespace: Namespace) -> None:
    """It is as wide as it has to be: a file has no columns that it could run out of."""
    namespace.inside(lambda: applied(options_of(ALL)))
    settled(namespace)
    answer = ask(namespace, "show", *shlex.split(ALL), "--output", "table")
    assert answer.code == 0
    assert "extra, and purpose" in answer.output
    assert "destination" in answer.output
    assert "…" not in answer.output


def test_what_is_asked_wrongly(namespace: Namespace) -> None:
    for wrong, flag in (
        (["--count", "2"], "--count"),
        (["--watch", "0"], "--watch"),
        (["--watch", "soon"], "--watch"),
        (["--output", "yaml"], "--output"),
    ):
        answer = ask(namespace, "show", *wrong)
        assert answer.code == 255
        assert answer.errors.startswith(f"istio-init: {flag}: ")
        assert answer.errors.count("\n") == 1


def test_a_watched_namespace_that_goes(namespace: Namespace) -> None:
    """That is an error and one line, whatever was shown before."""
    with Namespace() as other:
        line = ["show", "--netns", other.path, "--watch", "0.1", "--output", "json"]
        run = started(namespace, *VERBS, *line)
        assert run.stdout is not None
        run.stdout.readline()
    try:
        _, errors = run.communicate()
        assert run.returncode == 1
        assert errors.count(b"\n") == 1
        assert b"network namespace" in errors
    finally:
        run.kill()
        run.communicate()
    awaited(lambda: run.poll() is not None, "the end of the run")
