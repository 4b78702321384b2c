"""Collects facts about this machine, this process and this network namespace before an apply; changes nothing.

No legacy table is asked for that does not exist already, no file is made; the lock, where it is free, is tried for
a moment. Asking about an extension may load its kernel module, as the apply itself would.
"""

from __future__ import annotations

import glob
import os
from typing import TYPE_CHECKING

from istio_init.errors import InitError, KernelError
from istio_init.errors_rare import Locked
from istio_init.kernel.host import accounts, denial, resolv_conf
from istio_init.kernel.host.accounts import HIGHEST_ID
from istio_init.kernel.host.lock import DEFAULT_PATH, XtablesLock, namespace_lock
from istio_init.kernel.netlink.channel import attribute, attributes
from istio_init.kernel.netlink.nfnetlink import (
    CHAIN_NAME,
    FAMILIES,
    HEAD,
    NFPROTO_INET,
    NFT_NAME,
    NfnetlinkChannel,
    name,
)
from istio_init.kernel.netlink.router import Rtnetlink
from istio_init.kernel.nft.compat import IptablesNft
from istio_init.kernel.nft.expressions import EXPRESSIONS
from istio_init.kernel.nft.native import Nftables
from istio_init.kernel.probe import detection
from istio_init.kernel.probe.rehearsal import loopback_up, rehearse
from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.kernel.xtables.table_names import existing_tables
from istio_init.model.inet import NAMES
from istio_init.model.rules import BUILTIN_CHAINS, Ruleset
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from istio_init.kernel import Firewall
    from istio_init.kernel.probe.rehearsal import Trial
    from istio_init.model.routing import Address, PolicyRule, Route, RoutingEntry
    from istio_init.model.rules import Network

_CHAIN_HOOK, _CHAIN_TYPE = 4, 7  # NFTA_CHAIN_*
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2  # NFTA_HOOK_*
_HOOKS = {0: "prerouting", 3: "output"}
_FAMILY_NAMES = {NFPROTO_INET: "inet", **{number: {"ipv4": "ip", "ipv6": "ip6"}[f] for f, number in FAMILIES.items()}}
# Names of the nftables expressions that change the destination, as they are in a rule's attributes.
_TRANSLATIONS = tuple(attribute(1, each + b"\0") for each in (b"nat", b"redir", b"tproxy"))

