"""The CNI plugin and the kernel: each command in real namespaces, called as a runtime calls it."""

from __future__ import annotations

import itertools
import json
import os
import threading
from pathlib import Path

import pytest

from integration.kit import program
from integration.kit.cni import INJECTED, PREVIOUS, Plugin, finished
from integration.kit.fresh import by_path, standing
from integration.kit.namespace import Foreign, Namespace
from istio_init.cli.app import main
from istio_init.cni.plugin.protocol import CONFIGURATION, DRIFTED, FAILED, UNAVAILABLE, VERSIONS
from istio_init.model.rules import IPV4
from istio_init.options.annotations import MODE, PROXY_CONFIG

PORTS = "traffic.sidecar.istio.io/includeInboundPorts"
DUAL = {**PREVIOUS, "ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}]}
DUAL_OLD = {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}, "ip6": {"ip": "fd00::2/64"}, "dns": {}}
# integration/containers has a real runtime with more, and test_helper.py the helper with hundreds.
MANY = 24


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path)


def ours(namespace: Namespace) -> bool:
    return "ISTIO" in namespace.run("iptables-legacy-save")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sandboxs_life(namespace: Namespace, tmp_path: Path, version: str) -> None:
    plugin = Plugin(tmp_path, version)
    raw = plugin.text({**INJECTED, PORTS: "80"}, prevResult=PREVIOUS)
    added = finished(plugin.start("ADD", namespace.path), raw)
    assert added.code == 0
    # As it came, to the byte.
    assert added.result == json.dumps(PREVIOUS) + "\n"
    assert "-A ISTIO_INBOUND -p tcp -m tcp --dport 80 -j ISTIO_IN_REDIRECT" in program.saved(namespace, IPV4)["nat"]
    state = plugin.state()
    assert state
    assert state.captured
    assert (state.pod, state.namespace, state.netns) == ("pod-a1", "default", namespace.path)
    assert state.inode == os.stat(namespace.path).st_ino
    if VERSIONS.index(version) >= VERSIONS.index("0.4.0"):
        assert plugin.done("CHECK", namespace.path, prevResult=PREVIOUS) == ""
    for _ in range(2):
        assert plugin.done("DEL", namespace.path) == ""
        assert not ours(namespace)
        assert plugin.state() is None


def test_the_rules_are_those_of_the_command_line(namespace: Namespace, plugin: Plugin) -> None:
    plugin.done("ADD", namespace.path, {**INJECTED, MODE: "TPROXY"}, prevResult=PREVIOUS)
    assert program.standing(namespace) == plugin.promised()


