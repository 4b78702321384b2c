"""The table of options: names, precedence, strictness, and what an error says."""

from __future__ import annotations

import pytest

from istio_init.errors_rare import OptionError
from istio_init.model.rules import Network, PortRange
from istio_init.options.table import GROUPS, OPTIONS, Options, resolve

ACCOUNTS = {("user", "envoy"): 101, ("user", "istio-proxy"): 1337, ("group", "wheel"): 10}


def lookup(kind: str, name: str) -> int | None:
    return ACCOUNTS.get((kind, name))


def resolved(arguments: dict[str, str] | None = None, environ: dict[str, str] | None = None) -> Options:
    return resolve(arguments or {}, environ or {}, lookup)


def test_defaults_are_istios() -> None:
    options = resolved()
    assert options == Options(proxy_uid=(1337,))
    assert (options.envoy_port, options.inbound_capture_port, options.inbound_tunnel_port) == (15001, 15006, 15008)
    assert (options.istio_inbound_tproxy_mark, options.istio_inbound_tproxy_route_table) == (1337, 133)
    assert options.istio_outbound_owner_groups == "*"
    assert options.istio_outbound_ipv4_loopback_cidr == Network(b"\x7f\0\0\1", 32)


def test_the_command_line_wins_over_the_variables_and_they_over_the_default() -> None:
    environ = {"DROP_INVALID": "false", "INVALID_DROP": "true", "INBOUND_CAPTURE_PORT": "1"}
    assert resolved(environ=environ).drop_invalid is True
    assert resolved({"drop_invalid": "false"}, environ).drop_invalid is False
    assert resolved(environ={"DROP_INVALID": "true"}).drop_invalid is True
    assert resolved(environ=environ).inbound_capture_port == 1
    assert resolved({"inbound_capture_port": "2"}, environ).inbound_capture_port == 2


def test_envoy_port_has_no_variable_as_kubernetes_may_set_one_of_that_name() -> None:
    assert resolved(environ={"ENVOY_PORT": "tcp://10.0.0.1:15001"}).envoy_port == 15001


def test_an_empty_variable_counts_as_unset_and_an_unknown_one_is_ignored() -> None:
    assert resolved(environ={"ISTIO_DUAL_STACK": "", "DUAL_STACK": "1", "ISTIO_NONSENSE": "x"}).dual_stack is True


@pytest.mark.parametrize("variable", [v for option in OPTIONS for v in option.variables if option.switch])
def test_a_switchs_variable_that_is_no_boolean_means_false_as_in_istios_program(variable: str) -> None:
    warnings: list[str] = []
    option = next(each for each in OPTIONS if variable in each.variables)
    actual = resolve({}, {variable: "yes\n"}, lookup, warnings=warnings)
    assert getattr(actual, option.field) is False
    assert warnings == [f"{variable}: 'yes\\n': not true or false; taken for false, as in Istio's program"]


@pytest.mark.parametrize(("arguments", "environ"), [({"strict_env": "true"}, {}), ({}, {"STRICT_ENV": "1"})])
def test_with_strict_env_it_is_an_error(arguments: dict[str, str], environ: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=r"^ISTIO_META_DNS_CAPTURE: 'yes': not true or false"):
        resolve(arguments, {**environ, "ISTIO_META_DNS_CAPTURE": "yes"}, lookup)
    with pytest.raises(OptionError, match=r"^PROBE_TIMEOUT: '5': not a duration"):
        resolve(arguments, {**environ, "PROBE_TIMEOUT": "5"}, lookup)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PROBE_TIMEOUT", "5"), ("PROBE_TIMEOUT", "-1s"), ("IPTABLES_PROBE_PORT", "tcp://10.0.0.1:80"),
        ("IPTABLES_PROBE_PORT", "70000"), ("WAIT", "for it"),
    ],
)  # fmt: skip
def test_a_variable_that_is_wrong_for_its_type_stops_no_pod(variable: str, text: str) -> None:
    """Istio's program starts with it: it passes over what pflag says to a variable (pkg/flag: BindEnv)."""
    warnings: list[str] = []
    assert resolve({}, {variable: text}, lookup, warnings=warnings) == resolve({}, {}, lookup)
    (line,) = warnings
    assert line.startswith(f"{variable}: '{text}': not a ")
    assert line.endswith("; ignored: the default counts")