SYSCTLS = (
    "net/ipv4/conf/*/src_valid_mark",
    "net/ipv4/conf/*/accept_local",
    "net/ipv4/tcp_fwmark_accept",
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/*/disable_ipv6",
)


class Credentials(Record):
    """This process: its ids and capabilities.

    `effective` and `bounding` are capability sets (bits of <linux/capability.h>), `seccomp` is prctl(2)'s mode (2: a
    filter). `owner` is whether its capabilities apply to the network namespace, None if unknown. `uids`
    and `gids` are the ids that the user namespace has, as ranges of first and last.
    """

    uid: int
    effective: int
    bounding: int
    seccomp: int = 0
    first_user_namespace: bool = True
    owner: bool | None = True
    uids: tuple[tuple[int, int], ...] = ((0, HIGHEST_ID),)
    gids: tuple[tuple[int, int], ...] = ((0, HIGHEST_ID),)


class InstalledRules(Record):
    """The rules in a backend's tables, or `why` they could not be read."""

    backend: str
    rulesets: tuple[Ruleset, ...]
    why: str = ""


class ForeignTable(Record):
    """Another program's nftables table with base chains of type nat, and how many of its rules change destinations."""

    family: str
    table: str
    chains: tuple[str, ...]
    translations: int


class LockStatus(Record):
    """The xtables lock: its path, whether its file can be opened, and who holds it, empty if it is free."""

    path: str
    available: bool
    held: str = ""


class Resolver(Record):
    """resolv.conf: its servers, what is wrong with its lines, and why it could not be read."""

    servers: tuple[Network, ...] = ()
    complaints: tuple[str, ...] = ()
    why: str = ""


class Machine(Record):
    """All facts. `sysctls` are by their paths below /proc/sys.

    `scratch` is why trials could not be made in a namespace of their own, empty where they were. `proxy_user` is the
    uid of the proxy's user by name, None if there is no such user.
    """

    process: Credentials
    sysctls: Mapping[str, int]
    loopback_up: bool
    addresses: tuple[Address, ...]
    routing: tuple[RoutingEntry, ...]
    installed: tuple[InstalledRules, ...]
    foreign_tables: tuple[ForeignTable, ...]
    trials: tuple[Trial, ...]
    scratch: str
    lock: LockStatus
    resolver: Resolver
    proxy_user: int | None


class FactsRequest(Record):
    """What to collect facts about: rules and routing to try, rules that may exist, the lock, the proxy's user."""

    rulesets: tuple[Ruleset, ...]
    routing: tuple[PolicyRule | Route, ...]
    expected: tuple[Ruleset, ...]
    lock: str
    namespace_lock: bool
    proxy_user: str


def collect(wishes: FactsRequest) -> Machine:
    """The facts of the calling thread's network namespace. KernelError if rtnetlink does not answer."""
    process = _process()
    trials, scratch = rehearse(wishes.rulesets, wishes.routing, may_ask=bool(process.effective >> 12 & 1))
    router = Rtnetlink()
    return Machine(
        process,
        dict(_sysctls()),
        loopback_up(),
        router.addresses(),
        router.read(),
        tuple(_installed(wishes.expected)),
        tuple(_foreign_tables()),
        trials,
        scratch,
        _lock(wishes),
        _resolver(),
        accounts.user_id(wishes.proxy_user),
    )


def _process() -> Credentials:
    try:
        with open("/proc/thread-self/status", encoding="utf-8", errors="replace") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except OSError as error:
        raise KernelError(
            f"/proc/thread-self/status: {error.strerror}: needs Linux, with /proc mounted", error.errno or 0
        ) from error
    uids, gids = denial.mapped("uid"), denial.mapped("gid")
    return Credentials(
        os.geteuid(), int(status["CapEff"], 16), int(status["CapBnd"], 16), int(status.get("Seccomp", "0")),
        uids == ((0, HIGHEST_ID),), denial.owns_network_namespace(), uids, gids,
    )  # fmt: skip


def _sysctls(patterns: tuple[str, ...] = SYSCTLS) -> Iterator[tuple[str, int]]:
    """The sysctls that can be read, of the calling thread's network namespace."""
    for pattern in patterns:
        for path in glob.glob(f"/proc/sys/{pattern}"):
            try:
                with open(path, encoding="utf-8") as file:
                    yield path.removeprefix("/proc/sys/"), int(file.read())
            except (OSError, ValueError):
                continue


def foreign_tables() -> tuple[ForeignTable, ...]:
    """Other programs' nftables tables that translate destinations, in the calling thread's namespace."""
    return tuple(_foreign_tables())


def sysctls() -> dict[str, int]:
    """The settings that matter to capture, by their paths below /proc/sys, in the calling thread's namespace."""
    return dict(_sysctls())


def switched_on(name: str) -> tuple[str, ...]:
    """The interfaces of the calling thread's namespace for which a switch of net.ipv4.conf is on.

    Those on which it is, or all of them where it is on for `all` (IN_DEV_ORCONF in <linux/inetdevice.h>).
    """
    values = {path.split("/")[-2]: value for path, value in _sysctls((f"net/ipv4/conf/*/{name}",))}
    return tuple(
        each for each in sorted(values) if each not in {"all", "default"} and (values[each] or values.get("all"))
    )


def _installed(expected: tuple[Ruleset, ...]) -> Iterator[InstalledRules]:
    tables = detection.tables()
    unknown = [family for family in FAMILIES if existing_tables(family) is None]
    if unknown:
        # Reading would query every table, and so create it.
        yield InstalledRules(
            "legacy", (), "only root, or a process with DAC_OVERRIDE, may know which legacy tables there are"
        )
    elif tables.legacy:
        yield _read("legacy", Libiptc(), expected)
    if tables.nft:
        yield _read("nft", IptablesNft(), expected)
    if tables.native:
        yield _read("native", Nftables(), expected)


def _read(backend: str, firewall: Firewall, expected: tuple[Ruleset, ...]) -> InstalledRules:
    hopes = {ruleset.family: ruleset for ruleset in expected}
    try:
        return InstalledRules(backend, tuple(firewall.read(family, hopes.get(family)) for family in FAMILIES))
    except InitError as error:
        return InstalledRules(backend, (), str(error))


def _foreign_tables() -> Iterator[ForeignTable]:
    own = {(NFPROTO_INET, table) for table in NAMES.values()}
    managed = own | {(number, table) for number in FAMILIES.values() for table in BUILTIN_CHAINS}
    try:
        with NfnetlinkChannel() as channel:
            for number, table in channel.tables():
                if number not in _FAMILY_NAMES or (number, table) in managed:
                    continue
                chains = tuple(_nat_chains(channel, number, table))
                rules = (attributes(each[HEAD.size :]).get(EXPRESSIONS, b"") for each in channel.rules(number, table))
                count = sum(any(each in rule for each in _TRANSLATIONS) for rule in rules)
                if chains and count:
                    yield ForeignTable(_FAMILY_NAMES[number], table, chains, count)
    except KernelError:
        return  # no nftables, or no permission: the trials report it


def _nat_chains(channel: NfnetlinkChannel, family: int, table: str) -> Iterator[str]:
    """A table's base chains of type nat at the hooks that Istio's are at, each with its hook and priority."""
    for data in channel.chains(family):
        chain = attributes(data[HEAD.size :])
        if name(chain[NFT_NAME]) == table and name(chain.get(_CHAIN_TYPE, b"")) == "nat":
            hook = attributes(chain[_CHAIN_HOOK])
            number = int.from_bytes(hook[_HOOK_NUMBER])
            if number in _HOOKS:
                priority = int.from_bytes(hook[_HOOK_PRIORITY], signed=True)
                yield f"{name(chain[CHAIN_NAME])} (hook {_HOOKS[number]}, priority {priority})"


def _lock(wishes: FactsRequest) -> LockStatus:
    path = namespace_lock() if wishes.namespace_lock else wishes.lock or DEFAULT_PATH
    if not os.path.lexists(path):  # to look further would create it
        return LockStatus(path, _can_be_created(path))
    try:
        with XtablesLock(0, wishes.lock, namespace=wishes.namespace_lock):
            return LockStatus(path, os.access(path, os.R_OK))
    except Locked as error:
        return LockStatus(
            path, available=True, held=str(error).partition(": held by ")[2].partition(" for more than")[0]
        )
    except InitError:
        return LockStatus(path, available=False)


def _can_be_created(path: str) -> bool:
    """Whether a file could be created, with the directories above it that do not exist."""
    directory = os.path.dirname(path) or "."
    while not os.path.lexists(directory):
        directory = os.path.dirname(directory)
    return os.access(directory, os.W_OK)


def _resolver() -> Resolver:
    try:
        return Resolver(*resolv_conf.nameservers())
    except KernelError as error:
        return Resolver(why=str(error))
