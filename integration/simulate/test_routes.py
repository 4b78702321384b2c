"""`explain --live` takes the kernel's own routes, as `ip route get` prints them: by user, by mark, by interface."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.kit.asking import ask
from integration.kit.endpoints import awaited
from integration.kit.namespace import Namespace

OPTIONS = ("-u", "1337", "-i", "*", "-b", "*", "-c", "net1")


@pytest.fixture(scope="module")
def pod() -> Iterator[Namespace]:
    """Two networks, of which the second is listed first, and routes by user, by mark and to nowhere."""
    with Namespace() as pod, Namespace() as outside:
        for name in ("net1", "eth0"):
            pod.run("ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", outside.name)
            for namespace in (pod, outside):
                namespace.run("ip", "link", "set", name, "up")
        for command in (
            "addr add 10.9.0.5/24 dev net1",
            "addr add 10.1.6.5/24 dev eth0",
            "-6 addr add fd00:9::5/64 dev net1 nodad",
            "-6 addr add fd00:6::5/64 dev eth0 nodad",
            "route add default via 10.1.6.1",
            "-6 route add default via fd00:6::1",
            "route add unreachable 203.0.114.0/24",
            "route add default via 10.9.0.1 dev net1 table 50",
            "rule add uidrange 4000-4000 lookup 50",
            "rule add fwmark 7 lookup 50",
        ):
            pod.run("ip", *command.split())
        yield pod


def explained(pod: Namespace, *question: str) -> Any:  # noqa: ANN401 (JSON)
    answer = ask(pod, "explain", "--live", *question, *OPTIONS, "--output", "json")
    assert (answer.code, answer.errors) == (0, "")
    return json.loads(answer.output)


@pytest.mark.parametrize(
    ("to", "more", "selectors"),
    [
        ("203.0.113.9", (), ()),
        ("10.9.0.77", (), ()),
        ("10.1.6.5", (), ()),
        ("127.0.0.1", (), ()),
        ("203.0.113.9", ("--uid", "4000"), ("uid", "4000")),
        ("203.0.113.9", ("--mark", "7"), ("mark", "7")),
        ("10.9.0.77", ("--mark", "7"), ("mark", "7")),
        ("2001:db8::9", (), ()),
        ("fd00:9::9", (), ()),
        ("fd00:6::5", (), ()),
    ],
)
def test_what_is_sent_leaves_as_the_kernel_routes_it(
    pod: Namespace, to: str, more: tuple[str, ...], selectors: tuple[str, ...]
) -> None:
    selectors = selectors if "uid" in selectors else (*selectors, "uid", "1000")
    route = pod.run("ip", "route", "get", to, *selectors, "ipproto", "tcp", "dport", "8080")
    device, source = re.findall(r"\b(?:dev|src) (\S+)", route)[:2]
    endpoint = f"[{to}]:8080" if ":" in to else f"{to}:8080"
    first = explained(pod, "--outbound", "--to", endpoint, *more)["legs"][0]["packet"]
    assert (first["out_interface"], first["source"]) == (device, source)


def test_what_has_no_route_is_dropped(pod: Namespace) -> None:
    answer = explained(pod, "--outbound", "--to", "203.0.114.9:80")
    assert answer["verdict"] == "dropped"
    assert "no route" in answer["fate"]


def test_a_destination_that_no_route_covers_is_unreachable_once_there_is_a_network(pod: Namespace) -> None:
    with Namespace() as lone, Namespace() as outside:
        lone.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", outside.name)
        for namespace in (lone, outside):
            namespace.run("ip", "link", "set", "eth0", "up")
        question = ("--outbound", "--to", "203.0.113.9:80")
        assert explained(lone, *question)["end"] == "wire"  # no plugin ran yet
        lone.run("ip", "addr", "add", "10.1.6.5/24", "dev", "eth0")
        answer = explained(lone, *question)
        assert (answer["verdict"], "Network is unreachable" in answer["fate"]) == ("dropped", True)
        assert explained(lone, "--outbound", "--to", "10.1.6.9:80")["end"] == "wire"
        with pytest.raises(OSError, match="Network is unreachable"):
            lone.inside(lambda: socket.create_connection(("203.0.113.9", 80), 1))


def test_what_comes_in_for_others_is_forwarded_only_where_that_is_on(pod: Namespace) -> None:
    question = ("--inbound", "--from", "10.1.6.9", "--to", "203.0.113.9:80", "--interface", "eth0")
    assert explained(pod, *question)["verdict"] == "dropped"
    pod.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    answer = explained(pod, *question)
    pod.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
    assert answer["end"] == "forwarded"


def test_a_namespace_whose_lo_is_down_is_proved_with_a_warning(pod: Namespace) -> None:
    with Namespace() as fresh:
        fresh.run("ip", "link", "set", "lo", "down")
        fresh.run("ip", "addr", "flush", "dev", "lo")
        answer = ask(fresh, "prove", "--live", "-i", "*", "-b", "*")
        assert answer.code == 1
        assert answer.output.startswith("warning: lo has no 127.0.0.1: is it down?")


def test_who_runs_in_the_namespace_of_a_process_is_asked_about(pod: Namespace) -> None:
    sleeper = pod.start("setpriv", "--reuid", "4321", "--regid", "4322", "--clear-groups", "sleep", "60")
    try:
        awaited(lambda: "4321" in Path(f"/proc/{sleeper.pid}/status").read_text(), "another user")
        answer = ask(pod, "explain", "--pid", str(sleeper.pid), "--outbound", *OPTIONS, "--output", "json").document
        packet = answer["legs"][0]["packet"]
        assert (packet["uid"], packet["gid"]) == (4321, 4322)
    finally:
        sleeper.kill()
        sleeper.communicate()
