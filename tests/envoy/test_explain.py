"""`istio-init explain --envoy` as a user calls it."""

from __future__ import annotations

import json

import pytest

from istio_init.cli.app import main
from tests.envoy import sidecar

DUMP = str(sidecar.DUMPS / "redirect.json")
ASK = ["explain", "-i", "*", "-b", "*", "-u", "1337", "--pod-address", "10.44.0.2", "--envoy", DUMP]
QUIET = {"ENVOY_USER": "0"}


def test_a_url_goes_through_rules_and_proxy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASK, "--url", "http://ratings:9080/v2"], QUIET) == 0
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if line[:1].isdigit()]
    assert [title.split(":")[0] for title in titles] == [
        "1. From the application",
        "2. Envoy, 0.0.0.0_9080",
        "3. From Envoy",
    ]
    assert "- route 1 jason   (no header end-user)" in out
    assert "[configs[5].dynamic_route_configs[1].route_config.virtual_hosts[0].routes[1]]" in out
    assert "=> leaves the pod by eth0 to 10.44.1.11:9080" in out


def test_json_has_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASK, "--inbound", "--to", ":9080", "--output", "json"], QUIET) == 0
    output = json.loads(capsys.readouterr().out)["answers"]
    assert [(each["clients"], each["paths"][0]["end"], each["paths"][0]["flag"]) for each in output] == [
        (["http", "h2c"], "application", None),
        (["tls"], "closes", "NR"),
        (["mtls"], "application", None),
        (["tcp"], "answers", "DPE"),
        (["server-first"], "hangs", None),
    ]
    envoy = output[0]["paths"][0]["stages"][1]["envoy"]
    assert (envoy["filter_chain"], envoy["route"], envoy["cluster"]) == ("0.0.0.0_9080", "default", "inbound|9080||")
    assert envoy["dials"] == [{"to": "10.44.0.2:9080", "from": "127.0.0.6", "mark": 0, "speaks": "http"}]


@pytest.mark.parametrize(
    ("flags", "cluster"),
    [
        (["--url", "http://ratings.default:9080/"], "outbound|9080||ratings.default.svc.cluster.local"),
        (["--url", "http://reviews:8001/"], "outbound|8001||reviews.default.svc.cluster.local"),
        (["--url", "http://sniffed:5555/"], "outbound|5555||sniffed.default.svc.cluster.local"),
        (["--url", "http://10.96.0.10:9080/"], "outbound|9080||ratings.default.svc.cluster.local"),
        (["--url", "https://tcp-echo:7070/"], "outbound|7070||tcp-echo.default.svc.cluster.local"),
        (["--outbound", "--to", "1.2.3.4:9080", "--host", "ratings", "--speaks", "http"],
         "outbound|9080||ratings.default.svc.cluster.local"),
    ],
)  # fmt: skip
def test_where_requests_go(flags: list[str], cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASK, *flags, "--output", "json"], QUIET) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer["paths"][0]["stages"][1]["envoy"]["cluster"] == cluster


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--url", "http://nobody:80/"], "no virtual host or listener in the dump has an address for 'nobody'"),
        (["--url", "ratings"], "not a URL such as"),
        (["--url", "http://ratings:99999/"], "--url: 'http://ratings:99999/'"),
        (["--outbound", "--header", "x"], "not NAME:VALUE"),
        (["--outbound", "--path", "x"], "a path begins with /"),
        (["--outbound", "--speaks", "x"], "--speaks: 'x': unknown"),
        (["--outbound", "--envoy", "/none"], "--envoy: '/none': No such file or directory"),
        (["--outbound", "--envoy", "http://127.0.0.1:1"], "--envoy: 'http://127.0.0.1:1': Connection refused"),
        (["--outbound", "--envoy", __file__], "not JSON"),
        (["--outbound", "--envoy", "", "--host", "x"], "--host: only the proxy routes requests; add --envoy"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASK, *flags], QUIET) in {1, 255}
    output = capsys.readouterr()
    assert output.out == ""
    assert why in output.err
    assert output.err.count("\n") == 1


def test_names_from_a_dump_are_escaped(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    dump = sidecar.value()
    sidecar.listener(dump, "0.0.0.0_9080")["name"] = "\x1b]0;owned\x07" + "x" * 1000
    path = f"{tmp_path}/dump.json"
    with open(path, "w", encoding="utf-8") as file:
        json.dump(dump, file)
    assert main([*ASK, "--envoy", path, "--url", "http://ratings:9080/"], QUIET) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "x" * 200 not in out