@pytest.mark.parametrize("space", [" ", "\t", "\n", "\r\n", "\v", "\u00a0", "\u2003"])
def test_white_space_around_entries_does_not_count(space: str) -> None:
    spaced = {
        "istio_inbound_ports": f"{space}80,{space}443{space}",
        "istio_service_cidr": f"10.0.0.0/8{space},{space}fd00::/8",
        "istio_exclude_interfaces": f"{space}eth0{space}",
        "proxy_uid": f"1337{space},{space}envoy",
        "istio_outbound_owner_groups": f"{space}*{space}",
    }
    assert resolved(spaced) == resolved({field: text.replace(space, "") for field, text in spaced.items()})


def test_only_the_included_groups_are_limited() -> None:
    many = ",".join(map(str, range(65)))
    assert len(resolved({"istio_outbound_owner_groups_exclude": many}).istio_outbound_owner_groups_exclude) == 65
    with pytest.raises(OptionError, match="at most 64"):
        resolved({"istio_outbound_owner_groups": many})


@pytest.mark.parametrize("variable", [v for option in OPTIONS for v in option.variables if not option.typed])
def test_every_variable_is_checked_like_an_argument(variable: str) -> None:
    with pytest.raises(OptionError) as caught:
        resolved(environ={variable: "-\n"})
    assert str(caught.value).startswith(f"{variable}: '-\\n': ")


@pytest.mark.parametrize("field", [option.field for option in OPTIONS])
def test_a_flag_that_swallowed_the_next_one_is_an_error_that_names_it(field: str) -> None:
    option = next(option for option in OPTIONS if option.field == field)
    with pytest.raises(OptionError) as caught:
        resolved({field: "-b"})
    assert str(caught.value).startswith(f"--{option.flag}")
    assert "'-b'" in str(caught.value)


def test_an_error_is_one_short_line_whatever_the_value() -> None:
    with pytest.raises(OptionError) as caught:
        resolved({"istio_service_cidr": "\n\x1b[31m" * 500_000})
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_names_of_users_and_groups_become_ids() -> None:
    assert resolved({"proxy_uid": "envoy,5"}).proxy_uid == (101, 5)
    assert resolved({"proxy_gid": "wheel"}).proxy_gid == (10,)
    assert resolved({"istio_outbound_owner_groups": "wheel,7"}).istio_outbound_owner_groups == (10, 7)
    with pytest.raises(OptionError, match="no user 'nobody-here' in /etc/passwd"):
        resolved({"proxy_uid": "nobody-here"})
    with pytest.raises(OptionError, match="no group 'nobody-here' in /etc/group"):
        resolved(environ={"ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "nobody-here"})


def test_the_proxys_uid_comes_from_envoy_user_else_istio_proxy_else_1337() -> None:
    assert resolved(environ={"ENVOY_USER": "envoy"}).proxy_uid == (101,)
    assert resolved(environ={"ENVOY_USER": "unknown"}).proxy_uid == (1337,)
    assert resolved({"proxy_uid": ""}, {"ENVOY_USER": "envoy"}).proxy_uid == (101,)
    assert resolve({}, {}, lambda _kind, _name: None).proxy_uid == (1337,)


def test_an_empty_mode_means_redirect() -> None:
    assert resolved({"istio_inbound_interception_mode": ""}).istio_inbound_interception_mode == "REDIRECT"


def test_names_are_unique_and_every_option_is_described() -> None:
    flags = [option.flag for option in OPTIONS]
    shorts = [option.short for option in OPTIONS if option.short]
    variables = [variable for option in OPTIONS for variable in option.variables]
    assert len(set(flags)) == len(flags)
    assert len(set(shorts)) == len(shorts)
    assert len(set(variables)) == len(variables)
    for option in OPTIONS:
        assert option.group in GROUPS
        assert option.help.endswith(".")
        assert option.switch or option.metavar


def test_every_flag_of_istios_is_there_with_its_short() -> None:
    flags = "p z e u:proxy-uid g:proxy-gid m t r b d c i x q o k n"
    assert {option.short for option in OPTIONS if option.short} == {word[0] for word in flags.split()}


def test_values_are_parsed_once_at_the_door() -> None:
    options = resolved({"istio_local_exclude_ports": "15090,4000-4003", "istio_service_exclude_cidr": "10.9.8.7/8"})
    assert options.istio_local_exclude_ports == (PortRange(15090, 15090), PortRange(4000, 4003))
    assert options.istio_service_exclude_cidr == (Network(b"\x0a\0\0\0", 8),)
