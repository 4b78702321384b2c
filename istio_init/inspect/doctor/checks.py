"""Checks whether the plan works on this machine. Pure: facts in, results out.

`CHECKS` lists all checks in the order of the output; each is a function from a Case to its results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.formats.addresses import network_text
from istio_init.inspect.doctor.case import Check
from istio_init.inspect.doctor.conflicts import leftovers, shadows
from istio_init.inspect.doctor.ebpf import ebpf_checks
from istio_init.inspect.doctor.network_checks import forwarding, ipv6, loopback, tproxy_sysctls
from istio_init.inspect.doctor.pod import pod_checks
from istio_init.inspect.doctor.support import support_checks
from istio_init.model.parsers import ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from istio_init.inspect.doctor.case import Case, Severity

# Bits of a capability set, from <linux/capability.h>.
CAPABILITIES = {"SETGID": 6, "SETUID": 7, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21}
SECCOMP_FILTER = 2
ROOT = 0


def diagnose(case: Case) -> tuple[Check, ...]:
    """Every check of the case."""
    return tuple(check for look in CHECKS for check in look(case))


def capabilities(case: Case) -> Iterator[Check]:
    """Whether the process has the capabilities that an apply needs."""
    yield _capability(case, "NET_ADMIN", "every change of rules and routing", "fail")
    legacy = case.backend == "legacy"
    yield _capability(
        case,
        "NET_RAW",
        "the legacy tables, which are read and written through a raw socket",
        "fail" if legacy else "warn",
    )
    if case.options.network_namespace:
        yield _capability(case, "SYS_ADMIN", "--network-namespace", "fail")
    if case.options.run_validation:
        for name in ("SETUID", "SETGID"):
            yield _capability(case, name, "--run-validation, which dials as the proxy and as an application", "warn")


def _capability(case: Case, name: str, use: str, without: Severity) -> Check:
    process, bit = case.machine.process, CAPABILITIES[name]
    title, matters = f"capability {name}", f"needed for {use}"
    if process.effective >> bit & 1:
        return Check(title, "ok", "held", matters)
    add = f"securityContext: {{capabilities: {{add: [{name}]}}}}"
    if process.bounding >> bit & 1 and process.uid != ROOT:
        remedy = f"run as root, since only root gets added capabilities: {add[:-1]}, runAsUser: 0}}"
        return Check(title, without, f"missing: not in the effective set of uid {process.uid}", matters, remedy)
    return Check(title, without, "missing", matters, f"in the container's spec: {add}")


def seccomp(case: Case) -> Iterator[Check]:
    """Whether system calls are filtered, which matters if a trial was refused."""
    if case.machine.process.seccomp != SECCOMP_FILTER:
        yield Check("seccomp", "ok", "no filter")
        return
    refused = case.machine.scratch or any(trial.works is False for trial in case.machine.trials)
    if not refused:
        yield Check("seccomp", "ok", "a filter is active, and allows everything that was tried")
        return
    yield Check(
        "seccomp", "warn", "a filter is active, and something was refused (see below)",
        "a profile may forbid socket, setsockopt, getsockopt or unshare",
        "try without: securityContext: {seccompProfile: {type: Unconfined}}",
    )  # fmt: skip


def user_namespace(case: Case) -> Iterator[Check]:
    """Whether the process's capabilities apply to this network namespace."""
    process, name = case.machine.process, "user namespace"
    matters = "capabilities apply only to network namespaces that belong to the process's user namespace"
    where = "the initial one" if process.first_user_namespace else "a separate one"
    if process.owner is False:
        yield Check(
            name, "fail", f"{where}; the network namespace belongs to another", matters,
            "run in the user namespace that owns the network namespace (a pod with hostUsers: true), or in its parent",
        )  # fmt: skip
    elif process.owner is None:
        yield Check(name, "warn", f"{where}; the owner of the network namespace is unknown", matters)
    else:
        yield Check(name, "ok", f"{where}, and the network namespace belongs to it", matters)


def owners(case: Case) -> Iterator[Check]:
    """Whether the user namespace maps the ids in the rules; -m owner accepts no others."""
    process, options = case.machine.process, case.options
    groups = [*options.proxy_groups, *options.istio_outbound_owner_groups_exclude]
    if options.istio_outbound_owner_groups != ALL:
        groups += options.istio_outbound_owner_groups
    required = (("uid", options.proxy_uid, process.uids), ("gid", groups, process.gids))
    missing = [
        f"{kind} {number}"
        for kind, numbers, ranges in required
        for number in numbers
        if not any(first <= number <= last for first, last in ranges)
    ]
    name, matters = "owners", "-u, -g and owner groups: the kernel refuses a rule for an id that is not mapped"
    if missing:
        remedy = "map more ids (/etc/subuid and /etc/subgid on the node), or a pod with hostUsers: true"
        yield Check(name, "fail", f"not mapped in the user namespace: {', '.join(missing)}", matters, remedy)
    else:
        yield Check(name, "ok", "all ids are mapped in the user namespace", matters)


