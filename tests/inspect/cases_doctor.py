"""A machine in good health, and cases made from it by what ails it."""

from __future__ import annotations

import shlex

from istio_init.inspect.doctor.case import Case
from istio_init.kernel.probe.facts import Credentials, LockStatus, Machine, Resolver
from istio_init.kernel.probe.rehearsal import Trial
from istio_init.model.rules import FAMILIES, Network
from istio_init.planning import plan
from istio_init.simulate.path import proxy
from tests.kit.options import options

EVERYTHING = (1 << 41) - 1

PROCESS = Credentials(0, EVERYTHING, EVERYTHING)
SYSCTLS = {
    "net/ipv4/conf/all/src_valid_mark": 0,
    "net/ipv4/conf/default/src_valid_mark": 0,
    "net/ipv4/conf/eth0/src_valid_mark": 0,
    "net/ipv4/conf/all/accept_local": 0,
    "net/ipv4/conf/eth0/accept_local": 0,
    "net/ipv4/tcp_fwmark_accept": 0,
    "net/ipv4/ip_forward": 1,
    "net/ipv6/conf/all/forwarding": 1,
    "net/ipv6/conf/lo/disable_ipv6": 0,
}
TRIALS = tuple(
    Trial(backend, family, "table", table, works=True)
    for backend in ("legacy", "nft", "native")
    for family in FAMILIES
    for table in ("raw", "mangle", "nat")
)
HEALTHY = Machine(
    process=PROCESS, sysctls=SYSCTLS, loopback_up=True, addresses=(), routing=(), installed=(), foreign_tables=(),
    trials=TRIALS, scratch="", lock=LockStatus("/run/xtables.lock", available=True),
    resolver=Resolver((Network(b"\x0a\0\0\x0a", 32),)), proxy_user=None,
)  # fmt: skip


def case(
    command: str = "", *, backend: str = "legacy", runs_as: tuple[int, int] | None = None, **facts: object
) -> Case:
    """A case of a command line (for uid 1337, where it says no other); `facts` differ from the healthy machine's."""
    argv = shlex.split(command)
    request = options(argv if "-u" in argv else ["-u", "1337", *argv], {})
    if request is None:
        raise AssertionError(f"the fast parser does not take {command}")
    machine = HEALTHY.replace(**facts)
    settled = request.replace(enable_ipv6=bool(request.enable_ipv6))
    if request.redirect_dns and request.dns_servers is None:
        settled = settled.replace(dns_servers=machine.resolver.servers)
    envoy = proxy(settled)
    return Case(request, settled, plan.build(settled), machine, backend, "so it is", runs_as or (envoy.uid, envoy.gid))
