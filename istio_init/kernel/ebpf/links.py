"""A pinned link: whether its program is still attached, and how it is removed for good."""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init.kernel.ebpf import pins, syscall


def is_attached(path: str) -> bool:
    """Whether a link to a cgroup is pinned at a path and not detached; root can detach one and leave its pin."""
    try:
        link = syscall.pinned(path)
    except FileNotFoundError:
        return False
    try:
        return syscall.link_cgroup(link) != 0
    finally:
        os.close(link)


def release(path: str) -> None:
    """Detach what is pinned at a path, and remove the pin; the order tells the agent that this is intended.

    Without the first step, the agent's descriptor (holder.py) would keep the program attached.
    """
    try:
        link = syscall.pinned(path)
    except FileNotFoundError:
        return
    try:
        syscall.detach_link(link)
    finally:
        os.close(link)
    pins.unlink(path)
