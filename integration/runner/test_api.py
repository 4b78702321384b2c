"""The Python API, as the README shows it."""

from __future__ import annotations

from typing import Any

import pytest

from integration.kit.namespace import Namespace
from istio_init import InitError, Options, apply, dump, plan
from istio_init.formats.iptables_restore import parse as load
from tests.kit.options import options

PLAN = plan(Options(istio_service_cidr="*", istio_inbound_ports="*"))


def saved(namespace: Namespace) -> str:
    text = namespace.run("iptables-legacy-save", "-t", "nat")
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("#"))


def test_a_plan_is_applied_from_outside_and_the_kernel_holds_its_text(namespace: Namespace) -> None:
    path = namespace.path
    assert apply(PLAN, network_namespace=path)
    assert load(saved(namespace), "ipv4") == load(dump(PLAN), "ipv4") == PLAN.rulesets[0]
    assert not apply(PLAN, network_namespace=path)


def test_another_plan_is_refused_until_it_may_reconcile(namespace: Namespace) -> None:
    path = namespace.path
    apply(PLAN, network_namespace=path)
    other = plan(Options(istio_service_cidr="*"))
    with pytest.raises(InitError, match="PREROUTING"):
        apply(other, network_namespace=path)
    apply(other, network_namespace=path, reconcile=True)
    assert load(saved(namespace), "ipv4") == other.rulesets[0]


def test_text_means_what_it_means_on_a_command_line() -> None:
    spelled: dict[str, Any] = {
        "istio_inbound_ports": "80,8080-8090", "istio_exclude_interfaces": "eth0", "istio_service_cidr": "10.0.0.0/8",
        "envoy_port": "15001", "istio_local_exclude_ports": 22,
    }  # fmt: skip
    arguments = ["-b", "80,8080-8090", "-c", "eth0", "-i", "10.0.0.0/8", "-d", "22", "--dns-servers", "", "-u", "1337"]
    desired = options([*arguments, "--no-enable-ipv6"], {})
    assert desired
    assert plan(Options(**spelled, proxy_uid=(1337,))) == plan(desired)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("istio_inbound_ports", "http"), ("envoy_port", 99999), ("istio_exclude_interfaces", "a/b"),
        ("istio_service_cidr", ["10.0.0.0/8"]), ("istio_local_exclude_ports", (object(),)), ("drop_invalid", None),
    ],
)  # fmt: skip
def test_what_a_flag_would_refuse_is_refused_by_its_fields_name(field: str, value: object) -> None:
    named: dict[str, Any] = {field: value}
    with pytest.raises(InitError, match=rf"^{field}: "):
        plan(Options(**named))


def test_a_plan_is_applied_where_its_options_say(namespace: Namespace) -> None:
    elsewhere: dict[str, Any] = {"network_namespace": namespace.path, "istio_inbound_ports": "*"}
    native = plan(Options(**elsewhere, native_nftables=True))
    assert apply(native)
    assert "ISTIO" not in namespace.run("iptables-legacy-save")
    assert "table inet istio-proxy-nat" in namespace.run("nft", "list", "tables")
    assert not apply(native)
    with pytest.raises(InitError):
        apply(plan(Options(**elsewhere)))  # another backend has the rules


def test_the_backend_is_the_one_of_the_options(namespace: Namespace) -> None:
    chosen: dict[str, Any] = {"network_namespace": namespace.path, "force_iptables_binary": "nft"}
    assert apply(plan(Options(**chosen, istio_inbound_ports="*")))
    assert "ISTIO_INBOUND" in namespace.run("iptables-nft-save")
    assert "ISTIO" not in namespace.run("iptables-legacy-save")
