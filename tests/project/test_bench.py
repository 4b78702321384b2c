"""The pure parts of scripts/bench: figures, tables, the chart, and what the contenders are asked to do."""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from istio_init.model import inet
from scripts.benchmark import chart, figures, growth, installation, peers, report
from scripts.benchmark.contenders import Field
from scripts.benchmark.figures import Ratio
from scripts.benchmark.growth import Point
from scripts.benchmark.installation import Unavailable
from tests.kit.options import options

SVG = "{http://www.w3.org/2000/svg}"
SAME = Ratio(1, 1, 1)


def point(kind: str, count: int, apply: float, restore: float, in_place: float) -> Point:
    return Point(kind, count, apply, restore, in_place, SAME, SAME, 0, 0, 0)


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds() -> None:
    assert figures.ratio([2, 4, 6, 8, 100], [1, 2, 3, 4, 5]) == Ratio(2, 2, 2)
    assert figures.ratio([1, 2, 3, 4, 5], [1, 1, 1, 1, 1]) == Ratio(3, 2, 4)
    assert figures.ratio([3], [2]) == Ratio(1.5, 1.5, 1.5)


def test_rounds_that_do_not_match_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="shorter"):
        figures.ratio([1, 2], [1])


def test_a_table_is_aligned_and_is_markdown() -> None:
    assert report.table([["", "ms"], ["bare", "8.1"], ["x", "123.4"]]) == (
        "|      |    ms |\n| ---- | ----: |\n| bare |   8.1 |\n| x    | 123.4 |"
    )


def test_the_steps_of_ebpf_are_medians_beside_what_they_may_take() -> None:
    runs = [(0.004, 0.001), (0.002, 0.0015), (0.003, 0.002)]
    row = report.steps({"ADD": runs}).splitlines()[2]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["ADD", "3.00", "2.00", "1.50", "2"]


def test_a_reader_that_has_enough_ends_it_without_a_traceback(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(installation.ROOT / "scripts" / "bench"), "--list"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")
    assert not [*tmp_path.iterdir()]


def test_a_page_is_filled_between_its_marks() -> None:
    page = "a\n<!-- bench: x -->\nold\n<!-- end -->\nb\n<!-- bench: y -->\nkept\n<!-- end -->\n"
    new = "a\n<!-- bench: x -->\nnew\n<!-- end -->\nb\n<!-- bench: y -->\nkept\n<!-- end -->\n"
    assert report.filled(page, {"x": "new"}) == new
    assert report.filled(new, {"x": "new"}) == new
    with pytest.raises(ValueError, match="no place for z"):
        report.filled(page, {"z": "new"})


@pytest.mark.parametrize("kind", growth.KINDS)
@pytest.mark.parametrize("count", growth.COUNTS)
def test_what_grows_is_as_many_entries_as_it_says(kind: str, count: int) -> None:
    arguments = growth.arguments(kind, count)
    chosen = options(arguments, {})
    assert chosen
    assert len({*chosen.istio_local_outbound_ports_exclude, *chosen.istio_service_exclude_cidr}) == count
    assert max(map(len, arguments)) <= growth.LONGEST_ARGUMENT


@pytest.mark.parametrize("name", growth.LISTS)
def test_a_list_has_as_many_entries_as_it_says_and_sets_merge_those_in_a_row(name: str) -> None:
    arguments = growth.listed(name)
    assert max(map(len, arguments)) <= growth.LONGEST_ARGUMENT
    chosen = options(arguments, {})
    assert chosen
    spans = [*map(inet.interval, chosen.istio_service_exclude_cidr)]
    spans += [(each.low, each.high) for each in chosen.istio_local_outbound_ports_exclude]
    count = int(name.partition(" ")[0].replace(",", ""))
    assert len(spans) == len({*spans}) == count
    merged = len(inet.merged(spans))
    assert merged <= count / 250 if name.endswith("in a row") else merged == count


def test_a_scale_goes_by_decades() -> None:
    scale = chart.Scale([3, 40], 0, 100)
    assert scale.ticks() == [1, 10, 100]
    assert [scale(tick) for tick in scale.ticks()] == [0, 50, 100]
    assert chart.Scale([10], 0, 1).ticks() == [10, 100]


def test_the_chart_has_a_panel_for_each_kind_and_a_line_for_each_series() -> None:
    points = [point(kind, count, 20, 2, 10) for kind in ("ports, IPv4", "CIDRs, <IPv6>") for count in (10, 100)]
    root = ET.fromstring(chart.draw(points, bare=8))  # noqa: S314 (our own text)
    titles = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "title"]
    assert titles == ["ports, IPv4", "CIDRs, <IPv6>"]
    lines = [path for path in root.iter(f"{SVG}path") if path.get("class") != "grid"]
    # In the legend and in both panels: the three series and the bare interpreter.
    assert len(lines) == 4 * 3
    labels = {text.text for text in root.iter(f"{SVG}text")}
    assert {"istio-init, apply", "iptables-legacy-restore", "1 ms", "100 ms", "100", "excluded ports"} <= labels


