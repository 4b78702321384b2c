"""The Python API, as the README shows it."""

from __future__ import annotations

import pytest

from integration.namespace import Namespace
from istio_init import InitError, Options, apply, dump, plan
from istio_init.save import load

WANTED = plan(Options(istio_service_cidr="*", istio_inbound_ports="*"))


def saved(namespace: Namespace) -> str:
    text = namespace.run("iptables-legacy-save", "-t", "nat")
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("#"))


def test_a_plan_is_applied_from_outside_and_the_kernel_holds_its_text(namespace: Namespace) -> None:
    path = namespace.path
    assert apply(WANTED, network_namespace=path)
    assert load(saved(namespace), "ipv4") == load(dump(WANTED), "ipv4") == WANTED.rulesets[0]
    assert not apply(WANTED, network_namespace=path)


def test_another_plan_is_refused_until_it_may_reconcile(namespace: Namespace) -> None:
    path = namespace.path
    apply(WANTED, network_namespace=path)
    other = plan(Options(istio_service_cidr="*"))
    with pytest.raises(InitError, match="PREROUTING"):
        apply(other, network_namespace=path)
    apply(other, network_namespace=path, reconcile=True)
    assert load(saved(namespace), "ipv4") == other.rulesets[0]