def backend(case: Case) -> Iterator[Check]:
    """Which tables an apply would write to."""
    if case.backend:
        yield Check("backend", "ok", f"{case.backend} ({case.why})", "the tables for the rules")
    else:
        remedy = "select one: --force-iptables-binary legacy or nft, or --native-nftables"
        yield Check("backend", "fail", case.why, "the tables for the rules can't be determined", remedy)


def resolv_conf(case: Case) -> Iterator[Check]:
    """The DNS servers whose queries are captured."""
    name, matters, requested = "resolv.conf", "--redirect-dns: queries to these servers are captured", case.requested
    resolver, servers = case.machine.resolver, case.options.dns_servers or ()
    remedy = "name them with --dns-servers, or capture all: --capture-all-dns"
    if not case.options.redirect_dns or case.options.capture_all_dns or requested.dns_servers:
        yield Check(
            name, "ok", "not needed", "only --redirect-dns without --capture-all-dns and --dns-servers reads it"
        )
    elif resolver.why and requested.dns_servers is None:
        yield Check(name, "fail", resolver.why, matters, remedy)
    elif not servers:
        yield Check(name, "warn", "no server", "--redirect-dns: DNS is not captured at all", remedy)
    elif not any(server.family in case.families for server in servers):
        yield Check(name, "warn", "only servers of a family without rules", matters, "--enable-ipv6")
    elif resolver.complaints:
        yield Check(name, "warn", "; ".join(resolver.complaints), matters, remedy)
    else:
        yield Check(name, "ok", ", ".join(map(network_text, servers)), matters)


def proxy_user(case: Case) -> Iterator[Check]:
    """The user name that the proxy's default uid is looked up by."""
    name, user, uid = "proxy user", case.proxy_user, case.machine.proxy_user
    matters = f"--proxy-uid unset: {user}'s uid, or 1337"
    planned = ", ".join(map(str, case.options.proxy_uid))
    if uid is None:
        yield Check(name, "ok", f"no user {user}; the rules are for uid {planned}", matters)
    elif uid in case.options.proxy_uid:
        yield Check(name, "ok", f"{user} is uid {uid}, and the rules are for it", matters)
    else:
        yield Check(
            name, "warn", f"{user} is uid {uid}, but the rules are for {planned}",
            "if the proxy runs as that user, its own connections are captured, and loop", f"--proxy-uid {uid}",
        )  # fmt: skip


def identity(case: Case) -> Iterator[Check]:
    """Whether the rules can tell the proxy from other processes."""
    (uid, gid), users = case.runs_as, case.options.proxy_uid
    groups = case.options.proxy_groups
    name, ids = "proxy identity", f"uid {uid}, gid {gid}"
    identities = f"-u {','.join(map(str, users))}, -g {','.join(map(str, groups))}"
    if uid not in users and gid not in groups:
        yield Check(
            name, "fail", f"{ids} is not in {identities}",
            f"the proxy's own connections are redirected to its port {case.options.envoy_port}, in a loop",
            f"run the proxy as one of them (runAsGroup: {groups[0]}), or set its ids with -u and -g",
        )  # fmt: skip
    elif case.tproxy and uid in users:
        yield Check(
            name, "fail", f"{ids}, and -u has {uid}",
            "-m TPROXY: the proxy calls the app from its client's address, and a rule of ISTIO_OUTPUT redirects"
            " that back",
            f"run the proxy as a uid that is not in -u, with the group of -g: runAsUser: 0, runAsGroup: {groups[0]}, "
            "-u 1337" if ROOT in users else f"runAsUser: 0, runAsGroup: {groups[0]}, and NET_ADMIN for the proxy",
        )  # fmt: skip
    elif ROOT in users or ROOT in groups:
        kinds = [kind for kind, ids in (("-u", users), ("-g", groups)) if ROOT in ids]
        yield Check(
            name, "warn", f"{' and '.join(kinds)} 0: every process of root counts as the proxy",
            "applications of root's user or group are not captured, and most images' group is 0",
            "give the proxy a user and a group of its own, such as 1337",
        )  # fmt: skip
    else:
        yield Check(name, "ok", f"{ids}, of {identities}", "the rules identify the proxy by them")


def lock(case: Case) -> Iterator[Check]:
    """Whether the lock that an apply takes is free."""
    status = case.machine.lock
    matters = f"an apply waits for it, up to {case.options.wait:g} s (--wait)"
    if status.held:
        yield Check(
            "lock",
            "warn",
            f"{status.path} is held by {status.held}",
            matters,
            "wait longer, or end the process that holds it",
        )
    elif not status.available:
        finding = f"{status.path} can't be opened; the network namespace itself is locked instead"
        yield Check("lock", "ok", finding, "programs that take only the file's lock do not wait for istio-init")
    else:
        yield Check("lock", "ok", f"{status.path} is free", matters)


CHECKS: tuple[Callable[[Case], Iterator[Check]], ...] = (
    capabilities,
    pod_checks,
    seccomp,
    user_namespace,
    owners,
    backend,
    ebpf_checks,
    support_checks,
    loopback,
    ipv6,
    forwarding,
    tproxy_sysctls,
    resolv_conf,
    proxy_user,
    identity,
    lock,
    leftovers,
    shadows,
)