def test_curves_stand_inside_of_the_chart_and_higher_is_slower() -> None:
    text = chart.draw([point("ports", 10, 1, 1, 1), point("ports", 10_000, 900, 5, 7)], bare=0.9)
    root = ET.fromstring(text)  # noqa: S314 (our own text)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    places = [(float(x), float(y)) for path in root.iter(f"{SVG}path") for x, y in pairs(path.attrib["d"])]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    marks = [float(circle.attrib["cy"]) for circle in root.iter(f"{SVG}circle")]
    assert marks[1] < marks[3] < marks[0] == marks[2]


def pairs(path: str) -> list[tuple[str, str]]:
    return re.findall(r"([\d.]+) ([\d.]+)", path)


def test_nothing_measured_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no points"):
        chart.draw([], bare=1)


def test_an_installation_without_byte_code_has_none(tmp_path: Path) -> None:
    installation.install(sys.executable, tmp_path, installation.Variant(modules=True, byte_code="", beside=True))
    assert list(tmp_path.rglob("*.py"))
    assert not list(tmp_path.rglob("*.pyc"))


def program(directory: Path, text: str) -> Path:
    """A program that prints a text, whatever it is given."""
    path = directory / "program"
    path.write_text(f"#!/bin/sh\ncat <<'EOF'\n{text}\nEOF\n")
    path.chmod(0o755)
    return path


def test_networks_that_grow_are_of_mixed_lengths() -> None:
    for family, entries in ((4, growth.ipv4), (6, growth.ipv6)):
        networks = [ipaddress.ip_network(entry) for entry in entries(10_000).split(",")]
        assert {network.version for network in networks} == {family}
        assert len({network.prefixlen for network in networks}) == 5
        assert len(list(ipaddress.collapse_addresses(networks))) == 10_000  # type: ignore[type-var]


def test_a_peer_takes_the_flags_that_its_help_names(tmp_path: Path) -> None:
    istio = peers.parse(f"istio={program(tmp_path, '  -i, --istio-service-cidr string')} istio-iptables")
    assert istio.command[1:] == ("istio-iptables",)
    assert istio.rules() == peers.ISTIO
    assert peers.parse(f"l={program(tmp_path, '-p, --incoming-proxy-port int')}").rules() == peers.LINKERD
    with pytest.raises(Unavailable, match="names none of"):
        peers.parse(f"other={program(tmp_path, 'usage: other')}").rules()


@pytest.mark.parametrize("text", ["", "istio", "istio=", "=/bin/true", "istio=/no/such/program"])
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not NAME=PATH|not an executable program"):
        peers.parse(text)


def test_our_own_program_takes_the_flags_of_istio_that_peers_are_given() -> None:
    for rules, flags in peers.ISTIO.items():
        chosen = options(flags, {})
        assert chosen
        assert (chosen.istio_inbound_interception_mode == "TPROXY") == (rules == "tproxy")


def test_peers_are_timed_beside_this_program_with_the_same_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Commands are put together, and none is run: this part of the tests does without iproute2.
    (tmp_path / "ip").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    linkerd = peers.parse(f"linkerd={program(tmp_path, '--incoming-proxy-port')}")
    assert Field(sys.executable, tmp_path, None).groups()["peers"] == []
    field = Field(sys.executable, tmp_path, None, [linkerd])
    names = field.groups()["peers"]
    assert {"redirect by linkerd", "redirect in place by linkerd", "redirect, same flags"} <= set(names)
    contender = field.contender("dual-stack in place by linkerd")
    assert contender.before[0].argv[0] == str(tmp_path / "ip")
    assert contender.commands == (contender.before[-1],)
    assert [command.argv[1:] for command in contender.before[:-1]] == [
        ("address", "add", address, "dev", "lo") for address in peers.ADDRESSES["dual-stack"]
    ]
    with pytest.raises(Unavailable, match="linkerd has no flags for TPROXY"):
        field.contender("tproxy by linkerd")
