"""Results of the rehearsal: each table, match, target and routing entry, in each backend and family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.inspect.doctor.case import Check
from istio_init.kernel.xtables.refusal import module
from istio_init.kernel.xtables.required_modules import extensions
from istio_init.model.routing import command
from istio_init.model.rules import IPV6

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.inspect.doctor.case import Case
    from istio_init.kernel.probe.rehearsal import Trial

# Below /proc/sys; it exists where the kernel has IPv6, also with `net.ipv6.conf.all.disable_ipv6`.
DISABLE_IPV6 = "net/ipv6/conf/lo/disable_ipv6"
# The flag that needs each of these; everything else is always needed.
TPROXY = "-m TPROXY"
FLAGS = {
    "raw": "--redirect-dns",
    "CT": "--redirect-dns (conntrack zones)",
    "multiport": "--redirect-dns",
    "udp": "--redirect-dns, -o",
    "mangle": f"{TPROXY}, --drop-invalid",
    "conntrack": f"{TPROXY}, --drop-invalid",
    "TPROXY": TPROXY,
    "mark": TPROXY,
    "connmark": TPROXY,
    "MARK": TPROXY,
    "CONNMARK": TPROXY,
}
BACKENDS = {
    "legacy": "--force-iptables-binary legacy",
    "nft": "--force-iptables-binary nft",
    "native": "--native-nftables",
    "routing": TPROXY,
}
# The modules of native nftables beside nf_tables itself.
NATIVE_MODULES = {
    "nat": "nft_chain_nat", "REDIRECT": "nft_redir", "TPROXY": "nft_tproxy", "CT": "nft_ct", "conntrack": "nft_ct",
    "connmark": "nft_ct", "CONNMARK": "nft_ct",
}  # fmt: skip


def support_checks(case: Case) -> Iterator[Check]:
    """A check for each trial; a trial that was not run and is not needed is left out.

    A kernel without IPv6 is reported once (checks.ipv6), not for each of its extensions.
    """
    yield _where(case)
    absent = None if DISABLE_IPV6 in case.machine.sysctls else IPV6
    for trial in case.machine.trials:
        if trial.family == absent:
            continue
        needed = _is_needed(case, trial)
        name, group = f"{trial.kind} {trial.name}", f"{trial.backend} {trial.family}"
        matters = _matters(trial, needed=needed)
        if trial.works:
            yield Check(f"{group}: {name}", "ok", "works", matters, group=group)
        elif trial.works is False:
            yield Check(f"{group}: {name}", "fail" if needed else "warn", trial.why, matters, _remedy(trial), group)
        elif needed:
            why = trial.why or "querying it would create it"
            yield Check(f"{group}: {name}", "warn", f"not known: {why}", matters, _remedy(trial), group)


def _where(case: Case) -> Check:
    if not case.machine.scratch:
        return Check("rehearsal", "ok", "tested in a temporary network namespace")
    return Check(
        "rehearsal",
        "warn",
        case.machine.scratch,
        "only checks without side effects were run; an apply does not need the rehearsal",
        "run the doctor as root outside the pod, or allow user namespaces (user.max_user_namespaces, seccomp)",
    )


def _is_needed(case: Case, trial: Trial) -> bool:
    """Whether an apply of the plan uses the subject of this trial."""
    if trial.kind == "entry":
        return any(command(entry) == trial.name for entry in case.plan.routing)
    ruleset = case.plan.ruleset(trial.family)
    if ruleset is None or trial.backend != case.backend:
        return False
    if trial.kind == "table":
        return any(table.name == trial.name for table in ruleset.tables)
    rules = (rule for table in ruleset.tables for chain in table.chains for rule in chain.rules)
    used = {(kind, name) for rule in rules for kind, name, _ in extensions(rule, trial.family)}
    return (trial.kind, trial.name) in used


def _matters(trial: Trial, *, needed: bool) -> str:
    flag = FLAGS.get(trial.name, TPROXY if trial.kind == "entry" else "")
    if needed:
        return f"needed for {flag or 'every plan'}"
    where = [BACKENDS[trial.backend], *(["--enable-ipv6"] if trial.family == "ipv6" else []), *([flag] if flag else [])]
    return f"only for {' with '.join(dict.fromkeys(where))}"


def _remedy(trial: Trial) -> str:
    prefix = "iptable" if trial.family == "ipv4" else "ip6table"
    match trial.backend, trial.kind:
        case "routing", _:
            return "a kernel with CONFIG_IP_MULTIPLE_TABLES" + (" and IPv6" if trial.family == "ipv6" else "")
        case "legacy", "table":
            return f"on the node: modprobe {prefix}_{trial.name}; without such a module: --native-nftables"
        case "legacy", _:
            return f"on the node: modprobe {module(trial.name)}"
        case "nft", "table":
            return "on the node: modprobe -a nf_tables nft_compat nft_chain_nat"
        case "nft", _:
            return f"on the node: modprobe -a nft_compat {module(trial.name)}"
        case _:
            return f"on the node: modprobe {NATIVE_MODULES.get(trial.name, 'nf_tables')}"
