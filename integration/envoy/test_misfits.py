"""Rules and proxies that do not fit: `prove --envoy` names each, and a real connection shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from integration.containers.envoy import PATIENCE
from integration.envoy.test_calls import ECHO, POD, RATINGS
from integration.envoy.world import ARTICLE, BASE, World, client
from istio_init.cli.verbs.envoy_flags import fit
from istio_init.envoy.client import Client
from istio_init.envoy.fit import Fit
from tests.envoy import test_fit as planted
from tests.envoy.sidecar import listener

RATINGS_CLUSTER = "outbound|9080||ratings.default.svc.cluster.local"
IN, OUT = ("in", POD, 9080, client("http", "reviews")), ("out", RATINGS, 9080, client("http", "ratings"))


def not_handed_on(dump: Any) -> None:  # noqa: ANN401 (JSON)
    listener(dump, "virtualOutbound")["use_original_dst"] = False


# Mode, flags, what is changed in the proxy; the connection, how it ends, and the claim that names it.
Row = tuple[str, str, Callable[[Any], object], tuple[str, str, int, Client], str, str]
MISFITS: dict[str, Row] = {
    "another inbound port": ("REDIRECT", ARTICLE.replace("15006", "15007"), planted.nothing, IN, "closed", "P1"),
    "no use_original_dst": ("REDIRECT", ARTICLE, not_handed_on, ("out", ECHO, 7070, client("tcp")), "closed", "P2"),
    "no original_dst": ("REDIRECT", ARTICLE, planted.no_restoring, IN, "closed", "P3"),
    "no transparent listener": (
        "TPROXY",
        ARTICLE,
        lambda dump: listener(dump, "virtualInbound").update(transparent=False),
        IN,
        "hangs",
        "P4",
    ),
    "no cluster": ("REDIRECT", ARTICLE, planted.no_cluster, OUT, "503", "P7"),
    "an outbound cluster bound to loopback": (
        "REDIRECT",
        ARTICLE,
        planted.bind(RATINGS_CLUSTER, "127.0.0.6"),
        OUT,
        "503",
        "P8",
    ),
    "STRICT on an excluded port": ("REDIRECT", f"{ARTICLE},9080", planted.strict, IN, "app", "P9"),
    "no inspector": (
        "REDIRECT",
        ARTICLE,
        planted.no_inspector,
        ("in", POD, 9080, client("mtls", "reviews")),
        "closed",
        "P11",
    ),
    "an excluded service": ("REDIRECT", f"{ARTICLE} -x 10.96.0.0/24", planted.nothing, OUT, "peer", "P12"),
}
LOOPS: dict[str, Row] = {
    "no bind address": ("REDIRECT", ARTICLE, planted.unbound("inbound|9080||"), IN, "loop", "P5"),
    "another bind address": ("REDIRECT", ARTICLE, planted.bind("inbound|9080||", "127.0.0.7"), IN, "loop", "P5"),
    "Envoy's own port leads on": (
        "REDIRECT",
        ARTICLE,
        planted.own_port_open,
        ("in", POD, 15006, client("tcp")),
        "loop",
        "P6",
    ),
}
# More connections than a call through both listeners makes.
MANY = 20


def proved(world: World) -> Fit:
    return fit(world.subject(), world.configuration)


def named(result: Fit) -> set[str]:
    return {misfit.claim.name for misfit in result.misfits}


@pytest.mark.parametrize("name", MISFITS)
def test_a_misfit_is_named_and_shown(name: str) -> None:
    mode, flags, change, call, answer, claim = MISFITS[name]
    with World(mode, flags, change) as world:
        assert world.call(*call, patience=3 if answer == "hangs" else PATIENCE) == answer
        if answer in {"app", "peer"}:
            assert connections(world) == 0, "the connection goes round Envoy"
        assert named(proved(world)) == {claim}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_named_and_shown(name: str) -> None:
    mode, flags, change, call, _, claim = LOOPS[name]
    with World(mode, flags, change) as world:
        world.call(*call, patience=2)
        assert connections(world) > MANY
        proof = proved(world)
        assert named(proof) == {claim}
        assert any(misfit.path and misfit.path.loop for misfit in proof.misfits)


def test_a_proxy_that_the_rules_do_not_spare_is_a_loop() -> None:
    with World("REDIRECT", ARTICLE, proxy="1000") as world:
        world.call(*OUT, patience=2)
        assert connections(world) > MANY
        assert "P10" in named(proved(world))


@pytest.mark.parametrize(
    ("mode", "flags"), [("REDIRECT", ARTICLE), ("TPROXY", ARTICLE), ("REDIRECT", f"{BASE} -o 15090")]
)
def test_a_sound_pair_breaks_no_claim(mode: str, flags: str) -> None:
    with World(mode, flags) as world:
        assert world.call(*IN) == "app"
        assert world.call(*OUT) == "peer"
        proof = proved(world)
        assert [(misfit.claim.name, misfit.actual) for misfit in proof.misfits] == []


def connections(world: World) -> int:
    """How many connections Envoy's listeners have taken, the admin interface's apart."""
    counted = re.compile(r"listener\.(?!admin)[\w.]+_\d+\.downstream_cx_total")
    return sum(value for name, value in world.envoy.counters().items() if counted.fullmatch(name))
