"""The Python API's Options: what they take, how they are described, and the types that checkers see."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from decimal import Decimal
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

import istio_init
from istio_init import Network, OptionError, Options, Plan, PortRange, dump, plan
from istio_init.options import public
from istio_init.options.table import OPTIONS
from scripts.generate import api_page
from scripts.generate.options_stub import kind, page
from tests.kit.options import options

STUB = Path(public.__file__).with_suffix(".pyi")

TYPED = """
from ipaddress import ip_address, ip_network
from istio_init import Changes, InitError, Network, OptionError, Options, Plan, PortRange, apply, dump, plan

made: Plan = plan(Options(
    istio_inbound_ports="80,8000-8080", istio_outbound_ports=(443, "5432", PortRange(8000, 8080)), envoy_port=15001,
    istio_service_cidr=("10.0.0.0/8", ip_network("fd00::/8")), istio_service_exclude_cidr=ip_address("10.0.0.1"),
    dns_servers=(ip_address("10.0.0.10"),), proxy_uid=1337, proxy_gid=(1337, "1338"), redirect_dns=True, wait=2,
    istio_exclude_interfaces=("eth1",), enable_ipv6=None, istio_inbound_interception_mode="TPROXY",
))
text: str = dump(made)
changes: Changes = apply(made, network_namespace="/x", reconcile=True)
"""


def test_the_stub_is_generated_from_the_table() -> None:
    assert STUB.read_text() == page(), "python -m scripts.generate writes it anew"


def test_the_page_is_generated_from_the_docstrings() -> None:
    kept = Path(__file__).parents[2] / "docs/api.md"
    assert kept.read_text() == api_page.page(), "python -m scripts.generate writes it anew"


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ("Options(envoy_prt=1)", "envoy_prt"), ("Options(envoy_port=1.5)", "envoy_port"),
        ("Options(redirect_dns='yes')", "redirect_dns"), ("Options(istio_inbound_interception_mode='X')", "mode"),
        ("apply('text')", "apply"),
    ],
)  # fmt: skip
def test_a_checker_refuses_what_does_not_work(tmp_path: Path, wrong: str, where: str) -> None:
    file = tmp_path / "program.py"
    file.write_text(f"{TYPED}\n{wrong}\n")
    done = mypy(file)
    assert done.returncode == 1
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1, done.stdout
    assert where in errors[0]


def test_a_checker_takes_what_works(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(TYPED)
    done = mypy(file)
    assert done.returncode == 0, done.stdout


def mypy(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", "/dev/null", str(file)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)


def test_everything_that_is_exported_is_there() -> None:
    for name in istio_init.__all__:
        assert getattr(istio_init, name).__doc__


def test_the_signature_has_every_field_with_its_default() -> None:
    parameters = inspect.signature(Options).parameters
    assert {name: each.default for name, each in parameters.items()} == {each.field: each.default for each in OPTIONS}


def test_help_tells_each_field_with_its_unit_and_default() -> None:
    text = pydoc.plain(pydoc.render_doc(Options))
    for each in OPTIONS:
        assert public.description(each) in text
    assert "(in seconds; default: 5s; as --probe-timeout)" in text


def test_values_are_text_numbers_addresses_or_tuples_of_them() -> None:
    arguments: dict[str, Any] = {
        "istio_inbound_ports": (80, "443", PortRange(8000, 8080)),
        "istio_service_cidr": (ip_network("10.0.0.0/8"), "fd00::/8", Network(b"\xc0\0\2\1", 32)),
        "istio_service_exclude_cidr": ip_address("10.0.0.1"),
        "dns_servers": (ip_address("10.0.0.10"), "fd00::a"),
        "proxy_uid": "1337",
        "proxy_gid": (5, "6"),
        "redirect_dns": 1,
        "istio_exclude_interfaces": ("eth1", "eth2"),
    }
    words = (
        "-b 80,443,8000-8080 -i 10.0.0.0/8,fd00::/8,192.0.2.1 -x 10.0.0.1 --dns-servers 10.0.0.10,fd00::a -u 1337 "
        "-g 5,6 --redirect-dns -c eth1,eth2"
    )
    same = options(words.split(), {})
    assert same
    result = plan(Options(**arguments))
    assert result == plan(same)
    assert result.options == same


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("istio_inbound_ports", [80]), ("istio_inbound_ports", {80}), ("istio_inbound_ports", ((80,),)),
        ("envoy_port", True), ("envoy_port", None), ("envoy_port", 1.5), ("redirect_dns", "yes"), ("proxy_uid", -1),
        ("istio_service_cidr", b"10.0.0.0/8"), ("istio_service_cidr", ip_address("fe80::1%eth0")),
        ("network_namespace", 5j), ("log_target", object()),
    ],
)  # fmt: skip
def test_another_type_is_one_error_that_names_the_field(field: str, value: object) -> None:
    refused(field, value)


class Unprintable:
    """An object of another program, which has no text either."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


