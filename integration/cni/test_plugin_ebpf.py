"""The CNI plugin with capture by eBPF: a sandbox's life, called as a runtime calls it.

The plugin runs in a mount and cgroup namespace whose root cgroup is one made for the test, so that all it attaches is
seen by the test's processes alone, and all its paths are the usual ones.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.kit.cni import INJECTED, PREVIOUS, Plugin
from integration.kit.ebpf_node import ADDRESS, ELSEWHERE, EbpfNode, another_program, enclosed, reached
from integration.kit.namespace import Namespace
from integration.kit.program import ROOT
from istio_init.cni.plugin.protocol import DRIFTED
from tests.kit.schemas import validated

EBPF: dict[str, object] = {"capture-backend": "ebpf"}


@pytest.fixture
def plugin(node: EbpfNode, tmp_path: Path) -> Plugin:
    instance = Plugin(tmp_path, defaults=EBPF)
    instance.command = [*enclosed(node), *instance.command]
    return instance


@pytest.fixture
def sandbox() -> Iterator[Namespace]:
    with Namespace() as fresh:
        fresh.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
        yield fresh


def test_a_sandboxs_life(plugin: Plugin, sandbox: Namespace) -> None:
    assert json.loads(plugin.done("ADD", sandbox.path, INJECTED, prevResult=PREVIOUS)) == PREVIOUS
    assert reached(sandbox) == ELSEWHERE
    assert "ISTIO" not in sandbox.run("iptables-legacy-save")
    assert plugin.done("CHECK", sandbox.path, INJECTED, prevResult=PREVIOUS) == ""
    for _ in range(2):
        assert plugin.done("DEL", sandbox.path) == ""
        assert reached(sandbox) is None
    assert plugin.state() is None


def test_check_says_what_is_missing(plugin: Plugin, sandbox: Namespace, node: EbpfNode) -> None:
    plugin.done("ADD", sandbox.path, INJECTED, prevResult=PREVIOUS)
    [pin] = Path(node.installation.path("pods", "")).iterdir()
    pin.unlink()
    error = plugin.call("CHECK", sandbox.path, INJECTED, prevResult=PREVIOUS).error
    assert error["code"] == DRIFTED
    assert "sk_lookup is not attached" in error["msg"]
    plugin.done("DEL", sandbox.path)


WITH_IPTABLES = "goes with --capture-backend iptables only"
FOUR = "at most 4 with --capture-backend ebpf"
REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "--kube-virt-interfaces": ({"kube-virt-interfaces": "net1"}, "no socket of the pod sends it"),
    "--istio-exclude-interfaces": ({"istio-exclude-interfaces": "eth0"}, "connect(2) does not know the interface"),
    "--proxy-uid": ({"proxy-uid": "1,2,3,4,5"}, FOUR),
    "--proxy-gid": ({"proxy-gid": "1,2,3,4,5"}, FOUR),
    "--native-nftables": ({"native-nftables": True}, WITH_IPTABLES),
    "--force-iptables-binary": ({"force-iptables-binary": "nft"}, WITH_IPTABLES),
    "--iptables-engine": ({"iptables-engine": "python-iptables"}, WITH_IPTABLES),
    "--compat-version": ({"compat-version": "1.13"}, WITH_IPTABLES),
    "--rule-comments": ({"rule-comments": True}, WITH_IPTABLES),
    "--istio-inbound-exclude-cidr": ({"istio-inbound-exclude-cidr": "10.0.0.0/8"}, WITH_IPTABLES),
    "--exclude-uids-for-ports": ({"exclude-uids-for-ports": "tcp:53:7"}, WITH_IPTABLES),
}


@pytest.fixture
def bare(node: EbpfNode) -> EbpfNode:
    """The node without an installation."""
    with node.installation.lock():
        node.installation.uninstall()
    return node


def is_untouched(node: EbpfNode, sandbox: Namespace) -> bool:
    """Whether nothing is attached or pinned on the node, and nothing captured."""
    return list(node.pins()) == [] and node.attached() == 0 and reached(sandbox) is None


@pytest.mark.parametrize("flag", REFUSED)
def test_what_cannot_be_done_is_refused(plugin: Plugin, sandbox: Namespace, bare: EbpfNode, flag: str) -> None:
    more, why = REFUSED[flag]
    error = plugin.call("ADD", sandbox.path, INJECTED, prevResult=PREVIOUS, defaults={**EBPF, **more}).error
    assert flag in error["msg"]
    assert why in error["msg"]
    assert is_untouched(bare, sandbox)
    plugin.done("DEL", sandbox.path)


def test_a_proxy_that_listens_already_is_refused(plugin: Plugin, sandbox: Namespace, bare: EbpfNode) -> None:
    def listening() -> socket.socket:
        sock = socket.socket()
        sock.bind(("0.0.0.0", 15001))
        sock.listen()
        return sock

    with sandbox.inside(listening):
        error = plugin.call("ADD", sandbox.path, INJECTED, prevResult=PREVIOUS).error
    assert "port 15001: the proxy is already listening" in error["msg"]
    assert is_untouched(bare, sandbox)
    plugin.done("DEL", sandbox.path)


def test_rules_that_exist_are_refused(plugin: Plugin, sandbox: Namespace, bare: EbpfNode) -> None:
    sandbox.run("istio-iptables", "-u", "1337", "-i", "*", "-b", "*")
    error = plugin.call("ADD", sandbox.path, INJECTED, prevResult=PREVIOUS).error
    assert "has Istio rules: the pod would be captured twice" in error["msg"]
    assert (list(bare.pins()), bare.attached()) == ([], 0)


def run(node: EbpfNode, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*enclosed(node), *command], capture_output=True, text=True, env=environment, check=False)


def test_by_hand_and_the_verbs(node: EbpfNode, sandbox: Namespace) -> None:
    flags = ["-u", "1337", "-i", "*", "-b", "*", "--capture-backend", "ebpf", "--network-namespace", sandbox.path]
    check = run(node, "istio-init", "check", *flags)
    assert (check.returncode, check.stdout.split(":")[0]) == (4, "absent (ebpf)")
    done = run(node, "istio-iptables", *flags, "--enable-ipv6", "--run-validation")
    assert done.returncode == 0, done.stderr
    assert "validation: IPv4 inbound" in done.stderr
    assert "validation: IPv4 outbound: 192.0.2.1" in done.stderr
    done = run(node, "istio-iptables", *flags)
    assert done.returncode == 0, done.stderr
    assert f"captured by eBPF (addresses: {ADDRESS}/32)" in done.stderr
    assert reached(sandbox) == ELSEWHERE
    check = run(node, "istio-init", "check", *flags)
    assert (check.returncode, check.stdout) == (0, "in place (ebpf)\n")
    validated(run(node, "istio-init", "check", *flags, "--output", "json").stdout, "check")
    other = run(node, "istio-init", "check", *flags, "-o", "4000-4003")
    assert (other.returncode, other.stdout.split(":")[0]) == (3, "drifted (ebpf)")
    plan = validated(run(node, "istio-init", "plan", *flags, "--output", "json").stdout, "plan-ebpf")
    assert (plan["state"], plan["apply"]["does"], plan["capture"]["addresses"]) == (
        "in place", "nothing", [f"{ADDRESS}/32"],
    )  # fmt: skip
    show = validated(run(node, "istio-init", "show", *flags, "--output", "json").stdout, "show-ebpf")
    assert show["counters"]["taken"] >= 1
    dry = run(node, "istio-iptables", *flags, "--dry-run")
    assert json.loads(dry.stdout) == plan["capture"]
    cleaned = run(node, "istio-iptables", *flags, "--cleanup-only")
    assert cleaned.returncode == 0
    assert reached(sandbox) is None


def test_inside_a_pod_it_is_refused(sandbox: Namespace) -> None:
    done = sandbox.completed("istio-iptables", "-u", "1337", "-i", "*", "--capture-backend", "ebpf")
    assert done.returncode == 1
    assert "works from the node (istio-init-cni), not inside a pod" in done.stderr


def doctor(node: EbpfNode, sandbox: Namespace, *flags: str) -> dict[str, dict[str, str]]:
    common = ["-u", "1337", "-i", "*", "-b", "*", "--capture-backend", "ebpf", "--network-namespace", sandbox.path]
    done = run(node, "istio-init", "doctor", *common, *flags, "--output", "json")
    return {each["name"]: each for each in validated(done.stdout, "doctor")["checks"]}


def test_the_doctor_loads_the_programs_and_attaches_none(node: EbpfNode, sandbox: Namespace) -> None:
    with node.installation.lock():
        node.installation.uninstall()
    actual = doctor(node, sandbox)
    assert actual["capture by eBPF"]["status"] == "ok"
    assert list(node.pins()) == []
    assert "capture by eBPF: neighbours" not in actual
    with another_program(node):
        neighbours = doctor(node, sandbox)["capture by eBPF: neighbours"]
    assert (neighbours["status"], "cgroup/connect4" in neighbours["finding"]) == ("warn", True)
    refused = doctor(node, sandbox, "-c", "eth0")["capture by eBPF"]
    assert refused["status"] == "fail"
    assert "connect(2) does not know the interface" in refused["finding"]


def test_status_answers_for_the_mode(plugin: Plugin) -> None:
    assert plugin.done("STATUS") == ""
    error = plugin.call("STATUS", defaults={**EBPF, "native-nftables": True}).error
    assert "goes with --capture-backend iptables only" in error["msg"]


def test_explain_prove_and_draw_show_what_the_maps_hold(node: EbpfNode, sandbox: Namespace) -> None:
    netns = ["--capture-backend", "ebpf", "--network-namespace", sandbox.path]
    flags = ["-u", "1337", "-i", "*", "-b", "*", "--no-enable-ipv6", "-o", "4443"]
    call = ["--outbound", "--to", "203.0.113.9:4443", "--from", f"{ADDRESS}:40000", "--output", "json"]
    absent = run(node, "istio-init", "explain", *netns, *call)
    assert absent.returncode == 1
    assert "not captured by eBPF on this node" in absent.stderr
    captured = run(node, "istio-iptables", *netns, *flags)
    assert captured.returncode == 0, captured.stderr
    for chosen in [], flags:
        explained = run(node, "istio-init", "explain", *netns, *chosen, *call)
        assert "programs at the node's cgroup decide as the rules that are shown" in explained.stderr
        [leg] = validated(explained.stdout, "explain")["legs"]
        assert leg["end"] == "wire"
    assert run(node, "istio-init", "prove", *netns, *flags).returncode == 0
    other = run(node, "istio-init", "prove", *netns, *flags[:-2])
    assert other.returncode == 1
    assert "BROKEN every packet is treated as by the plan for these options" in other.stdout
    drawn = run(node, "istio-init", "draw", *netns, "--format", "dot")
    assert "4443" in drawn.stdout
    refused = run(node, "istio-init", "draw", *netns, "-c", "eth0")
    assert "connect(2) does not know the interface" in refused.stderr
    run(node, "istio-iptables", *netns, "--cleanup-only")
