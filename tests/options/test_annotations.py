"""The table of annotations: what a pod says is what the command line would say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.errors_rare import OptionError, UsageError
from istio_init.options.annotations import (
    ANNOTATIONS,
    LONGEST,
    MODE,
    MODE_FIELD,
    NO_CAPTURE,
    STATUS_PORT,
    AnnotationError,
    find,
    of_flag,
    parse_annotations,
    with_defaults,
)
from istio_init.options.table import OPTIONS, Options, resolve
from istio_init.planning.plan import build
from istio_init.runner.defaults import account
from tests.kit.options import options

PREFIX = "traffic.sidecar.istio.io/"


def resolved(pod: dict[str, str]) -> Options:
    """The options of a pod with these annotations."""
    return resolve({}, {}, account, with_defaults(parse_annotations(pod)))


SETTING = [each for each in ANNOTATIONS if each.field and not each.path]


def test_a_pod_without_annotations_is_what_istios_plugin_takes_it_for() -> None:
    same = options(["-i", "*", "-b", "*", "-d", "15020,15021,15090", "-o", "15020", "-m", "REDIRECT"], {})
    assert resolved({}) == same


def test_each_annotation_is_its_flag() -> None:
    pod = {
        MODE: "TPROXY",
        f"{PREFIX}includeInboundPorts": "8080,9000-9010",
        f"{PREFIX}excludeInboundPorts": "22,15021",
        f"{PREFIX}includeOutboundIPRanges": "10.0.0.0/8,fd00::/8",
        f"{PREFIX}excludeOutboundIPRanges": "10.1.0.0/16",
        f"{PREFIX}includeOutboundPorts": "443",
        f"{PREFIX}excludeOutboundPorts": "25",
        f"{PREFIX}excludeInterfaces": "net1",
        f"{PREFIX}kubevirtInterfaces": "old0",
        "istio.io/reroute-virtual-interfaces": "tap0,tap1",
        STATUS_PORT: "15099",
        "example.com/other": "\n; rm -rf /",
    }
    flags = "-m TPROXY -b 8080,9000-9010 -d 22,15021,15020,15090,15099 -i 10.0.0.0/8,fd00::/8 -x 10.1.0.0/16 -q 443"
    flags += " -o 25 -c net1 -k tap0,tap1"
    actual, same = resolved(pod), options(flags.split(), {})
    assert same is not None
    ports = set(actual.istio_local_exclude_ports)
    assert ports == set(same.istio_local_exclude_ports)
    assert actual.replace(istio_local_exclude_ports=()) == same.replace(istio_local_exclude_ports=())


def test_the_older_name_counts_where_the_newer_is_not_set() -> None:
    assert parse_annotations({f"{PREFIX}kubevirtInterfaces": "tap0"}) == {"kube_virt_interfaces": ("tap0",)}


@pytest.mark.parametrize("text", ["", "1"])
def test_the_sidecars_own_ports_are_always_left_alone(text: str) -> None:
    actual = resolved({f"{PREFIX}excludeInboundPorts": text}).istio_local_exclude_ports
    assert {15020, 15021, 15090} <= {each.low for each in actual}


def test_no_status_port_and_no_capture_are_no_mistakes() -> None:
    assert parse_annotations({STATUS_PORT: "0", MODE: NO_CAPTURE}) == {
        "istio_local_exclude_ports": (),
        MODE_FIELD: NO_CAPTURE,
    }
    assert resolved({STATUS_PORT: "0"}) == resolved({})


@pytest.mark.parametrize("each", SETTING, ids=lambda each: each.name)
@pytest.mark.parametrize(
    "bad", ["a\nb", "a; $(reboot)", "; true", "-1", "--dry-run", "1,/", "\0", "\ud800", "x" * (1 << 20)]
)
def test_an_error_names_the_annotation_in_one_short_line(each: object, bad: str) -> None:
    assert each in SETTING
    name = getattr(each, "name", "")
    with pytest.raises(AnnotationError) as raised:
        parse_annotations({name: bad})
    message = str(raised.value)
    assert message.startswith(f"annotation {name}: ")
    assert message.isprintable()
    assert len(message) < 500


@given(st.dictionaries(st.sampled_from([each.name for each in ANNOTATIONS]), st.text()))
def test_any_text_gives_options_or_one_error(pod: dict[str, str]) -> None:
    with contextlib.suppress(AnnotationError):
        resolved(pod)


def test_what_an_option_refuses_its_annotation_refuses() -> None:
    for each in SETTING:
        option = each.option
        assert option
        for text in ("*", "1", "eth0", "10.0.0.0/8", "", "TPROXY", "a,b"):
            desired, actual = outcome(option.parse, text, ValueError), outcome(each.parse, text, UsageError)
            assert desired == actual


def outcome(parse: Callable[[str], object], text: str, refusal: type[Exception]) -> object:
    """The value, or None where it is refused."""
    try:
        return parse(text)
    except refusal:
        return None


def test_every_field_is_an_options_and_names_find_their_annotation() -> None:
    fields = {each.field for each in OPTIONS}
    for each in ANNOTATIONS:
        assert not each.field or each.field in fields
        actual = find(each.name)
        assert actual
        assert actual.name == each.name
    assert find("example.com/none") is None
    first = of_flag("-k")
    assert first
    assert first.name == "istio.io/reroute-virtual-interfaces"
    assert of_flag("-p") is None


def test_a_value_may_be_as_long_as_kubernetes_lets_it() -> None:
    name = f"{PREFIX}includeInboundPorts"
    longest = ("8080," * LONGEST)[: LONGEST - 1]
    assert parse_annotations({name: longest.rstrip(",")})


def test_the_product_of_interfaces_and_destinations_is_bounded() -> None:
    """11 KB of annotations would make 361,000 rules."""
    ranges = ",".join(f"10.{n // 256}.{n % 256}.0/24" for n in range(1000))
    actual = {f"{PREFIX}includeOutboundIPRanges": ranges}
    for name in (f"{PREFIX}kubevirtInterfaces", "istio.io/reroute-virtual-interfaces"):
        parse_annotations({**actual, name: ",".join(f"net{n}" for n in range(20))})
        with pytest.raises(AnnotationError, match=rf"^annotation {name}: .* makes 21000 rules, at most 20000"):
            parse_annotations({**actual, name: ",".join(f"net{n}" for n in range(21))})


def test_so_is_that_of_flags() -> None:
    argv = ["-u", "1337", "-i", ",".join(f"10.{n // 256}.{n % 256}.0/24" for n in range(1000)), "-k"]
    for count, fits in ((20, True), (21, False)):
        chosen = options([*argv, ",".join(f"net{n}" for n in range(count))], {})
        assert chosen
        if fits:
            build(chosen)
        else:
            with pytest.raises(OptionError, match=r"--kube-virt-interfaces: .* makes 21000 rules"):
                build(chosen)