# A value of each type that a program might try, by the name that the stub has for its type.
VALUES: tuple[tuple[str, object], ...] = (
    ("float", 15001.0), ("float", float("nan")), ("float", float("inf")), ("int", 3), ("bool", True), ("bool", False),
    ("None", None), ("list", [80]), ("set", {80}), ("dict", {80: 80}), ("bytes", b"10.0.0.0/8"), ("complex", 5j),
    ("Decimal", Decimal(80)), ("Path", Path("/x")), ("type", int), ("Unprintable", Unprintable()),
    ("PortRange", PortRange(80, 90)), ("Network", Network(b"\x7f\0\0\1", 32)),
    ("IPv4Address", ip_address("127.0.0.1")), ("IPv6Address", ip_address("fd00::1")),
    ("IPv4Network", ip_network("127.0.0.0/8")), ("IPv6Network", ip_network("fd00::/8")),
)  # fmt: skip
ALIASES = {
    "Ports": "int | PortRange | tuple", "Names": "tuple", "Ids": "int | tuple",
    "Address": "Network | IPv4Address | IPv6Address",
    "Range": "Network | IPv4Address | IPv6Address | IPv4Network | IPv6Network",
}  # fmt: skip


def taken(field: str) -> set[str]:
    """The names of the types that the stub has for a field, and for a boolean the numbers 0 and 1."""
    words = kind(Options.specifiers[field])
    for alias, types in ALIASES.items():
        words = re.sub(rf"\b{alias}\b", types, words)
    names = set(re.findall(r"\w+", words))
    return names | {"float": {"int"}, "bool": {"int"}}.get(words.split()[0], set())


@pytest.mark.parametrize("field", [each.field for each in OPTIONS])
def test_every_field_refuses_every_other_type(field: str) -> None:
    for name, value in VALUES:
        if name not in taken(field):
            refused(field, value)
        refused(field, [value])
        if "tuple" not in taken(field) or name not in taken(field):
            refused(field, (value,))
        refused(field, ((value,),))


def refused(field: str, value: object) -> None:
    named: dict[str, Any] = {field: value}
    with pytest.raises(OptionError, match=rf"^{field}: ") as raised:
        plan(Options(**named))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300


def test_an_error_about_a_type_says_which_ones_are_taken() -> None:
    with pytest.raises(OptionError) as raised:
        plan(Options(envoy_port=15001.0))  # type: ignore[arg-type]
    assert str(raised.value) == "envoy_port: '15001.0': float is not a type for it: give text or an int"
    with pytest.raises(OptionError) as raised:
        plan(Options(log_target=3))  # type: ignore[arg-type]
    assert str(raised.value) == "log_target: '3': int is not a type for it: give text or a tuple of these"


@pytest.mark.parametrize("value", [(1337.0,), (True,), (Network(b"\5\5\5\5", 32),)])
def test_a_wrong_type_that_equals_a_default_is_refused(value: object) -> None:
    refused("proxy_uid", value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("istio_outbound_ports", PortRange(80.5, 90)), ("istio_outbound_ports", PortRange("80", None)),  # type: ignore[arg-type]
        ("istio_outbound_ports", PortRange(90, 80)), ("istio_outbound_ports", PortRange(-1, 80)),
        ("istio_service_cidr", Network("10.0.0.0", 8)), ("istio_service_cidr", Network(b"1", 8)),  # type: ignore[arg-type]
        ("istio_service_cidr", Network(b"\x0a\0\0\0", 33)), ("istio_service_cidr", Network(b"\x0a\0\0\0", "8")),  # type: ignore[arg-type]
        ("exclude_uids_for_ports", ((6, (), ()),)), ("exclude_uids_for_ports", ((6, (80,), ((1, 2),)),)),
        ("exclude_uids_for_ports", ((99, (), ((1, 2),)),)), ("exclude_uids_for_ports", ((6.0, (), ((1, 2),)),)),
        ("exclude_uids_for_ports", (6, (), ((1, 2),))),
    ],
)  # fmt: skip
def test_a_value_of_the_right_type_that_no_parser_makes_is_refused(field: str, value: object) -> None:
    refused(field, value)


def test_a_plan_carries_its_options_and_is_told_by_its_rules_alone() -> None:
    one = plan(Options(native_nftables=True, network_namespace="/x"))
    other = plan(Options())
    assert isinstance(one, Plan)
    assert one == other
    assert one.options
    assert one.options.network_namespace == "/x"
    assert dump(one).startswith("table inet")
    assert dump(other).startswith("*nat")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dry_run", True),
        ("cleanup_only", True),
        ("skip_rule_apply", True),
        ("run_validation", True),
        ("capture_backend", "ebpf"),
    ],
)
def test_apply_refuses_what_it_would_ignore(field: str, value: object) -> None:
    named: dict[str, Any] = {field: value}
    with pytest.raises(OptionError, match=rf"^{field}: .*: apply can't do this: run istio-iptables --"):
        istio_init.apply(plan(Options(**named)), network_namespace="/nowhere")
