"""Checks of a namespace's network: lo, IPv6, forwarding, and sysctls that break TPROXY. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.inspect.doctor.case import Check
from istio_init.inspect.doctor.support import DISABLE_IPV6
from istio_init.kernel.netlink.router import has_ipv6
from istio_init.model.rules import IPV4, IPV6

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from istio_init.inspect.doctor.case import Case


def loopback(case: Case) -> Iterator[Check]:
    """Whether lo is up, which redirected connections pass."""
    if case.machine.loopback_up:
        yield Check("interface lo", "ok", "up")
        return
    yield Check(
        "interface lo",
        "fail",
        "down",
        "redirected connections pass it, and -m TPROXY routes to it",
        "ip link set lo up",
    )


def ipv6(case: Case) -> Iterator[Check]:
    """Whether lo can have ::6, without which captured IPv6 traffic loops."""
    disabled = case.machine.sysctls.get(DISABLE_IPV6)
    if IPV6 not in case.families:
        yield _uncaptured_ipv6(case)
        return
    matters = "--enable-ipv6: without ::6 on lo Envoy's connections to the app loop"
    if disabled is None:
        remedy = "leave it out: --no-enable-ipv6; or start the node's kernel without ipv6.disable=1"
        yield Check("IPv6", "fail", "the kernel does not support it", matters, remedy)
    elif disabled:
        yield Check("IPv6", "fail", "it is off on lo", matters, _sysctl("net/ipv6/conf/lo/disable_ipv6", 0))
    else:
        yield Check("IPv6", "ok", "lo can have ::6", matters)


def _uncaptured_ipv6(case: Case) -> Check:
    """What it means that the plan has no rules for IPv6."""
    if case.requested.enable_ipv6 is False:
        why = "--no-enable-ipv6"
    elif has_ipv6(case.machine.addresses, dual_stack=True):
        return Check(
            "IPv6", "warn", "in use, and not captured: the first address of the namespace is IPv4, and another is IPv6",
            "connections by IPv6 bypass the proxy, in both directions", "--dual-stack",
        )  # fmt: skip
    elif DISABLE_IPV6 not in case.machine.sysctls:
        why = "the kernel does not support it"
    else:
        why = "not in use: the namespace has no IPv6 address"
    return Check("IPv6", "ok", f"no rules are written: {why}", "--enable-ipv6 asks for it, --dual-stack looks further")


def forwarding(case: Case) -> Iterator[Check]:
    """Whether forwarding is on for virtual machines behind -k, whose uncaptured traffic is forwarded."""
    if not case.options.kube_virt_interfaces:
        yield Check("ip_forward", "ok", "not needed", "only -k needs it")
        return
    sysctls = {IPV4: "net/ipv4/ip_forward", IPV6: "net/ipv6/conf/all/forwarding"}
    for family in case.families:
        path = sysctls[family]
        on = case.machine.sysctls.get(path)
        matters = "-k: without it, uncaptured traffic of virtual machines (UDP, -x, -o) is dropped"
        yield Check(_dotted(path), "ok" if on else "warn", f"{on or 0}", matters, "" if on else _sysctl(path, 1))


def strict_interfaces(sysctls: Mapping[str, int]) -> list[str]:
    """The interfaces on which source validation drops TPROXY's marked packets."""
    names = {path.split("/")[3] for path in sysctls if path.startswith("net/ipv4/conf/")} - {"all", "default"}

    def on(interface: str, name: str) -> bool:
        return any(sysctls.get(f"net/ipv4/conf/{each}/{name}") for each in ("all", interface))

    return [name for name in sorted(names) if on(name, "src_valid_mark") and not on(name, "accept_local")]


def tproxy_sysctls(case: Case) -> Iterator[Check]:
    """Sysctls that break TPROXY because marked packets are routed differently."""
    sysctls = case.machine.sysctls
    strict = strict_interfaces(sysctls)
    name, matters = "src_valid_mark", "-m TPROXY: source validation uses the mark, so packets look locally sourced"
    if strict:
        finding = f"1 without accept_local on {', '.join(strict)}"
        yield _breaks_tproxy(case, name, finding, matters, _sysctl("net/ipv4/conf/all/accept_local", 1))
    else:
        yield Check(name, "ok", "harmless with these settings", matters)
    name, matters = "tcp_fwmark_accept", "-m TPROXY: accepted connections inherit the mark and are routed by it"
    if sysctls.get("net/ipv4/tcp_fwmark_accept"):
        yield _breaks_tproxy(case, name, "1", matters, _sysctl("net/ipv4/tcp_fwmark_accept", 0))
    else:
        yield Check(name, "ok", "0", matters)


def _breaks_tproxy(case: Case, name: str, finding: str, matters: str, remedy: str) -> Check:
    if case.tproxy:
        return Check(name, "fail", finding, matters, remedy)
    return Check(name, "ok", f"{finding}; TPROXY is not used", matters)


def _dotted(path: str) -> str:
    """A sysctl's name in the notation of sysctl(8): a dot in an interface's name becomes a slash."""
    return path.translate(str.maketrans("./", "/."))


def _sysctl(path: str, value: int) -> str:
    name = _dotted(path)
    spec = f"securityContext: {{sysctls: [{{name: {name}, value: '{value}'}}]}}"
    return f"sysctl -w {name}={value}; in the pod's spec: {spec}"