@pytest.mark.parametrize("annotations", [{}, {MODE: "TPROXY", PORTS: "80,8080"}])
def test_the_manifest_of_a_captured_pod_means_what_the_plugin_made(
    namespace: Namespace, plugin: Plugin, annotations: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The container istio-validation makes no rules, and has other arguments than the plugin."""
    pod = {**INJECTED, **annotations}
    plugin.done("ADD", namespace.path, pod, prevResult=PREVIOUS)
    argv = ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*", "-d", "15090,15021,15020"]
    validation = {"name": "istio-validation", "args": [*argv, "--run-validation", "--skip-rule-apply"]}
    spec = {"initContainers": [validation], "containers": [{"name": "app"}, {"name": "istio-proxy"}]}
    manifest = plugin.log.parent / "pod.json"
    manifest.write_text(json.dumps({"kind": "Pod", "metadata": {"annotations": pod}, "spec": spec}))
    where = ["--from-pod", str(manifest), "--netns", namespace.path]
    assert main(["check", *where], {}) == 0, capsys.readouterr()
    assert main(["prove", "--live", *where], {}) == 0, capsys.readouterr()


def test_pods_that_are_passed_through_are_untouched(namespace: Namespace, plugin: Plugin) -> None:
    before = program.standing(namespace)
    for pod in ({}, {**INJECTED, MODE: "NONE"}, {**INJECTED, "sidecar.istio.io/inject": "false"}):
        answer = plugin.call("ADD", namespace.path, pod, prevResult=PREVIOUS)
        assert (answer.code, json.loads(answer.result)) == (0, PREVIOUS)
        assert program.standing(namespace) == before
        assert answer.log[-1]["decision"] == "passed through"
        assert answer.log[-1]["why"]
        state = plugin.state()
        assert state
        assert not state.captured
        assert plugin.done("CHECK", namespace.path, pod, prevResult=PREVIOUS) == ""


def test_what_somebody_else_made_in_a_pod_that_was_passed_through_stays(namespace: Namespace, plugin: Plugin) -> None:
    plugin.done("ADD", namespace.path, {})
    program.succeed(namespace, "-i", "*", "-b", "*")
    plugin.done("DEL", namespace.path, {})
    assert ours(namespace)


@pytest.mark.parametrize("bad", ["80\n-j DROP", "$(reboot)", "x" * (1 << 20)])
def test_a_bad_annotation_changes_nothing(namespace: Namespace, plugin: Plugin, bad: str) -> None:
    error = plugin.call("ADD", namespace.path, {**INJECTED, PORTS: bad}).error
    assert error["code"] == CONFIGURATION
    assert error["msg"].startswith(f"annotation {PORTS}: ")
    assert program.existing(namespace, IPV4) == set()
    assert plugin.state() is None


def test_check_finds_what_was_changed(namespace: Namespace, plugin: Plugin) -> None:
    plugin.done("ADD", namespace.path, INJECTED, prevResult=PREVIOUS)
    namespace.run("iptables-legacy", "-t", "nat", "-D", "ISTIO_OUTPUT", "1")
    error = plugin.call("CHECK", namespace.path, INJECTED, prevResult=PREVIOUS).error
    assert error["code"] == DRIFTED
    assert "ISTIO_OUTPUT" in error["msg"]
    namespace.run("iptables-legacy", "-t", "nat", "-F")
    assert plugin.call("CHECK", namespace.path, INJECTED, prevResult=PREVIOUS).error["code"] == DRIFTED
    # An ADD brings it to what the pod asks for, whatever a former one left.
    plugin.done("ADD", namespace.path, {**INJECTED, PORTS: "80"}, prevResult=PREVIOUS)
    assert plugin.done("CHECK", namespace.path, INJECTED, prevResult=PREVIOUS) == ""


def test_check_does_without_a_mark(namespace: Namespace, plugin: Plugin) -> None:
    plugin.done("ADD", namespace.path, INJECTED, prevResult=PREVIOUS)
    for path in plugin.run_dir.iterdir():
        path.unlink()
    assert plugin.done("CHECK", namespace.path, INJECTED, prevResult=PREVIOUS) == ""
    plugin.done("DEL", namespace.path)
    assert not ours(namespace)
    assert plugin.call("CHECK", namespace.path, INJECTED, prevResult=PREVIOUS).error["code"] == DRIFTED


def test_a_namespace_that_is_gone(plugin: Plugin) -> None:
    with Namespace() as short:
        plugin.done("ADD", short.path, INJECTED)
    for netns in (short.path, "", "/etc/passwd", "/nowhere"):
        assert plugin.done("DEL", netns) == ""
    assert plugin.state() is None
    error = plugin.call("ADD", short.path, INJECTED).error
    assert error["code"] == FAILED
    assert short.path in error["msg"]


def test_another_namespace_at_the_same_path_is_left_alone(namespace: Namespace, tmp_path: Path) -> None:
    plugin, link = Plugin(tmp_path), tmp_path / "netns"
    with Namespace() as first:
        link.symlink_to(first.path)
        plugin.done("ADD", str(link), INJECTED)
    link.unlink()
    link.symlink_to(namespace.path)
    program.succeed(namespace, "-i", "*")
    plugin.done("DEL", str(link))
    assert ours(namespace)


def test_the_nodes_own_network_is_never_touched(plugin: Plugin) -> None:
    for command in ("ADD", "DEL"):
        plugin.done(command, "/proc/self/ns/net", INJECTED)
    answer = plugin.call("ADD", "/proc/self/ns/net", istio={})
    assert answer.log[-1]["why"] == "the sandbox uses the node's network"


def test_a_path_that_changes_while_it_is_called_never_means_the_nodes_network(
    namespace: Namespace, plugin: Plugin, tmp_path: Path
) -> None:
    """A process that controls the path could have the pod's namespace checked, and the node's written."""
    path = tmp_path / "netns"
    stop = threading.Event()

    def flip() -> None:
        for target in itertools.cycle((namespace.path, node.path)):
            fresh = tmp_path / "fresh"
            fresh.symlink_to(target)
            fresh.rename(path)
            if stop.is_set():
                return

    with Namespace() as node:
        path.symlink_to(namespace.path)
        flipper = threading.Thread(target=flip)
        flipper.start()
        try:
            inside = ("ip", "netns", "exec", node.name)
            for number in range(20):
                for verb in ("ADD", "DEL"):
                    run = plugin.start(verb, str(path), f"c{number}", prefix=inside)
                    finished(run, plugin.text(INJECTED, prevResult=PREVIOUS))
                    assert not ours(node)
        finally:
            stop.set()
            flipper.join()


def test_a_container_on_two_networks_is_captured_until_it_leaves_the_last(namespace: Namespace, tmp_path: Path) -> None:
    one, two = Plugin(tmp_path), Plugin(tmp_path)
    two.configuration["name"] = "other"
    one.done("ADD", namespace.path, istio={})
    two.done("ADD", namespace.path, istio={}, interface="eth1")
    one.done("DEL", namespace.path, istio={})
    assert ours(namespace)
    two.done("DEL", namespace.path, istio={}, interface="eth1")
    assert not ours(namespace)


def test_a_pod_in_a_user_namespace_of_its_own(tmp_path: Path) -> None:
    """hostUsers: false. Its writer can't come back from there, and has things to do on the node yet."""
    plugin = Plugin(tmp_path)
    with Foreign() as pod, Foreign() as other:
        plugin.done("ADD", pod.path, INJECTED, prevResult=PREVIOUS)
        plugin.done("ADD", other.path, INJECTED, container="b2")
        assert ours(pod)
        assert plugin.done("CHECK", pod.path, INJECTED, prevResult=PREVIOUS) == ""
        plugin.done("DEL", pod.path, INJECTED)
        assert not ours(pod)
        assert plugin.state() is None
        plugin.collect([])
        assert not ours(other)
        assert plugin.state("b2") is None
    assert [json.loads(line)["level"] for line in plugin.log.read_text().splitlines()].count("info") > 4


def test_gc_forgets_what_the_runtime_has_forgotten(namespace: Namespace, tmp_path: Path) -> None:
    plugin, other = Plugin(tmp_path), Plugin(tmp_path)
    other.configuration["name"] = "other"
    with Namespace() as second:
        plugin.done("ADD", namespace.path, INJECTED, container="stays")
        plugin.done("ADD", second.path, INJECTED, container="goes")
        with Namespace() as third:
            plugin.done("ADD", third.path, INJECTED, container="went")
            other.done("ADD", third.path, INJECTED, container="others")
        assert plugin.call("GC").error["code"] == CONFIGURATION
        assert ours(second)
        valid = [{"containerID": "stays", "ifname": "eth0"}]
        assert plugin.collect(valid) == ""
        assert not ours(second)
    assert ours(namespace)
    assert sorted(path.stem for path in plugin.run_dir.iterdir()) == ["others", "stays"]
    other.collect(None)
    assert sorted(path.stem for path in plugin.run_dir.iterdir()) == ["stays"]


def test_status_tells_whether_pods_can_be_captured(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path)
    assert plugin.done("STATUS") == ""
    assert plugin.call("STATUS", kubernetes={"kubeconfig": "/nowhere"}).error["code"] == UNAVAILABLE
    (tmp_path / "file").touch()
    error = plugin.call("STATUS", run_dir=str(tmp_path / "file")).error
    assert error["code"] == UNAVAILABLE
    assert "run_dir" in error["msg"]
    assert plugin.call("STATUS", istio={"envoy-port": "x"}).error["code"] == CONFIGURATION


def test_without_rights_nothing_is_started(namespace: Namespace, tmp_path: Path) -> None:
    plugin = Plugin(tmp_path)
    run = plugin.start("ADD", namespace.path, prefix=("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"))
    error = finished(run, plugin.text(INJECTED)).error
    assert error["code"] == FAILED
    assert program.existing(namespace, IPV4) == set()
    run = plugin.start("STATUS", "", prefix=("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"))
    assert "NET_ADMIN" in finished(run, plugin.text()).error["msg"]


def test_dns_capture_does_not_read_the_nodes_servers(namespace: Namespace, plugin: Plugin) -> None:
    plugin.done("ADD", namespace.path, istio={"redirect-dns": True})
    saved = program.saved(namespace, IPV4)["nat"]
    assert "-A ISTIO_OUTPUT_DNS -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053" in saved


def test_many_at_once(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path)
    with by_path(MANY) as paths:
        for command in ("ADD", "DEL"):
            runs = [plugin.start(command, path, f"c{number}") for number, path in enumerate(paths)]
            actual = [finished(run, plugin.text(INJECTED)) for run in runs]
            assert [each.code for each in actual] == [0] * MANY
            assert {"ISTIO" in standing(path) for path in paths} == {command == "ADD"}
            assert len(list(plugin.run_dir.iterdir())) == (MANY if command == "ADD" else 0)


def test_the_log_is_lines_of_json_and_can_not_outgrow_its_bound(namespace: Namespace, tmp_path: Path) -> None:
    plugin = Plugin(tmp_path, log_bytes=4096)
    for number in range(12):
        answer = plugin.call("ADD", namespace.path, INJECTED, container=f"c{number}")
        assert (
            answer.log[-1].items() >= {"pod": f"pod-c{number}", "namespace": "default", "sandbox": f"c{number}"}.items()
        )
    older = plugin.log.with_name("cni.log.1")
    for path in (plugin.log, older):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert all({"level", "time", "msg", "pod", "decision", "why"} <= line.keys() for line in lines)
        assert path.stat().st_size <= 4096
        assert path.stat().st_mode & 0o777 == 0o600
    assert lines
    # What a pod asks for and can't be understood is told as such; a file that can't be written is said once.
    failing = plugin.call("ADD", namespace.path, {**INJECTED, PORTS: "x"}, log_file="/proc/nowhere/log")
    assert [line["level"] for line in failing.log] == ["error", "warn"]
    assert failing.log[0]["decision"] == "refused"
    assert PORTS in failing.log[0]["why"]
    assert "log_file: /proc/nowhere/log: can't be written" in failing.log[1]["msg"]


def test_on_a_read_only_file_system_standard_error_has_all_of_the_log(namespace: Namespace, tmp_path: Path) -> None:
    plugin = Plugin(tmp_path)
    plugin.log.parent.mkdir()
    read_only = f'mount -t tmpfs -o ro tmpfs {plugin.log.parent}; exec "$@"'
    run = plugin.start("ADD", namespace.path, prefix=("unshare", "--mount", "sh", "-ec", read_only, "-"))
    added = finished(run, plugin.text(INJECTED))
    assert added.code == 0
    assert [line["level"] for line in added.log].count("warn") == 1
    assert next(line["msg"] for line in added.log if line["level"] == "warn").endswith(
        f"Read-only file system: '{plugin.log}'"
    )
    assert "applied" in added.log[-1]["msg"]
    assert list(plugin.log.parent.iterdir()) == []


def test_the_log_of_each_command_tells_the_pod_and_what_was_decided(namespace: Namespace, tmp_path: Path) -> None:
    plugin = Plugin(tmp_path)
    plugin.done("ADD", namespace.path, INJECTED, container="a1")
    namespace.run("iptables-legacy", "-t", "nat", "-F", "ISTIO_OUTPUT")
    checked = plugin.call("CHECK", namespace.path, INJECTED, prevResult=PREVIOUS)
    collected = finished(plugin.start("GC", ""), plugin.text(None, **{"cni.dev/valid-attachments": None}))
    for log in (checked.log, collected.log):
        assert log
        for line in log:
            assert line.items() >= {"pod": "pod-a1", "namespace": "default", "sandbox": "a1"}.items()
            assert (line["decision"], line["why"]) == ("captured", "the pod has a sidecar (sidecar.istio.io/status)")


@pytest.mark.parametrize("previous", [PREVIOUS, DUAL, DUAL_OLD], ids=["ipv4", "dual", "0.2.0"])
def test_a_namespace_without_addresses_yet_has_those_of_the_result(
    namespace: Namespace, plugin: Plugin, previous: dict[str, object]
) -> None:
    """Whether there is IPv6 is seen by the pod's addresses; the plugin may be called before they are set."""
    dual = previous is not PREVIOUS
    config = {PROXY_CONFIG: 'proxyMetadata: {ISTIO_DUAL_STACK: "true"}'}
    added = plugin.call("ADD", namespace.path, {**INJECTED, **config}, prevResult=previous)
    assert added.code == 0
    assert ("ISTIO" in namespace.run("ip6tables-legacy-save")) == dual
    state = plugin.state()
    assert state
    assert state.options
    assert state.options.enable_ipv6 is (True if dual else None)
    assert any("no addresses yet" in line["msg"] for line in added.log)
    assert plugin.done("CHECK", namespace.path, prevResult=previous) == ""
