"""Do rules and proxy fit: sound pairs break no claim, and each misfit that is planted is named, with a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from istio_init.envoy import fit
from istio_init.envoy.fit import Fit
from tests.envoy import sidecar
from tests.kit.options import options

RATINGS = "outbound|9080||ratings.default.svc.cluster.local"


def proved(dump: Any = None, mode: str = "REDIRECT", line: str = sidecar.ARTICLE) -> Fit:  # noqa: ANN401 (JSON)
    result = options([*line.split(), "-m", mode], {})
    assert result
    return fit.prove((sidecar.pod(dump, mode, line),), result)


def broken(result: Fit) -> list[str]:
    return sorted({misfit.claim.name for misfit in result.misfits})


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        ("REDIRECT", sidecar.ARTICLE),
        ("TPROXY", sidecar.ARTICLE),
        ("REDIRECT", f"{sidecar.ARTICLE} -o 15090,15021"),
        ("REDIRECT", "-p 15001 -z 15006 -u 1337 -i * -b 9080,8001,7071"),
        ("REDIRECT", "-p 15001 -z 15006 -u 1337 -b *"),
        ("REDIRECT", f"{sidecar.ARTICLE} --exclude-uids-for-ports tcp:9080:1001"),
        ("REDIRECT", "-p 15001 -z 15006 -u 1337 -i 10.96.0.0/16 -b *"),
        ("TPROXY", "-p 15001 -z 15006 -u 1337 -i * -b 9080,8001,7071 --redirect-dns --dns-servers 10.96.0.53"),
    ],
)
def test_sound_pairs_break_no_claim(mode: str, line: str) -> None:
    proof = proved(mode=mode, line=line)
    assert [(each.claim.name, each.actual) for each in proof.misfits] == []
    assert [claim.name for claim in proof.claims] == [f"P{number}" for number in range(1, 13)]


def no_restoring(dump: Any) -> None:  # noqa: ANN401
    listener = sidecar.listener(dump, "virtualInbound")
    listener["listener_filters"] = [each for each in listener["listener_filters"] if "original_dst" not in each["name"]]


def no_inspector(dump: Any) -> None:  # noqa: ANN401
    listener = sidecar.listener(dump, "virtualInbound")
    listener["listener_filters"] = [each for each in listener["listener_filters"] if "tls" not in each["name"]]


def bind(cluster: str, address: str) -> Callable[[Any], None]:
    value = {"source_address": {"address": address, "port_value": 0}}
    return lambda dump: sidecar.cluster(dump, cluster).update(upstream_bind_config=value)


def unbound(cluster: str) -> Callable[[Any], object]:
    return lambda dump: sidecar.cluster(dump, cluster).pop("upstream_bind_config")


def own_port_open(dump: Any) -> None:  # noqa: ANN401
    for name, cluster in (("virtualOutbound", "PassthroughCluster"), ("virtualInbound", "InboundPassthroughCluster")):
        chain = sidecar.listener(dump, name)["filter_chains"][0]
        chain["filters"][0]["typed_config"]["cluster"] = cluster


def no_cluster(dump: Any) -> None:  # noqa: ANN401
    for part in dump["configs"]:
        if clusters := part.get("dynamic_active_clusters"):
            clusters[:] = [each for each in clusters if each["cluster"]["name"] != RATINGS]


def no_listener(dump: Any) -> None:  # noqa: ANN401
    for part in dump["configs"]:
        if result := part.get("dynamic_listeners"):
            result[:] = [each for each in result if each["name"] != "virtualInbound"]


def source_mark(dump: Any) -> None:  # noqa: ANN401
    filters = sidecar.listener(dump, "virtualInbound")["listener_filters"]
    next(each for each in filters if "original_src" in each["name"])["typed_config"]["mark"] = 1338


def refused(dump: Any) -> None:  # noqa: ANN401
    entry = next(part["dynamic_route_configs"] for part in dump["configs"] if "dynamic_route_configs" in part)[0]
    entry["error_state"] = {"details": "Only a single wildcard domain is permitted"}


def strict(dump: Any) -> None:  # noqa: ANN401
    chains = sidecar.listener(dump, "virtualInbound")["filter_chains"]
    kept = [
        each
        for each in chains
        if each["filter_chain_match"] != {"destination_port": 9080, "transport_protocol": "raw_buffer"}
    ]
    chains[:] = kept


def nothing(dump: Any) -> None:  # noqa: ANN401
    """The proxy is as it should be."""


EXCLUDED = f"{sidecar.ARTICLE},9080"
# What is changed, in which mode, with which flags: the claims that break, and how the connection ends that is shown.
MISFITS: dict[str, tuple[Callable[[Any], object], str, str, list[str], str | None]] = {
    "no inbound listener": (no_listener, "REDIRECT", sidecar.ARTICLE, ["P1"], "closes"),
    "another outbound port": (nothing, "REDIRECT", sidecar.ARTICLE.replace("15001", "15002"), ["P1"], "closes"),
    "no use_original_dst": (
        lambda dump: sidecar.listener(dump, "virtualOutbound").update(use_original_dst=False),
        "REDIRECT", sidecar.ARTICLE, ["P2"], "closes",
    ),
    "no original_dst": (no_restoring, "REDIRECT", sidecar.ARTICLE, ["P3"], "closes"),
    "TPROXY's rules, REDIRECT's listener": (
        lambda dump: sidecar.listener(dump, "virtualInbound").update(transparent=False),
        "TPROXY", sidecar.ARTICLE, ["P4"], "hangs",
    ),
    "another mark": (source_mark, "TPROXY", sidecar.ARTICLE, ["P4", "P5", "P6"], "loop"),
    "no bind address": (unbound("inbound|9080||"), "REDIRECT", sidecar.ARTICLE, ["P5"], "loop"),
    "127.0.0.7": (bind("inbound|9080||", "127.0.0.7"), "REDIRECT", sidecar.ARTICLE, ["P5"], "loop"),
    "own ports lead on": (own_port_open, "REDIRECT", sidecar.ARTICLE, ["P6"], "loop"),
    "no cluster": (no_cluster, "REDIRECT", sidecar.ARTICLE, ["P7"], None),
    "an update that was refused": (refused, "REDIRECT", sidecar.ARTICLE, ["P7"], None),
    "bound to loopback": (bind(RATINGS, "127.0.0.6"), "REDIRECT", sidecar.ARTICLE, ["P8"], "answers"),
    "STRICT on an excluded port": (strict, "REDIRECT", EXCLUDED, ["P9"], "application"),
    "no inspector": (no_inspector, "REDIRECT", sidecar.ARTICLE, ["P11"], None),
    "an excluded service": (nothing, "REDIRECT", f"{sidecar.ARTICLE} -x 10.96.0.0/24", ["P12"], "wire"),
    "an excluded port": (nothing, "REDIRECT", f"{sidecar.ARTICLE} -o 9080", ["P12"], "wire"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_a_planted_misfit_is_named_and_shown(name: str) -> None:
    change, mode, line, claims, end = MISFITS[name]
    dump = sidecar.value(mode)
    change(dump)
    proof = proved(dump, mode, line)
    assert broken(proof) == claims, [(each.claim.name, each.actual) for each in proof.misfits]
    if end is not None:
        assert {misfit.path.end for misfit in proof.misfits if misfit.path} == {end}


def test_a_proxy_that_the_rules_do_not_know_is_a_loop() -> None:
    result = options([*sidecar.ARTICLE.split(), "-m", "REDIRECT"], {})
    assert result
    pod = sidecar.pod()
    proof = fit.prove((pod.replace(envoy=pod.envoy.replace(uid=1000, gid=1000)),), result)
    assert "P10" in broken(proof)
    assert {misfit.path.loop for misfit in proof.misfits if misfit.claim.name == "P10" and misfit.path} == {
        "virtualOutbound"
    }


def test_an_excluded_port_that_is_permissive_breaks_nothing() -> None:
    assert broken(proved(line=EXCLUDED)) == []


def test_rules_of_redirect_with_the_proxy_of_tproxy() -> None:
    assert "P4" in broken(proved(sidecar.value("TPROXY"), "REDIRECT"))


def test_notes() -> None:
    dump = sidecar.value()
    strict(dump)
    proof = proved(dump)
    assert (
        "inbound port 9080: no filter chain for http, h2c, tls, tcp, server-first: the connection is reset"
        not in proof.notes
    )
    texts = [f"{note.name} {note.text}" for note in proof.notes]
    assert any(text.startswith("n1 inbound port 9080: no filter chain for http, h2c, tls, tcp") for text in texts)
    assert any(text.startswith("n2 outbound calls to any host's port 15090") for text in texts)
    assert any(text.startswith("n3 inbound port 7071: a server that speaks first hangs") for text in texts)
    assert any(text.startswith("n4 port 15021 goes through") for text in texts)


def test_notes_of_what_envoy_leaves_open_and_of_its_admin_interface() -> None:
    dump = sidecar.value()
    chain = sidecar.listener(dump, "virtualInbound")["filter_chains"][-1]
    chain["filter_chain_match"]["prefix_ranges"] = [{"address_prefix": "0.0.0.0", "prefix_len": 0}]
    bootstrap = next(part["bootstrap"] for part in dump["configs"] if "bootstrap" in part)
    bootstrap["admin"] = {"address": {"socket_address": {"address": "0.0.0.0", "port_value": 15000}}}
    texts = [note.text for note in proved(dump).notes]
    assert any("0.0.0.0/0 beside chains without prefix_ranges" in text for text in texts)
    assert any("admin interface listens at 0.0.0.0" in text for text in texts)


@pytest.mark.parametrize(("listening", "noted"), [(frozenset({15053}), False), (frozenset({80}), True), (None, False)])
def test_captured_dns_without_a_resolver_is_noted(listening: frozenset[int] | None, noted: bool) -> None:
    line = f"{sidecar.ARTICLE} --redirect-dns --dns-servers 10.96.0.53"
    result = options(line.split(), {})
    assert result
    proof = fit.prove((sidecar.pod(line=line),), result, listening)
    assert any("DNS is captured" in note.text for note in proof.notes) is noted


def test_sources_that_are_excluded_bypass_a_policy_on_purpose() -> None:
    dump = sidecar.value()
    strict(dump)
    assert broken(proved(dump, line=f"{sidecar.ARTICLE} --istio-inbound-exclude-cidr 10.44.8.0/24")) == []
