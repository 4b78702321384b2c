"""Why something is forbidden to the calling thread, in words: a capability, a user namespace, a seccomp filter.

Imported where something has failed, and only then.
"""

from __future__ import annotations

import errno
import posix as os  # built in: the error that is explained may be that no file can be opened

from istio_init.kernel.host.netns import GET_USERNS, OWN, OWN_USER
from istio_init.model.rules import Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.model.rules import Rule

# Bits of a capability set, from <linux/capability.h>.
_CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13}
_FILTERED = 2  # prctl(2): SECCOMP_MODE_FILTER


def explain_permission(*needed: str) -> str:
    """Why the kernel says EPERM to what needs these capabilities, and what to do."""
    effective = int(_status("CapEff") or "0", 16)
    names = " and ".join(needed)
    if missing := [name for name in needed if not effective >> _CAPABILITIES[name] & 1]:
        kind = "capability" if len(needed) == 1 else "capabilities"
        return f"{' and '.join(missing)} missing: run with the {kind} {names}"
    held = f"{names} {'is' if len(needed) == 1 else 'are'} there"
    counts = owns_network_namespace()
    filtered = _status("Seccomp") == str(_FILTERED)
    if counts is False or (counts is None and not filtered):
        return (
            f"{held}, but not for the user namespace that this network namespace belongs to: run in the user namespace "
            "that made it, or one above"
        )
    return f"{held}, but {filter_or_module()}"


def filter_or_module() -> str:
    """What forbids something that takes no capability, and what to do."""
    if _status("Seccomp") == str(_FILTERED):
        return (
            "a seccomp filter is in force and may forbid this: allow the call in its profile, or go without "
            "(securityContext: {seccompProfile: {type: Unconfined}})"
        )
    return "a sandbox or a security module (SELinux, AppArmor) may forbid this: see its log"


def explain_socket(number: int, lacking: str) -> str:
    """Why there is no socket of a kind that takes no capability, by the error's number, and what to do.

    `lacking` is what to say where the kernel knows no such socket.
    """
    if number in {errno.EPERM, errno.EACCES}:
        return filter_or_module()
    # Filters may answer what a kernel without it would.
    return f"{lacking}; or {filter_or_module()}" if _status("Seccomp") == str(_FILTERED) else lacking


def owns_network_namespace() -> bool | None:
    """Whether the network namespace belongs to our user namespace or one below it, where our capabilities count.

    None if that is unknown.
    """
    try:
        _owner_inode()
    except OSError as error:
        # ioctl_ns(2): EPERM is a namespace outside of this process's. Others are an old kernel's or a sandbox'.
        return False if error.errno == errno.EPERM else None
    return True


def explain_owners(rules: Iterable[Rule]) -> str:
    """Why the kernel says EINVAL to the rules with -m owner among these; empty where it has no reason to.

    It takes them from the user namespace that the network namespace belongs to, with ids that are mapped there
    (xt_owner.c, owner_check).
    """
    owners = [match for rule in rules for match in rule.matches if isinstance(match, Owner)]
    if not owners:
        return ""
    try:
        foreign = _owner_inode() != os.stat(OWN_USER).st_ino
    except OSError:
        foreign = False
    if foreign:
        return (
            "the kernel takes rules with -m owner only from the user namespace that this network namespace belongs to "
            "(a pod's with hostUsers: false): --network-namespace /proc/self/ns/net goes there"
        )
    ids = {(each.kind, number) for each in owners for number in (each.low, each.high)}
    missing = [f"{kind} {number}" for kind, number in sorted(ids, reverse=True) if not _is_mapped(kind, number)]
    if not missing:
        return ""
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{' and '.join(missing)} {verb} not mapped in the user namespace that this network namespace belongs to: "
        "name others with -u, -g and the owner groups, or give the pod more ids"
    )


def _owner_inode() -> int:
    """The number of the user namespace that the calling thread's network namespace belongs to."""
    import fcntl

    own = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(own, GET_USERNS)
    finally:
        os.close(own)
    try:
        return os.fstat(owner).st_ino
    finally:
        os.close(owner)


def _is_mapped(kind: str, number: int) -> bool:
    return any(first <= number <= last for first, last in mapped(kind))


def mapped(kind: str) -> tuple[tuple[int, int], ...]:
    """The ids (uid, gid) that the calling thread's user namespace has, as ranges of first and last."""
    # user_namespaces(7): first inside, first outside, how many.
    with open(f"/proc/thread-self/{kind}_map", encoding="utf-8") as file:
        extents = [[int(word) for word in line.split()] for line in file]
    return tuple((first, first + count - 1) for first, _, count in extents)


def _status(field: str) -> str:
    """A field of proc(5)'s status; empty where there is no such."""
    with open("/proc/thread-self/status", encoding="utf-8", errors="replace") as file:
        return next((line.split()[1] for line in file if line.startswith(f"{field}:")), "")
