"""Causes that are planted as facts: what no test can do to a kernel that others use."""

from __future__ import annotations

from istio_init.inspect.diagnose import rule_causes
from istio_init.inspect.diagnose.case import Situation
from istio_init.inspect.diagnose.causes import causes
from istio_init.inspect.diagnose.report import lines
from istio_init.model import parsers
from istio_init.model.counters import Usage
from istio_init.model.packet import Facts
from istio_init.model.routing import Address
from istio_init.model.rules import Network
from istio_init.options.table import Options
from istio_init.planning.plan import build
from istio_init.simulate.path import proxy

OPTIONS = Options(istio_inbound_ports=parsers.ALL, istio_service_cidr=parsers.ALL, enable_ipv6=False)
ADDRESSES = (Address(Network(b"\x7f\0\0\1", 8), "lo"), Address(Network(b"\xc0\0\2\x0a", 24), "eth0"))


def situation() -> Situation:
    plan = build(OPTIONS)
    return Situation(
        OPTIONS, "a test", inferred=False, plan=plan, rulesets=plan.rulesets, chosen=plan.rulesets,
        backends=("legacy",), facts=Facts(ADDRESSES), envoy=proxy(OPTIONS), live=True,
        listening=frozenset({15001, 15006}),
    )  # fmt: skip


def test_a_pod_that_is_well_has_no_cause() -> None:
    about = situation()
    assert causes(about) == ()
    assert next(line.text for line in lines(about, (), None)).startswith("HEALTHY")


def test_connection_tracking_that_is_full() -> None:
    full = situation().replace(tracked=Usage(10, 10))
    assert [cause.name for cause in causes(full)] == ["conntrack-full"]
    assert rule_causes.tracking_full(full.replace(tracked=Usage(9, 10))) is None


def test_what_is_long_still_fits_on_a_screen() -> None:
    about = situation().replace(source="x" * 3000, tracked=Usage(10, 10), listening=frozenset())
    shown = [line.text for line in lines(about, causes(about), None)]
    assert len(shown) <= 24
    assert max(map(len, shown)) <= 80
